"""Plans: which layers are pruned, and to what. `uniform` gives every layer one density or pattern, `radius` one
error; layers are skipped or given their own target by name, with `*` and `?`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from optprune.errors import InvalidInputError, layer_context
from optprune.network.layers import candidates, named_adapters
from optprune.patterns import Columns, Pattern, PerLayer, PerRow, Rows, Shape


@dataclass(frozen=True)
class Radius:
    r"""A Net-Trim target: the layer may err by this fraction of $\lVert Y \rVert_F$, the norm of its outputs.

    Attributes:
        relative: the fraction.
        gamma: cascade mode: the squared error that the dense weight makes behind the pruned prefix may grow by this
            factor, if that is more than the fraction allows.

    Raises:
        InvalidInputError: the fraction is negative or not finite, or gamma is below 1.
    """

    relative: float
    gamma: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.gamma < math.inf:
            raise InvalidInputError(f"gamma={self.gamma} given; a finite factor >= 1 is needed")
        if not (self.relative >= 0 and math.isfinite(self.relative)):
            raise InvalidInputError(
                f"Radius({self.relative}) given; a finite fraction >= 0 of the outputs' norm is needed"
            )


Target = Pattern | Radius
Rule = float | Pattern | Radius | Callable[[Shape], Pattern] | None
"""What a layer may be given: a density, a pattern, a radius, a pattern for each shape, or None to skip it."""

AT_DENSITY = (PerLayer, PerRow, Rows, Columns)
"""Pattern types that follow from a density and a shape alone."""


@dataclass(frozen=True)
class Plan(Mapping[str, Target]):
    """Layer name -> target, in the order of the model's modules, with the shapes that it was made for.

    Attributes:
        targets: one per layer that is pruned.
        shapes: (out, d) of each layer's matrix.
        groups: groups of each layer, 1 but for grouped convolutions.
    """

    targets: Mapping[str, Target]
    shapes: Mapping[str, Shape]
    groups: Mapping[str, int]

    def __getitem__(self, name: str) -> Target:
        return self.targets[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.targets)

    def __len__(self) -> int:
        return len(self.targets)

    def count(self, name: str | None = None) -> int:
        """Exact number of weights kept, of one layer or of all.

        Raises:
            InvalidInputError: a layer has a radius; how many weights that takes is known when it is solved.
        """
        if name is None:
            return sum(self.count(each) for each in self)
        target = self[name]
        if isinstance(target, Radius):
            with layer_context(name):
                raise InvalidInputError(f"{target} has no count; how many weights it takes is known when it is solved")
        return sum(part.count(self._part(name)) for part in target.split(self.groups[name], self.shapes[name]))

    def total(self) -> int:
        """All weights of the planned layers."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def validate(self, model: nn.Module) -> None:
        """Check the plan against a model: every layer is there, with the shape that the plan was made for.

        Raises:
            InvalidInputError: a layer is missing or has another shape, or a pattern does not fit; names the layer.
            UnsupportedError: a layer has no adapter.
        """
        for name, adapter in named_adapters(model, self).items():
            with layer_context(name):
                if (adapter.shape, adapter.groups) != (self.shapes[name], self.groups[name]):
                    raise InvalidInputError(
                        f"the plan was made for a {_times(self.shapes[name])} matrix in {self.groups[name]} groups, "
                        f"the layer is {_times(adapter.shape)} in {adapter.groups}; make the plan from this model"
                    )
                _require_fit(self[name], adapter.shape, adapter.groups)

    def _part(self, name: str) -> Shape:
        out, d = self.shapes[name]
        return (out // self.groups[name], d)

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [("layer", "matrix", "target", "kept", "density")]
        for name, target in self.items():
            size = math.prod(self.shapes[name])
            kept = None if isinstance(target, Radius) else self.count(name)
            counts = ("when solved", "-") if kept is None else (str(kept), f"{kept / size:.4f}")
            rows.append((name, _times(self.shapes[name]), repr(target), *counts))
        widths = [max(len(row[j]) for row in rows) for j in range(5)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join(lines)


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
    return _plan(model, _rule(density, pattern), skip, override)


def radius(
    model: nn.Module,
    relative: float,
    *,
    skip: str | Iterable[str] = (),
    override: Mapping[str, Rule] | None = None,
) -> Plan:
    """One relative Net-Trim radius for every layer; arguments and errors as `uniform`."""
    return _plan(model, Radius(relative), skip, override)


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


def _plan(model: nn.Module, rule: Rule, skip: str | Iterable[str], override: Mapping[str, Rule] | None) -> Plan:
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
    adapters = named_adapters(model, [name for name in names if rules[name] is not None])
    targets: dict[str, Target] = {}
    for name, adapter in adapters.items():
        with layer_context(name):
            targets[name] = _target(rules[name], adapter.shape)
            _require_fit(targets[name], adapter.shape, adapter.groups)
    return Plan(
        targets,
        {name: adapter.shape for name, adapter in adapters.items()},
        {name: adapter.groups for name, adapter in adapters.items()},
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


def _require_fit(target: Target, shape: Shape, groups: int) -> None:
    if isinstance(target, Pattern):
        target.validate(shape)
        for part in target.split(groups, shape):
            part.validate((shape[0] // groups, shape[1]))


def _times(shape: Shape) -> str:
    return f"{shape[0]} x {shape[1]}"
