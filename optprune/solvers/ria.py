"""Pruning by relative importance and activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from optprune.criteria import relative_importance
from optprune.errors import InvalidInputError
from optprune.problems import L0LeastSquares
from optprune.solvers._one_shot import OneShot


@dataclass(frozen=True)
class RIA(OneShot):
    """Keep the weights with the largest share of their input and output; values stay unless `refit` is set.

    Attributes:
        power: of the input's norm in the score.

    References:
        Zhang et al. 2024 (RIA), eq. (4). Their permutation of the channels is left out.
    """

    refit: bool = False
    power: float = 0.5

    summary: ClassVar[str] = "keeps the largest shares of input and output times input norm; no refit unless asked"
    source: ClassVar[str] = "Zhang, Bai, Lin et al. 2024 (RIA), eq. (4)"

    def __post_init__(self) -> None:
        if not 0.0 <= self.power < float("inf"):
            raise InvalidInputError(f"RIA with power={self.power} given; a finite number >= 0 is needed")

    def scores(self, problem: L0LeastSquares) -> Float[Tensor, "*batch out in"]:
        return relative_importance(problem.dense, problem.statistics, self.power)
