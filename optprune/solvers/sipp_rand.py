"""SiPP's randomised variant: edges drawn by sensitivity, draws divided by the bounds' optimum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from optprune.numerics.water_filling import allocate_draws
from optprune.solvers._drawn import Drawn
from optprune.solvers._edges import Halves, log_of_failure


@dataclass(frozen=True)
class SiPPRand(Drawn):
    r"""Draw edges with replacement; the budget is divided so that the half-neurons' bounds have the least sum.

    $$\min_m \sum_i \varepsilon_i(m_i) \quad \text{s.t.} \quad \sum_i m_i \le B, \; m_i \le \text{edges}_i$$

    with $\varepsilon_i$ of T14 (c), solved exactly (T18). See `Drawn` for the settings.

    Guarantees:
        T14: unbiased, and within the bounds for the draws made, where `count="draws"`.

    References:
        Baykal et al. 2019 (SiPP), randomised variant; the bounds have Bernstein's constant, where the published code
        has one that is too small by the square root of 2.
    """

    summary: ClassVar[str] = "draws edges by empirical sensitivity and reweights them; draws divided by the bounds"
    source: ClassVar[str] = "Baykal, Liebenwein, Gilitschenski, Feldman & Rus 2019 (SiPP), randomised variant"

    def amounts(self, halves: Halves, budget: Float[Tensor, " groups"]) -> Float[Tensor, "groups halves"]:
        total, edges = halves.total, halves.edges.double()
        alpha = 2 * self.constant * total * log_of_failure(self.delta, 2 * halves.problem.shape[0])
        return allocate_draws(alpha, (total > 0).double(), edges, budget)
