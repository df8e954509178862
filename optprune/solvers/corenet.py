"""CoreNet: one error for all half-neurons of a layer, draws proportional to their sums of sensitivities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from optprune.numerics.water_filling import water_fill
from optprune.solvers._drawn import Drawn
from optprune.solvers._edges import Halves


@dataclass(frozen=True)
class CoreNet(Drawn):
    r"""Draw edges with replacement, $m_i = \tau S_i$ of half-neuron $i$ with one $\tau$ for the budget.

    The paper's sample size $8 S_i \ln(\eta \eta^*) \ln(8 \eta / \delta) / \varepsilon^2$ is proportional to $S_i$ for
    one $\varepsilon$ in a layer; the budget takes the place of $\varepsilon$, which as printed asks for more draws
    than a neuron has edges (`optprune.bounds.sipp.corenet_draws`). See `Drawn` for the settings; `constant` and
    `delta` only enter the certificate here.

    Guarantees:
        T14: unbiased, and within the bounds for the draws made, where `count="draws"`.

    References:
        Baykal, Liebenwein, Gilitschenski, Feldman & Rus 2019 (CoreNet), algorithm 2.
    """

    summary: ClassVar[str] = "draws edges by empirical sensitivity, one error for all half-neurons of the layer"
    source: ClassVar[str] = "Baykal, Liebenwein, Gilitschenski, Feldman & Rus 2019 (CoreNet), algorithm 2"

    def amounts(self, halves: Halves, budget: Float[Tensor, " groups"]) -> Float[Tensor, "groups halves"]:
        return water_fill(halves.total, halves.edges.double(), budget)
