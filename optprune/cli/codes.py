"""Exit codes, and how an error becomes one readable message and a code."""

from __future__ import annotations

import enum
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer


class Code(enum.IntEnum):
    """What the exit status says."""

    OK = 0
    FAILED_VERIFICATION = 1
    BAD_INPUT = 2
    NOT_SOLVED = 3
    MISSING_DEPENDENCY = 4


EXIT_CODES = (
    "Exit codes: 0 done; 1 verification found something; 2 bad input or usage; "
    "3 a layer was not solved (the solver says why); 4 a package is missing."
)


@contextmanager
def reported_errors(debug: bool) -> Iterator[None]:
    """Turn the errors of this library and of the file system into a message on stderr and an exit code.

    Anything else is a defect and keeps its traceback; with `debug` everything does.
    """
    from optprune.errors import (
        MissingDependencyError,
        NotPositiveDefiniteError,
        OptPruneError,
        SolveError,
        VerificationError,
    )

    codes: dict[type[Exception], Code] = {
        VerificationError: Code.FAILED_VERIFICATION,
        SolveError: Code.NOT_SOLVED,
        NotPositiveDefiniteError: Code.NOT_SOLVED,
        MissingDependencyError: Code.MISSING_DEPENDENCY,
        OptPruneError: Code.BAD_INPUT,
        OSError: Code.BAD_INPUT,
    }
    try:
        yield
    except tuple(codes) as error:
        if debug:
            raise
        print(f"optprune: {error}", file=sys.stderr)
        raise typer.Exit(next(code for kind, code in codes.items() if isinstance(error, kind))) from error
