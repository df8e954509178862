"""What optprune raises.

Misuse raises; a numerical outcome (step limit, infeasible, non-finite) is a `Termination`, raised as `SolveError` only
on request. Every message says what was given, what is accepted and what to do; `layer` names the layer where one is
known.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optprune.solution import Solution


class OptPruneError(Exception):
    """Base of all errors of this library; `layer` is the layer it arose in, or None."""

    layer: str | None = None

    def __str__(self) -> str:
        message = super().__str__()
        return message if self.layer is None else f"layer '{self.layer}': {message}"


class InvalidInputError(OptPruneError, ValueError):
    """An argument is outside of what is accepted."""


class NonFiniteError(InvalidInputError):
    """An argument holds NaN or infinity."""


class UnsupportedError(OptPruneError, TypeError):
    """A combination that does not exist: a solver given a problem it does not accept, a layer type without adapter."""


class NotPositiveDefiniteError(OptPruneError, ArithmeticError):
    """A matrix that must be positive definite is not, to working precision."""


class SolveError(OptPruneError, ArithmeticError):
    """A solver did not reach its goal and the caller asked for an exception; `solution` holds what it reached."""

    def __init__(self, message: str, solution: Solution) -> None:
        super().__init__(message)
        self.solution = solution


class VerificationError(OptPruneError):
    """A recomputed number or hash disagrees with what was recorded."""


class FileFormatError(OptPruneError, ValueError):
    """A file is truncated, malformed or of another format version."""


class MissingDependencyError(OptPruneError, ImportError):
    """An optional package is not installed; the message names the extra that brings it."""


@contextmanager
def layer_context(name: str) -> Iterator[None]:
    """Stamp the layer's name on any optprune error that passes through and carries none yet."""
    try:
        yield
    except OptPruneError as error:
        if error.layer is None:
            error.layer = name
        raise
