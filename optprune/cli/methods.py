"""`optprune methods`."""

from __future__ import annotations

from typing import Annotated

import typer

from optprune.cli.codes import reported_errors


def methods(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout, nothing else.")] = False,
) -> None:
    """List the methods: the problem each solves, what it does in one line, where it is from, its options."""
    with reported_errors(debug=False):
        from inspect import signature

        from optprune.cli.output import grid, print_json
        from optprune.cli.solvers import solvers

        records = [
            {
                "name": name,
                "solver": solver.__name__,
                "problems": [problem.__name__ for problem in solver.accepts],
                "summary": solver.summary,
                "source": solver.source,
                "options": {key: option.default for key, option in signature(solver).parameters.items()},
            }
            for name, solver in solvers().items()
        ]
    if as_json:
        print_json({"methods": records})
        return
    rows = [
        (
            r["name"],
            ", ".join(r["problems"]),
            r["summary"],
            r["source"],
            " ".join(f"{k}={v}" for k, v in r["options"].items()),
        )
        for r in records
    ]
    grid(("method", "problems", "what it does", "source", "options (--option)"), rows, wrap=True)
