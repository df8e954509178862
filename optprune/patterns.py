"""Patterns: the sets of supports among which a layer's weights may be kept.

Every pattern here is one mechanism: the weight matrix is cut into *budgets*, each budget into *units*, each unit into
a fixed number of weights, and in every budget at most `kept` units may be nonzero. `units` brings a matrix into the
shape `(*batch, budgets, units, size)`, and projection, counting, validation and the relaxations of the lower bounds
follow from it.

| pattern | budgets | units in a budget | weights in a unit |
|---|---|---|---|
| `PerLayer(k)` | the layer | every weight | 1 |
| `PerRow(k)` | each row (output neuron) | its weights | 1 |
| `NOfM(n, m)` | each group of m consecutive inputs of a row | its weights | 1 |
| `Blocks(r, c, k)` | the layer | r x c tiles | r c |
| `Rows(k)` | the layer | rows (neurons, filters) | in |
| `Columns(k)` | the layer | columns (inputs, channels) | out |
| `Fixed(mask)` | each weight | itself | 1 |
"""

from __future__ import annotations

import base64
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

from optprune.errors import InvalidInputError
from optprune.numerics.selection import top_k

Shape = tuple[int, int]


def count_at(density: float, size: int) -> int:
    """The number of `size` items kept at a density, rounded half up: floor(density * size + 1/2).

    Raises:
        InvalidInputError: the density is not in [0, 1].
    """
    if not 0.0 <= density <= 1.0:
        raise InvalidInputError(f"density {density} given; a density is the fraction kept, between 0 and 1")
    return min(size, math.floor(density * size + 0.5))


class Pattern(ABC):
    """A set of admissible supports of an `(out, in)` matrix, closed under removing weights."""

    row_separable: ClassVar[bool]
    """Whether the budgets of different rows are independent."""

    @abstractmethod
    def layout(self, shape: Shape) -> tuple[int, int, int]:
        """(budgets, units per budget, weights per unit) for a matrix of this shape.

        Raises:
            InvalidInputError: the pattern does not fit the shape.
        """

    @abstractmethod
    def units(self, x: Shaped[Tensor, "*batch out in"]) -> Shaped[Tensor, "*batch budgets units size"]:
        """Bring a matrix into budget, unit, weight order."""

    @abstractmethod
    def from_units(
        self, x: Shaped[Tensor, "*batch budgets units size"], shape: Shape
    ) -> Shaped[Tensor, "*batch out in"]:
        """Inverse of `units`."""

    @abstractmethod
    def kept(self, shape: Shape) -> int | Tensor:
        """Units kept in each budget; a tensor `(budgets,)` where they differ."""

    def validate(self, shape: Shape) -> None:
        """Check that the pattern fits a matrix of this shape.

        Raises:
            InvalidInputError: it does not; says what would.
        """
        _, units, _ = self.layout(shape)
        kept = self.kept(shape)
        if isinstance(kept, int) and not 0 <= kept <= units:
            raise InvalidInputError(
                f"{self} keeps {kept} of {units} units of a {shape[0]} x {shape[1]} matrix; give 0 to {units}"
            )

    def support(self, scores: Shaped[Tensor, "*batch out in"]) -> Bool[Tensor, "*batch out in"]:
        r"""The admissible support with the largest total score.

        $\arg\max_{S \in \mathcal F} \sum_{(i,j) \in S} s_{ij}$ for scores $s \ge 0$; keeps exactly `count` weights,
        and among equals those of the lowest index.

        Raises:
            InvalidInputError: the pattern does not fit.
            NonFiniteError: the scores hold NaN.
        """
        shape = _shape(scores)
        self.validate(shape)
        totals = self.units(scores).sum(-1)
        chosen = top_k(totals, self.kept(shape), dim=-1)
        size = self.layout(shape)[2]
        return self.from_units(chosen.unsqueeze(-1).expand(*chosen.shape, size), shape)

    def project(self, weight: Shaped[Tensor, "*batch out in"]) -> Shaped[Tensor, "*batch out in"]:
        """The nearest matrix (Frobenius) whose support is admissible; squares are taken in float64 at unit scale."""
        scale = weight.abs().amax().clamp_min(torch.finfo(weight.dtype).tiny)
        return torch.where(self.support((weight / scale).to(torch.float64).square()), weight, 0.0)

    def admits(self, mask: Bool[Tensor, "*batch out in"]) -> bool:
        """Whether the support lies in the set: in every budget at most `kept` units hold a kept weight."""
        shape = _shape(mask)
        self.validate(shape)
        used = self.units(mask).any(-1).sum(-1)
        kept = self.kept(shape)
        return bool((used <= (kept.to(used.device) if isinstance(kept, Tensor) else kept)).all())

    def count(self, shape: Shape) -> int:
        """Exact number of weights kept."""
        self.validate(shape)
        budgets, _, size = self.layout(shape)
        kept = self.kept(shape)
        return size * (int(kept.sum()) if isinstance(kept, Tensor) else budgets * kept)

    def density(self, shape: Shape) -> float:
        """Fraction of the weights kept."""
        return self.count(shape) / (shape[0] * shape[1])

    @abstractmethod
    def split(self, groups: int, shape: Shape) -> list[Pattern]:
        """The patterns of the row groups of a grouped convolution.

        Row g of the result constrains rows `g * out/groups` to `(g+1) * out/groups`; a budget of the whole layer is
        divided as evenly as integers allow, the first groups getting the remainder, so that the total is exact.
        """

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready record, read back by `pattern_from_json`."""
        return {"type": type(self).__name__} | {f.name: getattr(self, f.name) for f in fields(self)}  # pyright: ignore[reportArgumentType]


def _shape(x: Tensor) -> Shape:
    return (int(x.shape[-2]), int(x.shape[-1]))


def _require_positive(pattern: Pattern, **values: int) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < (0 if name in ("k", "n") else 1):
            raise InvalidInputError(
                f"{type(pattern).__name__}: {name}={value!r} given; a nonnegative integer is needed"
            )


class _FlatPattern(Pattern):
    """Patterns whose units are single weights in row-major order."""

    def units(self, x: Shaped[Tensor, "*batch out in"]) -> Shaped[Tensor, "*batch budgets units size"]:
        budgets, units, size = self.layout(_shape(x))
        return x.reshape(*x.shape[:-2], budgets, units, size)

    def from_units(
        self, x: Shaped[Tensor, "*batch budgets units size"], shape: Shape
    ) -> Shaped[Tensor, "*batch out in"]:
        return x.reshape(*x.shape[:-3], *shape)


def _divide(k: int, groups: int) -> list[int]:
    return [k // groups + (g < k % groups) for g in range(groups)]


@dataclass(frozen=True)
class PerLayer(_FlatPattern):
    """At most k nonzero weights in the whole layer."""

    k: int
    row_separable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _require_positive(self, k=self.k)

    @classmethod
    def at_density(cls, density: float, shape: Shape) -> PerLayer:
        """Keep this fraction of the layer's weights, rounded half up."""
        return cls(count_at(density, shape[0] * shape[1]))

    def layout(self, shape: Shape) -> tuple[int, int, int]:
        return (1, shape[0] * shape[1], 1)

    def kept(self, shape: Shape) -> int:
        return self.k

    def split(self, groups: int, shape: Shape) -> list[Pattern]:
        return [PerLayer(k) for k in _divide(self.k, groups)]


@dataclass(frozen=True)
class PerRow(_FlatPattern):
    """At most k nonzero weights in each row."""

    k: int
    row_separable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _require_positive(self, k=self.k)

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
        _require_positive(self, n=self.n, m=self.m)
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


@dataclass(frozen=True)
class Blocks(Pattern):
    """At most k nonzero tiles of `rows` x `columns` weights."""

    rows: int
    columns: int
    k: int
    row_separable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _require_positive(self, rows=self.rows, columns=self.columns, k=self.k)

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
        budgets, units, size = self.layout(_shape(x))
        tiles = x.unflatten(-1, (-1, self.columns)).unflatten(-3, (-1, self.rows)).transpose(-3, -2)
        return tiles.reshape(*x.shape[:-2], budgets, units, size)

    def from_units(
        self, x: Shaped[Tensor, "*batch budgets units size"], shape: Shape
    ) -> Shaped[Tensor, "*batch out in"]:
        tiles = x.reshape(*x.shape[:-3], shape[0] // self.rows, shape[1] // self.columns, self.rows, self.columns)
        return tiles.transpose(-3, -2).reshape(*x.shape[:-3], *shape)

    def kept(self, shape: Shape) -> int:
        return self.k

    def split(self, groups: int, shape: Shape) -> list[Pattern]:
        return [Blocks(self.rows, self.columns, k) for k in _divide(self.k, groups)]


@dataclass(frozen=True)
class Rows(Pattern):
    """At most k nonzero rows: neurons of a fully connected layer, filters of a convolution."""

    k: int
    row_separable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _require_positive(self, k=self.k)

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

    def split(self, groups: int, shape: Shape) -> list[Pattern]:
        return [Rows(k) for k in _divide(self.k, groups)]


@dataclass(frozen=True)
class Columns(Pattern):
    """At most k nonzero columns: inputs of a fully connected layer, unfolded input taps of a convolution."""

    k: int
    row_separable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _require_positive(self, k=self.k)

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

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Fixed) and torch.equal(self.mask, other.mask)

    def __hash__(self) -> int:
        return hash((tuple(self.mask.shape), int(self.mask.sum())))

    def __repr__(self) -> str:
        return f"Fixed({int(self.mask.sum())} of {self.mask.numel()})"


_TYPES: dict[str, type[Pattern]] = {c.__name__: c for c in (PerLayer, PerRow, NOfM, Blocks, Rows, Columns)}


def pattern_from_json(record: Mapping[str, Any]) -> Pattern:
    """Read a pattern written by `Pattern.to_json`.

    Raises:
        InvalidInputError: unknown type or wrong fields.
    """
    arguments = {key: value for key, value in record.items() if key != "type"}
    try:
        if record["type"] == "Fixed":
            rows, columns = arguments["shape"]
            bits = np.frombuffer(base64.b64decode(arguments["bits"], validate=True), dtype=np.uint8)
            mask = np.unpackbits(bits, count=rows * columns).astype(bool).reshape(rows, columns)
            return Fixed(torch.from_numpy(mask))
        return _TYPES[record["type"]](**arguments)
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInputError(
            f"not a pattern record: {dict(record)} ({error}); write it with Pattern.to_json"
        ) from error
