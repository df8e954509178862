"""Runs on disk: the pruned weights, dense and packed, the masks, and what it takes to certify them again.

| file | holds |
|---|---|
| `weights.safetensors` | the state dict as it ships, pruned weights with exact zeros |
| `sparse.safetensors` | the same with every pruned weight packed: mask bits and kept values |
| `masks.safetensors` | the mask bits alone |
| `evidence/<layer>.safetensors` | per part of a layer the problem and the dual point of its certificate |
| `report.json` | records, certificates, provenance; a hash for every file, every tensor and every section |

`load` reads them back with torch and safetensors alone; `verify` recomputes the certificates.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
from torch import Tensor, nn

from optprune.errors import InvalidInputError, UnsupportedError, layer_context
from optprune.network import files
from optprune.network.layer_record import encode
from optprune.network.packing import pack
from optprune.network.report import LayerRecord, Part, Report
from optprune.network.runs import (
    BITS,
    FORMAT,
    INDEX_FORMAT,
    MASKS,
    SPARSE,
    VALUES,
    VERSION,
    WEIGHTS,
    Run,
    fingerprints,
    index_digest,
    load,
    matrices,
    read_report,
    sealed,
)

__all__ = ["Run", "export", "export_index", "load", "state_bytes"]


def export(pruned: nn.Module, report: Report, directory: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Write a run; the folder appears when everything is in it, or not at all.

    Args:
        pruned: the model that `prune` returned with this report.
        report: its certificates; with their evidence (`evidence=True` in `prune`) the run can be verified.
        directory: where to; missing or empty.
        overwrite: allow a run that is there to be replaced. Anything else is never replaced.

    Returns:
        The folder.

    Raises:
        InvalidInputError: the place is taken, or the model's weights are not those of the report.
        UnsupportedError: the state dict holds something other than plain tensors.
    """
    state, aliases = _state(pruned)
    layers = {record.name: _layer(record, state) for record in report.layers}
    for layer in layers.values():
        weight = state[layer["weight"]]
        state[layer["weight"]] = torch.where(weight != 0, weight, torch.zeros_like(weight))  # no -0.0
    with files.new_folder(Path(directory), overwrite=overwrite) as folder:
        sizes = _write_weights(folder, state, aliases, [layer["weight"] for layer in layers.values()])
        for record in report.layers:
            if record.parts:
                files.write_tensors(folder / layers[record.name]["evidence"], dict(_named(record.parts)))
        document = {
            "format": FORMAT,
            "version": VERSION,
            "report": report.to_json(),
            "layers": layers,
            "sizes": sizes,
        } | fingerprints(folder)
        (folder / files.REPORT).write_bytes(files.canonical(sealed(document)))
    return Path(directory)


def export_index(directory: str | os.PathLike[str], summary: Mapping[str, Any]) -> None:
    """Write the list of the runs in the folders of a folder, with what is to be said of them together."""
    folder = Path(directory)
    runs = {path.parent.name: files.file_digest(path) for path in sorted(folder.glob(f"*/{files.REPORT}"))}
    document = {"format": INDEX_FORMAT, "version": VERSION, "runs": runs, "summary": summary}
    (folder / files.REPORT).write_bytes(files.canonical(document | {"digest": index_digest(document)}))


def state_bytes(directory: str | os.PathLike[str]) -> dict[str, int]:
    """Bytes of a run's state dict, `dense` and `packed`."""
    return dict(read_report(Path(directory))["sizes"]["state_dict"])


def _state(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The state dict without tied copies, and which name stands for which."""
    state: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_meta:
            raise UnsupportedError(
                f"state '{name}' is no plain dense tensor but {type(value).__name__}; "
                "files hold nothing else. Materialise or remove it"
            )
        place = (value.data_ptr(), value.dtype, tuple(value.shape), value.stride(), str(value.device))
        if value.numel() and place in first:
            aliases[name] = first[place]
        else:
            first[place] = name
            state[name] = value.detach()
    return state, aliases


def _layer(record: LayerRecord, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Where a layer's tensors are, and the part of its problems that is not a tensor."""
    weight, bias = (f"{record.name}.{suffix}".lstrip(".") for suffix in ("weight", "bias"))
    with layer_context(record.name):
        if weight not in state:
            raise InvalidInputError(f"the model has no tensor '{weight}' of its own; is the report another model's?")
        free_bias = any(part.matrix.shape[-1] > state[weight][0].numel() for part in record.parts)
        _require_shipped(record, state[weight], state[bias] if free_bias else None)
    return {
        "weight": weight,
        "bias": bias if free_bias else None,
        "evidence": f"evidence/{quote(record.name, safe='') or 'model'}.safetensors" if record.parts else None,
        "parts": [
            {
                "problem": type(part.problem).__name__,
                "settings": part.problem.settings(),
                "certificate": encode(part.certificate.to_json()),
            }
            for part in record.parts
        ],
    }


def _require_shipped(record: LayerRecord, weight: Tensor, bias: Tensor | None) -> None:
    """The report must speak of the weights that are written."""
    kept = int((weight != 0).sum())
    same = kept == record.kept and tuple(weight.shape) == record.shape
    if record.parts and same:
        shipped = matrices(weight.cpu(), bias if bias is None else bias.cpu(), len(record.parts))
        same = all(torch.equal(part.matrix.cpu(), matrix) for part, matrix in zip(record.parts, shipped, strict=True))
    if not same:
        raise InvalidInputError(
            "the model holds other weights than its report is about; export what prune returned, unchanged"
        )


def _write_weights(
    folder: Path, state: Mapping[str, Tensor], aliases: Mapping[str, str], pruned: Sequence[str]
) -> dict[str, Any]:
    """The three files of weights and masks; returns the sizes of the dense and the packed form."""
    packed = {name: pack(state[name].cpu()) for name in pruned}
    shapes = {name: list(form.shape) for name, form in packed.items()}
    sparse = {name: tensor for name, tensor in state.items() if name not in packed}
    sparse |= {name + BITS: form.bits for name, form in packed.items()}
    sparse |= {name + VALUES: form.values for name, form in packed.items()}
    files.write_tensors(folder / WEIGHTS, state, {"aliases": aliases})
    files.write_tensors(folder / SPARSE, sparse, {"aliases": aliases, "shapes": shapes})
    files.write_tensors(folder / MASKS, {name: form.bits for name, form in packed.items()}, {"shapes": shapes})
    return {
        "state_dict": {
            "dense": sum(tensor.nbytes for tensor in state.values()),
            "packed": sum(tensor.nbytes for tensor in sparse.values()),
        },
        "pruned": {name: {"dense": state[name].nbytes, "packed": form.nbytes} for name, form in packed.items()},
    }


def _named(parts: Sequence[Part]) -> Iterator[tuple[str, Tensor]]:
    """The tensors behind a layer's certificates, by part, then problem or evidence, then their own name."""
    for index, part in enumerate(parts):
        for name, tensor in part.problem.tensors().items():
            yield f"{index}.problem.{name}", tensor
        for name, tensor in part.evidence.items():
            yield f"{index}.evidence.{name}", tensor
