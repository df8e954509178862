"""`optprune compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from optprune.cli.codes import reported_errors


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, or of several runs each.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout, nothing else.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Put the layers of several runs side by side: density, error, lower bound, gap, time.

    The numbers are those recorded; `optprune verify` says whether they hold.
    """
    with reported_errors(debug):
        from optprune.cli.output import grid, layer_rows, print_json
        from optprune.network.runs import read_report, run_folders

        reports = {str(folder): read_report(folder)["report"] for run in runs for folder in run_folders(run)}
        rows = layer_rows(reports)
    if as_json:
        print_json({"runs": reports})
    else:
        grid(("layer", "run", "density", "error", "objective", "lower bound", "gap", "time"), rows, numbers=6)
