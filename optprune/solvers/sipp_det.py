"""SiPP's deterministic variant: the most sensitive edges stay."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from optprune.errors import InvalidInputError
from optprune.problems import EdgeSampling, Problem
from optprune.solution import Answer, Termination
from optprune.solvers._base import Progress, Solver

Rescale = Literal["none", "mean", "minimax"]


@dataclass(frozen=True)
class SiPPDet(Solver[EdgeSampling]):
    r"""Keep the edges of the largest sensitivities, by default with the weights that they had.

    What is dropped is missing from every sum of a half-neuron, so that all of them come out too small. `rescale`
    multiplies each half-neuron by one number, which costs nothing:

    - "mean": what flows through it on average over the points is kept.
    - "minimax": its largest relative error on the points is least. With $r(x) = \hat z / z$ between $r_-$ and $r_+$ the
      factor is $2 / (r_- + r_+)$, the error $(r_+ - r_-) / (r_+ + r_-)$.

    Attributes:
        rescale: "none" (as published), "mean" or "minimax".

    Guarantees:
        T16 (a) and, for "minimax", (c).

    References:
        Baykal et al. 2019 (SiPP), deterministic variant; sensitivities are maxima over patches, as the theory asks.
    """

    rescale: Rescale = "none"

    accepts: ClassVar[tuple[type[Problem], ...]] = (EdgeSampling,)
    summary: ClassVar[str] = "keeps the edges of the largest empirical sensitivity; rescaled where asked"
    source: ClassVar[str] = "Baykal, Liebenwein, Gilitschenski, Feldman & Rus 2019 (SiPP), deterministic variant"

    def __post_init__(self) -> None:
        if self.rescale not in ("none", "mean", "minimax"):
            raise InvalidInputError(f"rescale={self.rescale!r} given; 'none', 'mean' and 'minimax' are accepted")

    def run(self, problem: EdgeSampling, progress: Progress | None = None) -> Answer:
        kept = torch.where(problem.pattern.support(problem.sensitivity), problem.weight, 0.0)
        if self.rescale != "none":
            ratio = _mean_ratio if self.rescale == "mean" else _middle_ratio
            for sign in (1.0, -1.0):
                half = (sign * problem.weight).clamp(min=0)
                share = ratio(problem, half, torch.where(kept != 0, half, 0.0))[..., None]
                kept = torch.where((half > 0) & (share > 0), kept / torch.where(share > 0, share, 1.0), kept)
        return Answer(kept, (Termination.CLOSED_FORM,) * math.prod(problem.batch_shape), steps=0)


def _mean_ratio(
    problem: EdgeSampling, half: Float[Tensor, "*batch out in"], kept: Float[Tensor, "*batch out in"]
) -> Float[Tensor, "*batch out"]:
    """What flows through the kept edges over what flows through all, on average; 1 where nothing does."""
    size = sum((rows.abs().sum(-2) for rows in problem.blocks()), torch.zeros(()).double())
    before, after = (half * size[..., None, :]).sum(-1), (kept * size[..., None, :]).sum(-1)
    return torch.where(before > 0, after / before, 1.0)


def _middle_ratio(
    problem: EdgeSampling, half: Float[Tensor, "*batch out in"], kept: Float[Tensor, "*batch out in"]
) -> Float[Tensor, "*batch out"]:
    """The middle between the smallest and the largest ratio over the points and both signs of the inputs."""
    low, high = torch.ones_like(half[..., 0]), torch.zeros_like(half[..., 0])
    for rows in problem.blocks():
        for part in (rows.clamp(min=0), (-rows).clamp(min=0)):
            before = part @ half.mT
            ratio = (part @ kept.mT) / torch.where(before > 0, before, 1.0)
            low = torch.minimum(low, torch.where(before > 0, ratio, 1.0).amin(-2))
            high = torch.maximum(high, torch.where(before > 0, ratio, 0.0).amax(-2))
    return torch.where(high > 0, (low + high) / 2, 1.0)
