"""What is left of a least-squares objective beside its linearised part: one selection, with its rounding error."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from optprune.bounds._linearised import Linearised
from optprune.bounds._theorem import theorem
from optprune.numerics.rounding import SMALLEST, gamma

LARGEST = 2.0**1000
"""The reciprocals of larger minorants lose digits to underflow."""


@dataclass(frozen=True, eq=False)
class Charge:
    r"""What keeping a weight costs the bound besides its term, what the bound gets in return, and their roundings.

    Attributes:
        each: $\tau \ge 0$ per weight.
        doubt: no less than $|computed - exact|$ of `each`, and than what adding it to a number rounds of it.
        fixed: a number that the bound, doubled, is raised by.
        fixed_doubt: no less than $|computed - exact|$ of `fixed` but for the rounding of its own terms and their sum.
        size: the sum of absolute values whose difference `fixed` is.
        terms: how many they are.
    """

    each: Float[Tensor, "out in"] | float = 0.0
    doubt: Float[Tensor, "out in"] | float = 0.0
    fixed: Float[Tensor, ""] | float = 0.0
    fixed_doubt: Float[Tensor, ""] | float = 0.0
    size: Float[Tensor, ""] | float = 0.0
    terms: int = 0


NOTHING = Charge()


@theorem("T03")
def separated(
    at: Linearised,
    energy: Float[Tensor, " out"],
    reference: Float[Tensor, "out in"],
    minorant: Float[Tensor, "*out in"],
    support: Callable[[Tensor], Tensor],
    charge: Charge = NOTHING,
) -> tuple[float, Float[Tensor, "out in"]]:
    r"""Half of

    $$\sum_r E_r + f - \sum_r P_r A_r P_r^\top + \sum_{rj} t_{rj}
       - \max_{S \in \mathcal F} \sum_{(r,j) \in S} \Bigl(\frac{(g_{rj} + \delta_{rj} R_{rj})^2}{\delta_{rj}}
       + \tau_{rj}\Bigr), \qquad t = \delta R^2 + 2 g R,$$

    less the rounding error of every step, and numbers no smaller than the terms of the last sum; see `minorant_parts`.

    Args:
        at: $P$, $P A$ and $g$.
        energy: $E$ per row.
        reference: $R$.
        minorant: $\delta$.
        support: maps nonnegative gains `(out, in)` to the admissible support of the largest total.
        charge: $\tau$ and $f$; both are 0 where there is none.

    Guarantees:
        T03, rounding included.
    """
    step, g, slack = at.step, at.slope, at.slack
    terms = step.numel() + len(energy) + charge.terms
    live = minorant > 0
    if bool((~live & (g != 0)).any()):  # a weight that is free there would lower the objective without end
        return -math.inf, torch.zeros_like(step)
    inverse = torch.where(live, 1 / torch.where(live, minorant, 1.0), 0.0)
    shifted = g + minorant * reference
    wobble = slack + 1.01 * gamma(4) * (g.abs() + minorant * reference.abs())
    wobble = wobble + 4 * SMALLEST
    doubt = 1.01 * inverse * wobble * (2 * shifted.abs() + wobble) + gamma(6) * (inverse * shifted) * shifted
    doubt = doubt + SMALLEST * (4 + 4 * shifted.abs())
    # Divided before multiplied: where the inputs are tiny, so is delta, and the square alone would underflow.
    gains = torch.where(live, (inverse * shifted) * shifted + doubt, 0.0) + (charge.each + charge.doubt)
    if not bool(gains.isfinite().all()) or bool((minorant > LARGEST).any()):  # overflow: nothing follows
        return -math.inf, torch.zeros_like(step)
    kept = support(gains)
    pruned_part = torch.where(kept, 0.0, minorant * reference * reference + 2 * g * reference)
    kept_part = torch.where(kept, (inverse * g) * g + charge.each, 0.0)
    quadratic = step * at.quadratic
    value = energy.sum() - quadratic.sum() + pruned_part.sum() - kept_part.sum() + charge.fixed
    # What each sum may be off by: propagated slack, then the roundings of the terms and of the additions.
    off = (step.abs() * slack).sum() + torch.where(kept, 0.0, 2 * slack * reference.abs()).sum()
    # The true maximiser is another one: its gains exceed those of `kept` by at most twice the doubt, and by what adding
    # up the gains of a unit rounds. The charge of `kept` itself is off by its doubt once more.
    off = off + torch.where(kept, 2 * doubt + 3 * charge.doubt + 2 * gamma(step.numel()) * gains, 0.0).sum()
    off = off + torch.where(kept, inverse * slack * (2 * g.abs() + slack), 0.0).sum() + charge.fixed_doubt
    size = energy.abs().sum() + quadratic.abs().sum() + kept_part.sum() + charge.size
    size = size + torch.where(kept, 0.0, minorant * reference * reference + 2 * (g * reference).abs()).sum()
    # What underflow takes from a product of three is multiplied by the last factor at most.
    factors = step.abs() + 2 * reference.abs() + shifted.abs() + 2 * g.abs() + slack
    off = off + 8 * SMALLEST * (terms + factors.sum())
    bound = 0.5 * float(value - 1.01 * off - 1.01 * gamma(terms + 8) * size)
    return bound if bound < math.inf else -math.inf, gains  # infinite or not a number: overflow again
