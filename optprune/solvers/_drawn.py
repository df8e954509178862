"""Edges drawn with replacement and reweighted, as SiPPRand, SiPPHybrid and CoreNet do."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from optprune.errors import InvalidInputError
from optprune.numerics.sampling import generator
from optprune.numerics.selection import top_k
from optprune.numerics.water_filling import whole
from optprune.problems import EdgeSampling, Problem
from optprune.solution import Answer, Termination
from optprune.solvers._base import Progress, Solver
from optprune.solvers._edges import Halves, admissible, alone, draws_for_count, margin, multinomial


@dataclass(frozen=True)
class Drawn(Solver[EdgeSampling]):
    r"""Draw edges with probabilities $q_j = s_j / S$; one drawn $n_j$ times of $m$ weighs $n_j w_j / (m q_j)$.

    `amounts` divides the budget among the half-neurons. With `count="unique"`, as published, an amount is the number
    of distinct edges that are left on average, and the number of draws follows; the budget of the division is a
    standard deviation below the pattern's, and a choice that keeps too many is made again (`redraws` counts), so that
    the answer is admissible and unbiased but for that condition. With `count="draws"` an amount is the number of
    draws: never too many, never discarded, and fewer edges. A half-neuron that gets all its edges is left as it is, but
    for those that carry nothing at any point: they are dropped always.

    Attributes:
        seed: of the draws; members of a stack draw from the same seed.
        delta: the probability of failure that is divided among the half-neurons in the bounds of the allocation.
        constant: $C$ of the bounds; 3 in the published settings.
        count: "unique" or "draws".
    """

    seed: int = 0
    delta: float = 0.1
    constant: float = 3.0
    count: Literal["unique", "draws"] = "unique"

    accepts: ClassVar[tuple[type[Problem], ...]] = (EdgeSampling,)

    def __post_init__(self) -> None:
        if not 0 < self.delta < 1 or not self.constant > 0 or self.count not in ("unique", "draws"):
            raise InvalidInputError(
                f"{self} given; delta is a probability in (0, 1), constant is positive, count is 'unique' or 'draws'"
            )

    @abstractmethod
    def amounts(self, halves: Halves, budget: Float[Tensor, " groups"]) -> Float[Tensor, "groups halves"]:
        """How much of its budget each half-neuron gets, at most the number of its edges."""

    def kept_as_they_are(
        self, halves: Halves, counts: Int[Tensor, "groups halves"], draws: Float[Tensor, "groups halves"]
    ) -> Bool[Tensor, "groups halves"]:
        """Half-neurons whose most sensitive edges are kept with their weights, in place of draws."""
        return torch.zeros_like(counts, dtype=torch.bool)

    def run(self, problem: EdgeSampling, progress: Progress | None = None) -> Answer:
        return alone(problem, self._run)

    def _run(self, problem: EdgeSampling) -> Answer:
        halves = Halves.of(problem)
        share = halves.sensitivity / torch.where(halves.total > 0, halves.total, 1.0)[..., None]
        counts, draws = self._divide(halves, share, torch.zeros(len(halves.budget), dtype=torch.float64))
        if self.count == "unique":
            inclusion = _inclusion(share, draws)
            counts, draws = self._divide(halves, share, margin(inclusion))
        as_they_are = self.kept_as_they_are(halves, counts, draws)
        best = torch.where(top_k(halves.sensitivity, counts), halves.weight, 0.0)
        everything = draws.isinf()
        alive = torch.where(share > 0, halves.weight, 0.0)
        random = generator(self.seed)
        drawn = torch.where(everything, 0.0, draws)

        def draw() -> Tensor:
            hits = multinomial(drawn, share.cpu(), random).to(share)
            expected = drawn.to(share)[..., None] * share
            weight = torch.where(hits > 0, halves.weight * hits / torch.where(hits > 0, expected, 1.0), 0.0)
            weight = torch.where(everything[..., None].to(share.device), alive, weight)
            return torch.where(as_they_are[..., None], best, weight)

        chosen, discarded = admissible(halves.budget, draw)
        stated = torch.where(as_they_are, torch.nan, draws.to(share))
        return Answer(
            halves.layer(chosen),
            (Termination.CLOSED_FORM,),
            steps=0,
            hint={"draws": stated.reshape(-1, 2), "settings": torch.tensor([self.delta, self.constant]).double()},
            info={"redraws": float(discarded), "kept_as_they_are": float(as_they_are.double().mean())},
        )

    def _divide(self, halves: Halves, share: Tensor, spare: Tensor) -> tuple[Tensor, Tensor]:
        """Whole amounts and the draws for them; infinitely many for a half-neuron that keeps all its edges."""
        budget = (halves.budget - spare.to(halves.budget.device)).clamp(min=0).floor()
        edges = halves.edges
        counts = whole(self.amounts(halves, budget.double()), edges, budget.long())
        if self.count == "draws":
            return counts, torch.where(counts < edges, counts.double(), torch.inf).cpu()
        # Rounded down: the count is an average that should not be exceeded.
        draws = draws_for_count(share, counts.double()).floor()
        return counts, torch.where(counts > 0, draws.clamp(min=1), 0.0).cpu()


def _inclusion(share: Tensor, draws: Tensor) -> Tensor:
    """The probability that an edge is drawn at all."""
    missed = draws.to(share)[..., None] * torch.log1p(-share.clamp(max=1 - 1e-16))
    return torch.where(share > 0, -torch.expm1(missed), 0.0)
