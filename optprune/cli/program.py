"""Exported programs (`torch.export.save`) as modules with layers: what `--model program.pt2` reads."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload

from optprune.errors import FileFormatError, InvalidInputError

_SAMPLES = "/data/sample_inputs/"


def read_program(path: Path) -> nn.Module:
    """The program's module tree, in which every module that is one linear map or convolution is a layer again.

    An exported program is a graph of operations; what was an `nn.Linear` is a module that calls one function on its
    weight. Those are put back as layers under their old names, so that they can be observed and written. A program
    takes batches of the size it was exported with, unless that was exported as dynamic.

    Raises:
        FileFormatError: the file is not an exported program, or parts of it would have to be unpickled.
        InvalidInputError: it cannot be brought back into modules.
    """
    try:
        program = torch.export.load(_without_pickles(path))
    except (OSError, zipfile.BadZipFile, RuntimeError, ValueError, KeyError, AssertionError) as error:
        raise FileFormatError(f"{path}: not a readable exported program ({error})") from error
    try:
        model = torch.export.unflatten(program)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise InvalidInputError(
            f"{path}: the program cannot be brought back into modules ({error}); export it anew, or give its Python "
            "factory as module:function with --weights"
        ) from error
    plain = _plain(model)
    _return_one(plain.graph)
    plain.recompile()
    return plain


def _without_pickles(path: Path) -> io.BytesIO:
    """The archive without its sample inputs, which are pickled; nothing in what is left is."""
    copy = io.BytesIO()
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(copy, "w") as kept:
        for name in archive.namelist():
            content = b"" if _SAMPLES in name else archive.read(name)
            if name.endswith(".pt") and content:
                raise FileFormatError(
                    f"{path}: {name} is pickled, and nothing is unpickled here; save it by a newer torch"
                )
            if name.endswith("_config.json") and _mentions_pickle(json.loads(content)):
                raise FileFormatError(f"{path}: tensors of the program are pickled, and nothing is unpickled here")
            kept.writestr(name, content)
    copy.seek(0)
    return copy


def _mentions_pickle(config: Any) -> bool:
    return any(entry.get("use_pickle", True) for entry in config.get("config", {}).values())


def _plain(module: nn.Module) -> fx.GraphModule:
    """The same tree of modules with layers in it, and the functions of torch in place of its inner operators."""
    for name, child in list(module.named_children()):
        setattr(module, name, _layer(child) or _plain(child))
    result = fx.GraphModule(module, _graph(module))
    for node in result.graph.nodes:
        node.meta = {}  # shapes of the export, which hold for its batch alone and cannot be copied
        if node.op == "call_function" and isinstance(node.target, OpOverload):
            node.target = getattr(torch, node.target.overloadpacket.__name__, node.target)
    result.recompile()
    return result


def _graph(module: nn.Module) -> fx.Graph:
    graph = getattr(module, "graph", None)
    if not isinstance(graph, fx.Graph):
        raise InvalidInputError(f"the program holds a {type(module).__name__}, which is no graph; export it anew")
    return graph


def _return_one(graph: fx.Graph) -> None:
    """A program returns its outputs as a tuple; of one output, that output."""
    output = next(node for node in graph.nodes if node.op == "output")
    if len(output.args[0]) == 1:
        output.args = (output.args[0][0],)


def _layer(module: nn.Module) -> nn.Module | None:
    """The layer that a module of the program is: one call of a known operator on the input and its own weight."""
    nodes = list(_graph(module).nodes)
    calls = [node for node in nodes if node.op == "call_function"]
    inputs = [node for node in nodes if node.op == "placeholder"]
    if len(calls) != 1 or len(inputs) != 1 or calls[0].target not in _LAYERS:
        return None
    names = [argument.target if isinstance(argument, fx.Node) else argument for argument in calls[0].args]
    parameters = dict(module.named_parameters(recurse=False))
    bias = names[2] if len(names) > 2 else None
    if names[0] != inputs[0].target or names[1] != "weight" or bias not in ("bias", None):
        return None
    layer = _LAYERS[calls[0].target](parameters["weight"], bias is not None, *names[3:])
    for name, parameter in parameters.items():
        setattr(layer, name, parameter)
    return layer


def _linear(weight: Tensor, bias: bool) -> nn.Module:
    return nn.Linear(weight.shape[1], weight.shape[0], bias, device="meta")


def _convolution(kind: type[nn.Conv1d] | type[nn.Conv2d]) -> Callable[..., nn.Module]:
    def make(
        weight: Tensor, bias: bool, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
    ) -> nn.Module:
        sizes: dict[str, Any] = {
            "kernel_size": weight.shape[2:],
            "stride": stride,
            "padding": padding,
            "dilation": dilation,
        }
        sizes = {name: tuple(size) if isinstance(size, list | torch.Size) else size for name, size in sizes.items()}
        return kind(weight.shape[1] * groups, weight.shape[0], groups=groups, bias=bias, device="meta", **sizes)

    return make


_ATEN = torch.ops.aten
_LAYERS: dict[Any, Callable[..., nn.Module]] = {
    _ATEN.linear.default: _linear,
    _ATEN.conv1d.default: _convolution(nn.Conv1d),
    _ATEN.conv2d.default: _convolution(nn.Conv2d),
}
