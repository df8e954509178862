"""Activation-weighted magnitude pruning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from optprune.criteria import activation_weighted
from optprune.problems import L0LeastSquares
from optprune.solvers._one_shot import OneShot


@dataclass(frozen=True)
class Wanda(OneShot):
    """Keep the weights with the largest magnitude times input norm; the values stay as they were unless `refit` is set.

    The paper compares weights within a row: use `PerRow` or `NOfM`. With `PerLayer` the same scores are compared over
    the whole layer.

    References:
        Sun, Liu, Bair & Kolter 2023, eq. (1).
    """

    refit: bool = False

    summary: ClassVar[str] = "keeps the largest |weight| x input norm; no refit unless asked"
    source: ClassVar[str] = "Sun, Liu, Bair & Kolter 2023 (Wanda), eq. (1)"

    def scores(self, problem: L0LeastSquares) -> Float[Tensor, "*batch out in"]:
        return activation_weighted(problem.dense, problem.statistics)
