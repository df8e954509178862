"""The graph of a model's operations, by symbolic tracing, and what follows a layer in it."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

PASSED = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout)
"""Modules that change nothing in evaluation mode."""

RELU_FUNCTIONS = (F.relu, F.relu_, torch.relu, torch.relu_)
RELU_METHODS = ("relu", "relu_")

# Tracing runs the model's own code on symbols; these are what code raises that a symbol does not suit.
_UNTRACEABLE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NameError,
    RuntimeError,
    TypeError,
    ValueError,
)


def trace(model: nn.Module) -> tuple[fx.GraphModule | None, str]:
    """The traced model, which shares the model's parameters; or None and why it cannot be traced."""
    try:
        return fx.symbolic_trace(model), ""
    except _UNTRACEABLE as error:
        line = (str(error).splitlines() or [""])[0]
        return (
            None,
            f"the forward of {type(model).__name__} cannot be traced symbolically ({type(error).__name__}: {line})",
        )


def followed_by_relu(model: nn.Module, names: Iterable[str]) -> dict[str, bool]:
    """Whether all that a layer's output goes to is a ReLU.

    Read off the traced graph; where the model cannot be traced, off the order of children of `nn.Sequential`.
    A layer of which neither tells is taken as linear, which is always a correct problem.
    """
    traced, _ = trace(copy.deepcopy(model))
    found = _in_sequences(model) if traced is None else _in_graph(traced)
    return {name: found.get(name, False) for name in names}


def _in_graph(traced: fx.GraphModule) -> dict[str, bool]:
    modules = dict(traced.named_modules())
    found: dict[str, bool] = {}
    for node in traced.graph.nodes:
        if node.op == "call_module":
            users = _users(node, modules)
            relu = bool(users) and all(_is_relu(user, modules) for user in users)
            found[node.target] = found.get(node.target, True) and relu
    return found


def _users(node: fx.Node, modules: Mapping[str, nn.Module]) -> list[fx.Node]:
    """What a node's value goes to, past modules that change nothing."""
    found = []
    for user in node.users:
        passed = user.op == "call_module" and isinstance(modules[str(user.target)], PASSED)
        found += _users(user, modules) if passed else [user]
    return found


def _is_relu(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return isinstance(modules[str(node.target)], nn.ReLU)
    if node.op == "call_function":
        return any(node.target is function for function in RELU_FUNCTIONS)
    return node.op == "call_method" and node.target in RELU_METHODS


def _in_sequences(model: nn.Module) -> dict[str, bool]:
    names: dict[Any, str] = {module: name for name, module in model.named_modules()}
    found: dict[str, bool] = {}
    for sequence in model.modules():
        if isinstance(sequence, nn.Sequential):
            children = [child for child in sequence if not isinstance(child, PASSED)]
            for child, after in zip(children, [*children[1:], None], strict=True):
                found[names[child]] = found.get(names[child], True) and isinstance(after, nn.ReLU)
    return found
