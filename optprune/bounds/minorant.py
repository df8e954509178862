"""Lower bound for least squares over a family of supports, by splitting off a diagonal minorant of the Hessian."""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from optprune.bounds._linearised import linearised
from optprune.bounds._separated import separated
from optprune.bounds._theorem import theorem


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
    at = linearised(gram, cross, reference, minorant, point)
    return separated(at, energy, reference, minorant, support)
