"""The convex part of a least-squares objective, linearised at a point, with what rounding may have done to it."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from optprune.bounds._theorem import theorem
from optprune.numerics.rounding import SMALLEST, gamma


@dataclass(frozen=True, eq=False)
class Linearised:
    r"""At $V$, row by row with $A_r = H - \operatorname{diag}\delta_r$.

    Attributes:
        step: $P = V - R$.
        quadratic: $P A$.
        slope: $g = C^\top - P A$.
        slack: no less than $|computed - exact|$ of `slope`, entry by entry.
    """

    step: Float[Tensor, "out in"]
    quadratic: Float[Tensor, "out in"]
    slope: Float[Tensor, "out in"]
    slack: Float[Tensor, "out in"]


@theorem("T03")
def linearised(
    gram: Float[Tensor, "in in"],
    cross: Float[Tensor, "in out"],
    reference: Float[Tensor, "out in"],
    minorant: Float[Tensor, "*out in"],
    point: Float[Tensor, "out in"],
) -> Linearised:
    """The steps that a bound on every weight and a bound on every mask begin with.

    Guarantees:
        T03, the rounding of `slope`.
    """
    d = gram.shape[0]
    step = point - reference
    pa = step @ gram - step * minorant
    # 1.01 covers the rounding of the estimate itself.
    slack = 1.01 * gamma(d + 4) * (step.abs() @ gram.abs() + step.abs() * minorant + cross.mT.abs())
    return Linearised(step, pa, cross.mT - pa, slack + 4 * (d + 4) * SMALLEST)
