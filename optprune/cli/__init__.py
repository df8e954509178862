"""The command line. Only argument parsing is imported here; a command imports what it needs when it runs."""

from __future__ import annotations

from typing import Annotated

import typer

import optprune
from optprune.cli.codes import EXIT_CODES
from optprune.cli.compare import compare
from optprune.cli.methods import methods
from optprune.cli.prune import prune
from optprune.cli.verify import verify

__all__ = ["app"]

app = typer.Typer(
    help="Prune neural networks by mathematical optimisation, with a certificate for every layer.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(epilog=EXIT_CODES)(prune)
app.command(epilog=EXIT_CODES)(verify)
app.command()(methods)
app.command()(compare)


def _version(asked: bool) -> bool:
    if asked:
        print(f"optprune {optprune.__version__}")
        raise typer.Exit
    return asked


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Prune neural networks by mathematical optimisation, with a certificate for every layer."""
