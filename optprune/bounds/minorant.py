"""Lower bound for least squares over a family of supports, by splitting off a diagonal minorant of the Hessian."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from optprune.bounds._linearised import linearised
from optprune.bounds._theorem import theorem
from optprune.numerics.rounding import SMALLEST, gamma

LARGEST = 2.0**1000
"""The reciprocals of larger minorants lose digits to underflow."""


@theorem("T03")
def minorant_bound(
    gram: Float[Tensor, "in in"],
    cross: Float[Tensor, "in out"],
    energy: Float[Tensor, " out"],
    reference: Float[Tensor, "out in"],
    minorant: Float[Tensor, "*out in"],
    point: Float[Tensor, "out in"],
    support: Callable[[Tensor], Tensor],
) -> float:
    """The number of `minorant_parts` alone: no weight with an admissible support can undercut it.

    Guarantees:
        T03, rounding included.
    """
    return minorant_parts(gram, cross, energy, reference, minorant, point, support)[0]


@theorem("T03")
def minorant_parts(
    gram: Float[Tensor, "in in"],
    cross: Float[Tensor, "in out"],
    energy: Float[Tensor, " out"],
    reference: Float[Tensor, "out in"],
    minorant: Float[Tensor, "*out in"],
    point: Float[Tensor, "out in"],
    support: Callable[[Tensor], Tensor],
) -> tuple[float, Float[Tensor, "out in"]]:
    r"""A number that no weight with an admissible support can undercut, and what each weight gains when it is kept.

    With $\Delta = U - R$, $P = V - R$, $A_r = H - \operatorname{diag}\delta_r \succeq 0$ and $g_r = C_r^\top - P_r A_r$
    in each row $r$,

    $$2 J(U) \ge \sum_r E_r - \sum_r P_r A_r P_r^\top + \sum_{rj} t_{rj}
       - \max_{S \in \mathcal F} \sum_{(r,j) \in S} \frac{(g_{rj} + \delta_{rj} R_{rj})^2}{\delta_{rj}},
       \qquad t = \delta R^2 + 2 g R,$$

    for every $U$ with support in $\mathcal F$: linearise $\Delta_r A_r \Delta_r^\top$ at $P_r$, the rest separates
    over the weights (a kept one is free, a pruned one has $\Delta = -R$). The maximum is one call of `support`.
    Written around $R$ no large numbers cancel. The rounding error of every step is bounded and subtracted.

    Args:
        gram: $H$.
        cross: $C$.
        energy: $E$ per row.
        reference: $R$.
        minorant: $\delta$, one for all rows or one per row, with $H - \operatorname{diag}\delta_r \succeq 0$ (see
            `proves_minorant`); 0 exactly on dead inputs.
        point: $V$, any matrix.
        support: maps nonnegative gains `(out, in)` to the admissible support of the largest total.

    Returns:
        The bound on $J$ (half of the display), possibly negative, minus infinity where nothing is proved; and numbers
        no smaller than the terms of the last sum, whose total over its support the bound has already paid for.

    Guarantees:
        T03, rounding included.
    """
    terms = point.numel() + len(energy)
    at = linearised(gram, cross, reference, minorant, point)
    step, g, slack = at.step, at.slope, at.slack
    live = minorant > 0
    if bool((~live & (g != 0)).any()):  # a weight that is free there would lower the objective without end
        return -math.inf, torch.zeros_like(point)
    inverse = torch.where(live, 1 / torch.where(live, minorant, 1.0), 0.0)
    shifted = g + minorant * reference
    wobble = slack + 1.01 * gamma(4) * (g.abs() + minorant * reference.abs())
    wobble = wobble + 4 * SMALLEST
    doubt = 1.01 * inverse * wobble * (2 * shifted.abs() + wobble) + gamma(6) * (inverse * shifted) * shifted
    doubt = doubt + SMALLEST * (4 + 4 * shifted.abs())
    # Divided before multiplied: where the inputs are tiny, so is delta, and the square alone would underflow.
    gains = torch.where(live, (inverse * shifted) * shifted + doubt, 0.0)
    if not bool(gains.isfinite().all()) or bool((minorant > LARGEST).any()):  # overflow: nothing follows
        return -math.inf, torch.zeros_like(point)
    kept = support(gains)
    pruned_part = torch.where(kept, 0.0, minorant * reference * reference + 2 * g * reference)
    kept_part = torch.where(kept, (inverse * g) * g, 0.0)
    quadratic = step * at.quadratic
    value = energy.sum() - quadratic.sum() + pruned_part.sum() - kept_part.sum()
    # What each sum may be off by: propagated slack, then the roundings of the terms and of the additions.
    off = (step.abs() * slack).sum() + torch.where(kept, 0.0, 2 * slack * reference.abs()).sum()
    # The true maximiser is another one: its gains exceed those of `kept` by at most twice the doubt, and by what adding
    # up the gains of a unit rounds.
    off = off + torch.where(kept, 2 * doubt + 2 * gamma(point.numel()) * gains, 0.0).sum()
    off = off + torch.where(kept, inverse * slack * (2 * g.abs() + slack), 0.0).sum()
    size = energy.abs().sum() + quadratic.abs().sum() + kept_part.sum()
    size = size + torch.where(kept, 0.0, minorant * reference * reference + 2 * (g * reference).abs()).sum()
    # What underflow takes from a product of three is multiplied by the last factor at most.
    factors = step.abs() + 2 * reference.abs() + shifted.abs() + 2 * g.abs() + slack
    off = off + 8 * SMALLEST * (terms + factors.sum())
    bound = 0.5 * float(value - 1.01 * off - 1.01 * gamma(terms + 8) * size)
    return bound if bound < math.inf else -math.inf, gains  # infinite or not a number: overflow again
