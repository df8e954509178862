"""The largest eigenvalue of many symmetric matrices that are known by their products."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor


def largest_eigenvalue(
    product: Callable[[Float[Tensor, "rows n"]], Float[Tensor, "rows n"]],
    start: Float[Tensor, "rows n"],
    steps: int,
) -> Float[Tensor, " rows"]:
    """By Lanczos' method without reorthogonalisation, never too large but for rounding; NaN where a product is not
    finite.

    Args:
        product: of one vector per row with its matrix.
        start: the first vectors, of any length.
        steps: how many products; more than n add nothing.
    """
    steps, tiny = min(steps, start.shape[1]), torch.finfo(start.dtype).tiny
    v = start / start.norm(dim=-1, keepdim=True).clamp_min(tiny)
    before, beta = torch.zeros_like(v), torch.zeros_like(v[:, :1])
    tridiagonal = start.new_zeros(len(v), steps, steps)
    for k in range(steps):
        w = product(v) - beta * before
        alpha = (w * v).sum(-1, keepdim=True)
        w = w - alpha * v
        tridiagonal[:, k, k] = alpha[:, 0]
        if k:
            tridiagonal[:, k, k - 1] = beta[:, 0]  # the lower triangle is all that is read
        beta = w.norm(dim=-1, keepdim=True)
        v, before = w / beta.clamp_min(tiny), v
    sound = tridiagonal.isfinite().flatten(1).all(-1)
    largest = torch.linalg.eigvalsh(torch.where(sound[:, None, None], tridiagonal, 0.0))[:, -1]
    return torch.where(sound, largest, torch.nan)
