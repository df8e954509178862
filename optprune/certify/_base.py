"""Checkers: one per problem. A checker sees a problem and a matrix, never a solver."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Generic, TypeVar

from torch import Tensor

from optprune.errors import InvalidInputError, NonFiniteError, UnsupportedError
from optprune.numerics.checks import require_one_device
from optprune.numerics.dyadic import Enclosure
from optprune.problems._base import Problem
from optprune.solution import Certificate

P = TypeVar("P", bound=Problem)


class Checker(ABC, Generic[P]):
    """Finds and checks certificates for one type of problem.

    `evidence` may compute as long as it likes and may be wrong; `check` alone decides. A certificate is therefore valid
    whatever produced the matrix and whatever produced the evidence.
    """

    problem: ClassVar[type[Problem]]
    theorem: ClassVar[str]

    @abstractmethod
    def evidence(self, problem: P, matrix: Tensor, hint: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A dual point for `check`: starts from the solver's hint if there is one, trusts nothing."""

    @abstractmethod
    def check(self, problem: P, matrix: Tensor, evidence: Mapping[str, Tensor]) -> Certificate:
        """The certificate of a matrix, recomputed in float64 from the problem, the matrix and the evidence alone."""

    def exact(
        self, problem: P, matrix: Tensor, evidence: Mapping[str, Tensor]
    ) -> tuple[Enclosure, Enclosure, Mapping[str, Enclosure], str]:
        """Objective, lower bound and violations of the constraints in rational arithmetic, from the same evidence, and
        the theorem behind the bound.

        Raises:
            UnsupportedError: this checker's bound has no exact evaluation.
        """
        raise UnsupportedError(
            f"an exact certificate of {type(problem).__name__} was asked for; there is none. "
            "The certificate in float64 is that of `certify`"
        )


_CHECKERS: dict[type[Problem], Checker] = {}


def register(checker: Checker) -> None:
    """Make a checker the one for its problem type."""
    _CHECKERS[checker.problem] = checker


def checker_for(problem: Problem) -> Checker:
    """The checker of this problem's type.

    Raises:
        UnsupportedError: none is registered.
    """
    try:
        return _CHECKERS[type(problem)]
    except KeyError:
        raise UnsupportedError(
            f"no checker for {type(problem).__name__}; there is one for {', '.join(c.__name__ for c in _CHECKERS)}. "
            "Write a Checker and register it in optprune.certify"
        ) from None


def certify(
    problem: Problem, matrix: Tensor, hint: Mapping[str, Tensor] | None = None, *, checker: Checker | None = None
) -> tuple[Certificate, dict[str, Tensor]]:
    """Find a dual point and check it: the certificate of a matrix, and the evidence behind it.

    Args:
        problem: a single problem (no batch dimensions).
        matrix: the weights as they are used; cast to float64 here.
        hint: tensors a solver may offer as a starting point.
        checker: one with other settings than the registered one has.

    Raises:
        InvalidInputError: the matrix has another shape than the problem's variable, or is on another device.
        NonFiniteError: the matrix holds NaN or infinity.
    """
    checker = checker or checker_for(problem)
    matrix = finite64(problem, matrix)
    evidence = checker.evidence(problem, matrix, hint or {})
    return checker.check(problem, matrix, evidence), evidence


def recheck(problem: Problem, matrix: Tensor, evidence: Mapping[str, Tensor]) -> Certificate:
    """Check given evidence; nothing is optimised.

    Raises:
        InvalidInputError: the matrix has another shape than the problem's variable, or is on another device.
        NonFiniteError: the matrix holds NaN or infinity.
    """
    require_one_device(problem=problem, **evidence)
    return checker_for(problem).check(problem, finite64(problem, matrix), evidence)


def finite64(problem: Problem, matrix: Tensor) -> Tensor:
    """The matrix in float64, checked as `certify` says."""
    matrix = matrix.detach().double()
    if tuple(matrix.shape) != problem.shape:
        raise InvalidInputError(
            f"a matrix of shape {tuple(matrix.shape)} given to certify; the problem's is {problem.shape}, (out, in)"
        )
    require_one_device(problem=problem, matrix=matrix)
    if not matrix.isfinite().all():
        raise NonFiniteError("the weights to certify hold NaN or infinity; nothing can be stated about them")
    return matrix
