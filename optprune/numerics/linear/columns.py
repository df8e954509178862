"""Maps made of another by what is done to its columns: scaled ones, and one of ones appended."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from optprune.errors import InvalidInputError
from optprune.numerics.linear._base import LinearMap


class _Derived(LinearMap):
    """What a map takes over from the one that it is made of."""

    def __init__(self, base: LinearMap) -> None:
        self.base = base

    @property
    def dtype(self) -> torch.dtype:
        return self.base.dtype

    @property
    def device(self) -> torch.device:
        return self.base.device

    def tensors(self) -> dict[str, Tensor]:
        return {f"base.{name}": tensor for name, tensor in self.base.tensors().items()}

    def settings(self) -> dict[str, Any]:
        return {"base": self.base.record()}

    @staticmethod
    def _read_base(tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> LinearMap:
        own = {name.removeprefix("base."): t for name, t in tensors.items() if name.startswith("base.")}
        return LinearMap.read(own, settings["base"])


class WithOnes(_Derived):
    r"""$[X, 1]$: the last column carries the bias.

    Raises:
        InvalidInputError: the map has such a column already; a bias is a single variable.
    """

    def __init__(self, base: LinearMap) -> None:
        if isinstance(base, WithOnes):
            raise InvalidInputError("a map with a column of ones given; a bias is appended once, give the map without")
        super().__init__(base)

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.base.shape[:-1], self.base.shape[-1] + 1)

    def rows(self) -> Iterator[tuple[slice, Float[Tensor, "block d"]]]:
        for part, block in self.base.rows():
            yield part, torch.cat((block, torch.ones_like(block[:, :1])), -1)

    def forward(self, u: Float[Tensor, "*lead d"]) -> Float[Tensor, "*lead n"]:
        return self.base.forward(u[..., :-1]) + u[..., -1:]

    def adjoint(self, lam: Float[Tensor, "*lead n"]) -> Float[Tensor, "*lead d"]:
        return torch.cat((self.base.adjoint(lam), lam.sum(-1, keepdim=True)), -1)

    def gather(self, order: Int[Tensor, "part width"]) -> Float[Tensor, "part width n"]:
        last = self.shape[-1] - 1
        return self.base.gather(order.clamp(max=last - 1)).masked_fill_((order == last)[..., None], 1.0)

    def gather_at(
        self, order: Int[Tensor, "part width"], samples: Int[Tensor, "part depth"]
    ) -> Float[Tensor, "part width depth"]:
        last = self.shape[-1] - 1
        return self.base.gather_at(order.clamp(max=last - 1), samples).masked_fill_((order == last)[..., None], 1.0)

    def to(self, dtype: torch.dtype) -> WithOnes:
        return WithOnes(self.base.to(dtype))

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Self:
        return cls(cls._read_base(tensors, settings))


class ScaledMap(_Derived):
    r"""$X_L \operatorname{diag}(s)^{-1}$: some columns, each divided by a number.

    Args:
        base: $X$.
        live: the columns $L$ that stay.
        scale: $s$, one number per column that stays.
    """

    def __init__(self, base: LinearMap, live: Bool[Tensor, " d"], scale: Float[Tensor, " live"]) -> None:
        super().__init__(base)
        self.live, self.scale = live, scale
        self._index = live.nonzero()[:, 0]

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.base.shape[:-1], len(self.scale))

    def rows(self) -> Iterator[tuple[slice, Float[Tensor, "block d"]]]:
        for part, block in self.base.rows():
            yield part, block[:, self.live] / self.scale

    def forward(self, u: Float[Tensor, "*lead d"]) -> Float[Tensor, "*lead n"]:
        whole = u.new_zeros((*u.shape[:-1], len(self.live)))
        whole[..., self._index] = u / self.scale
        return self.base.forward(whole)

    def adjoint(self, lam: Float[Tensor, "*lead n"]) -> Float[Tensor, "*lead d"]:
        return self.base.adjoint(lam)[..., self._index] / self.scale

    def gather(self, order: Int[Tensor, "part width"]) -> Float[Tensor, "part width n"]:
        return self.base.gather(self._index[order]).div_(self.scale[order][..., None])

    def gather_at(
        self, order: Int[Tensor, "part width"], samples: Int[Tensor, "part depth"]
    ) -> Float[Tensor, "part width depth"]:
        return self.base.gather_at(self._index[order], samples).div_(self.scale[order][..., None])

    def to(self, dtype: torch.dtype) -> ScaledMap:
        return ScaledMap(self.base.to(dtype), self.live, self.scale.to(dtype))

    def tensors(self) -> dict[str, Tensor]:
        return {**super().tensors(), "live": self.live, "scale": self.scale}

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Self:
        return cls(cls._read_base(tensors, settings), tensors["live"], tensors["scale"])
