"""The minorant-split lower bound in rational arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from optprune.bounds._theorem import theorem
from optprune.numerics.dyadic import BITS, Dyadic, Enclosure
from optprune.numerics.rounding import UNIT, power_of_two_below
from optprune.patterns import Pattern
from optprune.problems.least_squares import L0LeastSquares

GRID = 2.0**52

NONE = Dyadic(np.array(0, dtype=object), 0)

MEMORY = 2**24
"""Bytes for the factors of the minorants that are proved together."""


@theorem("T03")
def exact_minorant_bound(
    problem: L0LeastSquares, minorant: Float[Tensor, "*out in"], point: Float[Tensor, "out in"]
) -> Enclosure:
    r"""The lower bound of `minorant_bound`, without rounding, with its hypothesis proved exactly.

    $$\max\Bigl(0, \; \tfrac12 \Bigl(\sum_m E_m - \langle P, P A \rangle + \sum_{mj} t_{mj}
      - \max_{S \in \mathcal F} \sum_{(m,j) \in S} s_{mj}\Bigr)\Bigr)$$

    as there, for $P$ the stored difference of `point` and the dense weight. All terms but $s$ are exact; each $s_{mj}$,
    a quotient, is enclosed between neighbours of a grid, on which the selection is exact.

    Args:
        problem: a single problem; $H$ is its `gram` as stored.
        minorant: $\delta$, one for all rows or one per row. Where $H - \operatorname{diag} \delta_r \succeq 0$ is not
            proved the bound is 0.
        point: $V$, any matrix.

    Guarantees:
        T03.
    """
    zero = Enclosure.point(0)
    if not (bool((minorant > 0).any()) and proves_minorant_exactly(problem.gram, minorant)):
        return zero
    s, delta = problem.statistics, Dyadic.of(minorant.expand(problem.shape))
    step = Dyadic.of(point - s.reference)
    pa = step @ Dyadic.of(problem.gram) - step * delta
    return exactly_separated(problem, delta, step, pa, Dyadic.of(s.cross).mT - pa)


@theorem("T03")
def exactly_separated(
    problem: L0LeastSquares,
    delta: Dyadic,
    step: Dyadic,
    pa: Dyadic,
    g: Dyadic,
    charge: Dyadic = NONE,
    fixed: Dyadic = NONE,
) -> Enclosure:
    r"""The number of `separated`, without rounding; 0 where it is negative.

    Args:
        problem: $E$, $R$ and the pattern.
        delta: $\delta$.
        step: $P$.
        pa: $P A$.
        g: $g$.
        charge: $\tau$ per weight.
        fixed: $f$.

    Guarantees:
        T03.
    """
    live = delta.digits > 0
    if bool(((g.digits != 0) & ~live).any()):  # a weight that is free there would lower the objective without end
        return Enclosure.point(0)
    reference = Dyadic.of(problem.statistics.reference)
    pruned = delta * reference * reference + g * reference + g * reference
    constant = Dyadic.of(problem.statistics.energy).sum() - (step * pa).sum() + pruned.sum() + fixed
    most = _best(problem.pattern, g + delta * reference, delta, charge, problem.shape)
    twice = Enclosure.point(constant.item()) - most
    return Enclosure(twice.low / 2, twice.high / 2).clipped().shortened()


def exact_objective(problem: L0LeastSquares, matrix: Float[Tensor, "out in"]) -> Enclosure:
    """The objective, a rational number."""
    s = problem.statistics
    step = Dyadic.of(matrix) - Dyadic.of(s.reference)
    slope = step @ Dyadic.of(problem.gram) - Dyadic.of(s.cross).mT - Dyadic.of(s.cross).mT
    value = (step * slope).sum() + Dyadic.of(s.energy).sum()
    return Enclosure.point(value.item() / 2)


def _best(pattern: Pattern, shifted: Dyadic, delta: Dyadic, charge: Dyadic, shape: tuple[int, int]) -> Enclosure:
    r"""$\max_S \sum_S (a^2 / \delta + \tau)$ over the pattern's supports, $a^2 / \delta$ as 0 where $\delta = 0$."""
    squares = shifted * shifted
    parts = list(zip(squares.digits.ravel().tolist(), delta.digits.ravel().tolist(), strict=True))
    sizes = [n.bit_length() - d.bit_length() for n, d in parts if d and n]
    shift = BITS - max(sizes, default=0)  # quotients in units of 2^-BITS of the largest, or so
    low = np.array([_floor(n, d, shift) if d else 0 for n, d in parts], dtype=object)
    high = low + np.array([int(n > 0 and d > 0) for n, d in parts], dtype=object)
    order = pattern.units(torch.arange(shape[0] * shape[1]).reshape(shape)).numpy()
    kept = pattern.kept(shape)
    counts = kept.tolist() if isinstance(kept, Tensor) else [kept] * len(order)
    exponent = squares.exponent - delta.exponent - shift
    ends = (Dyadic(end.reshape(shape), exponent) + charge for end in (low, high))
    low_end, high_end = (_selected(Dyadic(end.digits.ravel()[order].sum(-1), end.exponent), counts) for end in ends)
    return Enclosure(low_end, high_end)


def _floor(numerator: int, denominator: int, shift: int) -> int:
    return (numerator << shift) // denominator if shift >= 0 else numerator // (denominator << -shift)


def _selected(totals: Dyadic, counts: list[int]) -> Fraction:
    """The sum of the `counts[b]` largest entries of every row b."""
    largest = -np.sort(-totals.digits, axis=-1)
    chosen = sum(int(row[:count].sum()) for row, count in zip(largest, counts, strict=True) if count)
    return Dyadic(np.array(chosen, dtype=object), totals.exponent).item()


@theorem("T03")
def proves_minorant_exactly(gram: Float[Tensor, "in in"], minorant: Float[Tensor, "*out in"]) -> bool:
    r"""Whether $H - \operatorname{diag}\delta_r \succeq 0$ is proved in rational arithmetic for every row $r$.

    With $D > 0$ diagonal, powers of two, and any float64 numbers $\sigma \ge 0$ and $L$,

    $$\lVert D (H - \operatorname{diag} \delta_r) D - \sigma I - L L^\top \rVert_F \le \sigma
      \quad\Longrightarrow\quad D (H - \operatorname{diag} \delta_r) D \succeq L L^\top \succeq 0 .$$

    The left-hand side is evaluated exactly; $L$ is torch's Cholesky factor, of which nothing is assumed. $H$ must be
    symmetric; dead inputs (zero rows of $H$) must have $\delta_j = 0$, live ones $\delta_j > 0$.

    Guarantees:
        T03, its hypothesis.
    """
    live = gram.diagonal() > 0
    several = minorant.reshape(-1, minorant.shape[-1]).unique(dim=0)
    wrong = (several < 0).any() | (several[:, ~live] > 0).any() | (several[:, live] <= 0).any()
    if bool(wrong | (gram[~live] != 0).any() | (gram != gram.mT).any()):
        return False
    h, delta = gram[live][:, live], several[:, live]
    scale = power_of_two_below(h.diagonal().rsqrt())
    if not bool(((scale > 0) & scale.isfinite()).all()):
        return False
    exact_scale = Dyadic.of(scale)
    exact = Dyadic.of(h) * exact_scale[:, None] * exact_scale[None, :]
    exact_delta = Dyadic.of(delta) * exact_scale * exact_scale
    diagonal = np.eye(len(h), dtype=int).astype(object)
    for index, found in enumerate(_witnesses(h * scale[:, None] * scale, delta * scale * scale)):
        if not witnessed(exact - Dyadic(diagonal, 0) * exact_delta[index], *found):
            return False
    return True


@theorem("T03")
def witnessed(matrix: Dyadic, shift: Float[Tensor, ""], factor: Float[Tensor, "in in"]) -> bool:
    r"""Whether $\lVert A - \sigma I - L L^\top \rVert_F \le \sigma$, exactly, so that $A \succeq 0$."""
    sigma, lower = Dyadic.of(shift), Dyadic.of(factor)
    rest = matrix - Dyadic(np.eye(len(factor), dtype=int).astype(object), 0) * sigma - lower @ lower.mT
    return (rest * rest).sum().item() <= sigma.item() ** 2


def _witnesses(h: Float[Tensor, "in in"], delta: Float[Tensor, "rows in"]) -> Iterator[tuple[Tensor, Tensor]]:
    r"""$\sigma$ and $L$ for each row, a chunk of rows at a time."""
    size = len(h)
    for part in delta.split(max(1, MEMORY // (16 * size**2))):
        rest = h.expand(len(part), size, size).clone()
        rest.diagonal(dim1=-2, dim2=-1).sub_(part)
        yield from zip(*witness(rest), strict=True)


def witness(rest: Float[Tensor, "rows in in"]) -> tuple[Float[Tensor, " rows"], Float[Tensor, "rows in in"]]:
    r"""$\sigma$ and $L$ for each matrix, overwritten; a few units in the last place of the trace are above what a
    factor is off by.
    """
    shift = 2 * (rest.shape[-1] + 3) * UNIT * rest.diagonal(dim1=-2, dim2=-1).abs().sum(-1)
    rest.diagonal(dim1=-2, dim2=-1).sub_(shift[:, None])
    factor, _ = torch.linalg.cholesky_ex(rest)
    # On a coarse grid, still far below the shift, the integers are short and the product is fast.
    short = ((factor.tril() * GRID).round() / GRID).nan_to_num(0.0, 0.0, 0.0)
    return shift.nan_to_num(0.0, 0.0), short
