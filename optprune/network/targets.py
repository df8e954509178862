"""What a layer is pruned to, and plans: a target for every layer that is pruned."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from optprune.errors import InvalidInputError, layer_context
from optprune.network.allocation import Allocation
from optprune.network.layers import named_adapters
from optprune.patterns import Pattern, Shape


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


@dataclass(frozen=True)
class Plan(Mapping[str, Target]):
    """Layer name -> target, in the order of the model's modules, with the shapes that it was made for.

    Attributes:
        targets: one per layer that is pruned.
        shapes: (out, d) of each layer's matrix.
        groups: groups of each layer, 1 but for grouped convolutions.
        allocation: how one budget of the network was shared among the layers; None where each was given its own.
    """

    targets: Mapping[str, Target]
    shapes: Mapping[str, Shape]
    groups: Mapping[str, int]
    allocation: Allocation | None = None

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
                require_fit(self[name], adapter.shape, adapter.groups)

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
        return "\n".join(lines if self.allocation is None else [*lines, str(self.allocation)])


def require_fit(target: Target, shape: Shape, groups: int) -> None:
    """Check that a target fits a layer, and each of its groups.

    Raises:
        InvalidInputError: it does not; says what would.
    """
    if isinstance(target, Pattern):
        target.validate(shape)
        for part in target.split(groups, shape):
            part.validate((shape[0] // groups, shape[1]))


def _times(shape: Shape) -> str:
    return f"{shape[0]} x {shape[1]}"
