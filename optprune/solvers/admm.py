"""ADMM for the l0 least-squares problem."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from optprune.errors import InvalidInputError
from optprune.numerics.spectrum import Spectrum
from optprune.patterns import Pattern
from optprune.problems import L0LeastSquares, Problem
from optprune.solution import Answer
from optprune.solvers._base import CONVERGED, NON_FINITE, RUNNING, IterativeSolver, Promise
from optprune.solvers._refit import refit


@dataclass(frozen=True)
class ADMMState:
    """Iterates in the coordinates where the Gram matrix has a unit diagonal.

    Attributes:
        spectrum: eigen-decomposition of the scaled Gram matrix, computed once.
        linear: the scaled linear term.
        sparse: the copy with an admissible support.
        multipliers: of `smooth = sparse`, unscaled.
        smooth: the copy that carries the loss.
        rho: the penalty, growing.
    """

    spectrum: Spectrum
    linear: Float[Tensor, "*batch out in"]
    sparse: Float[Tensor, "*batch out in"]
    multipliers: Float[Tensor, "*batch out in"]
    smooth: Float[Tensor, "*batch out in"]
    rho: float


@dataclass(frozen=True)
class ADMM(IterativeSolver[L0LeastSquares, ADMMState]):
    r"""ADMM on the split $W = D$, loss on $W$, support on $D$, with a geometrically growing penalty.

    $$W \leftarrow (B - V + \rho D)(H + \rho I)^{-1}, \quad D \leftarrow P_{\mathcal F}(W + V / \rho), \quad
      V \leftarrow V + \rho (W - D), \quad \rho \leftarrow \kappa \rho$$

    in the coordinates where $H$ has a unit diagonal; then the weights on the support of $D$ are refitted exactly. One
    eigen-decomposition serves every $\rho$; a step is two products with the eigenvectors and one projection. The
    multipliers are kept unscaled, so that a change of $\rho$ leaves them alone. $\sum 1/\rho_t < \infty$, hence $W^t$
    and $D^t$ converge to one admissible matrix (Meng et al. 2024, Theorem 1); nothing is claimed about its
    optimality, for that there is the certificate.

    Attributes:
        rho: the first penalty, relative to the unit diagonal.
        growth: $\kappa > 1$, per step. The slow default reaches lower errors than the support-driven rule of ALPS,
            which stops after some 30 steps on ill-conditioned layers.
        tolerance: converged when $\lVert W - D \rVert_F \le$ `tolerance` $\lVert D \rVert_F$.

    References:
        Meng, Behdin, Wang & Mazumder 2024 (ALPS), Algorithm 1; Boyd et al. 2011, section 9.1. The schedule is ours.
    """

    max_steps: int = 500
    check_every: int = 10
    rho: float = 1e-4
    growth: float = 1.05
    tolerance: float = 1e-4

    accepts: ClassVar[tuple[type[Problem], ...]] = (L0LeastSquares,)
    summary: ClassVar[str] = "ADMM with a growing penalty on the l0 problem, then exact refit"
    source: ClassVar[str] = "Meng, Behdin, Wang & Mazumder 2024 (ALPS), Algorithm 1"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.rho > 0 and self.growth > 1 and self.tolerance > 0):
            raise InvalidInputError(
                f"ADMM with rho={self.rho}, growth={self.growth}, tolerance={self.tolerance} given; "
                "rho and tolerance must be positive and growth above 1"
            )

    @property
    def promises(self) -> frozenset[Promise]:
        return frozenset({Promise.REFITTED})

    def init(self, problem: L0LeastSquares) -> ADMMState:
        root = problem.gram.diagonal(dim1=-2, dim2=-1).sqrt()
        # A dead input is zero in these coordinates: its weights, which the loss does not see, take no part of a budget.
        unit = torch.where(root > 0, root.reciprocal(), 0.0)
        dense = problem.dense * root.unsqueeze(-2)
        return ADMMState(
            spectrum=Spectrum.of(problem.gram * unit.unsqueeze(-1) * unit.unsqueeze(-2)),
            linear=problem.linear * unit.unsqueeze(-2),
            sparse=problem.pattern.project(dense),
            multipliers=torch.zeros_like(dense),
            smooth=dense,
            rho=self.rho,
        )

    def step(self, problem: L0LeastSquares, state: ADMMState) -> ADMMState:
        rhs = state.linear - state.multipliers + state.rho * state.sparse
        smooth = state.spectrum.solve(rhs.mT, state.rho).mT
        sparse = problem.pattern.project(smooth + state.multipliers / state.rho)
        return replace(
            state,
            sparse=sparse,
            smooth=smooth,
            multipliers=state.multipliers + state.rho * (smooth - sparse),
            rho=state.rho * self.growth,
        )

    def residual(self, problem: L0LeastSquares, state: ADMMState) -> Int[Tensor, "*batch"]:
        apart = (state.smooth - state.sparse).square().sum((-2, -1)).sqrt()
        size = state.sparse.square().sum((-2, -1)).sqrt()
        codes = torch.where(apart <= self.tolerance * size, CONVERGED, RUNNING)
        return torch.where(apart.isfinite() & size.isfinite(), codes, NON_FINITE)

    def finish(self, problem: L0LeastSquares, state: ADMMState) -> Answer:
        matrix, info = refit(problem, _support(problem.pattern, state.sparse))
        return Answer(matrix, (), 0, info=info)


def _support(pattern: Pattern, sparse: Float[Tensor, "*batch out in"]) -> Bool[Tensor, "*batch out in"]:
    """A support of full size: the nonzeros, filled up deterministically where fewer than the budget are nonzero."""
    return pattern.support(sparse.square())
