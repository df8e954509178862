"""One-shot solvers: a criterion chooses the support, exact least squares may refit the values."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from optprune.errors import InvalidInputError
from optprune.patterns import Fixed
from optprune.problems import L0LeastSquares, Problem
from optprune.solution import Answer, Termination
from optprune.solvers._base import Progress, Promise, Solver
from optprune.solvers._refit import refit


@dataclass(frozen=True)
class OneShot(Solver[L0LeastSquares]):
    """Keep the support of the largest total score; refit the kept weights or leave them as they were.

    Attributes:
        refit: solve the least-squares problem on the support exactly (see `refit`), or keep the dense values.
    """

    refit: bool = True

    accepts: ClassVar[tuple[type[Problem], ...]] = (L0LeastSquares,)

    @property
    def promises(self) -> frozenset[Promise]:
        return frozenset({Promise.REFITTED}) if self.refit else frozenset()

    def _require_dense_weight(self, problem: L0LeastSquares) -> None:
        """A criterion that reads the dense weight chooses nothing where there is none."""
        if isinstance(problem.pattern, Fixed) and self.refit:
            return
        missing = (problem.dense == 0).flatten(-2).all(-1) & (problem.linear != 0).flatten(-2).any(-1)
        if bool(missing.any()):
            raise InvalidInputError(
                f"{type(self).__name__} ranks the dense weights, and those of the problem given are zero while its "
                "targets are not; pass them: Statistics.from_samples(inputs, targets, weight), or use a solver that "
                "reads the targets alone, such as ADMM"
            )

    @abstractmethod
    def scores(self, problem: L0LeastSquares) -> Float[Tensor, "*batch out in"]:
        """Nonnegative saliencies, additive over weights."""

    def run(self, problem: L0LeastSquares, progress: Progress | None = None) -> Answer:
        self._require_dense_weight(problem)
        mask = problem.pattern.support(self.scores(problem))
        matrix, info = refit(problem, mask) if self.refit else (problem.dense * mask, {})
        count = max(1, problem.statistics.gram.shape[:-2].numel())
        return Answer(matrix, (Termination.CLOSED_FORM,) * count, steps=0, info=info)
