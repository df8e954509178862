"""Proximal maps and projections, elementwise or along one dimension, for any leading shape."""

import torch
from jaxtyping import Float
from torch import Tensor

from optprune.errors import InvalidInputError


def soft_threshold(x: Float[Tensor, "..."], t: float | Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    r"""$\operatorname{sign}(x)\max(|x| - t, 0)$, the proximal map of $t\,\|\cdot\|_1$.

    Computed as $x$ minus its projection onto $[-t, t]$, so that what lies inside becomes exactly zero.

    Args:
        x: The point.
        t: Threshold, nonnegative; a tensor broadcasts against `x`.

    Raises:
        InvalidInputError: `t` is a negative number.
    """
    if isinstance(t, Tensor):
        return x - torch.minimum(torch.maximum(x, -t), t)
    _require_nonnegative("t", t)
    return x - x.clamp(-t, t)


def project_ball(
    x: Float[Tensor, "..."],
    centre: float | Float[Tensor, "..."],
    radius: float | Float[Tensor, "..."],
    dim: int | tuple[int, ...] = -1,
) -> Float[Tensor, "..."]:
    r"""Euclidean projection of $x$ onto $\{z : \|z - c\|_2 \le r\}$, one ball per slice along `dim`.

    Points inside come back unchanged, bit for bit; the centre itself is inside, also when the radius is zero.

    Args:
        x: The points.
        centre: $c$, broadcasts against `x`.
        radius: $r \ge 0$; a tensor broadcasts against the norms, which keep `dim` with size one.
        dim: The dimension or dimensions that a ball spans.

    Raises:
        InvalidInputError: `radius` is a negative number.
    """
    if not isinstance(radius, Tensor):
        _require_nonnegative("radius", radius)
    offset = x - centre
    norm = torch.linalg.vector_norm(offset, dim=dim, keepdim=True)
    outside = norm > radius
    # Inside, norm may be 0 and the quotient meaningless: the divisor is replaced there, and the result is not
    # used.
    scale = radius / torch.where(outside, norm, torch.ones_like(norm))
    return torch.where(outside, offset.mul_(scale).add_(centre), x)


def project_halfspace(x: Float[Tensor, "..."], ceiling: float | Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    r"""Projection onto $\{z : z \le b\}$, elementwise: $\min(x, b)$."""
    return torch.minimum(x, ceiling) if isinstance(ceiling, Tensor) else x.clamp(max=ceiling)


def project_nonnegative(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    r"""Projection onto $\{z : z \ge 0\}$, elementwise: $\max(x, 0)$."""
    return x.clamp(min=0)


def _require_nonnegative(name: str, value: float) -> None:
    if not value >= 0:
        raise InvalidInputError(f"{name} = {value} was given; it must be a number >= 0.")
