"""Exact least squares on a given support, as every l0 solver ends."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from optprune.numerics.conjugate import masked_conjugate_gradients
from optprune.numerics.masked import masked_least_squares
from optprune.problems import L0LeastSquares

FACTORED = 1e13
"""Most operations of factorising the blocks of all rows; beyond it conjugate gradients take over."""


def refit(
    problem: L0LeastSquares, mask: Bool[Tensor, "*batch out in"]
) -> tuple[Float[Tensor, "*batch out in"], dict[str, float]]:
    """The best weight on a support, and what is known of it.

    The change of the dense weight is solved for, so that a support that prunes nothing changes nothing. Rank-deficient
    rows have many minimisers; the one nearest to the dense weight is taken, and `rank_deficient_rows` counts them.

    Large layers, whose blocks would cost more than `FACTORED` operations, are solved by conjugate gradients;
    `refit_residual` is then the largest relative residual of a row, and rows without a unique solution are not counted.

    Guarantees:
        T05: the gradient vanishes on the support; up to `refit_residual` where that is reported.
    """
    rhs = problem.statistics.cross.mT + torch.where(mask, 0.0, problem.dense) @ problem.gram
    if float(mask.sum(-1).double().pow(3).sum()) / 3 > FACTORED:
        solved = masked_conjugate_gradients(problem.gram, rhs, mask)
        weight, info = solved.weight, {"refit_residual": float(solved.residual.max())}
    else:
        fit = masked_least_squares(problem.gram, rhs, mask)
        weight, info = fit.weight, {"rank_deficient_rows": float(fit.rank_deficient.sum())}
    return torch.where(mask, problem.dense + weight, 0.0), info
