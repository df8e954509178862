"""Lower bound for least squares whose minorant holds, besides a diagonal, squares of pairs of weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from optprune.bounds._linearised import Linearised, linearised
from optprune.bounds._separated import Charge, separated
from optprune.bounds._theorem import theorem
from optprune.numerics.rounding import SMALLEST, gamma


@dataclass(frozen=True, eq=False)
class Pairs:
    r"""In each row vectors $a_p$ with two entries that are not 0, and a number $t_p$ for each. They may overlap.

    Attributes:
        places: the two inputs.
        weights: the entries of $a_p$ there; both are 0 where a row has fewer pairs than others.
        offsets: $t_p$.
    """

    places: Int[Tensor, "out pairs 2"]
    weights: Float[Tensor, "out pairs 2"]
    offsets: Float[Tensor, "out pairs"]

    def at(self, x: Float[Tensor, "out in"]) -> Float[Tensor, "out pairs 2"]:
        """The entries of each row that its pairs meet."""
        return x.gather(1, self.places.flatten(1)).view(self.places.shape)

    def along(self, x: Float[Tensor, "out in"]) -> Float[Tensor, "out pairs"]:
        r"""$a_p \cdot x_r$."""
        return (self.weights * self.at(x)).sum(-1)

    def spread(self, x: Float[Tensor, "out pairs 2"], inputs: int) -> Float[Tensor, "out {inputs}"]:
        """What the pairs of each weight have for it, added up."""
        return x.new_zeros(len(x), inputs).scatter_add_(1, self.places.flatten(1), x.flatten(1))


@theorem("T25")
def pair_minorant_parts(
    gram: Float[Tensor, "in in"],
    cross: Float[Tensor, "in out"],
    energy: Float[Tensor, " out"],
    reference: Float[Tensor, "out in"],
    minorant: Float[Tensor, "*out in"],
    pairs: Pairs,
    point: Float[Tensor, "out in"],
    support: Callable[[Tensor], Tensor],
) -> tuple[float, Float[Tensor, "out in"]]:
    r"""A number that no weight with an admissible support can undercut, and what each weight gains when it is kept.

    With $e_p = a_p \cdot R_r - t_p$ and $\Delta = U - R$, in each row $r$,

    $$(a_p \cdot \Delta_r)^2 \ge -2 e_p \, a_p \cdot \Delta_r + t_p^2 - e_p^2 - \sum_{j : \, a_{pj} \ne 0,\, U_{rj} \ne
       0} t_p^2 ,$$

    so that the bound of `minorant_parts` holds with $A_r = H - \operatorname{diag}\delta_r - \sum_p a_p a_p^\top$,
    $g_r = C_r^\top + \sum_p e_p a_p - P_r A_r$, energies $E_r + \sum_p (t_p^2 - e_p^2)$ and gains

    $$\frac{(g_{rj} + \delta_{rj} R_{rj})^2}{\delta_{rj}} + \tau_{rj} , \qquad
       \tau_{rj} = \sum_{p : \, a_{pj} \ne 0} t_p^2 .$$

    The rounding error of every step is bounded and subtracted.

    Args:
        gram: $H$.
        cross: $C$.
        energy: $E$ per row.
        reference: $R$.
        minorant: $\delta$, one for all rows or one per row, with $A_r \succeq 0$ (see `proves_pairs`); 0 exactly on
            dead inputs.
        pairs: $a$ and $t$.
        point: $V$, any matrix; $P = V - R$.
        support: maps nonnegative gains `(out, in)` to the admissible support of the largest total.

    Returns:
        As `minorant_parts`.

    Guarantees:
        T25, rounding included.
    """
    alone = linearised(gram, cross, reference, minorant, point)
    a, t, inputs, step = pairs.weights, pairs.offsets, len(gram), alone.step
    used = (a != 0).double()
    most = int(pairs.spread(used, inputs).amax())
    e = pairs.along(reference) - t
    # Two products, their sum and the difference; 1.01 covers the rounding of the estimates, here and below.
    e_doubt = 1.01 * gamma(3) * ((a * pairs.at(reference)).abs().sum(-1) + t.abs()) + 4 * SMALLEST
    along = pairs.along(step)
    taken = pairs.spread(a * along.unsqueeze(-1), inputs)
    given = pairs.spread(a * e.unsqueeze(-1), inputs)
    size = (a * pairs.at(step)).abs().sum(-1) + e.abs()
    slack = pairs.spread(a.abs() * (gamma(most + 6) * size + e_doubt).unsqueeze(-1), inputs)
    slack = alone.slack + 1.01 * (slack + gamma(2) * (alone.slope.abs() + alone.quadratic.abs()))
    slack = slack + 8 * (most + 2) * SMALLEST * (1 + pairs.spread(a.abs(), inputs))
    at = Linearised(step, alone.quadratic - taken, alone.slope + (taken + given), slack)
    each = pairs.spread(used * (t * t).unsqueeze(-1), inputs)
    charge = Charge(
        each=each,
        doubt=1.01 * gamma(most + 4) * each + 8 * (most + 1) * SMALLEST,
        fixed=(t * t - e * e).sum(),
        fixed_doubt=(e_doubt * (2 * e.abs() + e_doubt)).sum(),
        size=(t * t + e * e).sum(),
        terms=2 * t.numel(),
    )
    return separated(at, energy, reference, minorant, support, charge)
