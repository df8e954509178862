"""Reading a run: weights, masks and report, checked against their hashes; needs torch and safetensors."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from optprune.errors import FileFormatError, InvalidInputError
from optprune.network import files
from optprune.network.packing import Packed, unpack_bits
from optprune.network.report import Report

FORMAT = "optprune run"
INDEX_FORMAT = "optprune runs"
VERSION = 1
WEIGHTS, SPARSE, MASKS = "weights.safetensors", "sparse.safetensors", "masks.safetensors"
BITS, VALUES = ":bits", ":values"


@dataclass(frozen=True, eq=False)
class Run:
    """A run read from disk.

    Attributes:
        state_dict: for `model.load_state_dict`; tied entries are one tensor again.
        masks: True where a weight is kept, by the name of the weight.
        report: the records, without the tensors behind them.
    """

    state_dict: dict[str, Tensor]
    masks: dict[str, Bool[Tensor, "..."]]
    report: Report


def load(directory: str | os.PathLike[str], *, packed: bool = False) -> Run:
    """Read a run and check its files against their hashes; nothing is recomputed (that is `verify`).

    Args:
        directory: the folder that `export` wrote.
        packed: read the weights from the packed file, so that the dense one may be left out.

    Raises:
        FileFormatError: a file is missing, truncated, malformed or not the one that was written; names it.
    """
    folder = Path(directory)
    document = read_report(folder)
    names = (SPARSE if packed else WEIGHTS, MASKS)
    for name in names:
        if files.file_digest(folder / name) != document["files"].get(name, {}).get("sha256"):
            raise FileFormatError(f"{folder / name}: not the file that was exported; its hash differs")
    try:
        report = Report.from_json(document["report"])
    except InvalidInputError as error:
        raise FileFormatError(f"{folder / files.REPORT}: {error}") from error
    state = read_packed(folder / SPARSE) if packed else read_dense(folder / WEIGHTS)
    return Run(state, read_masks(folder / MASKS), report)


def read_report(folder: Path) -> dict[str, Any]:
    """The document of a run whose seal holds.

    Raises:
        FileFormatError: it is missing, malformed, of another format or version, or altered.
    """
    path = folder / files.REPORT
    document = files.read_json(path)
    if (document.get("format"), document.get("version")) != (FORMAT, VERSION):
        raise FileFormatError(
            f"{path}: format {document.get('format')!r}, version {document.get('version')!r}; "
            f"this release reads {FORMAT!r}, version {VERSION}"
        )
    missing = {"report", "layers", "sizes", "files", "tensors", "digests"} - document.keys()
    if missing:
        raise FileFormatError(f"{path}: lacks {', '.join(sorted(missing))}; it was altered")
    if document["digests"] != digests(document):
        raise FileFormatError(f"{path}: altered after it was written; verify names what differs")
    return document


def run_folders(directory: str | os.PathLike[str]) -> list[Path]:
    """The folders of runs, a folder itself or those below it, without the lists of several.

    Raises:
        FileFormatError: there is none.
    """
    folder = Path(directory)
    reports = sorted(folder.rglob(files.REPORT)) if folder.is_dir() else []
    found = [path.parent for path in reports if files.read_json(path).get("format") != INDEX_FORMAT]
    if not found:
        raise FileFormatError(f"{folder}: no {files.REPORT} of a run in it or below; give the folder of a run")
    return found


def read_dense(path: Path) -> dict[str, Tensor]:
    """A state dict from `weights.safetensors`."""
    tensors, header = files.read_tensors(path)
    return _with_aliases(tensors, header, path)


def read_packed(path: Path) -> dict[str, Tensor]:
    """A state dict from `sparse.safetensors`; the file is enough by itself."""
    tensors, header = files.read_tensors(path)
    for name, shape in _shapes(header, path).items():
        try:
            bits, values = tensors.pop(name + BITS), tensors.pop(name + VALUES)
            tensors[name] = Packed(bits, values, shape).dense()
        except KeyError as error:
            raise FileFormatError(f"{path}: tensor {error} is missing; it was altered") from error
        except FileFormatError as error:
            raise FileFormatError(f"{path}: {name}: {error}") from error
    return _with_aliases(tensors, header, path)


def read_masks(path: Path) -> dict[str, Tensor]:
    """The masks by the name of their weight."""
    tensors, header = files.read_tensors(path)
    shapes = _shapes(header, path)
    if shapes.keys() != tensors.keys():
        raise FileFormatError(f"{path}: the header lists other tensors than there are; it was altered")
    try:
        return {name: unpack_bits(bits, shapes[name]) for name, bits in tensors.items()}
    except FileFormatError as error:
        raise FileFormatError(f"{path}: {error}") from error


def matrices(
    weight: Shaped[Tensor, "out *d"], bias: Shaped[Tensor, " out"] | None, groups: int
) -> Float[Tensor, "groups outg d"]:
    """The variables of a layer's parts: its weight as an adapter reads it, a bias as the last column."""
    rows = weight.double().reshape(groups, weight.shape[0] // groups, -1)
    if bias is None:
        return rows
    return torch.cat((rows, bias.double().reshape(groups, -1, 1)), -1)


def fingerprints(folder: Path) -> dict[str, Any]:
    """Size and hash of every file, and a hash of every tensor, so that a fault can be placed."""
    found: dict[str, Any] = {"files": {}, "tensors": {}}
    for path in sorted(folder.rglob("*.safetensors")):
        name = path.relative_to(folder).as_posix()
        found["files"][name] = {"bytes": path.stat().st_size, "sha256": files.file_digest(path)}
        tensors, _ = files.read_tensors(path)
        found["tensors"][name] = {key: files.tensor_digest(tensor) for key, tensor in tensors.items()}
    return found


def sealed(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document with the digests of its sections, and one of everything."""
    return {**document, "digests": digests(document)}


def digests(document: Mapping[str, Any]) -> dict[str, Any]:
    """A digest for each layer's records and each other section; `report` is over all of them."""
    report, layers = document["report"], document["layers"]
    per_layer = {record["name"]: files.digest([record, layers.get(record["name"])]) for record in report["layers"]}
    sections = {key: files.digest(value) for key, value in document.items() if key not in ("report", "digests")}
    sections |= {f"report.{key}": files.digest(value) for key, value in report.items()}
    seal = {"layers": per_layer, "sections": sections}
    return {**seal, "report": files.digest(seal)}


def index_digest(document: Mapping[str, Any]) -> str:
    """The digest of a list of runs."""
    return files.digest({key: value for key, value in document.items() if key != "digest"})


def _with_aliases(tensors: dict[str, Tensor], header: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """Tied entries, which the file holds once, under all their names."""
    aliases = header.get("aliases", {})
    if not isinstance(aliases, dict) or not tensors.keys() >= set(aliases.values()):
        raise FileFormatError(f"{path}: the header names tied tensors that are not there; it was altered")
    return tensors | {name: tensors[target] for name, target in aliases.items()}


def _shapes(header: Mapping[str, Any], path: Path) -> dict[str, tuple[int, ...]]:
    try:
        return {name: tuple(int(size) for size in shape) for name, shape in header["shapes"].items()}
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise FileFormatError(f"{path}: the header does not give the shapes of packed tensors") from error
