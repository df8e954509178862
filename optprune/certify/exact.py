"""Certificates in rational arithmetic: the same bounds of the same evidence, with no rounding to account for."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from optprune.certify._base import checker_for, finite64
from optprune.numerics.dyadic import Enclosure
from optprune.problems._base import Problem
from optprune.solution import Rigor


@dataclass(frozen=True)
class ExactCertificate:
    """What is true of a weight, between rational numbers.

    The numbers of the problem, the weight and the evidence are taken as the rational numbers that they are. Sums,
    products and selections are exact; quotients and square roots are enclosed with 256 significant bits.

    Attributes:
        objective: the objective at the weight; the optimum is at most that where `violation` is 0.
        lower_bound: no admissible weight has a smaller objective than `lower_bound.low`.
        violation: by how much each constraint is exceeded, in its own units; 0 where it holds.
        theorem: id of the theorem that makes `lower_bound` a bound.
        seconds: wall time of this certificate.
    """

    objective: Enclosure
    lower_bound: Enclosure
    violation: Mapping[str, Enclosure]
    theorem: str
    seconds: float

    @property
    def rigor(self) -> Rigor:
        """Always `exact`."""
        return Rigor.EXACT

    @property
    def gap(self) -> Enclosure:
        """Objective minus lower bound."""
        return self.objective - self.lower_bound

    @property
    def width(self) -> float:
        """The wider of the two enclosures: how much the arithmetic leaves open."""
        return max(self.objective.width, self.lower_bound.width)

    @property
    def admissible(self) -> bool:
        """Whether every constraint is proved to hold exactly."""
        return all(excess.high <= 0 for excess in self.violation.values())

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready record; ends of enclosures are rounded outwards to float64."""
        return {
            "objective": self.objective.to_json(),
            "lower_bound": self.lower_bound.to_json(),
            "violation": {name: excess.to_json() for name, excess in self.violation.items()},
            "width": self.width,
            "seconds": self.seconds,
            "rigor": self.rigor.value,
            "theorem": self.theorem,
        }

    def __str__(self) -> str:
        excess = max((float(e.high) for e in self.violation.values()), default=0.0)
        held = "constraints hold" if self.admissible else f"constraints exceeded by {excess:.3g}"
        return (
            f"objective {float(self.objective.high):.12g} · optimum >= {float(self.lower_bound.low):.12g} · "
            f"width {self.width:.1e} · {held} · {self.rigor.value} · theorem {self.theorem} · {self.seconds:.2f} s"
        )


def certify_exact(problem: Problem, matrix: Tensor, evidence: Mapping[str, Tensor]) -> ExactCertificate:
    """The certificate of a matrix in rational arithmetic, from evidence that `certify` found.

    Args:
        problem: a single problem (no batch dimensions).
        matrix: the weights as they are used, such as `solution.matrix`.
        evidence: such as `solution.evidence`.

    Raises:
        InvalidInputError: a matrix or evidence of another shape than the problem's.
        NonFiniteError: the matrix or the evidence holds NaN or infinity.
        UnsupportedError: the problem's bound has no exact evaluation.
        MissingDependencyError: python-flint is not installed.

    Guarantees:
        The theorem that `theorem` names, with no hypothesis about rounding.
    """
    start = time.perf_counter()
    checker = checker_for(problem)
    problem = problem.to("cpu")  # where Python's integers are
    witness = {name: tensor.to("cpu") for name, tensor in evidence.items()}
    objective, bound, violation, theorem = checker.exact(problem, finite64(problem, matrix.to("cpu")), witness)
    return ExactCertificate(objective, bound, violation, theorem, time.perf_counter() - start)
