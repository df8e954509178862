"""Lower bound for pruning that leaves the kept weights as they are."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from optprune.bounds._linearised import linearised
from optprune.bounds._theorem import theorem
from optprune.numerics.rounding import SMALLEST, gamma


@theorem("T11")
def mask_only_bound(
    gram: Float[Tensor, "in in"],
    cross: Float[Tensor, "in out"],
    energy: Float[Tensor, " out"],
    reference: Float[Tensor, "out in"],
    minorant: Float[Tensor, "*out in"],
    point: Float[Tensor, "out in"],
    support: Callable[[Tensor], Tensor],
) -> float:
    r"""A number that no mask undercuts: a bound of $J(M \circ R)$ over the admissible masks $M$.

    With $P = V - R$, $A_r = H - \operatorname{diag}\delta_r \succeq 0$, $g = C^\top - P A$ and
    $t = \delta R^2 + 2 g R$,

    $$2 J(M \circ R) \ge \sum_r E_r - \sum_r P_r A_r P_r^\top + \sum_{rj} t_{rj}
       - \max_{S \in \mathcal F} \sum_{(r,j) \in S} \max(0, t_{rj}) ,$$

    as `minorant_parts`, but a kept weight is not free: its term is 0. The rounding error of every step is bounded and
    subtracted.

    Args:
        gram: $H$.
        cross: $C$.
        energy: $E$ per row.
        reference: $R$.
        minorant: $\delta$, one for all rows or one per row, with $H - \operatorname{diag}\delta_r \succeq 0$.
        point: $V$, any matrix; best near the optimum of the relaxation, masks between 0 and 1 times $R$.
        support: maps nonnegative gains `(out, in)` to the admissible support of the largest total.

    Returns:
        The bound on $J$ (half of the display), possibly negative, or minus infinity where numbers overflow.

    Guarantees:
        T11, rounding included.
    """
    terms = point.numel() + len(energy)
    at = linearised(gram, cross, reference, minorant, point)
    step, g, slack = at.step, at.slope, at.slack
    t = minorant * reference * reference + 2 * g * reference
    size = minorant * reference * reference + 2 * (g * reference).abs()
    doubt = 1.01 * (2 * slack * reference.abs() + gamma(6) * size) + SMALLEST * (8 + 8 * reference.abs())
    gains = (t + doubt).clamp_min(0.0)
    if not bool(gains.isfinite().all()):
        return -math.inf
    kept = support(gains)
    # A kept weight counts 0 and not t; where t is negative, pruning it is better still, which the maximum allows.
    left = torch.where(kept, t.clamp_max(0.0), t)
    quadratic = step * at.quadratic
    value = energy.sum() - quadratic.sum() + left.sum()
    # Of the true maximiser: its gains exceed those of `kept` by at most twice the doubt.
    off = doubt.sum() + torch.where(kept, 2 * doubt + 2 * gamma(point.numel()) * gains, 0.0).sum()
    off = off + (step.abs() * slack).sum() + 8 * SMALLEST * (terms + step.abs().sum())
    total = energy.abs().sum() + quadratic.abs().sum() + left.abs().sum()
    bound = 0.5 * float(value - 1.01 * off - 1.01 * gamma(terms + 8) * total)
    return bound if bound < math.inf else -math.inf
