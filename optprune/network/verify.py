"""Verification: every certificate of a run recomputed from its files alone, and every byte of them accounted for.

No solver is called. A problem is restored from its tensors, the weights are those that ship, and the checker
evaluates the dual point that was found when the run was made. A fault in a file shows in two ways: its hash differs,
and, where somebody has written new hashes, what is stated is not what the numbers give.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optprune.certify import ExactCertificate
from optprune.errors import FileFormatError, VerificationError
from optprune.network import files
from optprune.network.examination import Examination, Finding, check_copies, check_digests, check_files, check_index
from optprune.network.recompute import check_allocation, check_layers, check_network
from optprune.network.runs import FORMAT, INDEX_FORMAT, VERSION
from optprune.numerics.dyadic import require_flint
from optprune.solution import Rigor

MEANINGS = {
    Rigor.EXACT: "rational arithmetic",
    Rigor.ROUNDED: "float64 with a proved bound of its rounding error",
    Rigor.FLOAT: "float64, its rounding error not bounded",
}
"""What a certificate may stand on, in words."""


@dataclass(frozen=True)
class Verification:
    """What verification recomputed, and what it found.

    Attributes:
        directory: the folder of the run, or of several.
        layers: pruned layers seen.
        certificates: certificates recomputed.
        findings: what is not as recorded; empty for a sound run.
        notes: what the files do not allow to be recomputed.
        arithmetic: by layer, what its recomputed certificate stands on: `rounded` is float64 with a proved bound of the
            rounding error, `exact` is rational arithmetic, `float` has no bound of the rounding error.
        exact: by layer, the certificates of its parts in rational arithmetic, where they were asked for.
    """

    directory: Path
    layers: int
    certificates: int
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()
    arithmetic: Mapping[str, Rigor] = field(default_factory=dict)
    exact: Mapping[str, Sequence[ExactCertificate]] = field(default_factory=dict)

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
            "arithmetic": {name: rigor.value for name, rigor in self.arithmetic.items()},
            "exact": {name: [part.to_json() for part in parts] for name, parts in self.exact.items()},
        }

    def __str__(self) -> str:
        head = f"{self.directory}: {self.certificates} certificates of {self.layers} layers recomputed"
        found = f"{head}, all as recorded" if self.ok else f"{head}; {len(self.findings)} findings"
        exact = (f"layer '{name}': {part}" for name, parts in self.exact.items() for part in parts)
        return "\n".join([found, *map(str, self.findings), *exact, *self._stands_on(), *self.notes])

    def _stands_on(self) -> Iterator[str]:
        """A line for each arithmetic, with the layers whose certificates it carries."""
        for rigor, meaning in MEANINGS.items():
            names = [name for name, found in self.arithmetic.items() if found is rigor]
            if names:
                yield f"{rigor.value} ({meaning}): {', '.join(names)}"


def verify(directory: str | os.PathLike[str], *, exact: bool = False) -> Verification:
    """Recompute every certificate of a run, or of all runs below a folder, and fail if anything differs.

    Args:
        directory: the folder.
        exact: certify every layer in rational arithmetic too (extra `proofs`); takes seconds to minutes for a layer.

    Raises:
        VerificationError: something differs; names the layers.
        FileFormatError: there is no run.
        MissingDependencyError: `exact` without python-flint.
    """
    verification = examine(directory, exact=exact)
    if not verification.ok:
        raise VerificationError(str(verification))
    return verification


def examine(directory: str | os.PathLike[str], *, exact: bool = False) -> Verification:
    """As `verify`, with all findings in the result.

    Raises:
        FileFormatError: there is no run.
        MissingDependencyError: `exact` without python-flint.
    """
    if exact:
        require_flint()
    folder = Path(directory)
    reports = sorted(folder.rglob(files.REPORT)) if folder.is_dir() else []
    if not reports:
        raise FileFormatError(f"{folder}: no {files.REPORT} in it or below; give the folder of a run")
    parts = [_examine_one(report.parent, folder, exact) for report in reports]
    return Verification(
        folder,
        sum(part.layers for part in parts),
        sum(part.certificates for part in parts),
        tuple(finding for part in parts for finding in part.findings),
        tuple(note for part in parts for note in part.notes),
        {name: rigor for part in parts for name, rigor in part.arithmetic.items()},
        {name: certificates for part in parts for name, certificates in part.exact.items()},
    )


def _examine_one(folder: Path, root: Path, exact: bool) -> Verification:
    place = "" if folder == root else folder.relative_to(root).as_posix() + "/"
    run = Examination(folder, place, exact=exact)
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
    findings, notes = tuple(run.findings), tuple(run.notes)
    return Verification(folder, len(run.layers), run.certificates, findings, notes, run.arithmetic, run.exactly)
