"""`optprune verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from optprune.cli.codes import Code, reported_errors


def verify(
    run: Annotated[Path, typer.Argument(help="The folder of a run, or of several.")],
    exact: Annotated[
        bool, typer.Option("--exact", help="Also certify every layer in rational arithmetic; print width and time.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout, nothing else.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Recompute every certificate of a run from its files alone, in float64, without calling a solver.

    Every byte is accounted for by hashes, so one altered bit is found; and the certificates are computed again from the
    shipped weights, so that altered numbers are found even under matching hashes. Findings name their layers.

    The last lines say which arithmetic each layer's certificate stands on: rounded is float64 with a proved bound of
    its rounding error, exact is rational arithmetic (--exact, which needs python-flint).
    """
    with reported_errors(debug):
        from optprune.cli.output import print_json
        from optprune.network.verify import examine

        verification = examine(run, exact=exact)
    if as_json:
        print_json(verification.to_json())
    else:
        print(verification)
    if not verification.ok:
        raise typer.Exit(Code.FAILED_VERIFICATION)
