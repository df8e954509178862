"""Magnitude pruning, with or without exact refit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from optprune.criteria import magnitude
from optprune.problems import L0LeastSquares
from optprune.solvers._one_shot import OneShot


@dataclass(frozen=True)
class Magnitude(OneShot):
    """Keep the largest weights.

    References:
        Han, Pool, Tran & Dally 2015; the exact refit of the kept weights is ours.
    """

    summary: ClassVar[str] = "keeps the largest weights; refits them by exact least squares"
    source: ClassVar[str] = "Han, Pool, Tran & Dally 2015"

    def scores(self, problem: L0LeastSquares) -> Float[Tensor, "*batch out in"]:
        return magnitude(problem.dense, problem.statistics)
