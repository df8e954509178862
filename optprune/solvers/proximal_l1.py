"""The l1 relaxation of the l0 least-squares problem by accelerated proximal gradient."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from optprune.errors import InvalidInputError
from optprune.problems import L0LeastSquares, Problem
from optprune.solution import Answer
from optprune.solvers._base import CONVERGED, NON_FINITE, RUNNING, IterativeSolver, Promise
from optprune.solvers._refit import refit
from optprune.solvers._scaled import ScaledLayer


@dataclass(frozen=True)
class ProximalL1State:
    r"""Iterates in the coordinates where the Gram matrix has a unit diagonal.

    Attributes:
        layer: the problem in these coordinates.
        steepest: $L$, the largest eigenvalue of its Gram matrix; 1 where there is none.
        weight: $V$.
        ahead: the extrapolated point.
        momentum: $t$ of each row.
        low: a penalty of each budget that leaves too many units.
        high: one that leaves few enough.
        age: steps so far.
    """

    layer: ScaledLayer
    steepest: Float[Tensor, "*batch 1 1"]
    weight: Float[Tensor, "*batch out in"]
    ahead: Float[Tensor, "*batch out in"]
    momentum: Float[Tensor, "*batch out 1"]
    low: Float[Tensor, "*batch budgets"]
    high: Float[Tensor, "*batch budgets"]
    age: int

    @property
    def penalty(self) -> Float[Tensor, "*batch budgets"]:
        r"""$\mu$: the geometric mean of the bracket."""
        return (self.low * self.high).sqrt()


@dataclass(frozen=True)
class ProximalL1(IterativeSolver[L0LeastSquares, ProximalL1State]):
    r"""The l1 form with a penalty per budget, found by bisection so that the budget is met; then the exact refit.

    $$\min_V f(V) + \sum_{b} \mu_b \sum_{u \in b} \lVert V_u \rVert_2$$

    over the pattern's budgets $b$ and their units $u$, where the Gram matrix has a unit diagonal: the lasso for single
    weights, the group lasso for blocks, rows and columns. Accelerated proximal gradient steps, restarted row by row
    where the momentum points uphill; every `inner` of them the bracket of each $\mu_b$ is halved (in the exponent) by
    the number of units that are nonzero. Warm starts make the path cheap; where several budgets share a row their
    brackets are coupled and the count is met to the last units only, which the support fills by $V - \nabla f(V) / L$.
    Done when every bracket is closed to `tolerance`.

    Attributes:
        inner: steps at one penalty.
        range: the smallest penalty tried, relative to the one that leaves nothing.
        tolerance: width of a closed bracket, relative.

    References:
        Beck & Teboulle 2009 (FISTA), eq. (4.1) to (4.3); O'Donoghue & Candes 2015 (restart); Yuan & Lin 2006 (groups).
    """

    max_steps: int = 5000
    check_every: int = 30
    inner: int = 30
    range: float = 1e-6
    tolerance: float = 0.05

    accepts: ClassVar[tuple[type[Problem], ...]] = (L0LeastSquares,)
    summary: ClassVar[str] = "l1 (or group) penalty by FISTA, bisected to meet the budget, then exact refit"
    source: ClassVar[str] = "Beck & Teboulle 2009 (FISTA); Tibshirani 1996"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.inner >= 1 and 0 < self.range < 1 and self.tolerance > 0):
            raise InvalidInputError(
                f"ProximalL1 with inner={self.inner}, range={self.range}, tolerance={self.tolerance} given; "
                "accepted are inner >= 1, 0 < range < 1, tolerance > 0"
            )

    @property
    def promises(self) -> frozenset[Promise]:
        return frozenset({Promise.REFITTED})

    def init(self, problem: L0LeastSquares) -> ProximalL1State:
        layer = ScaledLayer.of(problem)
        steepest = torch.linalg.eigvalsh(layer.gram)[..., -1:, None]
        high = _sizes(layer, layer.linear).amax(-1)
        weight = torch.zeros_like(layer.dense)
        return ProximalL1State(
            layer=layer,
            steepest=torch.where(steepest > 0, steepest, 1.0),
            weight=weight,
            ahead=weight,
            momentum=torch.ones_like(weight[..., :1]),
            low=high * self.range,
            high=high,
            age=0,
        )

    def step(self, problem: L0LeastSquares, state: ProximalL1State) -> ProximalL1State:
        layer = state.layer
        moved = layer.pattern.units(state.ahead - layer.slope(state.ahead) / state.steepest)
        size = moved.square().sum(-1, keepdim=True).sqrt()
        threshold = state.penalty[..., None, None] / state.steepest.unsqueeze(-1)
        shrunk = torch.where(size > threshold, moved * (1 - threshold / size), 0.0)
        weight = layer.pattern.from_units(shrunk, problem.shape)
        progress = weight - state.weight
        uphill = ((state.ahead - weight) * progress).sum(-1, keepdim=True) > 0
        momentum = torch.where(uphill, 1.0, 0.5 + (0.25 + state.momentum.square()).sqrt())
        ahead = weight + torch.where(uphill, 0.0, (state.momentum - 1) / momentum) * progress
        state = replace(state, weight=weight, ahead=ahead, momentum=momentum, age=state.age + 1)
        return self._halved(state, problem) if state.age % self.inner == 0 else state

    def _halved(self, state: ProximalL1State, problem: L0LeastSquares) -> ProximalL1State:
        """Halve the brackets by the units that are left."""
        kept = problem.pattern.kept(problem.shape)
        left = (_sizes(state.layer, state.weight) > 0).sum(-1)
        few = left <= (kept.to(left.device) if isinstance(kept, Tensor) else kept)
        low, high = torch.where(few, state.low, state.penalty), torch.where(few, state.penalty, state.high)
        return replace(state, low=low, high=high, momentum=torch.ones_like(state.momentum), ahead=state.weight)

    def residual(self, problem: L0LeastSquares, state: ProximalL1State) -> Int[Tensor, "*batch"]:
        closed = (state.high <= (1 + self.tolerance) * state.low).all(-1)
        codes = torch.where(closed, CONVERGED, RUNNING)
        return torch.where(state.weight.isfinite().all(-1).all(-1), codes, NON_FINITE)

    def finish(self, problem: L0LeastSquares, state: ProximalL1State) -> Answer:
        layer = state.layer
        matrix, info = refit(problem, layer.support(state.weight - layer.slope(state.weight) / state.steepest))
        return Answer(matrix, (), 0, info=info)


def _sizes(layer: ScaledLayer, weight: Float[Tensor, "*batch out in"]) -> Float[Tensor, "*batch budgets units"]:
    """The norm of each unit."""
    return layer.pattern.units(weight.square()).sum(-1).sqrt()
