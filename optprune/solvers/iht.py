"""Iterative hard thresholding for the l0 least-squares problem."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from optprune.errors import InvalidInputError
from optprune.problems import L0LeastSquares, Problem
from optprune.solution import Answer
from optprune.solvers._base import CONVERGED, NON_FINITE, RUNNING, IterativeSolver, Promise
from optprune.solvers._refit import refit
from optprune.solvers._scaled import ScaledLayer


@dataclass(frozen=True)
class IHTState:
    """Iterates in the coordinates of the curvature.

    Attributes:
        layer: the problem in these coordinates.
        mask: the best support so far.
        weight: the best weight on it.
        value: what the loss is there, per independent part.
        step: length of the next gradient step, per part; 0 for a part that is done.
    """

    layer: ScaledLayer
    mask: Bool[Tensor, "*batch out in"]
    weight: Float[Tensor, "*batch out in"]
    value: Float[Tensor, "*batch parts"]
    step: Float[Tensor, "*batch parts"]


@dataclass(frozen=True)
class IHT(IterativeSolver[L0LeastSquares, IHTState]):
    r"""Gradient steps, hard thresholding, and the exact optimum on the new support.

    $$S^+ = \operatorname{supp} P_{\mathcal F}\bigl(V - \eta\, \nabla f(V)\bigr), \qquad
      V^+ = \arg\min_{\operatorname{supp} V \subseteq S^+} f(V)$$

    in the coordinates in which the square of a weight estimates what the weight is worth when the others follow it
    (`ScaledLayer.of`); a large softness gives the unit diagonal of the plain method. The step $\eta$ grows after a step
    that lowers the loss and shrinks after one that does not, which is then taken back, so that the loss never rises.
    Parts that the pattern leaves independent (rows, or the whole layer) have steps and decisions of their own. Done
    when a step proposes the support that is there, or none down to `shortest` lowers the loss.

    Attributes:
        grow: factor of the step after success.
        shrink: factor of the step after failure.
        shortest: the step that is no longer tried; the first one is 1.
        softness: of the coordinates.

    References:
        Blumensath & Davies 2009, eq. (10); Foucart 2011 (hard thresholding pursuit) for the optimum on the support at
        every step; Benbaki et al. 2023 (CHITA), section 3, whose line search is over breakpoints of the support and
        whose refit comes at the end. The coordinates are ours.
    """

    max_steps: int = 500
    check_every: int = 1
    grow: float = 2.0
    shrink: float = 0.5
    shortest: float = 0.01
    softness: float = 0.01

    accepts: ClassVar[tuple[type[Problem], ...]] = (L0LeastSquares,)
    summary: ClassVar[str] = "iterative hard thresholding with the exact optimum on every support; never rises"
    source: ClassVar[str] = "Blumensath & Davies 2009, eq. (10); Benbaki et al. 2023 (CHITA), section 3"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.grow >= 1 and 0 < self.shrink < 1 and 0 < self.shortest <= 1 and self.softness > 0):
            raise InvalidInputError(
                f"IHT with grow={self.grow}, shrink={self.shrink}, shortest={self.shortest}, softness={self.softness} "
                "given; accepted are grow >= 1, 0 < shrink < 1, 0 < shortest <= 1 and softness > 0"
            )

    @property
    def promises(self) -> frozenset[Promise]:
        return frozenset({Promise.REFITTED})

    def init(self, problem: L0LeastSquares) -> IHTState:
        layer = ScaledLayer.of(problem, self.softness)
        mask = layer.support(layer.dense)
        weight = layer.fit(mask)
        value = layer.value(weight)
        return IHTState(layer, mask, weight, value, torch.ones_like(value))

    def step(self, problem: L0LeastSquares, state: IHTState) -> IHTState:
        layer, length = state.layer, state.step.unsqueeze(-1)
        mask = layer.support(state.weight - length * layer.slope(state.weight))
        other = (mask != state.mask).any(-1)
        trying = (other if problem.pattern.row_separable else other.any(-1, keepdim=True)) & (state.step > 0)
        weight = layer.fit(mask & trying.unsqueeze(-1))
        value = layer.value(weight)
        better = trying & (value < state.value)
        length = torch.where(better, state.step * self.grow, state.step * self.shrink)
        return replace(
            state,
            mask=torch.where(better.unsqueeze(-1), mask, state.mask),
            weight=torch.where(better.unsqueeze(-1), weight, state.weight),
            value=torch.where(better, value, state.value),
            step=torch.where(trying & (length >= self.shortest), length, 0.0),
        )

    def residual(self, problem: L0LeastSquares, state: IHTState) -> Int[Tensor, "*batch"]:
        codes = torch.where((state.step == 0).all(-1), CONVERGED, RUNNING)
        return torch.where(state.value.isfinite().all(-1), codes, NON_FINITE)

    def finish(self, problem: L0LeastSquares, state: IHTState) -> Answer:
        matrix, info = refit(problem, state.mask)
        return Answer(matrix, (), 0, info=info)
