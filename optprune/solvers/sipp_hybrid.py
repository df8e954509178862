"""SiPP's hybrid variant: each half-neuron is drawn or kept at its top, whichever has the smaller bound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from optprune.bounds.bernstein import relative_error
from optprune.numerics.selection import top_k
from optprune.numerics.water_filling import allocate_draws
from optprune.solvers._drawn import Drawn
from optprune.solvers._edges import Halves, log_of_failure


@dataclass(frozen=True)
class SiPPHybrid(Drawn):
    r"""As `SiPPRand`, but a half-neuron keeps its $m_i$ most sensitive edges where that has the smaller bound.

    Kept: $\varepsilon^{det} = C (S - S_I)$. Drawn: $\varepsilon^{rand}$ of T14 (c) at the number of draws that is made.
    `info["kept_as_they_are"]` is the share of half-neurons that are kept; the answer's hint has the draws of each, NaN
    where there were none. Nothing is stored in the solver: a second run is the first.

    Guarantees:
        T14 for what was drawn (`count="draws"`), T16 (a) for what was kept.

    References:
        Baykal et al. 2019 (SiPP), hybrid variant.
    """

    summary: ClassVar[str] = "per half-neuron draws edges or keeps the most sensitive ones, by the smaller bound"
    source: ClassVar[str] = "Baykal, Liebenwein, Gilitschenski, Feldman & Rus 2019 (SiPP), hybrid variant"

    def amounts(self, halves: Halves, budget: Float[Tensor, " groups"]) -> Float[Tensor, "groups halves"]:
        total, edges = halves.total, halves.edges.double()
        alpha = 2 * self.constant * total * log_of_failure(self.delta, 2 * halves.problem.shape[0])
        return allocate_draws(alpha, (total > 0).double(), edges, budget)

    def kept_as_they_are(
        self, halves: Halves, counts: Int[Tensor, "groups halves"], draws: Float[Tensor, "groups halves"]
    ) -> Bool[Tensor, "groups halves"]:
        dropped = torch.where(top_k(halves.sensitivity, counts), 0.0, halves.sensitivity).sum(-1)
        each = self.delta / (2 * halves.problem.shape[0])
        return self.constant * dropped <= relative_error(draws.to(dropped), halves.total, each, self.constant)
