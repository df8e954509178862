"""The files of a run against their hashes and against one another; what differs is put down to a layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from optprune.certify import ExactCertificate
from optprune.errors import FileFormatError, OptPruneError
from optprune.network import files
from optprune.network.runs import (
    MASKS,
    SPARSE,
    WEIGHTS,
    digests,
    index_digest,
    read_dense,
    read_masks,
    read_packed,
)
from optprune.solution import Rigor

MALFORMED = (OptPruneError, KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError)
"""What a malformed record raises when it is used as if it were well-formed."""


@dataclass(frozen=True)
class Finding:
    """One thing that is not as recorded."""

    layer: str | None
    file: str
    message: str

    def __str__(self) -> str:
        place = self.file if self.layer is None else f"layer '{self.layer}' ({self.file})"
        return f"{place}: {self.message}"


@dataclass
class Examination:
    """A run under examination.

    Attributes:
        folder: where it is.
        place: the folder as findings name it, with a slash at the end.
        document: the content of its report.
        findings: what is not as recorded.
        notes: what cannot be recomputed.
        certificates: how many were recomputed.
        exact: whether layers are certified in rational arithmetic too.
        arithmetic: by layer, what its recomputed certificate stands on.
        exactly: by layer, the certificates of its parts in rational arithmetic.
    """

    folder: Path
    place: str
    document: dict[str, Any] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    certificates: int = 0
    exact: bool = False
    arithmetic: dict[str, Rigor] = field(default_factory=dict)
    exactly: dict[str, list[ExactCertificate]] = field(default_factory=dict)

    def add(self, layer: str | None, file: str, message: str) -> None:
        """Put down a finding."""
        self.findings.append(Finding(layer, self.place + file, message))

    def guard(self, check: Callable[[Examination], None], layer: str | None = None) -> None:
        """Run a check; a record so malformed that the check breaks on it is a finding too."""
        try:
            check(self)
        except MALFORMED as error:
            self.add(layer, files.REPORT, f"cannot be checked: {type(error).__name__}: {error}")

    @property
    def layers(self) -> Mapping[str, Any]:
        """The records by which layers are restored."""
        layers = self.document.get("layers")
        return layers if isinstance(layers, dict) else {}

    def owner(self, file: str, tensor: str) -> str | None:
        """The pruned layer that a tensor of a file belongs to."""
        for name, layer in self.layers.items():
            if isinstance(layer, dict) and file == layer.get("evidence"):
                return name
        owners = [name for name in self.layers if not name or tensor.startswith(f"{name}.")]
        return max(owners, key=len, default=None)


def check_digests(run: Examination) -> None:
    """The report is as it was written: byte for byte, and section by section."""
    _check_canonical(run)
    recorded, found = run.document["digests"], digests(run.document)
    for name in sorted(recorded["layers"].keys() | found["layers"].keys()):
        if recorded["layers"].get(name) != found["layers"].get(name):
            run.add(name, files.REPORT, "its record was edited")
    for name in sorted(recorded["sections"].keys() | found["sections"].keys()):
        if recorded["sections"].get(name) != found["sections"].get(name):
            run.add(None, files.REPORT, f"section '{name}' was edited")
    if recorded["report"] != found["report"]:
        run.add(None, files.REPORT, "the digest over all sections differs")


def check_files(run: Examination) -> None:
    """Every file and every tensor has the hash that was recorded."""
    recorded = run.document["files"]
    present = {path.relative_to(run.folder).as_posix() for path in run.folder.rglob("*") if path.is_file()}
    for name in sorted(present - recorded.keys() - {files.REPORT}):
        run.notes.append(f"{run.place}{name} is not part of the run; it was not looked at")
    for name, record in sorted(recorded.items()):
        layer = run.owner(name, "")
        try:
            if files.file_digest(run.folder / name) != record["sha256"]:
                _place_fault(run, name)
            elif (run.folder / name).stat().st_size != record["bytes"]:
                run.add(layer, name, "its recorded size differs")
        except FileFormatError as error:
            run.add(layer, name, str(error))


def _place_fault(run: Examination, name: str) -> None:
    """A file differs: say which tensors do, and whose they are."""
    tensors, _ = files.read_tensors(run.folder / name)
    recorded = run.document["tensors"][name]
    faults = 0
    for key in sorted(recorded.keys() | tensors.keys()):
        found = files.tensor_digest(tensors[key]) if key in tensors else None
        if found != recorded.get(key):
            run.add(run.owner(name, key), name, f"tensor '{key}' was altered")
            faults += 1
    if not faults:
        run.add(run.owner(name, ""), name, "its header was altered; the tensors are as recorded")


def check_copies(run: Examination) -> None:
    """Dense file, packed file and masks say the same of every weight."""
    dense, packed, masks = (
        _read(run, name, reader) for name, reader in ((WEIGHTS, read_dense), (SPARSE, read_packed), (MASKS, read_masks))
    )
    if dense is None:
        return
    for name, tensor in dense.items():
        layer = run.owner(WEIGHTS, name)
        if packed is not None and not _same_bits(tensor, packed.get(name)):
            run.add(layer, SPARSE, f"'{name}' is not the weight of {WEIGHTS}")
    for name, tensor in (packed or {}).items():
        if name not in dense:
            run.add(run.owner(SPARSE, name), SPARSE, f"'{name}' ({tuple(tensor.shape)}) is not in {WEIGHTS}")
    wanted = {layer["weight"]: name for name, layer in run.layers.items()}
    for weight, layer in () if masks is None else wanted.items():
        mask = (masks or {}).get(weight)
        if mask is None or not torch.equal(mask, dense[weight] != 0):
            run.add(layer, MASKS, f"the mask of '{weight}' is not where {WEIGHTS} is nonzero")
    for weight in sorted((masks or {}).keys() - wanted.keys()):
        run.add(None, MASKS, f"a mask of '{weight}', which is not a pruned weight")


def _read(run: Examination, name: str, reader: Callable[[Path], dict[str, Tensor]]) -> dict[str, Tensor] | None:
    try:
        return reader(run.folder / name)
    except FileFormatError as error:
        run.add(None, name, str(error))
        return None


def _same_bits(a: Tensor, b: Tensor | None) -> bool:
    return b is not None and files.tensor_digest(a) == files.tensor_digest(b)


def check_index(run: Examination) -> None:
    """The list of several runs is as it was written, and each of its runs is there."""
    _check_canonical(run)
    if run.document["digest"] != index_digest(run.document):
        run.add(None, files.REPORT, "was edited")
    for name, recorded in run.document["runs"].items():
        try:
            if files.file_digest(run.folder / name / files.REPORT) != recorded:
                run.add(None, f"{name}/{files.REPORT}", "is not the one that the list of runs names")
        except FileFormatError as error:
            run.add(None, f"{name}/{files.REPORT}", str(error))


def _check_canonical(run: Examination) -> None:
    if files.canonical(run.document) != (run.folder / files.REPORT).read_bytes():
        run.add(None, files.REPORT, "is not as it was written: it was edited")
