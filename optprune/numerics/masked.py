"""Least squares for many rows at once, each on its own support, in bounded memory."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from optprune.errors import InvalidInputError, NotPositiveDefiniteError
from optprune.numerics.checks import require_finite
from optprune.numerics.conjugate import masked_conjugate_gradients
from optprune.numerics.linalg import damped, try_cholesky
from optprune.numerics.working_memory import working_memory

MAX_CONDITION = 1e6
r"""Largest $\kappa_1$ of the unit-diagonal Gram matrix for which the complement form is used.

Measured against refined solutions in extended precision, 40 to 200 inputs with eigenvalues spread evenly in the
exponent: the relative error of either form grows like $\kappa_1 u$, and up to here the complement's is at most four
times the direct one's; at 1e6 they agree to 2e-11.
"""

EASY_CONDITION = 3e4
r"""Largest $\kappa_1$ of the unit-diagonal Gram matrix for which conjugate gradients are tried."""

PRODUCT_RATE = 20.0
"""How many times as fast the operations of a product of large matrices are as those of small factorisations."""

STEPS_PER_DIGIT = 3
"""Conjugate gradients are not tried if so many steps for each digit of accuracy cost half of what factorising does."""


@dataclass(frozen=True, eq=False)
class MaskedSolution:
    """The weight, zero outside the mask, and which rows had no unique solution.

    Attributes:
        weight: The solution in float64.
        rank_deficient: Rows whose block is singular to working precision; they hold the minimiser of least norm (in
            the scale of unit-diagonal inputs).
        residual: The relative residual of rows solved by conjugate gradients; 0 for those solved by factorisation.
    """

    weight: Float[Tensor, "*batch d_out d_in"]
    rank_deficient: Bool[Tensor, "*batch d_out"]
    residual: Float[Tensor, "*batch d_out"]


def masked_least_squares(
    gram: Float[Tensor, "*batch d_in d_in"],
    rhs: Float[Tensor, "*batch d_out d_in"],
    mask: Bool[Tensor, "*batch d_out d_in"],
    *,
    damping: float = 0.0,
    start: Float[Tensor, "*batch d_out d_in"] | None = None,
    tolerance: float = 1e-10,
    memory: int | None = None,
) -> MaskedSolution:
    r"""Row $i$ minimises $\tfrac12 w^\top (G + \delta\,\bar g\,I) w - c_i^\top w$ over $w$ supported on `mask[i]`.

    The inputs are scaled to unit diagonal first, so that their units do not matter; an input with zero diagonal was
    zero in every sample and gets weight zero. Each distinct support is factorised once. A row is solved in the cheapest
    of three forms: directly, $G_{SS} w_S = c_S$; or, when less is pruned than kept, by correcting the dense optimum
    $w^0 = G^{-1} c$ on the pruned set $P$,
    $$w = w^0 - G^{-1}_{:,P} (G^{-1}_{PP})^{-1} w^0_P,$$
    only where $\kappa_1(G)$ is at most `MAX_CONDITION`, so that both agree to 1e-10; or, where $\kappa_1(G)$ is at most
    `EASY_CONDITION`, by conjugate gradients, unless that takes too many steps.

    A block whose Cholesky factorisation breaks down to working precision is solved by its eigen-decomposition instead,
    with eigenvalues below $d\,\varepsilon\,\lambda_{\max}$ left out, and its rows are reported.

    Args:
        gram: $G$, symmetric positive semidefinite.
        rhs: One right-hand side $c_i$ per row.
        mask: True where the weight may be nonzero; empty and full rows are allowed.
        damping: $\delta$, relative to the mean diagonal.
        start: a weight close to the solution, which saves steps of conjugate gradients.
        tolerance: relative residual at which they end. Its square, at most times the condition, is the excess of the
            objective, relative to what the weight gains over zero.
        memory: Bytes that the gathered blocks may take (but one block at least is held); see `working_memory`.

    Raises:
        InvalidInputError: `damping` is negative or not finite, or `memory` or `tolerance` not positive.
        NonFiniteError: an entry is NaN or infinite.
        NotPositiveDefiniteError: a diagonal entry of $G$ is negative.

    References:
        The complement form is the block-inverse identity behind Optimal Brain Surgeon (Hassibi & Stork 1993, eq. 5) for
        a set of weights; for rows with masks see Frantar & Singh 2023, eq. 2.
    """
    memory = working_memory(memory, gram.device)
    if not (0 <= damping < float("inf") and memory > 0 and tolerance > 0):
        raise InvalidInputError(
            f"damping={damping}, memory={memory}, tolerance={tolerance} were given; the damping is finite and >= 0, "
            "the others positive."
        )
    require_finite("Gram matrix", gram, "Check the activations that it was made from.")
    require_finite("right-hand side", rhs, "Check the weights and targets that it was made from.")
    d_out, d_in = rhs.shape[-2:]
    if rhs.numel() == 0:
        none = torch.zeros(rhs.shape[:-1], dtype=torch.float64, device=rhs.device)
        return MaskedSolution(rhs.to(torch.float64), none.bool(), none)
    wide = gram.to(torch.float64).reshape(-1, d_in, d_in)
    unit, scale = _unit_diagonal(damped(wide, damping) if damping else wide)
    columns = scale.unsqueeze(-2)
    scaled = rhs.to(torch.float64).reshape(-1, d_out, d_in) * columns
    support = mask.reshape(-1, d_out, d_in)
    if start is not None:  # a dead input has no scale, and weight zero
        start = torch.where(columns > 0, start.to(torch.float64).reshape(scaled.shape) / columns, 0.0)
    plan = _Plan.of(unit, support, tolerance)
    weight, residual, done = _by_iteration(unit, scaled, support, start, tolerance, plan)
    corrected, more = _by_complement(scaled, support, ~done, plan, memory)
    direct, deficient = _solve_supports(unit, scaled, support, ~(done | more), memory)
    weight = (weight + corrected + direct) * columns
    rows = rhs.shape[:-1]
    return MaskedSolution(weight.reshape(rhs.shape), deficient.reshape(rows), residual.reshape(rows))


def _unit_diagonal(
    gram: Float[Tensor, "b d d"],
) -> tuple[Float[Tensor, "b d d"], Float[Tensor, "b d"]]:
    r"""$S G S$ with unit diagonal, and the diagonal of $S$, zero for dead inputs (whose block becomes the identity)."""
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    if bool((diagonal < 0).any()):
        raise NotPositiveDefiniteError(
            f"The Gram matrix has {int((diagonal < 0).sum())} negative diagonal entries, the least "
            f"{float(diagonal.min()):.3g}. It is no Gram matrix: check how it was accumulated."
        )
    scale = torch.where(diagonal > 0, diagonal.rsqrt(), 0.0)
    unit = gram * scale.unsqueeze(-1) * scale.unsqueeze(-2)
    unit.diagonal(dim1=-2, dim2=-1).fill_(1.0)
    return unit, scale


@dataclass(frozen=True, eq=False)
class _Plan:
    r"""Which form each row should take if the condition allows it, and what is needed to know that.

    Attributes:
        steps: conjugate-gradient steps that cost half of what factorising the blocks of a batch element does.
        promising: the batch elements whose rows conjugate gradients may solve in so many steps.
        swapped: rows whose pruned side is the cheaper one to solve.
        element: the batch elements whose condition was looked at, because a form other than the direct one would win.
        inverse: of their Gram matrices.
        condition: their $\kappa_1$.
    """

    steps: Float[Tensor, "b"]
    promising: Bool[Tensor, "b"]
    swapped: Bool[Tensor, "b d_out"]
    element: Int[Tensor, "e"]
    inverse: Float[Tensor, "e d d"]
    condition: Float[Tensor, "e"]

    @staticmethod
    def of(unit: Float[Tensor, "b d d"], support: Bool[Tensor, "b d_out d"], tolerance: float) -> "_Plan":
        """By estimates of what each form costs."""
        d_out, d = support.shape[-2:]
        kept = support.sum(-1).to(torch.float64)
        saved = (kept**3 - (d - kept) ** 3) / 3
        # One inverse per batch element and two products per row; below that there is nothing to win.
        swapped = (saved > 4.0 * d**2) & (saved.clamp(min=0).sum(-1, keepdim=True) > 2.0 * d**3)
        cheaper = torch.where(swapped, d - kept, kept)
        steps = 0.5 * PRODUCT_RATE * (cheaper**3 / 3).sum(-1) / (2 * d_out * d**2)
        promising = steps >= -STEPS_PER_DIGIT * math.log10(tolerance)
        element = (swapped.any(-1) | promising).nonzero().squeeze(-1)
        factor, minor = try_cholesky(unit[element])
        # A factor that broke off may have a zero on its diagonal, and no inverse.
        element, factor = element[minor == 0], factor[minor == 0]
        inverse = torch.cholesky_inverse(factor)
        condition = torch.linalg.matrix_norm(unit[element], ord=1) * torch.linalg.matrix_norm(inverse, ord=1)
        return _Plan(steps, promising, swapped, element, inverse, condition)


def _by_iteration(
    unit: Float[Tensor, "b d d"],
    rhs: Float[Tensor, "b d_out d"],
    support: Bool[Tensor, "b d_out d"],
    start: Float[Tensor, "b d_out d"] | None,
    tolerance: float,
    plan: _Plan,
) -> tuple[Float[Tensor, "b d_out d"], Float[Tensor, "b d_out"], Bool[Tensor, "b d_out"]]:
    """Rows solved by conjugate gradients, zero elsewhere, their residuals, and which ones they are."""
    weight, residual = torch.zeros_like(rhs), torch.zeros_like(rhs[..., 0])
    done = torch.zeros_like(residual, dtype=torch.bool)
    element = plan.element[(plan.condition <= EASY_CONDITION) & plan.promising[plan.element]]
    if len(element):
        solved = masked_conjugate_gradients(
            unit[element],
            rhs[element],
            support[element],
            start=None if start is None else start[element],
            tolerance=tolerance,
            max_steps=int(plan.steps[element].min()),
        )
        close = solved.residual <= tolerance
        weight[element] = torch.where(close.unsqueeze(-1), solved.weight, 0.0)
        residual[element] = torch.where(close, solved.residual, 0.0)
        done[element] = close
    return weight, residual, done


def _by_complement(
    rhs: Float[Tensor, "b d_out d"],
    support: Bool[Tensor, "b d_out d"],
    rows: Bool[Tensor, "b d_out"],
    plan: _Plan,
    memory: int,
) -> tuple[Float[Tensor, "b d_out d"], Bool[Tensor, "b d_out"]]:
    """Rows among `rows` solved from the pruned side, zero elsewhere, and which ones they are."""
    weight, done = torch.zeros_like(rhs), torch.zeros_like(rows)
    chosen = rows & plan.swapped
    sound = (plan.condition <= MAX_CONDITION) & chosen[plan.element].any(-1)
    element, inverse = plan.element[sound], plan.inverse[sound]
    if len(element):
        dense = rhs[element] @ inverse
        part = chosen[element]
        # By interlacing, a block of the inverse is no worse conditioned than the whole: none of them is singular here.
        correction, _ = _solve_supports(inverse, dense, ~support[element], part, memory)
        weight[element] = (dense - correction @ inverse) * (support[element] & part.unsqueeze(-1))
        done[element] = part
    return weight, done


def _solve_supports(
    matrix: Float[Tensor, "b d d"],
    rhs: Float[Tensor, "b d_out d"],
    support: Bool[Tensor, "b d_out d"],
    rows: Bool[Tensor, "b d_out"],
    memory: int,
) -> tuple[Float[Tensor, "b d_out d"], Bool[Tensor, "b d_out"]]:
    """Solve the block of each of the `rows`; zero in the others. Also: which rows had a singular block."""
    solution = torch.zeros_like(rhs)
    deficient = torch.zeros_like(rows)
    element, row = rows.nonzero(as_tuple=True)
    if not len(element):
        return solution, deficient
    owner, distinct, group = _distinct_supports(element, support[element, row])
    order = group.argsort(stable=True)
    element, row = element[order], row[order]
    count = group.bincount(minlength=len(owner))
    last = count.cumsum(0)
    place = torch.arange(len(row), device=row.device) - (last - count)[group[order]]
    ends = last.tolist()
    for start, stop, size in _chunks(distinct.sum(-1), count, matrix.shape[-1], memory):
        first = ends[start - 1] if start else 0
        members = slice(first, ends[stop - 1])
        local = group[order[members]] - start
        index = distinct[start:stop].to(torch.uint8).sort(dim=-1, descending=True, stable=True).indices[:, :size]
        block, pad = _gather_blocks(matrix, owner[start:stop], index, distinct[start:stop])
        sides = rhs[element[members], row[members]].gather(-1, index[local]).masked_fill_(pad[local], 0)
        columns = block.new_zeros(stop - start, size, int(count[start:stop].max()))
        columns[local, :, place[members]] = sides
        columns, singular = _solve_blocks(block, columns)
        found = torch.zeros_like(rhs[0, :1]).repeat(len(local), 1)
        found.scatter_(-1, index[local], columns[local, :, place[members]])
        solution[element[members], row[members]] = found
        deficient[element[members], row[members]] = singular[local]
    return solution, deficient


def _distinct_supports(
    element: Int[Tensor, "r"], support: Bool[Tensor, "r d"]
) -> tuple[Int[Tensor, "u"], Bool[Tensor, "u d"], Int[Tensor, "r"]]:
    """The distinct pairs of batch element and support, ordered for `_chunks`, and the pair of each row."""
    label = element.to(torch.int32).unsqueeze(-1).view(torch.uint8)
    pairs, group = torch.cat([label, support.to(torch.uint8)], dim=-1).unique(dim=0, return_inverse=True)
    count = group.bincount(minlength=len(pairs))
    distinct = pairs[:, label.shape[-1] :].bool()
    order = _bucket(count).mul(support.shape[-1] + 1).add(distinct.sum(-1)).argsort(descending=True, stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    owner = pairs[order, : label.shape[-1]].contiguous().view(torch.int32).squeeze(-1).to(torch.int64)
    return owner, distinct[order], rank[group]


def _bucket(count: Int[Tensor, "u"]) -> Int[Tensor, "u"]:
    """Supports shared by about equally many rows (within a factor of two) are padded to the same number of them."""
    return torch.frexp(count.to(torch.float64)).exponent.to(torch.int64)


def _chunks(sizes: Int[Tensor, "u"], count: Int[Tensor, "u"], d: int, memory: int) -> Iterator[tuple[int, int, int]]:
    """Ranges of supports whose blocks fit into the memory, with the largest size in each; empty ones are left out."""
    size, bucket = sizes.tolist(), _bucket(count).tolist()
    start = 0
    while start < len(size):
        largest, shared = size[start], 2 ** bucket[start]
        # The block, its factor and one temporary; right-hand sides, solution and their dense rows.
        per_support = 8 * (3 * largest**2 + shared * (3 * largest + 3 * d) + 2 * d)
        stop = min(start + max(1, memory // per_support), len(size))
        while bucket[stop - 1] != bucket[start]:
            stop -= 1
        if largest:
            yield start, stop, largest
        start = stop


def _gather_blocks(
    matrix: Float[Tensor, "b d d"], owner: Int[Tensor, "u"], index: Int[Tensor, "u s"], support: Bool[Tensor, "u d"]
) -> tuple[Float[Tensor, "u s s"], Bool[Tensor, "u s"]]:
    """The blocks, padded by the identity to one size, and where the padding is."""
    block = matrix[owner[:, None, None], index[:, :, None], index[:, None, :]]
    pad = ~support.gather(-1, index)
    block.masked_fill_(pad.unsqueeze(-1) | pad.unsqueeze(-2), 0.0)
    block.diagonal(dim1=-2, dim2=-1).masked_fill_(pad, 1.0)
    return block, pad


def _solve_blocks(
    block: Float[Tensor, "u s s"], columns: Float[Tensor, "u s k"]
) -> tuple[Float[Tensor, "u s k"], Bool[Tensor, "u"]]:
    """Cholesky where it holds, the minimum-norm solution where it breaks down; says where that was."""
    factor, minor = try_cholesky(block)
    singular = minor > 0
    # Two triangular solves take a tenth of the time of a batched cholesky_solve with few columns.
    half = torch.linalg.solve_triangular(factor, columns, upper=False)
    solution = torch.linalg.solve_triangular(factor.mT, half, upper=True)
    if bool(singular.any()):
        values, vectors = torch.linalg.eigh(block[singular])
        cutoff = values.shape[-1] * torch.finfo(values.dtype).eps * values[..., -1:]
        inverse = torch.where(values > cutoff, values.reciprocal(), 0.0)
        solution[singular] = vectors @ (inverse.unsqueeze(-1) * (vectors.mT @ columns[singular]))
    return solution, singular
