"""Lower bound for a convex loss over a family of supports, from its quadratic growth at one point."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from optprune.bounds._theorem import theorem


@theorem("T13")
def growth_scores(
    gradient: Float[Tensor, "out d"], minorant: Float[Tensor, "out d"], point: Float[Tensor, "out d"]
) -> tuple[Float[Tensor, "out d"], Float[Tensor, "out d"]]:
    r"""What pruning a weight costs at least, and what keeping it saves of that at most.

    $$p = \tfrac12 \delta V^2 - \gamma V, \qquad s = \frac{(\delta V - \gamma)^2}{2 \delta},$$

    with $s = 0$ where $\delta = 0 = \gamma$ and $\infty$ where $\delta = 0 \ne \gamma$. Every $U$ with support $S$ has
    $F(U) \ge F(V) + \sum p - \sum_S s$: a cut in the indicators of the support.

    Args:
        gradient: $\gamma = \nabla F(V)$.
        minorant: $\delta \ge 0$, with $F - \tfrac12 \langle \cdot, \delta\, \cdot \rangle$ convex.
        point: $V$, any matrix.

    Returns:
        $p$ and $s$.

    Guarantees:
        T13, in exact arithmetic.
    """
    live = minorant > 0
    spared = torch.where(live, (minorant * point - gradient).square() / torch.where(live, 2 * minorant, 1.0), 0.0)
    endless = ~live & (gradient != 0)
    return 0.5 * minorant * point.square() - gradient * point, torch.where(endless, torch.inf, spared)


@theorem("T13")
def growth_bound(
    value: float | Float[Tensor, ""],
    gradient: Float[Tensor, "out d"],
    minorant: Float[Tensor, "out d"],
    point: Float[Tensor, "out d"],
    support: Callable[[Tensor], Tensor],
) -> float:
    r"""A number that no weight with an admissible support can undercut:

    $$F(U) \ge F(V) + \sum_{rj} p_{rj} - \max_{S \in \mathcal F} \sum_{(r,j) \in S} s_{rj}.$$

    Args:
        value: $F(V)$.
        gradient: $\nabla F(V)$.
        minorant: $\delta$, see `growth_scores`.
        point: $V$.
        support: maps nonnegative scores `(out, d)` to the admissible support of the largest total.

    Returns:
        The bound, possibly negative, or minus infinity.

    Guarantees:
        T13, in exact arithmetic; rounding is not accounted for.
    """
    pruned, spared = growth_scores(gradient, minorant, point)
    if bool(spared.isinf().any()):
        return -float("inf")
    return float(value + pruned.sum() - torch.where(support(spared), spared, 0.0).sum())
