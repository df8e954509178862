"""ADMM whose support shrinks on a schedule."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from optprune.errors import InvalidInputError
from optprune.numerics.selection import top_k
from optprune.numerics.spectrum import Spectrum
from optprune.patterns import Pattern
from optprune.problems import L0LeastSquares, Problem
from optprune.solution import Answer
from optprune.solvers._base import CONVERGED, NON_FINITE, RUNNING, IterativeSolver, Promise
from optprune.solvers._refit import refit
from optprune.solvers._scaled import ScaledLayer


@dataclass(frozen=True)
class GradualADMMState:
    """Iterates in the coordinates of the curvature.

    Attributes:
        layer: the problem in these coordinates.
        spectrum: eigen-decomposition of its Gram matrix.
        linear: its linear term.
        smooth: the copy that carries the loss.
        sparse: the copy with the support of the schedule.
        multipliers: of `smooth = sparse`, divided by the penalty.
        age: steps so far.
    """

    layer: ScaledLayer
    spectrum: Spectrum
    linear: Float[Tensor, "*batch out in"]
    smooth: Float[Tensor, "*batch out in"]
    sparse: Float[Tensor, "*batch out in"]
    multipliers: Float[Tensor, "*batch out in"]
    age: int


@dataclass(frozen=True)
class GradualADMM(IterativeSolver[L0LeastSquares, GradualADMMState]):
    r"""ADMM at one penalty, with a support that shrinks from dense to the budget within `max_steps`; then exact refit.

    $$Z \leftarrow M_t \circ (W + U), \quad U \leftarrow U + W - Z, \quad
      W \leftarrow (B + \rho (Z - U)) (H + \rho I)^{-1}$$

    where $M_t$ keeps, of the entries of $W + U$, the support that the pattern would choose and the largest of the
    rest of the layer, a fraction $(1 - t/T)^3$ of it. The coordinates are those in which the square of a weight
    estimates what the weight is worth when the others follow it (`ScaledLayer.of`); `softness=inf` is the unit diagonal
    of the paper, with errors half as large again on ill-conditioned layers. One eigen-decomposition, and two products
    per step: the cheapest of the iterative solvers. Done when the schedule is.

    Attributes:
        max_steps: $T$, the length of the schedule.
        rho: $\rho$.
        softness: of the coordinates.

    References:
        Boza 2024, section 3 and Algorithm 1, where after the schedule some steps with the last support approach the
        refit that is exact here, and where the rest is protected for 2:4 only. The coordinates are ours.
    """

    max_steps: int = 20
    check_every: int = 1
    rho: float = 1.0
    softness: float = 0.003

    accepts: ClassVar[tuple[type[Problem], ...]] = (L0LeastSquares,)
    summary: ClassVar[str] = "ADMM with a support that shrinks on a cubic schedule, then exact refit; 20 steps"
    source: ClassVar[str] = "Boza 2024, Algorithm 1"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 < self.rho < float("inf") and self.softness > 0):
            raise InvalidInputError(
                f"GradualADMM with rho={self.rho}, softness={self.softness} given; both must be positive"
            )

    @property
    def promises(self) -> frozenset[Promise]:
        return frozenset({Promise.REFITTED})

    def init(self, problem: L0LeastSquares) -> GradualADMMState:
        layer = ScaledLayer.of(problem, self.softness)
        return GradualADMMState(
            layer=layer,
            spectrum=Spectrum.of(layer.gram),
            linear=layer.linear,
            smooth=layer.dense,
            sparse=layer.dense,
            multipliers=torch.zeros_like(layer.dense),
            age=0,
        )

    def step(self, problem: L0LeastSquares, state: GradualADMMState) -> GradualADMMState:
        target = state.smooth + state.multipliers
        left = (1 - (state.age + 1) / self.max_steps) ** 3
        sparse = torch.where(_loose_support(problem.pattern, target.square(), left), target, 0.0)
        multipliers = target - sparse
        rhs = state.linear + self.rho * (sparse - multipliers)
        smooth = state.spectrum.solve(rhs, self.rho)
        return replace(state, smooth=smooth, sparse=sparse, multipliers=multipliers, age=state.age + 1)

    def residual(self, problem: L0LeastSquares, state: GradualADMMState) -> Int[Tensor, "*batch"]:
        finite = state.smooth.isfinite().all(-1).all(-1)
        return torch.where(finite, CONVERGED if state.age >= self.max_steps else RUNNING, NON_FINITE)

    def finish(self, problem: L0LeastSquares, state: GradualADMMState) -> Answer:
        matrix, info = refit(problem, state.layer.support(state.sparse))
        return Answer(matrix, (), 0, info=info)


def _loose_support(
    pattern: Pattern, scores: Float[Tensor, "*batch out in"], left: float
) -> Bool[Tensor, "*batch out in"]:
    """The support that the pattern chooses, and the fraction `left` of all other units, the best of the layer."""
    shape = (int(scores.shape[-2]), int(scores.shape[-1]))
    budgets, units, size = pattern.layout(shape)
    mask = pattern.units(pattern.support(scores, checked=False)).any(-1)  # `residual` looks
    rest = pattern.units(scores).sum(-1).masked_fill(mask, -1.0).flatten(-2)
    extra = round(left * (budgets * units - pattern.count(shape) // size))
    chosen = mask | top_k(rest, extra, checked=False).reshape(mask.shape)
    return pattern.from_units(chosen.unsqueeze(-1).expand(*chosen.shape, size), shape)
