"""How a run lies on disk: canonical JSON, safetensors, hashes, and folders that appear whole or not at all.

Needs torch and safetensors only, so that a machine without any solver can read a run.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from optprune.errors import FileFormatError, InvalidInputError

REPORT = "report.json"
_PIECE = 1 << 20


def canonical(document: Any) -> bytes:
    """The one way a document is written: keys sorted, and nothing that JSON does not know.

    Floats are printed such that reading gives them back: documents are equal if and only if their bytes are.
    """
    return (json.dumps(document, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def digest(document: Any) -> str:
    """SHA-256 of the canonical form."""
    return hashlib.sha256(canonical(document)).hexdigest()


def tensor_digest(tensor: Tensor) -> str:
    """SHA-256 of dtype, shape and bytes (row-major), so that a tensor is known apart from its file."""
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    state = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
    state.update(flat.numpy().data)
    return state.hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, read in pieces.

    Raises:
        FileFormatError: the file cannot be read.
    """
    state = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while piece := file.read(_PIECE):
                state.update(piece)
    except OSError as error:
        raise FileFormatError(f"{path}: cannot be read ({error.strerror}); is the run complete?") from error
    return state.hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        FileFormatError: the file cannot be read, or holds something else.
    """
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise FileFormatError(f"{path}: cannot be read ({error.strerror}); is it the folder of a run?") from error
    except (ValueError, RecursionError) as error:  # malformed JSON and malformed UTF-8
        raise FileFormatError(f"{path}: not JSON ({error}); it was altered or cut off") from error
    if not isinstance(document, dict):
        raise FileFormatError(f"{path}: holds a {type(document).__name__} where an object is expected")
    return document


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None) -> None:
    """Write a safetensors file; metadata are stored as JSON, entry by entry.

    Raises:
        InvalidInputError: the format cannot hold one of the tensors.
    """
    ready = {name: _apart(tensor) for name, tensor in tensors.items()}
    header = {key: json.dumps(value, sort_keys=True) for key, value in (metadata or {}).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        save_file(ready, path, metadata={"format": "pt"} | header)
    except (SafetensorError, KeyError, RuntimeError, ValueError) as error:
        raise InvalidInputError(f"{path.name} cannot be written as safetensors: {error}") from error
    _sort_metadata(path)


def _sort_metadata(path: Path) -> None:
    """Equal contents are equal files: the library writes the entries of the metadata in an order that changes."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) > size:
            raise InvalidInputError(f"{path.name} has names that JSON writes in more than one way; rename the tensors")
        file.seek(8)
        file.write(text.ljust(size))


def _apart(tensor: Tensor) -> Tensor:
    """The tensor in memory of its own, as the format wants it: no views into something larger."""
    flat = tensor.detach().cpu().contiguous()
    return flat if flat.untyped_storage().nbytes() == flat.nbytes else flat.clone()


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All tensors of a safetensors file and its metadata, decoded.

    Raises:
        FileFormatError: the file is missing, truncated or malformed.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        return tensors, {key: json.loads(text) for key, text in header.items() if key != "format"}
    except OSError as error:
        raise FileFormatError(f"{path}: cannot be read ({error}); is the run complete?") from error
    except (SafetensorError, ValueError, RuntimeError, AttributeError) as error:
        raise FileFormatError(
            f"{path}: not a readable safetensors file ({error}); it was altered or cut off"
        ) from error


@contextmanager
def new_folder(directory: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A folder to write into that takes its place under `directory` only when the block ends without error.

    It is filled beside its place and then renamed, so that nobody ever sees half a run. A folder that is
    replaced stays until the new one is complete.

    Raises:
        InvalidInputError: the place is taken by something that is not to be replaced.
    """
    directory = Path(os.path.abspath(directory))
    _require_free(directory, overwrite)
    directory.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", suffix=".partial", dir=directory.parent))
    try:
        fresh = work / "new"
        fresh.mkdir()
        yield fresh
        _replace(directory, fresh, work / "old")
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _replace(directory: Path, fresh: Path, aside: Path) -> None:
    if directory.exists():
        directory.rename(aside)
    try:
        fresh.rename(directory)
    except OSError:
        if aside.exists():
            aside.rename(directory)
        raise


def _require_free(directory: Path, overwrite: bool) -> None:
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return
    if not (directory / REPORT).is_file():
        raise InvalidInputError(
            f"{directory} exists and is not the folder of a run; a run replaces nothing else. Give another."
        )
    if not overwrite:
        raise InvalidInputError(
            f"{directory} holds a run; give another folder, or allow it to be replaced (overwrite=True, --overwrite)."
        )
