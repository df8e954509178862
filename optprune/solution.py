"""What a solve hands back: the solver's claim and the checker's facts, kept apart.

`Termination` is why the solver stopped (its claim). `Certificate` is what a checker, which cannot see the solver,
found true of the returned weights. Principle: the two are different fields, computed by different code.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from optprune.errors import InvalidInputError


class Termination(enum.Enum):
    """Why a solver stopped."""

    CONVERGED = "converged"
    CLOSED_FORM = "closed form"
    STEP_LIMIT = "step limit"
    INFEASIBLE = "infeasible"
    NON_FINITE = "non-finite"

    @property
    def ok(self) -> bool:
        """Whether the solver reached what it set out for."""
        return self in (Termination.CONVERGED, Termination.CLOSED_FORM)


class Rigor(enum.Enum):
    """How far the arithmetic of a certificate can be trusted."""

    FLOAT = "float"  # evaluated in float64, rounding not accounted for
    ROUNDED = "rounded"  # float64 with a proved bound on the rounding error already subtracted
    EXACT = "exact"  # rational or ball arithmetic


@dataclass(frozen=True)
class Certificate:
    """What is provably true of a weight: objective(weight) and a lower bound on the optimum.

    Attributes:
        objective: the problem's objective at the weight.
        lower_bound: no admissible weight has a smaller objective than this.
        primal_residual: violation of the problem's constraints, relative to the data's scale (0 for an admissible
            support).
        dual_residual: how far the dual point had to be moved to be feasible, relative (0 where any dual point is
            feasible).
        rigor: trust in the arithmetic of `lower_bound` and, with `objective_error`, of `objective`.
        theorem: id of the theorem that makes `lower_bound` a bound.
        details: further numbers by name, all recomputed by the checker.
        objective_error: a proved bound on the rounding error of `objective`; None where none is proved.
    """

    objective: float
    lower_bound: float
    primal_residual: float
    dual_residual: float
    rigor: Rigor
    theorem: str
    details: Mapping[str, float] = field(default_factory=dict)
    objective_error: float | None = None

    @property
    def upper_bound(self) -> float:
        """What the weight's objective is at most, rounding included; infinite where that is not proved."""
        return (
            math.inf
            if self.objective_error is None
            else math.nextafter(self.objective + self.objective_error, math.inf)
        )

    @property
    def gap(self) -> float:
        """Objective minus lower bound; negative only for a weight that violates the constraints."""
        return self.objective - self.lower_bound

    @property
    def relative_gap(self) -> float:
        r"""$(J - \underline J) / J$, in $[0, 1]$ for a feasible weight; 0 when both vanish."""
        if self.gap == 0.0:
            return 0.0
        return self.gap / abs(self.objective) if self.objective != 0.0 else math.copysign(math.inf, self.gap)

    @property
    def vacuous(self) -> bool:
        """Whether the bound says nothing: objectives are nonnegative, so a lower bound of 0 is free."""
        return self.lower_bound <= 0.0 < self.objective

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready record, inverse of `from_json`; derived numbers are not stored."""
        return {
            "objective": self.objective,
            "lower_bound": self.lower_bound,
            "primal_residual": self.primal_residual,
            "dual_residual": self.dual_residual,
            "rigor": self.rigor.value,
            "theorem": self.theorem,
            "details": dict(self.details),
            "objective_error": self.objective_error,
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Certificate:
        """Read a record written by `to_json`.

        Raises:
            InvalidInputError: a field is missing or unknown.
        """
        try:
            return cls(**{**record, "rigor": Rigor(record["rigor"])})
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidInputError(f"not a certificate record: {error}; write it with Certificate.to_json") from error

    def __str__(self) -> str:
        gap = "vacuous bound" if self.vacuous else f"gap {100 * self.relative_gap:.3g} %"
        return (
            f"objective {self.objective:.6g} · optimum >= {self.lower_bound:.6g} · {gap} · "
            f"{self.rigor.value} · theorem {self.theorem}"
        )


@dataclass(frozen=True)
class Answer:
    """What a solver returns: the matrix it claims is good, and why it stopped.

    Attributes:
        matrix: the problem's variable, `(*batch, out, d)`.
        termination: one per batch element, in row-major order (a single one without batch).
        steps: iterations made.
        hint: tensors the checker may start from (multipliers and the like); the checker trusts none of them.
        info: numbers about the run.
    """

    matrix: Tensor
    termination: tuple[Termination, ...]
    steps: int
    hint: Mapping[str, Tensor] = field(default_factory=dict)
    info: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Solution:
    """A pruned layer with its certificate.

    Attributes:
        weight: the pruned weight `(out, in)`, float64.
        bias: the re-optimised bias `(out,)` where the problem has one.
        matrix: weight and bias as the problem's variable.
        termination: why the solver stopped (claim).
        certificate: what the checker found (fact); None only when the caller declined it.
        evidence: the dual point behind the certificate; enough to recompute it without a solver.
        solver: the solver's settings, as text.
        steps: iterations made.
        seconds: wall time of the solver, and of the certificate in `info["certificate_seconds"]`.
        info: numbers about the run.
    """

    weight: Tensor
    bias: Tensor | None
    matrix: Tensor
    termination: Termination
    certificate: Certificate | None
    evidence: Mapping[str, Tensor]
    solver: str
    steps: int
    seconds: float
    info: Mapping[str, float]

    def __str__(self) -> str:
        certificate = "no certificate" if self.certificate is None else str(self.certificate)
        return f"{self.termination.value} after {self.steps} steps · {certificate}"
