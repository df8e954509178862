"""Lipschitz constants of what stands between the pruned layers, read off the operations of a traced model.

A rule says how the discrepancies of an operation's inputs bound that of its output, for the shapes at hand. An
operation without a rule makes the bound unavailable, with its name; nothing is guessed.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from optprune.bounds.propagation import average_gain, axis_multiplicity, up


class UnknownError(Exception):
    """An operation has no rule here; the message says why."""


@dataclass(frozen=True)
class Step:
    r"""How discrepancies pass one operation.

    Attributes:
        factors: per input node that depends on a pruned layer, its Lipschitz constant.
        combine: "add" the scaled inputs' discrepancies, or "stack" them (squares add).
        roundings: operations behind one output entry, for the rounding error of running it.
        offset: a bound of the norm of what is added besides the inputs.
    """

    factors: tuple[tuple[fx.Node, float], ...]
    combine: Literal["add", "stack"] = "add"
    roundings: int = 16
    offset: float = 0.0


@dataclass(frozen=True, eq=False)
class Call:
    """One operation with the values that it ran on.

    Attributes:
        node: in the graph.
        module: what a `call_module` node calls.
        args: positional values; `kwargs` those by name.
        result: what came out.
        touched: its input nodes that depend on a pruned layer.
    """

    node: fx.Node
    module: nn.Module | None
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    result: Any
    touched: tuple[fx.Node, ...]

    def argument(self, position: int, name: str, default: Any) -> Any:
        """A value by position or name."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)

    @property
    def input(self) -> Tensor:
        """The first value, a tensor."""
        value = self.argument(0, "input", None)
        if not isinstance(value, Tensor):
            raise UnknownError("its first argument is no tensor")
        return value

    def only(self, constant: float, roundings: int = 16, offset: float = 0.0) -> Step:
        """The step of a map of one tensor."""
        if len(self.touched) != 1:
            raise UnknownError("more than one of its arguments depends on pruned layers")
        return Step(((self.touched[0], constant),), "add", roundings, offset)


Rule = Callable[[Call], Step]


def _constant(value: float) -> Rule:
    return lambda call: call.only(value)


def _two(value: Any, axes: int) -> tuple[int, ...]:
    return (value,) * axes if isinstance(value, int) else tuple(value) * (axes if len(value) == 1 else 1)


def _leaky(call: Call) -> Step:
    slope = (
        call.module.negative_slope
        if isinstance(call.module, nn.LeakyReLU)
        else call.argument(1, "negative_slope", 0.01)
    )
    return call.only(max(1.0, abs(slope)))


def _elu(call: Call) -> Step:
    alpha = call.module.alpha if isinstance(call.module, nn.ELU) else call.argument(1, "alpha", 1.0)
    return call.only(max(1.0, abs(alpha)))


def _dropout(call: Call) -> Step:
    if call.module.training if call.module is not None else call.argument(2, "training", True):
        raise UnknownError("dropout is active")
    return call.only(1.0)


def _batch_norm(call: Call) -> Step:
    norm = call.module
    if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or norm.training or norm.running_var is None:
        raise UnknownError("batch norm without stored statistics depends on the other samples")
    deviation = (norm.running_var + norm.eps).sqrt()
    scale = (torch.ones_like(deviation) if norm.weight is None else norm.weight.abs()) / deviation
    shift = 0.0 if norm.running_mean is None else norm.running_mean.abs() * scale
    largest = (shift + (0.0 if norm.bias is None else norm.bias.abs())) * torch.ones_like(scale)
    # Six roundings make the scale; 2**-48 of it is more than they can lose.
    constant = up(float(scale.max()) * (1 + 2.0**-48))
    return call.only(constant, 16, float(largest.max()) * math.sqrt(call.input.numel()) * (1 + 2.0**-40))


def _window(call: Call, axes: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    kernel = call.argument(1, "kernel_size", None) if call.module is None else call.module.kernel_size
    stride = call.argument(2, "stride", None) if call.module is None else call.module.stride
    return _two(kernel, axes), _two(kernel if stride in (None, (), []) else stride, axes)


def _max_pool(axes: int) -> Rule:
    def rule(call: Call) -> Step:
        kernel, stride = _window(call, axes)
        dilation = _two(call.argument(4, "dilation", 1) if call.module is None else call.module.dilation, axes)
        kappa = math.prod(axis_multiplicity(*each) for each in zip(kernel, stride, dilation, strict=True))
        return call.only(up(math.sqrt(kappa)))

    return rule


def _average_pool(axes: int) -> Rule:
    def rule(call: Call) -> Step:
        kernel, stride = _window(call, axes)
        own = call.module
        names = ("padding", "ceil_mode", "count_include_pad", "divisor_override")
        defaults = (0, False, True, None)
        given = [
            call.argument(3 + i, name, default) if own is None else vars(own).get(name, default)
            for i, (name, default) in enumerate(zip(names, defaults, strict=True))
        ]
        padded = any(_two(given[0], axes))
        if given[3] is not None:
            raise UnknownError("average pooling with divisor_override has no rule")
        window = math.prod(kernel)
        kappa = math.prod(axis_multiplicity(k, s) for k, s in zip(kernel, stride, strict=True))
        # Windows cut short by the border divide by fewer entries, down to one.
        short = given[1] or (padded and not given[2])
        return call.only(average_gain(kappa, 1 if short else window), window + 16)

    return rule


def _adaptive_pool(axes: int, average: bool) -> Rule:
    def rule(call: Call) -> Step:
        sizes = list(zip(call.input.shape[-axes:], call.result.shape[-axes:], strict=True))
        if any(size % out for size, out in sizes):
            raise UnknownError("adaptive pooling with windows of several sizes has no rule")
        window = math.prod(size // out for size, out in sizes)
        return call.only(average_gain(1, window) if average else 1.0, window + 16)

    return rule


def _mean(call: Call) -> Step:
    window = max(1, call.input.numel() // max(1, call.result.numel()))
    return call.only(average_gain(1, window), window + 16)


def _sum(call: Call) -> Step:
    window = max(1, call.input.numel() // max(1, call.result.numel()))
    return call.only(up(math.sqrt(window)), window + 16)


def _add(call: Call) -> Step:
    alpha = abs(float(call.kwargs.get("alpha", 1)))
    factors: list[tuple[fx.Node, float]] = []
    for position, (node, value) in enumerate(zip(call.node.args[:2], call.args[:2], strict=True)):
        if isinstance(node, fx.Node) and node in call.touched:
            copies = call.result.numel() / max(1, value.numel())
            factors.append((node, up(math.sqrt(copies)) * (alpha if position else 1.0)))
    _require_all(factors, call)
    return Step(tuple(factors))


def _scale(divide: bool) -> Rule:
    def rule(call: Call) -> Step:
        factor = call.args[1] if divide or isinstance(call.args[0], Tensor) else call.args[0]
        if not isinstance(factor, int | float) or call.kwargs:
            raise UnknownError("a product or quotient of tensors has no constant of its own")
        return call.only(up(abs(1 / factor)) if divide else abs(float(factor)))

    return rule


def _cat(call: Call) -> Step:
    listed = call.node.args[0] if call.node.args else call.node.kwargs.get("tensors")
    if not isinstance(listed, Sequence):
        raise UnknownError("the tensors that it joins are not listed")
    factors = [(node, 1.0) for node in listed if isinstance(node, fx.Node) and node in call.touched]
    _require_all(factors, call)
    return Step(tuple(factors), "stack")


def _require_all(factors: Sequence[tuple[fx.Node, float]], call: Call) -> None:
    if {node for node, _ in factors} != set(call.touched):
        raise UnknownError("an argument that depends on pruned layers is given in a way that has no rule")


def _index(call: Call) -> Step:
    index = call.args[1]
    parts = index if isinstance(index, tuple) else (index,)
    if not all(part is None or part is Ellipsis or isinstance(part, int | slice) for part in parts):
        raise UnknownError("an index by tensors may repeat entries")
    return call.only(1.0)


def _pad(call: Call) -> Step:
    if call.argument(2, "mode", "constant") != "constant":
        raise UnknownError("padding that repeats entries has no rule")
    return call.only(1.0, 16, abs(float(call.argument(3, "value", None) or 0.0)) * math.sqrt(call.result.numel()))


SAME = _constant(1.0)

MODULES: dict[type[nn.Module], Rule] = {
    nn.Identity: SAME,
    nn.Flatten: SAME,
    nn.Unflatten: SAME,
    nn.ReLU: SAME,
    nn.ReLU6: SAME,
    nn.Hardtanh: SAME,
    nn.Tanh: SAME,
    nn.Softsign: SAME,
    nn.LogSigmoid: SAME,
    nn.Sigmoid: _constant(0.25),
    nn.LeakyReLU: _leaky,
    nn.ELU: _elu,
    nn.Dropout: _dropout,
    nn.Dropout1d: _dropout,
    nn.Dropout2d: _dropout,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.BatchNorm3d: _batch_norm,
    nn.MaxPool1d: _max_pool(1),
    nn.MaxPool2d: _max_pool(2),
    nn.AvgPool1d: _average_pool(1),
    nn.AvgPool2d: _average_pool(2),
    nn.AdaptiveAvgPool1d: _adaptive_pool(1, True),
    nn.AdaptiveAvgPool2d: _adaptive_pool(2, True),
    nn.AdaptiveMaxPool1d: _adaptive_pool(1, False),
    nn.AdaptiveMaxPool2d: _adaptive_pool(2, False),
}

FUNCTIONS: dict[Any, Rule] = {
    **dict.fromkeys((F.relu, F.relu_, torch.relu, torch.relu_, F.relu6, F.hardtanh), SAME),
    **dict.fromkeys((torch.tanh, F.tanh, torch.abs, operator.neg, torch.neg, F.logsigmoid, F.softsign), SAME),
    **dict.fromkeys((torch.flatten, torch.reshape, torch.permute, torch.transpose, torch.squeeze), SAME),
    **dict.fromkeys((torch.unsqueeze, torch.clone, torch.t), SAME),
    **dict.fromkeys((torch.sigmoid, F.sigmoid), _constant(0.25)),
    **dict.fromkeys((operator.add, operator.iadd, operator.sub, operator.isub, torch.add, torch.sub), _add),
    **dict.fromkeys((operator.mul, operator.imul, torch.mul), _scale(False)),
    **dict.fromkeys((operator.truediv, operator.itruediv, torch.div), _scale(True)),
    **dict.fromkeys((torch.cat, torch.concat, torch.stack), _cat),
    **dict.fromkeys((F.max_pool1d, torch.max_pool1d), _max_pool(1)),
    **dict.fromkeys((F.max_pool2d, torch.max_pool2d), _max_pool(2)),
    F.leaky_relu: _leaky,
    F.elu: _elu,
    F.dropout: _dropout,
    F.avg_pool1d: _average_pool(1),
    F.avg_pool2d: _average_pool(2),
    F.adaptive_avg_pool1d: _adaptive_pool(1, True),
    F.adaptive_avg_pool2d: _adaptive_pool(2, True),
    F.pad: _pad,
    torch.mean: _mean,
    torch.sum: _sum,
    operator.getitem: _index,
}

METHODS: dict[str, Rule] = {
    **dict.fromkeys(("relu", "relu_", "tanh", "abs", "neg", "clone", "contiguous", "detach"), SAME),
    **dict.fromkeys(("view", "reshape", "flatten", "permute", "transpose", "squeeze", "unsqueeze", "t"), SAME),
    "sigmoid": _constant(0.25),
    **dict.fromkeys(("add", "add_", "sub", "sub_"), _add),
    **dict.fromkeys(("mul", "mul_"), _scale(False)),
    **dict.fromkeys(("div", "div_"), _scale(True)),
    "mean": _mean,
    "sum": _sum,
}

SHAPE_READS = ("size", "dim", "numel", "ndimension")
"""Methods whose result depends on a tensor's shape alone."""

VIEWS = (nn.Identity, nn.Flatten, nn.Unflatten, nn.Dropout, nn.Dropout1d, nn.Dropout2d)
"""Modules whose result may be the memory of their input."""

COMPUTES = (
    *(operator.add, operator.sub, operator.mul, operator.truediv, torch.add, torch.sub, torch.cat),
    *("relu", "tanh", "sigmoid", "add", "sub", "mul", "div", "mean", "sum"),
)
"""Functions and methods whose result is new memory."""

IN_PLACE = (operator.iadd, operator.isub, operator.imul, operator.itruediv)
IN_PLACE_METHODS = ("add_", "sub_", "mul_", "div_")


def reads_shape(node: fx.Node) -> bool:
    """Whether a node depends on the shapes of its inputs only, which pruning does not change."""
    if node.op == "call_method":
        return node.target in SHAPE_READS
    return node.op == "call_function" and (
        node.target is len or (node.target is getattr and node.args[1] in ("shape", "ndim", "dtype", "device"))
    )


def step_of(call: Call) -> Step:
    """The rule of an operation, for the values that it ran on.

    Raises:
        UnknownError: there is none, or it does not hold here.
    """
    node = call.node
    if node.op == "call_module":
        rule = None if call.module is None else MODULES.get(type(call.module))
    elif node.op == "call_function":
        rule = FUNCTIONS.get(node.target)
    else:
        rule = METHODS.get(str(node.target)) if node.op == "call_method" else None
    if rule is None:
        raise UnknownError("no rule for its Lipschitz constant")
    if node.target in (IN_PLACE if node.op == "call_function" else IN_PLACE_METHODS):
        changed = node.args[0]
        if isinstance(changed, fx.Node) and (len(changed.users) > 1 or _is_view(changed)):
            raise UnknownError("it changes in place a value that may be used elsewhere")
    step = rule(call)
    inside = call.kwargs.get("inplace") or (call.module is not None and vars(call.module).get("inplace"))
    if inside and any(constant > 1 and len(source.users) > 1 for source, constant in step.factors):
        # With a constant of at most 1 what was known of the value before still holds after.
        raise UnknownError("it changes in place a value that may be used elsewhere")
    return step


def _is_view(node: fx.Node) -> bool:
    """Whether a value may share its memory with another: what changes no number may return its input."""
    owner = node.graph.owning_module
    if node.op == "call_module" and owner is not None:
        return isinstance(owner.get_submodule(str(node.target)), VIEWS)
    return node.target not in COMPUTES
