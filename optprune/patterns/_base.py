"""The mechanism of every pattern: budgets of units of weights."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

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


@dataclass(frozen=True)
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

    @abstractmethod
    def tile(self, shape: Shape) -> Shape:
        """(rows, columns) of a unit: units are the tiles of the matrix cut into such rectangles."""

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

    def support(
        self, scores: Shaped[Tensor, "*batch out in"], *, checked: bool = True
    ) -> Bool[Tensor, "*batch out in"]:
        r"""The admissible support with the largest total score.

        $\arg\max_{S \in \mathcal F} \sum_{(i,j) \in S} s_{ij}$ for scores $s \ge 0$; keeps exactly `count` weights,
        and among equals those of the lowest index.

        Args:
            scores: $s$.
            checked: look for NaN, for which the host waits for the device (see `top_k`).

        Raises:
            InvalidInputError: the pattern does not fit.
            NonFiniteError: the scores hold NaN.
        """
        shape = shape_of(scores)
        self.validate(shape)
        totals = self.units(scores).sum(-1)
        chosen = top_k(totals, self.kept(shape), dim=-1, checked=checked)
        size = self.layout(shape)[2]
        return self.from_units(chosen.unsqueeze(-1).expand(*chosen.shape, size), shape)

    def project(
        self, weight: Shaped[Tensor, "*batch out in"], *, checked: bool = True
    ) -> Shaped[Tensor, "*batch out in"]:
        """The nearest matrix (Frobenius) whose support is admissible; squares are taken in float64 at unit scale.

        `checked` as in `support`.
        """
        scale = weight.abs().amax().clamp_min(torch.finfo(weight.dtype).tiny)
        squares = (weight / scale).to(torch.float64).square()
        return torch.where(self.support(squares, checked=checked), weight, 0.0)

    def violation(self, weight: Shaped[Tensor, "*batch out in"]) -> Shaped[Tensor, "*batch"]:
        r"""$\lVert U - P(U) \rVert_F / \lVert U \rVert_F$ with $P$ = `project`; 0 where the support is admissible."""
        outside = (weight - self.project(weight)).square().sum((-2, -1)).sqrt()
        return torch.where(outside > 0, outside / weight.square().sum((-2, -1)).sqrt(), 0.0)

    def admits(self, mask: Bool[Tensor, "*batch out in"]) -> bool:
        """Whether the support lies in the set: in every budget at most `kept` units hold a kept weight."""
        shape = shape_of(mask)
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
        return {"type": type(self).__name__} | {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def from_json(cls, arguments: Mapping[str, Any]) -> Self:
        """Inverse of `to_json`, without its `type`."""
        return cls(**arguments)


def shape_of(x: Tensor) -> Shape:
    """(out, in) of a matrix with or without batch dimensions."""
    return (int(x.shape[-2]), int(x.shape[-1]))


def require_positive(pattern: Pattern, **values: int) -> None:
    """Check the integers of a pattern: budgets are nonnegative, sizes positive.

    Raises:
        InvalidInputError: names the offender.
    """
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < (0 if name in ("k", "n") else 1):
            raise InvalidInputError(
                f"{type(pattern).__name__}: {name}={value!r} given; a nonnegative integer is needed"
            )


def divide(k: int, groups: int) -> list[int]:
    """The budget as evenly as integers allow, the first groups getting the remainder."""
    return [k // groups + (g < k % groups) for g in range(groups)]
