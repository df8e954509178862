"""Batched Cholesky with reported damping, proved positive semidefiniteness, a bound of the spectral norm."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from optprune.errors import InvalidInputError, NotPositiveDefiniteError
from optprune.numerics.checks import require_finite
from optprune.numerics.rounding import UNIT, gamma, power_of_two_below

LADDER = (0.0, 1e-12, 1e-10, 1e-8, 1e-6, 1e-4)
"""Dampings that `factorize` tries, in this order, on the elements that the asked damping leaves singular."""

ADVICE = "Check the data that it was made from."


def damped(gram: Float[Tensor, "*batch d d"], damping: float | Float[Tensor, "*batch"]) -> Float[Tensor, "*batch d d"]:
    r"""$G + \delta\,\bar g\,I$ with $\bar g$ the mean of the diagonal of $G$.

    Relative to the mean diagonal, the same $\delta$ means the same at every scale of the inputs.

    Args:
        gram: $G$.
        damping: $\delta \ge 0$; one number, or one per batch element.
    """
    result = gram.clone()
    diagonal = result.diagonal(dim1=-2, dim2=-1)
    shift = torch.as_tensor(damping, dtype=gram.dtype, device=gram.device) * diagonal.mean(-1)
    diagonal += shift.unsqueeze(-1)
    return result


@dataclass(frozen=True, eq=False)
class Factor:
    r"""The Cholesky factor of $G + \delta\,\bar g\,I$, and the $\delta$ that it took.

    Attributes:
        factor: $L$, lower triangular, with $L L^\top = G + \delta\,\bar g\,I$.
        damping: $\delta$ per batch element, in float64.
    """

    factor: Float[Tensor, "*batch d d"]
    damping: Float[Tensor, "*batch"]

    def solve(self, rhs: Float[Tensor, "*batch d k"]) -> Float[Tensor, "*batch d k"]:
        r"""$(G + \delta\,\bar g\,I)^{-1} B$ for the columns of $B$."""
        return torch.cholesky_solve(rhs, self.factor)

    def inverse(self) -> Float[Tensor, "*batch d d"]:
        r"""$(G + \delta\,\bar g\,I)^{-1}$, symmetric to the last bit."""
        inverse = torch.cholesky_inverse(self.factor)
        return (inverse + inverse.mT).mul_(0.5)


def cholesky(matrix: Float[Tensor, "*batch d d"], *, what: str = "matrix") -> Float[Tensor, "*batch d d"]:
    r"""The lower triangular $L$ with $L L^\top = A$, for symmetric $A$ that is numerically positive definite.

    A pivot counts as positive when $L_{ii}^2 > d\,\varepsilon\,A_{ii}$: below that it is rounding error, and
    whatever is solved with it is noise.

    Args:
        matrix: $A$; only its lower triangle is read.
        what: The name of the matrix in the error message.

    Raises:
        NonFiniteError: $A$ holds NaN or infinity.
        NotPositiveDefiniteError: names the batch element and the order of the first failing leading minor.
    """
    require_finite(what, matrix, ADVICE)
    factor, minor = try_cholesky(matrix)
    if bool((minor > 0).any()):
        raise NotPositiveDefiniteError(_singular_message(matrix, minor, what))
    return factor


def factorize(
    gram: Float[Tensor, "*batch d d"],
    damping: float = 0.0,
    ladder: Sequence[float] = LADDER,
    *,
    what: str = "Gram matrix",
) -> Factor:
    r"""Cholesky factor of $G + \delta\,\bar g\,I$ with the smallest workable $\delta$, reported.

    Every element is tried with the asked damping; those that are not numerically positive definite (see
    `cholesky`) climb the rungs above it, alone.

    Args:
        gram: $G$, symmetric.
        damping: The $\delta$ asked for, relative to the mean diagonal.
        ladder: Rungs to climb; an empty one makes the asked damping the only one.
        what: The name of the matrix in an error message.

    Raises:
        InvalidInputError: a damping is negative or not finite.
        NonFiniteError: $G$ holds NaN or infinity.
        NotPositiveDefiniteError: the last rung failed; names the batch element.
    """
    if not all(0 <= value < float("inf") for value in (damping, *ladder)):
        raise InvalidInputError(
            f"damping {damping} with the ladder {tuple(ladder)} was given; dampings are finite numbers >= 0."
        )
    require_finite(what, gram, ADVICE)
    size, batch = gram.shape[-1], gram.shape[:-2]
    flat = gram.reshape(batch.numel(), size, size)
    factor, minor = try_cholesky(damped(flat, damping) if damping else flat)
    used = torch.full(flat.shape[:1], damping, dtype=torch.float64, device=gram.device)
    for rung in sorted(value for value in ladder if value > damping):
        failed = (minor > 0).nonzero().squeeze(-1)
        if not len(failed):
            break
        factor[failed], minor[failed] = try_cholesky(damped(flat[failed], rung))
        used[failed] = rung
    minor = minor.reshape(batch)
    if bool((minor > 0).any()):
        raise NotPositiveDefiniteError(_singular_message(gram, minor, what, float(used.max())))
    return Factor(factor.reshape(gram.shape), used.reshape(batch))


def is_positive_semidefinite_certified(
    matrix: Float[Tensor, "*batch d d"], margin: float | Float[Tensor, "*batch"] = 0.0
) -> Bool[Tensor, "*batch"]:
    r"""True only where $A \succeq m I$ is proved in floating point; False says nothing.

    Let $B$ be the stored $\mathrm{fl}(A - sI)$ with $s = m + 2(d+3)\,u\operatorname{tr}|A|$, and $L$ the
    stored Cholesky factor of $B$. Since $L L^\top \succeq 0$ whatever routine computed $L$,
    $$\lambda_{\min}(A) \ge s - u \max_i |b_{ii}| - \|B - L L^\top\|_2,$$
    where the second term bounds the rounding of the diagonal, and
    $$\|B - L L^\top\|_2 \le \|\mathrm{fl}(B - \mathrm{fl}(L L^\top))\|_F (1 + 4u) + \gamma_{d+1} \|L\|_F^2$$
    because the error of the product is entrywise below $\gamma_d |L||L|^\top$, whose 2-norm is at most
    $\gamma_d \|L\|_F^2$. The answer is True when the right-hand side, rounded outwards, is at least $m$. In
    exact arithmetic $\|L\|_F^2 = \operatorname{tr} B$ and a backward stable factorisation leaves a residual
    of at most $\gamma_{d+1} \operatorname{tr} B / (1 - \gamma_{d+1})$, hence the size of the shift: a matrix
    with $\lambda_{\min}(A) > m + 4(d+3)\,u\operatorname{tr}|A|$ passes.

    Args:
        matrix: $A$; when it is not exactly symmetric the claim is about $(A + A^\top)/2$.
        margin: $m$, an absolute number per batch element.

    Guarantees:
        A product evaluated in IEEE float64 in any order, with or without fused multiply-add, is all that is
        assumed.

    References:
        Rump, Verification of positive definiteness, BIT 46 (2006): the same idea with the a-priori bound of
        the factorisation (Higham, Accuracy and Stability, 2nd ed., Thm 10.3), which we replace by the
        measured residual so that nothing is assumed of the library's Cholesky. Products: Higham eq. (3.13).
    """
    size, batch = matrix.shape[-1], matrix.shape[:-2]
    bound = torch.as_tensor(margin, dtype=torch.float64, device=matrix.device).expand(batch)
    if matrix.numel() == 0:
        return torch.ones(batch, dtype=torch.bool, device=matrix.device)
    usable = matrix.isfinite().all(-1).all(-1) & bound.isfinite()
    exact = torch.where(usable[..., None, None], matrix.to(torch.float64), 0)
    # A power of two changes no digit and keeps squares clear of underflow; a zero matrix is left as it is.
    scale = power_of_two_below(exact.diagonal(dim1=-2, dim2=-1).abs().amax(-1))
    exact = exact / scale[..., None, None]
    bound = torch.where(usable, bound, 0) / scale
    trace = exact.diagonal(dim1=-2, dim2=-1).abs().sum(-1)
    shift = bound + 2 * (size + 3) * UNIT * trace
    shifted = exact.clone()
    shifted.diagonal(dim1=-2, dim2=-1).sub_(shift.unsqueeze(-1))
    factor, info = torch.linalg.cholesky_ex(shifted)
    factor = factor.tril()
    residual = torch.linalg.matrix_norm(shifted - factor @ factor.mT)
    largest = shifted.diagonal(dim1=-2, dim2=-1).abs().amax(-1)
    lost = UNIT * largest + residual * (1 + 4 * UNIT) + gamma(size + 1) * factor.square().sum((-2, -1))
    # The norms and this line round too: (d^2 + 9) relative roundings of positive terms, and two of the
    # difference.
    lost = lost * (1 + 2 * gamma(size * size + 9)) + 4 * UNIT * (shift.abs() + bound.abs())
    definite = usable & (info == 0) & (shift - bound >= lost)
    # The zero matrix is positive semidefinite and has no positive pivot.
    return definite | (usable & (bound <= 0) & (exact == 0).all(-1).all(-1))


def binary_scale(diagonal: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    r"""Powers of two $s$ with $s^2 h$ in $[1/2, 2]$ for each $h > 0$, and 1 elsewhere: scaling by them is exact."""
    positive = diagonal > 0
    exponent = -torch.where(positive, diagonal, 1.0).to(torch.float64).log2().div(2).round().long()
    return (exponent + 1023).bitwise_left_shift(52).view(torch.float64)


def diagonal_blocks(matrix: Shaped[Tensor, "*rows in in"], size: int) -> Shaped[Tensor, "*rows groups size size"]:
    """The diagonal blocks of matrices, as a view."""
    *lead, a, b = matrix.stride()
    groups = matrix.shape[-1] // size
    return matrix.as_strided(
        (*matrix.shape[:-2], groups, size, size), (*lead, (a + b) * size, a, b), matrix.storage_offset()
    )


def spectral_norm(matrix: Float[Tensor, "*batch m n"]) -> Float[Tensor, "*batch"]:
    r"""An upper bound of $\|A\|_2$, tight to about $d^2 u$, computed and proved in float64.

    With $G = \mathrm{fl}(A^\top A)$ on the smaller side, $\|A\|_2^2 \le t$ is proved by
    `is_positive_semidefinite_certified` for $tI - G$ with the rounding of $G$ as margin. The candidates are
    the largest computed eigenvalue, inflated a little and then more; $\|A\|_F^2$ is the last one and needs no
    proof.

    Args:
        matrix: $A$.

    Raises:
        NonFiniteError: $A$ holds NaN or infinity.
    """
    require_finite("matrix", matrix, ADVICE)
    if matrix.numel() == 0:
        return torch.zeros(matrix.shape[:-2], dtype=torch.float64, device=matrix.device)
    wide = matrix.to(torch.float64)
    scale = power_of_two_below(wide.abs().amax((-2, -1)))
    wide = wide / scale[..., None, None]
    if wide.shape[-2] < wide.shape[-1]:
        wide = wide.mT
    tall, size = wide.shape[-2:]
    energy = wide.square().sum((-2, -1)) * (1 + 2 * gamma(tall * size + 2))
    gram = wide.mT @ wide
    gram = (gram + gram.mT) / 2
    # |fl(A^T A) - A^T A| <= gamma |A|^T |A| entrywise, whose 2-norm is at most gamma ||A||_F^2; one more for
    # the mean.
    formed = gamma(tall + 2) * energy
    largest = torch.linalg.eigvalsh(gram).amax(-1).clamp(min=0)
    bound, proved = energy, torch.zeros_like(energy, dtype=torch.bool)
    for generosity in (1, 16, 256):
        slack = 2 * formed + 8 * generosity * size * (size + 3) * UNIT * largest
        candidate = torch.minimum(largest + slack, energy)
        gap = -gram
        gap.diagonal(dim1=-2, dim2=-1).add_(candidate.unsqueeze(-1))
        # Forming the difference rounds its diagonal once.
        margin = formed + UNIT * gap.diagonal(dim1=-2, dim2=-1).abs().amax(-1)
        holds = is_positive_semidefinite_certified(gap, margin * (1 + 4 * UNIT)) & ~proved
        bound = torch.where(holds, candidate, bound)
        proved |= holds
        if bool(proved.all()):
            break
    return bound.sqrt() * (1 + 4 * UNIT) * scale


def try_cholesky(matrix: Float[Tensor, "*batch d d"]) -> tuple[Float[Tensor, "*batch d d"], Tensor]:
    """A factor, and per element the order of the first leading minor not safely positive (0: none)."""
    factor, info = torch.linalg.cholesky_ex(matrix)
    size, eps = matrix.shape[-1], torch.finfo(matrix.dtype).eps
    floor = size * eps * matrix.diagonal(dim1=-2, dim2=-1)
    weak = ~(factor.diagonal(dim1=-2, dim2=-1).square() > floor)
    first = weak.int().argmax(-1) + 1 if size else torch.zeros_like(info)
    return factor, torch.where(info > 0, info, torch.where(weak.any(-1), first, 0)).to(info.dtype)


def _singular_message(matrix: Tensor, minor: Tensor, what: str, damping: float = 0.0) -> str:
    failed = (minor > 0).nonzero()
    element = tuple(failed[0].tolist())
    order = int(minor[element])
    diagonal = matrix[element].diagonal()
    where = f"element {element} of the batch ({len(failed)} of {minor.numel()} fail): " if element else ""
    tried = f" even with damping {damping:g}" if damping else ""
    return (
        f"The {what} of size {matrix.shape[-1]} is not positive definite in {matrix.dtype}{tried}: "
        f"{where}the leading minor of order {order} fails, where the diagonal is "
        f"{float(diagonal[order - 1]):.3g} and the whole diagonal lies in [{float(diagonal.min()):.3g}, "
        f"{float(diagonal.max()):.3g}]. Dead or duplicated inputs and fewer samples than inputs cause this: "
        "give more samples, a larger damping, or drop those inputs."
    )
