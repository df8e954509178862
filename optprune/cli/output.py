"""What the commands print: tables for people, one document for machines."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from optprune.cli.job import Outcome


def print_json(document: Any) -> None:
    """One JSON document on stdout."""
    print(json.dumps(document, indent=1, allow_nan=False))


def grid(heads: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: int = 0, wrap: bool = False) -> None:
    """A table on stdout; the last `numbers` columns are aligned to the right.

    Unless it wraps, a table is never cut or folded to the terminal's width: a pipe gets the same text as a person. The
    first column, which holds the names, is whole in any case.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, head in enumerate(heads):
        right = index >= len(heads) - numbers
        table.add_column(head, justify="right" if right else "left", no_wrap=index == 0 or not wrap)
    for row in rows:
        table.add_row(*map(escape, row))
    Console(width=None if wrap else 10_000, highlight=False).print(table)


def print_outcome(outcome: Outcome) -> None:
    """The table of every method's layers, then one line per method."""
    for method in outcome.methods:
        print(f"{method.method}: {method.report.provenance.get('solver', '')}")
        print(method.report)
        if method.claims is not None:
            print(method.claims)
        print()
    before = percent(outcome.dense_accuracy)
    rows = [
        (
            method.method,
            f"{method.report.kept / method.report.total:.4f}",
            before,
            percent(method.accuracy),
            f"{kilobytes(method.sizes['dense'])} -> {kilobytes(method.sizes['packed'])}",
            f"{method.seconds:.1f} s",
            str(outcome.job.output / method.method),
        )
        for method in outcome.methods
    ]
    grid(("method", "density", "accuracy before", "after", "state dict, packed", "time", "run"), rows)
    unsolved = [
        f"{method.method}: layer '{record.name}' stopped: {record.termination.value}"
        for method in outcome.methods
        for record in method.report.layers
        if not record.termination.ok
    ]
    for line in unsolved:
        print(line)
    print(f"Check it: {program()} verify {outcome.job.output}")


def program() -> str:
    """The command as it was called, so that what is printed can be run as it stands."""
    called = Path(sys.argv[0])
    return str(called) if called.name == "optprune" and called != Path(shutil.which("optprune") or "") else "optprune"


def layer_rows(reports: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """One row per layer of each run, layers of one name together."""
    from optprune.network.report import LayerRecord

    records = [(run, LayerRecord.from_json(record)) for run, report in reports.items() for record in report["layers"]]
    order = list(dict.fromkeys(record.name for _, record in records))
    return [
        (
            record.name,
            run,
            f"{record.density:.4f}",
            f"{record.error:.4g}",
            "-" if record.certificate is None else f"{record.certificate.objective:.4g}",
            "-" if record.certificate is None else f"{record.certificate.lower_bound:.4g}",
            _gap(record),
            f"{record.seconds:.2f} s",
        )
        for run, record in sorted(records, key=lambda item: order.index(item[1].name))
    ]


def _gap(record: Any) -> str:
    if record.certificate is None:
        return "-"
    return "vacuous" if record.certificate.vacuous else f"{100 * record.certificate.relative_gap:.3g} %"


def percent(fraction: float | None) -> str:
    """A fraction in percent; a dash for what was not measured."""
    return "-" if fraction is None else f"{100 * fraction:.2f} %"


def kilobytes(count: int) -> str:
    """A number of bytes for people."""
    return f"{count / 1000:.1f} kB"
