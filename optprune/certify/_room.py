"""How far a step may go before a positive definite matrix ceases to be one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from optprune.certify._lanczos import largest_eigenvalue

STEPS = 12
"""Lanczos steps; the estimate is a little too long, by a few percent after so many."""


def room(
    factor: Float[Tensor, "rows n n"], change: Callable[[Float[Tensor, "rows n"]], Float[Tensor, "rows n"]]
) -> Float[Tensor, " rows"]:
    r"""About the largest $t$ with $L L^\top - t C \succeq 0$: one over the largest eigenvalue of $L^{-1} C L^{-\top}$,
    by Lanczos' method; infinite where that is not positive, NaN where the factor is.

    A Cholesky factorisation for each length that is tried would cost more than all of its steps.

    Args:
        factor: $L$, lower triangular.
        change: the product of rows with $C$, symmetric.

    References:
        Toh 2002 computes the step lengths of semidefinite programs so.
    """

    def product(v: Float[Tensor, "rows n"]) -> Float[Tensor, "rows n"]:
        w = torch.linalg.solve_triangular(factor.mT, v.unsqueeze(-1), upper=True).squeeze(-1)
        return torch.linalg.solve_triangular(factor, change(w).unsqueeze(-1), upper=False).squeeze(-1)

    rng = torch.Generator(factor.device).manual_seed(0)
    start = torch.randn(factor.shape[:2], generator=rng, dtype=factor.dtype, device=factor.device)
    largest = largest_eigenvalue(product, start, STEPS)
    return torch.where(largest <= 0, torch.inf, 1 / largest)
