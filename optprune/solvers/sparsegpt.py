"""The column sweep: prune columns from left to right, let the later ones make up for the earlier."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from optprune.errors import InvalidInputError
from optprune.numerics.linalg import cholesky, damped, factorize
from optprune.patterns import NOfM, Pattern, PerLayer, PerRow
from optprune.problems import L0LeastSquares, Problem
from optprune.solution import Answer, Termination
from optprune.solvers._base import Progress, Promise, Solver
from optprune.solvers._refit import refit


@dataclass(frozen=True)
class SparseGPT(Solver[L0LeastSquares]):
    r"""Sweep over the columns: set the weights to be pruned to zero and correct all columns to the right.

    With $H^{-1} = U^\top U$, $U$ upper triangular, and $e_i = w_{ij} / U_{jj}$ where $w_{ij}$ is pruned, 0 where kept,

    $$w_{i,j:} \leftarrow w_{i,j:} - e_i \, U_{j,j:}, \qquad \text{score of } (i, j): \; (w_{ij} / U_{jj})^2.$$

    All rows share $U$, which makes this the cheapest method that corrects at all. Corrections beyond a block of columns
    are applied once per block, as a product. The weights to prune are chosen block by block, by the scores of the
    block: of `PerLayer` and `PerRow` each block gets its part of the budget, of `NOfM` each group its own. Where units
    reach across columns or rows the whole support is chosen before the sweep.

    Attributes:
        block: columns whose weights are chosen together.
        damping: added to the Hessian for the sweep, relative to its mean diagonal; the published code's value.
        refit: solve for the kept weights exactly at the end; the published method does not.

    References:
        Frantar & Alistarh 2023 (SparseGPT), Algorithm 1. Budgets that do not divide are shared by rounding.
    """

    block: int = 128
    damping: float = 0.01
    refit: bool = False

    accepts: ClassVar[tuple[type[Problem], ...]] = (L0LeastSquares,)
    summary: ClassVar[str] = "sweep over columns, later columns correct for earlier ones; no refit unless asked"
    source: ClassVar[str] = "Frantar & Alistarh 2023 (SparseGPT), Algorithm 1"

    def __post_init__(self) -> None:
        if self.block < 1 or not 0 <= self.damping < float("inf"):
            raise InvalidInputError(
                f"SparseGPT with block={self.block}, damping={self.damping} given; "
                "a block holds at least one column, and the damping is finite and >= 0"
            )

    @property
    def promises(self) -> frozenset[Promise]:
        return frozenset({Promise.REFITTED}) if self.refit else frozenset()

    def run(self, problem: L0LeastSquares, progress: Progress | None = None) -> Answer:
        dead = problem.statistics.dead
        gram = damped(problem.gram, self.damping)
        gram.diagonal(dim1=-2, dim2=-1).masked_fill_(dead, 1.0)
        factor = factorize(gram)
        inverse = factor.inverse()
        upper = cholesky(inverse, what="inverse of the Hessian").mT
        weight = problem.dense + problem.statistics.cross.mT @ inverse
        weight = weight.masked_fill(dead.unsqueeze(-2), 0.0)
        mask = _sweep(problem.pattern, weight, upper, self.block)
        info = {"search_damping": self.damping + float(factor.damping.max())}
        if self.refit:
            weight, fit = refit(problem, mask)
            info |= fit
        count = problem.dense[..., 0, 0].numel()
        return Answer(weight * mask, (Termination.CLOSED_FORM,) * count, steps=0, info=info)


def _sweep(
    pattern: Pattern, weight: Float[Tensor, "*batch out in"], upper: Float[Tensor, "*batch in in"], block: int
) -> Bool[Tensor, "*batch out in"]:
    """Choose and correct from left to right, in place; what was kept."""
    d = weight.shape[-1]
    mask = torch.zeros_like(weight, dtype=torch.bool)
    diagonal = upper.diagonal(dim1=-2, dim2=-1).unsqueeze(-2)
    together = pattern.m if isinstance(pattern, NOfM) else block if isinstance(pattern, PerLayer | PerRow) else d
    # No group may lie across two blocks.
    block = -(-block // together) * together if together < d else block
    for start in range(0, d, block):
        inside = slice(start, min(start + block, d))
        errors = torch.zeros_like(weight[..., inside])
        for column in range(inside.start, inside.stop):
            if column % together == 0:
                chosen = slice(column, min(column + together, d))
                scores = (weight[..., chosen] / diagonal[..., chosen]).square()
                mask[..., chosen] = _part(pattern, chosen, d).support(scores)
            error = torch.where(mask[..., column], 0.0, weight[..., column] / upper[..., None, column, column])
            errors[..., column - start] = error
            weight[..., column : inside.stop] -= error.unsqueeze(-1) * upper[..., column, None, column : inside.stop]
        weight[..., inside.stop :] -= errors @ upper[..., inside, inside.stop :]
    return mask


def _part(pattern: Pattern, columns: slice, d: int) -> Pattern:
    """The pattern of some columns: a budget that spans more of them is divided in proportion, exactly in total."""
    if not isinstance(pattern, PerLayer | PerRow):
        return pattern
    before, after = (math.floor(pattern.k * edge / d + 0.5) for edge in (columns.start, columns.stop))
    return type(pattern)(after - before)
