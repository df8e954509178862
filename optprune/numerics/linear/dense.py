"""The matrix of samples as a tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from optprune.numerics.linear._base import LinearMap


class DenseMap(LinearMap):
    """A tensor `(n, d)`, or a stack of such.

    Args:
        matrix: the tensor.
        columns: its transpose, contiguous where columns will be gathered often; None is a view.
    """

    def __init__(self, matrix: Float[Tensor, "*batch n d"], columns: Float[Tensor, "*batch d n"] | None = None) -> None:
        self.matrix = matrix
        self.columns = matrix.mT if columns is None else columns

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.matrix.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.matrix.dtype

    @property
    def device(self) -> torch.device:
        return self.matrix.device

    def rows(self) -> Iterator[tuple[slice, Float[Tensor, "*batch block d"]]]:
        yield slice(0, self.shape[-2]), self.matrix

    def gather(self, order: Int[Tensor, "part width"]) -> Float[Tensor, "part width n"]:
        return self.columns[order]

    def gather_at(
        self, order: Int[Tensor, "part width"], samples: Int[Tensor, "part depth"]
    ) -> Float[Tensor, "part width depth"]:
        return self.columns[order[:, :, None], samples[:, None, :]]

    def forward(self, u: Float[Tensor, "*lead d"]) -> Float[Tensor, "*lead n"]:
        return u @ self.columns

    def adjoint(self, lam: Float[Tensor, "*lead n"]) -> Float[Tensor, "*lead d"]:
        return lam @ self.matrix

    def outputs(self, u: Float[Tensor, "*batch out d"]) -> Float[Tensor, "*batch n out"]:
        return self.matrix @ u.mT

    def gram(self) -> Float[Tensor, "d d"]:
        wide = self.matrix.double()
        return wide.mT @ wide

    def weighted_gram(self, weight: Float[Tensor, "part n"]) -> Float[Tensor, "part d d"]:
        return (self.columns * weight[:, None, :]) @ self.columns.mT

    def outer(self) -> Float[Tensor, "n n"]:
        return self.matrix @ self.columns

    def last(self) -> Float[Tensor, "*batch n"]:
        return self.matrix[..., -1]

    def scaled(self, live: Tensor, scale: Tensor) -> DenseMap:
        matrix = self.matrix[:, live] / scale
        return DenseMap(matrix, matrix.mT.contiguous())

    def with_ones(self) -> DenseMap:
        return DenseMap(torch.cat((self.matrix, torch.ones_like(self.matrix[..., :1])), -1))

    def to(self, dtype: torch.dtype) -> DenseMap:
        return DenseMap(self.matrix.to(dtype), self.columns.to(dtype))

    def tensors(self) -> dict[str, Tensor]:
        return {"matrix": self.matrix}

    def settings(self) -> dict[str, Any]:
        return {}

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Self:
        return cls(tensors["matrix"])


def as_map(inputs: Float[Tensor, "*batch n d"] | LinearMap) -> LinearMap:
    """A tensor as a map; a map as it is."""
    return inputs if isinstance(inputs, LinearMap) else DenseMap(inputs)
