"""Edges kept with probabilities of least variance, by chance in pairs or without chance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from optprune.errors import InvalidInputError
from optprune.numerics.pivotal import choose_in_pairs, settle
from optprune.numerics.sampling import generator
from optprune.numerics.water_filling import water_fill
from optprune.problems import EdgeSampling, Problem
from optprune.solution import Answer, Termination
from optprune.solvers._base import Progress, Solver
from optprune.solvers._edges import Halves, alone


@dataclass(frozen=True)
class PivotalEdges(Solver[EdgeSampling]):
    r"""Keep edge $(i, j)$ with probability $p_{ij}$ and weigh it $w_{ij} / p_{ij}$; as many as the budget, no more.

    $p = \min(1, \tau\, \text{score})$: large edges are kept for certain and add no error. The score "variance",
    $|w_{ij}| \operatorname{rms}_x x_j / \sqrt{\text{flow}_i}$, gives the least mean relative variance of all
    probabilities of that sum (T18); "sensitivity" is $s_{ij}$, which guards the worst point.

    Choices are made in pairs, in each of which one edge loses what the other gains: the count is certain, every edge
    is kept with its probability, and nothing is discarded. With `derandomise`, the default, no pair is left to chance:
    it moves in the direction of the smaller expected squared error, given what was settled before. That measures best
    by far; the other is unbiased, and has a bound before the choice is made.

    Attributes:
        seed: of the choices; members of a stack choose from the same seed. Not used with `derandomise`.
        score: "variance" or "sensitivity".
        derandomise: settle the pairs by conditional expectations, not by chance.

    Guarantees:
        T19: unbiased; the error's tail; what derandomised choices keep.

    References:
        Horvitz & Thompson 1952; Deville & Tillé 1998 (pairs); Raghavan 1988 (conditional expectations).
    """

    seed: int = 0
    score: Literal["variance", "sensitivity"] = "variance"
    derandomise: bool = True

    accepts: ClassVar[tuple[type[Problem], ...]] = (EdgeSampling,)
    summary: ClassVar[str] = (
        "keeps and reweights edges in pairs, each settled by the smaller expected error, or by chance"
    )
    source: ClassVar[str] = "Horvitz & Thompson 1952; Baykal et al. 2019 (SiPP) for the sensitivities"

    def __post_init__(self) -> None:
        if self.score not in ("variance", "sensitivity"):
            raise InvalidInputError(f"score={self.score!r} given; 'variance' and 'sensitivity' are accepted")

    def run(self, problem: EdgeSampling, progress: Progress | None = None) -> Answer:
        return alone(problem, self._settled if self.derandomise else self._chosen)

    def probabilities(self, halves: Halves) -> Float[Tensor, "groups halves in"]:
        """Of every edge; they sum to the budget where there are as many edges."""
        problem = halves.problem
        score = halves.sensitivity
        if self.score == "variance":
            squares = sum((rows.square().sum(-2) for rows in problem.blocks()), torch.zeros(()).double())
            size = problem.flow.sqrt()[:, None]
            each = problem.weight.abs() * torch.as_tensor(squares).sqrt() / torch.where(size > 0, size, 1.0)
            score = torch.where(halves.mask, each.repeat_interleave(2, 0).reshape(score.shape), 0.0)
        flat = score.flatten(1)
        return water_fill(flat, torch.ones_like(flat), halves.budget.double()).reshape(score.shape)

    def _chosen(self, problem: EdgeSampling) -> Answer:
        halves = Halves.of(problem)
        p = self.probabilities(halves)
        kept = choose_in_pairs(p.flatten(1), generator(self.seed)).reshape(p.shape)
        matrix = halves.layer(torch.where(kept, halves.weight / torch.where(p > 0, p, 1.0), 0.0))
        return Answer(matrix, (Termination.CLOSED_FORM,), steps=0, hint={"probabilities": halves.layer(p)})

    def _settled(self, problem: EdgeSampling) -> Answer:
        halves = Halves.of(problem)
        p = halves.layer(self.probabilities(halves))
        weight = problem.weight / torch.where(p > 0, p, 1.0)
        scale = torch.where(problem.flow > 0, problem.flow, 1.0)
        gram = problem.linear.gram() / problem.linear.shape[-2]
        kept = settle(p, weight / scale.sqrt()[:, None], gram, halves.budget)
        return Answer(torch.where(kept, weight, 0.0), (Termination.CLOSED_FORM,), steps=0)
