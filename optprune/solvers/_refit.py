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
    problem: L0LeastSquares,
    mask: Bool[Tensor, "*batch out in"],
    start: Float[Tensor, "*batch out in"] | None = None,
    tolerance: float = 1e-10,
) -> tuple[Float[Tensor, "*batch out in"], dict[str, float]]:
    """The best weight on a support, and what is known of it.

    The change of the dense weight is solved for, so that a support that prunes nothing changes nothing. Rank-deficient
    rows have many minimisers; the one nearest to the dense weight is taken, and `rank_deficient_rows` counts them.

    Where conjugate gradients are cheaper than factorising, `refit_residual` is the largest relative residual of a row.
    Layers whose blocks would cost more than `FACTORED` operations are always solved so, and their rows without a unique
    solution are not counted.

    Args:
        problem: the layer.
        mask: the support.
        start: a weight close to the best, which saves steps where conjugate gradients are used.
        tolerance: relative residual at which they end.

    Guarantees:
        T05: the gradient vanishes on the support; up to `refit_residual` where that is reported.
    """
    rhs = problem.statistics.cross.mT + torch.where(mask, 0.0, problem.dense) @ problem.gram
    if start is not None:
        start = start - problem.dense
    if float(mask.sum(-1).double().pow(3).sum()) / 3 > FACTORED:
        solved = masked_conjugate_gradients(problem.gram, rhs, mask, start=start, tolerance=tolerance)
        weight, info = solved.weight, {"refit_residual": float(solved.residual.max())}
    else:
        fit = masked_least_squares(problem.gram, rhs, mask, start=start, tolerance=tolerance)
        weight, info = fit.weight, {"rank_deficient_rows": float(fit.rank_deficient.sum())}
        if bool((fit.residual > 0).any()):
            info["refit_residual"] = float(fit.residual.max())
    return torch.where(mask, problem.dense + weight, 0.0), info
