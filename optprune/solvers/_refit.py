"""Exact least squares on a given support, as every l0 solver ends."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from optprune.numerics.masked import masked_least_squares
from optprune.problems import L0LeastSquares


def refit(
    problem: L0LeastSquares, mask: Bool[Tensor, "*batch out in"]
) -> tuple[Float[Tensor, "*batch out in"], dict[str, float]]:
    """The best weight on a support, and how many rows were rank deficient there.

    Those rows have many minimisers; the one of least norm is taken, and `rank_deficient_rows` counts them.

    Guarantees:
        T05: the gradient vanishes on the support.
    """
    fit = masked_least_squares(problem.gram, problem.linear, mask)
    return fit.weight, {"rank_deficient_rows": float(fit.rank_deficient.sum())}
