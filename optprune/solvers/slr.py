"""Surrogate Lagrangian relaxation for the l0 least-squares problem."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from optprune.errors import InvalidInputError
from optprune.numerics.spectrum import Spectrum
from optprune.problems import L0LeastSquares, Problem
from optprune.solution import Answer
from optprune.solvers._base import CONVERGED, NON_FINITE, RUNNING, IterativeSolver, Promise
from optprune.solvers._refit import refit
from optprune.solvers._scaled import ScaledLayer


@dataclass(frozen=True)
class SLRState:
    r"""Iterates in the coordinates where the Gram matrix has a unit diagonal.

    Attributes:
        layer: the problem in these coordinates.
        spectrum: eigen-decomposition of its Gram matrix.
        linear: its linear term.
        smooth: $W$.
        sparse: $Z$.
        multipliers: $\Lambda$, unscaled.
        rho: the penalty.
        step: $s$ of the last accepted update.
        violation: $\lVert W - Z \rVert_F$ of the last accepted update.
        accepted: $k$, half-steps whose surrogate optimality condition held.
        rejected: half-steps where it did not hold.
        calm: steps since the support changed by more than the tolerance.
    """

    layer: ScaledLayer
    spectrum: Spectrum
    linear: Float[Tensor, "*batch out in"]
    smooth: Float[Tensor, "*batch out in"]
    sparse: Float[Tensor, "*batch out in"]
    multipliers: Float[Tensor, "*batch out in"]
    rho: float
    step: Float[Tensor, "*batch"]
    violation: Float[Tensor, "*batch"]
    accepted: Int[Tensor, "*batch"]
    rejected: Int[Tensor, "*batch"]
    calm: Int[Tensor, "*batch"]


@dataclass(frozen=True)
class SLR(IterativeSolver[L0LeastSquares, SLRState]):
    r"""Surrogate Lagrangian relaxation of $W = Z$, loss on $W$, support on $Z$, then the exact refit.

    $$L_\rho(W, Z, \Lambda) = f(W) + \langle \Lambda, W - Z \rangle + \tfrac\rho2 \lVert W - Z \rVert_F^2,
      \quad \operatorname{supp} Z \in \mathcal F,$$

    where the Gram matrix has a unit diagonal. A step has two halves: $W \leftarrow \arg\min L_\rho$, exactly, from one
    eigen-decomposition; and $Z \leftarrow P_{\mathcal F}(W + \Lambda / \rho)$. After each half the multipliers move by
    $s (W - Z)$ if the surrogate optimality condition holds, which is that this half has lowered $L_\rho$; else
    multipliers and step stay as they are. With $k$ the number of updates so far,

    $$s^k = \alpha^k s^{k-1} \frac{\lVert W^{k-1} - Z^{k-1} \rVert_F}{\lVert W^k - Z^k \rVert_F}, \quad
      \alpha^k = 1 - \frac{1}{M k^{p_k}}, \quad p_k = 1 - k^{-r},$$

    so that the length of the multipliers' moves shrinks by $\alpha^k$ and by nothing else. Three things are to be
    known. With $r$ = 0.1 the exponent $p_k$ is near its limit 1 only after very many steps:
    $\prod_{k \le 10^4} \alpha^k$ is 0.56 for $M$ = 300, and with a constant penalty the support does not settle; here
    $\rho$ grows by a factor per step, the multipliers unscaled, which ends the search and finds better supports;
    `growth=1` is the constant penalty of the paper. The loss half is solved exactly, so that its condition fails only
    where nothing is left to lower. And the theory speaks of the multipliers alone, of a dual function that is $-\infty$
    without the quadratic term or a bound on the weights; of the primal answer it says nothing, for that there is the
    certificate.

    Done when for `patience` steps no step has changed more than `tolerance` of the support.

    Attributes:
        rho: the first penalty, relative to the unit diagonal.
        growth: of the penalty, per step.
        first_step: $s^0$.
        m: $M > 1$.
        r: in (0, 1).
        tolerance: entries and exits of a step, relative to the weights kept.
        patience: steps in a row within the tolerance.

    References:
        Gurevin et al. 2021, Algorithm 1; Bragin et al. 2015, Theorem 2.1 (convergence of the multipliers). Norms are of
        the layer; the last accepted violation stands in the numerator; $s$ and $\Lambda$ change on acceptance only.
    """

    max_steps: int = 1000
    check_every: int = 10
    rho: float = 1e-3
    growth: float = 1.05
    first_step: float = 0.01
    m: float = 300.0
    r: float = 0.1
    tolerance: float = 1e-4
    patience: int = 20

    accepts: ClassVar[tuple[type[Problem], ...]] = (L0LeastSquares,)
    summary: ClassVar[str] = "surrogate Lagrangian relaxation of the l0 problem, exact loss steps, then exact refit"
    source: ClassVar[str] = "Gurevin et al. 2021 (SLR), Algorithm 1"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.rho > 0 and self.growth >= 1 and self.first_step > 0 and self.m > 1 and 0 < self.r < 1):
            raise InvalidInputError(
                f"SLR with rho={self.rho}, growth={self.growth}, first_step={self.first_step}, m={self.m}, r={self.r} "
                "given; accepted are rho > 0, growth >= 1, first_step > 0, m > 1, 0 < r < 1"
            )
        if not (self.tolerance >= 0 and self.patience >= 1):
            raise InvalidInputError(
                f"SLR with tolerance={self.tolerance}, patience={self.patience} given; "
                "accepted are tolerance >= 0 and patience >= 1"
            )

    @property
    def promises(self) -> frozenset[Promise]:
        return frozenset({Promise.REFITTED})

    def alpha(self, k: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        r"""$\alpha^k$ of the class's formula, $k \ge 1$."""
        k = k.to(torch.float64)
        return 1 - 1 / (self.m * k.pow(1 - k.pow(-self.r)))

    def init(self, problem: L0LeastSquares) -> SLRState:
        layer = ScaledLayer.of(problem)
        sparse = layer.pattern.project(layer.dense)
        violation = _norm(layer.dense - sparse)
        none = torch.zeros_like(violation, dtype=torch.int64)
        return SLRState(
            layer=layer,
            spectrum=Spectrum.of(layer.gram),
            linear=layer.linear,
            smooth=layer.dense,
            sparse=sparse,
            multipliers=torch.zeros_like(layer.dense),
            rho=self.rho,
            step=torch.full_like(violation, self.first_step),
            violation=violation,
            accepted=none,
            rejected=none,
            calm=none,
        )

    def step(self, problem: L0LeastSquares, state: SLRState) -> SLRState:
        rhs = state.linear - state.multipliers + state.rho * state.sparse
        smooth = state.spectrum.solve(rhs, state.rho)
        change = state.smooth - smooth
        slope = state.layer.slope(smooth) + state.multipliers + state.rho * (smooth - state.sparse)
        # L before less L after, expanded around the new point so that no large numbers cancel.
        bend = 0.5 * (change @ state.layer.gram + state.rho * change)
        lowered = (change * (slope + bend)).sum((-2, -1)) > 0
        state = self._update(replace(state, smooth=smooth), lowered)

        target = state.smooth + state.multipliers / state.rho
        sparse = state.layer.pattern.project(target, checked=False)  # `residual` looks
        moved = state.sparse - sparse
        lowered = (moved * (0.5 * (state.sparse + sparse) - target)).sum((-2, -1)) > 0
        changed = ((sparse != 0) != (state.sparse != 0)).sum((-2, -1))
        calm = torch.where(changed <= self.tolerance * (sparse != 0).sum((-2, -1)), state.calm + 1, 0)
        return self._update(replace(state, sparse=sparse, calm=calm, rho=state.rho * self.growth), lowered)

    def _update(self, state: SLRState, lowered: Bool[Tensor, "*batch"]) -> SLRState:
        """Move the multipliers where the surrogate optimality condition holds."""
        apart = state.smooth - state.sparse
        violation = _norm(apart)
        accepted = lowered & (violation > 0)
        k = state.accepted + accepted
        step = self.alpha(k.clamp(min=1)) * state.step * state.violation / violation
        move = torch.where(accepted, step, 0.0)[..., None, None] * apart
        return replace(
            state,
            multipliers=state.multipliers + move,
            step=torch.where(accepted, step, state.step),
            violation=torch.where(accepted, violation, state.violation),
            accepted=k,
            rejected=state.rejected + ~accepted,
        )

    def residual(self, problem: L0LeastSquares, state: SLRState) -> Int[Tensor, "*batch"]:
        codes = torch.where(state.calm >= self.patience, CONVERGED, RUNNING)
        return torch.where(state.smooth.isfinite().all(-1).all(-1), codes, NON_FINITE)

    def finish(self, problem: L0LeastSquares, state: SLRState) -> Answer:
        matrix, info = refit(problem, state.layer.support(state.sparse))
        numbers = {
            "multiplier_norm": _norm(state.multipliers),
            "violation": _norm(state.smooth - state.sparse),
            "step": state.step,
            "accepted": state.accepted,
            "rejected": state.rejected,
        }
        # Of a stack, the largest.
        return Answer(matrix, (), 0, info=info | {name: float(value.max()) for name, value in numbers.items()})


def _norm(x: Float[Tensor, "*batch out in"]) -> Float[Tensor, "*batch"]:
    return x.square().sum((-2, -1)).sqrt()
