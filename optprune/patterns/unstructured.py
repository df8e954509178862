"""Patterns of single weights."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

from optprune.errors import InvalidInputError
from optprune.patterns._base import Pattern, Shape, count_at, divide, require_positive, shape_of


class _FlatPattern(Pattern):
    """Patterns whose units are single weights in row-major order."""

    def units(self, x: Shaped[Tensor, "*batch out in"]) -> Shaped[Tensor, "*batch budgets units size"]:
        budgets, units, size = self.layout(shape_of(x))
        return x.reshape(*x.shape[:-2], budgets, units, size)

    def from_units(
        self, x: Shaped[Tensor, "*batch budgets units size"], shape: Shape
    ) -> Shaped[Tensor, "*batch out in"]:
        return x.reshape(*x.shape[:-3], *shape)

    def tile(self, shape: Shape) -> Shape:
        return (1, 1)


@dataclass(frozen=True)
class PerLayer(_FlatPattern):
    """At most k nonzero weights in the whole layer."""

    k: int
    row_separable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_positive(self, k=self.k)

    @classmethod
    def at_density(cls, density: float, shape: Shape) -> PerLayer:
        """Keep this fraction of the layer's weights, rounded half up."""
        return cls(count_at(density, shape[0] * shape[1]))

    def layout(self, shape: Shape) -> tuple[int, int, int]:
        return (1, shape[0] * shape[1], 1)

    def kept(self, shape: Shape) -> int:
        return self.k

    def split(self, groups: int, shape: Shape) -> list[Pattern]:
        return [PerLayer(k) for k in divide(self.k, groups)]


@dataclass(frozen=True)
class PerRow(_FlatPattern):
    """At most k nonzero weights in each row."""

    k: int
    row_separable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_positive(self, k=self.k)

    @classmethod
    def at_density(cls, density: float, shape: Shape) -> PerRow:
        """Keep this fraction of each row, rounded half up."""
        return cls(count_at(density, shape[1]))

    def layout(self, shape: Shape) -> tuple[int, int, int]:
        return (shape[0], shape[1], 1)

    def kept(self, shape: Shape) -> int:
        return self.k

    def split(self, groups: int, shape: Shape) -> list[Pattern]:
        return [self] * groups


@dataclass(frozen=True)
class NOfM(_FlatPattern):
    """At most n nonzero weights in every m consecutive inputs of a row: `NOfM(2, 4)` keeps 2 of every 4."""

    n: int
    m: int
    row_separable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_positive(self, n=self.n, m=self.m)
        if self.n > self.m:
            raise InvalidInputError(f"NOfM({self.n}, {self.m}) given; n weights are kept of every m, so n <= m")

    def layout(self, shape: Shape) -> tuple[int, int, int]:
        if shape[1] % self.m:
            raise InvalidInputError(
                f"NOfM({self.n}, {self.m}) given for {shape[1]} inputs; {self.m} must divide the number of inputs "
                "(pad the layer, choose another m, or use PerRow)"
            )
        return (shape[0] * shape[1] // self.m, self.m, 1)

    def kept(self, shape: Shape) -> int:
        return self.n

    def split(self, groups: int, shape: Shape) -> list[Pattern]:
        return [self] * groups


@dataclass(frozen=True, eq=False)
class Fixed(_FlatPattern):
    """Exactly this mask (True = may be nonzero); only the values are free."""

    mask: Bool[Tensor, "out in"]
    row_separable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.mask.dtype != torch.bool or self.mask.dim() != 2:
            raise InvalidInputError(
                f"Fixed mask of dtype {self.mask.dtype} and shape {tuple(self.mask.shape)} given; "
                "a boolean matrix (out, in) is needed, for instance weight != 0"
            )

    def layout(self, shape: Shape) -> tuple[int, int, int]:
        if tuple(self.mask.shape) != shape:
            raise InvalidInputError(f"Fixed mask of shape {tuple(self.mask.shape)} given for a matrix of shape {shape}")
        return (shape[0] * shape[1], 1, 1)

    def kept(self, shape: Shape) -> Tensor:
        return self.mask.reshape(-1).long()

    def split(self, groups: int, shape: Shape) -> list[Pattern]:
        return [Fixed(part) for part in self.mask.chunk(groups, dim=0)]

    def to_json(self) -> dict[str, Any]:
        packed = np.packbits(self.mask.cpu().numpy())
        return {
            "type": "Fixed",
            "shape": list(self.mask.shape),
            "bits": base64.b64encode(packed.tobytes()).decode(),
        }

    @classmethod
    def from_json(cls, arguments: Mapping[str, Any]) -> Self:
        rows, columns = arguments["shape"]
        packed = base64.b64decode(arguments["bits"], validate=True)
        if len(packed) != -(-rows * columns // 8):
            raise ValueError(f"{len(packed)} bytes of mask for {rows} x {columns} weights")
        bits = np.unpackbits(np.frombuffer(packed, dtype=np.uint8), count=rows * columns)
        return cls(torch.from_numpy(bits.astype(bool).reshape(rows, columns)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Fixed) and torch.equal(self.mask, other.mask)

    def __hash__(self) -> int:
        return hash((tuple(self.mask.shape), int(self.mask.sum())))

    def __repr__(self) -> str:
        return f"Fixed({int(self.mask.sum())} of {self.mask.numel()})"
