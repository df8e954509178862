"""Exact least squares on a given support, as every l0 solver ends."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from optprune.numerics.masked import masked_least_squares
from optprune.problems import L0LeastSquares


def refit(
    problem: L0LeastSquares, mask: Bool[Tensor, "*batch out in"]
) -> tuple[Float[Tensor, "*batch out in"], dict[str, float]]:
    """The best weight on a support, and how many rows were rank deficient there.

    The change of the dense weight is solved for, so that a support that prunes nothing changes nothing. Rank-deficient
    rows have many minimisers; the one nearest to the dense weight is taken, and `rank_deficient_rows` counts them.

    Guarantees:
        T05: the gradient vanishes on the support.
    """
    pruned = torch.where(mask, 0.0, problem.dense)
    fit = masked_least_squares(problem.gram, problem.statistics.cross.mT + pruned @ problem.gram, mask)
    return torch.where(mask, problem.dense + fit.weight, 0.0), {"rank_deficient_rows": float(fit.rank_deficient.sum())}
