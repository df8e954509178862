"""ADMM for the l0 least-squares problem."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from optprune.errors import InvalidInputError
from optprune.numerics.spectrum import Spectrum
from optprune.problems import L0LeastSquares, Problem
from optprune.solution import Answer
from optprune.solvers._base import CONVERGED, NON_FINITE, RUNNING, IterativeSolver, Promise
from optprune.solvers._refit import refit


@dataclass(frozen=True)
class ADMMState:
    """Iterates in the coordinates where the Gram matrix has a unit diagonal and the largest weight has size one.

    Attributes:
        spectrum: eigen-decomposition of the scaled Gram matrix, computed once.
        linear: the scaled linear term.
        sparse: the copy with an admissible support.
        support: that support, filled up deterministically where fewer weights than the budget are nonzero.
        multipliers: of `smooth = sparse`, unscaled.
        smooth: the copy that carries the loss.
        settled: steps since the support changed.
        rho: the penalty, growing.
        unscale: what a weight is multiplied by on the way back to the layer's coordinates.
    """

    spectrum: Spectrum
    linear: Float[Tensor, "*batch out in"]
    sparse: Float[Tensor, "*batch out in"]
    support: Bool[Tensor, "*batch out in"]
    multipliers: Float[Tensor, "*batch out in"]
    smooth: Float[Tensor, "*batch out in"]
    settled: Int[Tensor, "*batch"]
    rho: float
    unscale: Float[Tensor, "*batch 1 in"]


@dataclass(frozen=True)
class ADMM(IterativeSolver[L0LeastSquares, ADMMState]):
    r"""ADMM on the split $W = D$, loss on $W$, support on $D$, with a geometrically growing penalty.

    $$W \leftarrow (B - V + \rho D)(H + \rho I)^{-1}, \quad D \leftarrow P_{\mathcal F}(W + V / \rho), \quad
      V \leftarrow V + \rho (W - D), \quad \rho \leftarrow \kappa \rho$$

    in the coordinates where $H$ has a unit diagonal; then the weights on the support of $D$ are refitted exactly. One
    eigen-decomposition serves every $\rho$; a step is two products with the eigenvectors and one projection. The
    multipliers are kept unscaled, so that a change of $\rho$ leaves them alone. $\sum 1/\rho_t < \infty$, hence $W^t$
    and $D^t$ converge to one admissible matrix (T23; Meng et al. 2024, Theorem 1); nothing is claimed about its
    optimality, for that there is the certificate.

    Attributes:
        rho: the first penalty, relative to the unit diagonal. The default suits ill-conditioned layers; where the
            condition number is below $10^4$ or so, 0.1 saves two thirds of the steps and loses nothing.
        growth: $\kappa > 1$, per step. The slow default reaches lower errors than the support-driven rule of ALPS,
            which stops after some 30 steps on ill-conditioned layers.
        patience: converged when the support has not changed for so many steps,
        settling: where changes of up to this fraction of the kept weights count as none,
        tolerance: or when $\lVert W - D \rVert_F \le$ `tolerance` $\lVert D \rVert_F$.
        refit_tolerance: relative residual of the refit where it is done by conjugate gradients; its square is about the
            excess of the objective.
        precision: of the steps, "float32" or "float64"; eigen-decomposition and refit are always float64.

    References:
        Meng, Behdin, Wang & Mazumder 2024 (ALPS), Algorithm 1; Boyd et al. 2011, section 9.1. The schedule is ours.
    """

    max_steps: int = 500
    check_every: int = 10
    rho: float = 1e-4
    growth: float = 1.05
    patience: int = 10
    settling: float = 0.0
    tolerance: float = 1e-4
    refit_tolerance: float = 1e-10
    precision: Literal["float32", "float64"] = "float32"

    accepts: ClassVar[tuple[type[Problem], ...]] = (L0LeastSquares,)
    summary: ClassVar[str] = "ADMM with a growing penalty on the l0 problem, then exact refit"
    source: ClassVar[str] = "Meng, Behdin, Wang & Mazumder 2024 (ALPS), Algorithm 1"

    def __post_init__(self) -> None:
        super().__post_init__()
        positive = all(x > 0 for x in (self.rho, self.patience, self.tolerance, self.refit_tolerance))
        bounded = self.rho < float("inf") and 1 < self.growth < float("inf") and 0 <= self.settling < 1
        if not (positive and bounded):
            raise InvalidInputError(
                f"ADMM with rho={self.rho}, growth={self.growth}, patience={self.patience}, "
                f"settling={self.settling}, tolerance={self.tolerance}, refit_tolerance={self.refit_tolerance} given; "
                "growth must be above 1, settling in [0, 1), the others positive"
            )
        if self.precision not in ("float32", "float64"):
            raise InvalidInputError(f"ADMM with precision={self.precision!r} given; it is 'float32' or 'float64'")

    @property
    def promises(self) -> frozenset[Promise]:
        return frozenset({Promise.REFITTED})

    def init(self, problem: L0LeastSquares) -> ADMMState:
        dtype = torch.float32 if self.precision == "float32" else torch.float64
        root = problem.gram.diagonal(dim1=-2, dim2=-1).sqrt()
        # A dead input is zero in these coordinates: its weights, which the loss does not see, take no part of a budget.
        unit = torch.where(root > 0, root.reciprocal(), 0.0)
        dense, linear = problem.dense * root.unsqueeze(-2), problem.linear * unit.unsqueeze(-2)
        largest = torch.maximum(dense.abs().amax((-2, -1), True), linear.abs().amax((-2, -1), True))
        size = torch.where(largest > 0, largest, 1.0)
        spectrum = Spectrum.of(problem.gram * unit.unsqueeze(-1) * unit.unsqueeze(-2)).to(dtype)
        dense = (dense / size).to(dtype)
        support = problem.pattern.support(dense.square())
        return ADMMState(
            spectrum=spectrum,
            linear=(linear / size).to(dtype),
            sparse=torch.where(support, dense, 0.0),
            support=support,
            multipliers=torch.zeros_like(dense),
            smooth=dense,
            settled=torch.zeros(problem.batch_shape, dtype=torch.int64, device=dense.device),
            rho=self.rho,
            unscale=size * unit.unsqueeze(-2),
        )

    def step(self, problem: L0LeastSquares, state: ADMMState) -> ADMMState:
        rhs = torch.add(state.linear - state.multipliers, state.sparse, alpha=state.rho)
        smooth = state.spectrum.solve(rhs, state.rho)
        target = torch.add(smooth, state.multipliers, alpha=1 / state.rho)
        support = problem.pattern.support(target.square(), checked=False)  # `residual` looks
        sparse = target * support  # on a CPU several times as fast as a choice between two tensors
        changed = (support != state.support).sum((-2, -1)) > self.settling * problem.pattern.count(problem.shape)
        return replace(
            state,
            sparse=sparse,
            support=support,
            smooth=smooth,
            multipliers=target.sub_(sparse).mul_(state.rho),
            settled=torch.where(changed, 0, state.settled + 1),
            rho=state.rho * self.growth,
        )

    def residual(self, problem: L0LeastSquares, state: ADMMState) -> Int[Tensor, "*batch"]:
        apart = (state.smooth - state.sparse).square().sum((-2, -1)).sqrt()
        size = state.sparse.square().sum((-2, -1)).sqrt()
        ended = (state.settled >= self.patience) | (apart <= self.tolerance * size)
        codes = torch.where(ended, CONVERGED, RUNNING)
        return torch.where(state.multipliers.abs().amax((-2, -1)).isfinite(), codes, NON_FINITE)

    def finish(self, problem: L0LeastSquares, state: ADMMState) -> Answer:
        matrix, info = refit(problem, state.support, state.unscale * state.sparse, self.refit_tolerance)
        return Answer(matrix, (), 0, info=info)
