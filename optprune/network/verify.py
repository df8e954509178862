"""Verification: every certificate of a run recomputed from its files alone, and every byte of them accounted for.

No solver is called. A problem is restored from its tensors, the weights are those that ship, and the checker
evaluates the dual point that was found when the run was made. A fault in a file shows in two ways: its hash differs,
and, where somebody has written new hashes, what is stated is not what the numbers give.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optprune.errors import FileFormatError, VerificationError
from optprune.network import files
from optprune.network.examination import Examination, Finding, check_copies, check_digests, check_files, check_index
from optprune.network.recompute import check_allocation, check_layers, check_network
from optprune.network.runs import FORMAT, INDEX_FORMAT, VERSION


@dataclass(frozen=True)
class Verification:
    """What verification recomputed, and what it found.

    Attributes:
        directory: the folder of the run, or of several.
        layers: pruned layers seen.
        certificates: certificates recomputed.
        findings: what is not as recorded; empty for a sound run.
        notes: what the files do not allow to be recomputed.
    """

    directory: Path
    layers: int
    certificates: int
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready record."""
        return {
            "directory": str(self.directory),
            "ok": self.ok,
            "layers": self.layers,
            "certificates": self.certificates,
            "findings": [vars(finding) for finding in self.findings],
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        head = f"{self.directory}: {self.certificates} certificates of {self.layers} layers recomputed"
        if self.ok:
            return "\n".join([f"{head}, all as recorded", *self.notes])
        return "\n".join([f"{head}; {len(self.findings)} findings", *map(str, self.findings), *self.notes])


def verify(directory: str | os.PathLike[str]) -> Verification:
    """Recompute every certificate of a run, or of all runs below a folder, and fail if anything differs.

    Raises:
        VerificationError: something differs; names the layers.
        FileFormatError: there is no run.
    """
    verification = examine(directory)
    if not verification.ok:
        raise VerificationError(str(verification))
    return verification


def examine(directory: str | os.PathLike[str]) -> Verification:
    """As `verify`, with all findings in the result.

    Raises:
        FileFormatError: there is no run.
    """
    folder = Path(directory)
    reports = sorted(folder.rglob(files.REPORT)) if folder.is_dir() else []
    if not reports:
        raise FileFormatError(f"{folder}: no {files.REPORT} in it or below; give the folder of a run")
    parts = [_examine_one(report.parent, folder) for report in reports]
    return Verification(
        folder,
        sum(part.layers for part in parts),
        sum(part.certificates for part in parts),
        tuple(finding for part in parts for finding in part.findings),
        tuple(note for part in parts for note in part.notes),
    )


def _examine_one(folder: Path, root: Path) -> Verification:
    run = Examination(folder, "" if folder == root else folder.relative_to(root).as_posix() + "/")
    try:
        run.document = files.read_json(folder / files.REPORT)
    except FileFormatError as error:
        run.add(None, files.REPORT, str(error))
    else:
        kind = (run.document.get("format"), run.document.get("version"))
        if kind == (INDEX_FORMAT, VERSION):
            checks = (check_index,)
        elif kind == (FORMAT, VERSION):
            checks = (check_digests, check_files, check_copies, check_layers, check_allocation, check_network)
        else:
            checks = ()
            run.add(None, files.REPORT, f"format {kind[0]!r}, version {kind[1]!r} is not one this release reads")
        for check in checks:
            run.guard(check)
    return Verification(folder, len(run.layers), run.certificates, tuple(run.findings), tuple(run.notes))
