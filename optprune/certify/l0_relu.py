"""Checker of the l0 problem behind a ReLU: a lower bound from the curvature that each row's active samples give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from optprune.bounds._theorem import theorem
from optprune.certify._base import Checker
from optprune.certify._growth import bound_at, hessians, relaxed_point, relu_minorant
from optprune.numerics.linalg import is_positive_semidefinite_certified
from optprune.numerics.rounding import UNIT
from optprune.problems import L0ReLU, Problem
from optprune.solution import Certificate, Rigor


@dataclass(frozen=True)
class L0ReLUChecker(Checker[L0ReLU]):
    r"""Certificates for `L0ReLU`.

    The evidence is a `minorant` $\delta$ `(out, in)` with $H_r - \operatorname{diag}\delta_r \succeq 0$ in each row,
    $H_r = X_{\Omega_r}^\top X_{\Omega_r} / n + \lambda I$ from the samples on which the row is active, and a `point`
    $V$. What is left of a row's objective without $\tfrac12 \langle u, \delta_r u\rangle$ is convex, and is linearised
    at $V$. `check` proves the first in floating point and evaluates the second.

    A row with fewer active samples than inputs has no curvature but that of the damping, and its bound is weak.

    Attributes:
        max_steps: most accelerated proximal gradient steps for the point.
        tolerance: stop when the bound grows by less than this fraction of the objective.

    Guarantees:
        T13: `lower_bound` is at most the objective of every weight with an admissible support, but for the rounding of
        its evaluation.
    """

    max_steps: int = 1000
    tolerance: float = 1e-3

    problem: ClassVar[type[Problem]] = L0ReLU
    theorem: ClassVar[str] = "T13"

    def evidence(self, problem: L0ReLU, matrix: Tensor, hint: Mapping[str, Tensor]) -> dict[str, Tensor]:
        minorant = relu_minorant(problem)
        return {"minorant": minorant, "point": relaxed_point(problem, minorant, matrix, self.max_steps, self.tolerance)}

    def check(self, problem: L0ReLU, matrix: Tensor, evidence: Mapping[str, Tensor]) -> Certificate:
        minorant, point = evidence["minorant"].double(), evidence["point"].double()
        bound = 0.0
        if proves_growth(problem, minorant):
            bound = max(0.0, bound_at(problem, minorant, point))
        missed, targets = problem.missed(matrix).square().sum(), problem.targets.clamp_min(0).square().sum()
        return Certificate(
            objective=float(problem.objective(matrix)),
            lower_bound=bound,
            primal_residual=float(problem.violation(matrix)["support"]),
            dual_residual=0.0,
            rigor=Rigor.FLOAT,
            theorem=self.theorem,
            details={
                "relative_error": float((missed / targets).sqrt()) if bool(missed > 0) else 0.0,
                "kept": float((matrix != 0).sum()),
            },
        )


@theorem("T13")
def proves_growth(problem: L0ReLU, minorant: Float[Tensor, "out d"], memory: int | None = None) -> bool:
    r"""Whether $H_r - \operatorname{diag}\delta_r \succeq 0$ is proved in floating point for every row."""
    if bool((minorant < 0).any()) or not bool(minorant.isfinite().all()):
        return False
    start = 0
    for hessian in hessians(problem, memory):
        # The entries of H carry the rounding of n products; the margin takes it off the diagonal.
        error = (problem.inputs.shape[-2] + 4) * UNIT * hessian.diagonal(dim1=-2, dim2=-1).sum(-1)
        hessian.diagonal(dim1=-2, dim2=-1).sub_(minorant[start : start + len(hessian)])
        start += len(hessian)
        if not bool((is_positive_semidefinite_certified(hessian, error) | (hessian == 0).all(-1).all(-1)).all()):
            return False
    return True
