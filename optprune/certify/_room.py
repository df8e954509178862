"""How far a step may go before a positive definite matrix ceases to be one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

STEPS = 12
"""Lanczos steps; the estimate is a little too long, by a few percent after so many."""


def room(
    factor: Float[Tensor, "rows n n"], change: Callable[[Float[Tensor, "rows n"]], Float[Tensor, "rows n"]]
) -> Float[Tensor, " rows"]:
    r"""About the largest $t$ with $L L^\top - t C \succeq 0$: one over the largest eigenvalue of $L^{-1} C L^{-\top}$,
    by Lanczos' method without reorthogonalisation; infinite where that is not positive, NaN where the factor is.

    A Cholesky factorisation for each length that is tried would cost more than all of its steps.

    Args:
        factor: $L$, lower triangular.
        change: the product of rows with $C$, symmetric.

    References:
        Toh 2002 computes the step lengths of semidefinite programs so.
    """
    rng = torch.Generator(factor.device).manual_seed(0)
    v = torch.randn(factor.shape[:2], generator=rng, dtype=factor.dtype, device=factor.device)
    v, before, beta = v / v.norm(dim=-1, keepdim=True), torch.zeros_like(v), torch.zeros_like(v[:, :1])
    tridiagonal = factor.new_zeros(len(v), STEPS, STEPS)
    for k in range(STEPS):
        w = torch.linalg.solve_triangular(factor.mT, v.unsqueeze(-1), upper=True).squeeze(-1)
        w = torch.linalg.solve_triangular(factor, change(w).unsqueeze(-1), upper=False).squeeze(-1) - beta * before
        alpha = (w * v).sum(-1, keepdim=True)
        w = w - alpha * v
        tridiagonal[:, k, k] = alpha[:, 0]
        if k:
            tridiagonal[:, k, k - 1] = beta[:, 0]  # the lower triangle is all that is read
        beta = w.norm(dim=-1, keepdim=True)
        v, before = w / beta.clamp_min(torch.finfo(w.dtype).tiny), v
    sound = tridiagonal.isfinite().flatten(1).all(-1)
    largest = torch.linalg.eigvalsh(torch.where(sound[:, None, None], tridiagonal, 0.0))[:, -1]
    largest = torch.where(sound, largest, torch.nan)
    return torch.where(largest <= 0, torch.inf, 1 / largest)
