"""Patterns of tiles, rows and columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Shaped
from torch import Tensor

from optprune.errors import InvalidInputError
from optprune.patterns._base import Pattern, Shape, count_at, divide, require_positive, shape_of


@dataclass(frozen=True)
class Blocks(Pattern):
    """At most k nonzero tiles of `rows` x `columns` weights."""

    rows: int
    columns: int
    k: int
    row_separable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_positive(self, rows=self.rows, columns=self.columns, k=self.k)

    @classmethod
    def at_density(cls, density: float, shape: Shape, rows: int, columns: int) -> Blocks:
        """Keep this fraction of the tiles, rounded half up."""
        return cls(rows, columns, count_at(density, cls(rows, columns, 0).layout(shape)[1]))

    def layout(self, shape: Shape) -> tuple[int, int, int]:
        if shape[0] % self.rows or shape[1] % self.columns:
            raise InvalidInputError(
                f"Blocks of {self.rows} x {self.columns} given for a {shape[0]} x {shape[1]} matrix; "
                "the tile must divide the matrix in both directions"
            )
        return (1, shape[0] * shape[1] // (self.rows * self.columns), self.rows * self.columns)

    def units(self, x: Shaped[Tensor, "*batch out in"]) -> Shaped[Tensor, "*batch budgets units size"]:
        budgets, units, size = self.layout(shape_of(x))
        tiles = x.unflatten(-1, (-1, self.columns)).unflatten(-3, (-1, self.rows)).transpose(-3, -2)
        return tiles.reshape(*x.shape[:-2], budgets, units, size)

    def from_units(
        self, x: Shaped[Tensor, "*batch budgets units size"], shape: Shape
    ) -> Shaped[Tensor, "*batch out in"]:
        tiles = x.reshape(*x.shape[:-3], shape[0] // self.rows, shape[1] // self.columns, self.rows, self.columns)
        return tiles.transpose(-3, -2).reshape(*x.shape[:-3], *shape)

    def kept(self, shape: Shape) -> int:
        return self.k

    def tile(self, shape: Shape) -> Shape:
        return (self.rows, self.columns)

    def split(self, groups: int, shape: Shape) -> list[Pattern]:
        return [Blocks(self.rows, self.columns, k) for k in divide(self.k, groups)]


@dataclass(frozen=True)
class Rows(Pattern):
    """At most k nonzero rows: neurons of a fully connected layer, filters of a convolution."""

    k: int
    row_separable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_positive(self, k=self.k)

    @classmethod
    def at_density(cls, density: float, shape: Shape) -> Rows:
        """Keep this fraction of the rows, rounded half up."""
        return cls(count_at(density, shape[0]))

    def layout(self, shape: Shape) -> tuple[int, int, int]:
        return (1, *shape)

    def units(self, x: Shaped[Tensor, "*batch out in"]) -> Shaped[Tensor, "*batch budgets units size"]:
        return x.unsqueeze(-3)

    def from_units(
        self, x: Shaped[Tensor, "*batch budgets units size"], shape: Shape
    ) -> Shaped[Tensor, "*batch out in"]:
        return x.squeeze(-3)

    def kept(self, shape: Shape) -> int:
        return self.k

    def tile(self, shape: Shape) -> Shape:
        return (1, shape[1])

    def split(self, groups: int, shape: Shape) -> list[Pattern]:
        return [Rows(k) for k in divide(self.k, groups)]


@dataclass(frozen=True)
class Columns(Pattern):
    """At most k nonzero columns: inputs of a fully connected layer, unfolded input taps of a convolution."""

    k: int
    row_separable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_positive(self, k=self.k)

    @classmethod
    def at_density(cls, density: float, shape: Shape) -> Columns:
        """Keep this fraction of the columns, rounded half up."""
        return cls(count_at(density, shape[1]))

    def layout(self, shape: Shape) -> tuple[int, int, int]:
        return (1, shape[1], shape[0])

    def units(self, x: Shaped[Tensor, "*batch out in"]) -> Shaped[Tensor, "*batch budgets units size"]:
        return x.mT.unsqueeze(-3)

    def from_units(
        self, x: Shaped[Tensor, "*batch budgets units size"], shape: Shape
    ) -> Shaped[Tensor, "*batch out in"]:
        return x.squeeze(-3).mT

    def kept(self, shape: Shape) -> int:
        return self.k

    def tile(self, shape: Shape) -> Shape:
        return (shape[0], 1)

    def split(self, groups: int, shape: Shape) -> list[Pattern]:
        return [self] * groups
