"""Rules per layer, by name: one for all, layers skipped or given their own, with `*` and `?`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase

from torch import nn

from optprune.errors import InvalidInputError, layer_context
from optprune.network.allocation import Allocation
from optprune.network.layers import candidates, named_adapters
from optprune.network.targets import Plan, Radius, Rule, Target, require_fit
from optprune.patterns import Columns, Pattern, PerLayer, PerRow, Rows, Shape

AT_DENSITY = (PerLayer, PerRow, Rows, Columns)
"""Pattern types that follow from a density and a shape alone."""

Rules = dict[str, Rule]
"""Layer name -> rule, in the order of the model's modules."""


def uniform(
    model: nn.Module,
    density: float | None = None,
    pattern: Pattern | type[Pattern] | Callable[[Shape], Pattern] | None = None,
    *,
    skip: str | Iterable[str] = (),
    override: Mapping[str, Rule] | None = None,
) -> Plan:
    """One density or one pattern for every layer.

    Args:
        model: its `Linear`, `Conv1d` and `Conv2d` layers are planned.
        density: fraction of each layer's weights kept, rounded half up to an exact count.
        pattern: a pattern; a function from a shape to a pattern; or, with a density, one of the types `PerLayer`
            (the default), `PerRow`, `Rows`, `Columns`.
        skip: names or globs of layers to leave alone.
        override: name or glob -> density, pattern, radius, function, or None to skip; the last match wins.

    Raises:
        InvalidInputError: neither density nor pattern, a name that matches no layer, a pattern that does not fit;
            names the layer.
        UnsupportedError: a layer that is not skipped cannot be pruned as it is; names it.
    """
    return assemble(model, resolve(model, _rule(density, pattern), skip, override))


def radius(
    model: nn.Module,
    relative: float,
    *,
    skip: str | Iterable[str] = (),
    override: Mapping[str, Rule] | None = None,
) -> Plan:
    """One relative Net-Trim radius for every layer; arguments and errors as `uniform`."""
    return assemble(model, resolve(model, Radius(relative), skip, override))


def _rule(density: float | None, pattern: Pattern | type[Pattern] | Callable[[Shape], Pattern] | None) -> Rule:
    if isinstance(pattern, type):
        if pattern not in AT_DENSITY or density is None:
            types = ", ".join(kind.__name__ for kind in AT_DENSITY)
            raise InvalidInputError(
                f"pattern={pattern.__name__}, density={density} given; with a density the types {types} are accepted, "
                "any other pattern is given as an instance or as a function of the shape"
            )
        return lambda shape: pattern.at_density(density, shape)
    if (density is None) == (pattern is None):
        raise InvalidInputError(
            f"density={density}, pattern={pattern} given; give a density (the fraction kept) or a pattern, not both"
        )
    return density if pattern is None else pattern


def resolve(model: nn.Module, rule: Rule, skip: str | Iterable[str], override: Mapping[str, Rule] | None) -> Rules:
    """The rule of every layer that is not skipped: `rule` unless a name or glob gives it another.

    Raises:
        InvalidInputError: no layer to prune, or a name that matches none.
    """
    names = candidates(model)
    if not names:
        raise InvalidInputError(
            f"{type(model).__name__} holds no Linear, Conv1d or Conv2d layer; there is nothing to prune"
        )
    rules = dict.fromkeys(names, rule)
    dropped: Mapping[str, Rule] = dict.fromkeys((skip,) if isinstance(skip, str) else skip)
    for glob, own in [*(override or {}).items(), *dropped.items()]:
        matched = [name for name in names if fnmatchcase(name, glob)]
        if not matched:
            raise InvalidInputError(f"'{glob}' matches no layer; the layers are {', '.join(map(repr, names))}")
        rules.update(dict.fromkeys(matched, own))
    return {name: own for name, own in rules.items() if own is not None}


def assemble(model: nn.Module, rules: Rules, allocation: Allocation | None = None) -> Plan:
    """The plan that rules stand for.

    Raises:
        InvalidInputError: a rule that gives no target, or one that does not fit; names the layer.
        UnsupportedError: a layer cannot be pruned as it is; names it.
    """
    adapters = named_adapters(model, rules)
    targets: dict[str, Target] = {}
    for name, adapter in adapters.items():
        with layer_context(name):
            targets[name] = _target(rules[name], adapter.shape)
            require_fit(targets[name], adapter.shape, adapter.groups)
    return Plan(
        targets,
        {name: adapter.shape for name, adapter in adapters.items()},
        {name: adapter.groups for name, adapter in adapters.items()},
        allocation,
    )


def _target(rule: Rule, shape: Shape) -> Target:
    if isinstance(rule, Pattern | Radius):
        return rule
    if isinstance(rule, int | float) and not isinstance(rule, bool):
        return PerLayer.at_density(float(rule), shape)
    target = rule(shape) if callable(rule) else rule
    if not isinstance(target, Pattern):
        raise InvalidInputError(f"{target!r} given as a target; a density, a pattern or a Radius is needed")
    return target
