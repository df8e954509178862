"""Pairs of inputs in the relaxation over moments: which ones, what they ask for, and what they pay."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from optprune.numerics.working_memory import working_memory

SOFT = 0.01
"""Share of the diagonal that is added to the second moments of a pair, which keeps them well-conditioned."""

RISE = 0.05
"""How much of a price a pair of excess 1 takes over in one step."""

OWN = 0.05
"""Least share of its price that a weight pays for itself."""

CLEAR = 0.05
"""Excess from which on a pair is used."""

LIGHT = 0.05
"""Size of a vector, as a share of its price, at which an excess counts half: that of a vector near 0 means nothing."""


@dataclass(frozen=True, eq=False)
class Measured:
    r"""What moments say of every pair, flattened over rows.

    Attributes:
        first, second: $W_i$ and $W_j$.
        y: $y$, the two entries.
        excess: $\pi - w_i^2 / |W_i|^2 - w_j^2 / |W_j|^2$.
    """

    first: Float[Tensor, "all columns"]
    second: Float[Tensor, "all columns"]
    y: tuple[Float[Tensor, " all"], Float[Tensor, " all"]]
    excess: Float[Tensor, " all"]


class PricedPairs:
    r"""The same number of pairs in every row.

    With $Y$ the second moments of a pair, their diagonal enlarged by `SOFT`, $y = Y^{-1} w$ and
    $\pi = \langle w, y \rangle$: a little less than the projection, and so a demand that still holds.

    Attributes:
        places: the two inputs of each pair, one tensor `(out, pairs)` for each of the two.
        used: whether a pair may be paid, flattened over rows.
        worth: $\Lambda$, flattened over rows.
        shape: inputs and rows.
    """

    def __init__(
        self,
        places: tuple[Int[Tensor, "out pairs"], Int[Tensor, "out pairs"]],
        used: Tensor,
        live: int,
        dtype: torch.dtype,
    ) -> None:
        rows = torch.arange(len(places[0]), device=places[0].device)[:, None]
        self.places, self.used, self.shape = places, used, (live, len(rows))
        self.first, self.second = ((rows * live + place).flatten() for place in places)
        self.worth = torch.zeros(self.first.shape, dtype=dtype, device=rows.device)

    @classmethod
    def none(cls, like: Float[Tensor, "live out"]) -> PricedPairs:
        """No pairs."""
        empty = torch.zeros(like.shape[1], 0, dtype=torch.long, device=like.device)
        return cls((empty, empty), empty.flatten() > 0, len(like), like.dtype)

    @property
    def many(self) -> int:
        """Pairs in a row."""
        return self.places[0].shape[1]

    def to(self, dtype: torch.dtype) -> PricedPairs:
        """The same in another precision, to be priced apart."""
        result = copy.copy(self)
        result.worth = self.worth.to(dtype)
        return result

    def take(self, x: Float[Tensor, "live out *columns"]) -> tuple[Tensor, Tensor]:
        """The two entries of every pair."""
        flat = x.transpose(0, 1).flatten(0, 1)  # a row's entries are side by side, and in the cache together
        return flat[self.first], flat[self.second]

    def give(self, first: Float[Tensor, "all *columns"], second: Float[Tensor, "all *columns"]) -> Tensor:
        """Sums over the pairs of every weight, `(live, out, ...)`."""
        live, out = self.shape
        flat = first.new_zeros(live * out, *first.shape[1:])
        flat.index_add_(0, self.first, first).index_add_(0, self.second, second)
        return flat.view(out, live, *first.shape[1:]).transpose(0, 1)

    def measure(self, vectors: Float[Tensor, "live out columns"]) -> Measured:
        """What the moments say of every pair."""
        (wi, wj), soft = self.take(vectors), 1 + SOFT
        di, dj = self.take(vectors.square().sum(-1).clamp_min(torch.finfo(wi.dtype).tiny ** 0.5))
        cross, mi, mj = (wi * wj).sum(-1), wi[:, 0], wj[:, 0]
        determinant = (soft * di) * (soft * dj) - cross * cross
        yi = (soft * dj * mi - cross * mj) / determinant
        yj = (soft * di * mj - cross * mi) / determinant
        return Measured(wi, wj, (yi, yj), yi * mi + yj * mj - mi * mi / di - mj * mj / dj)

    def total(self) -> Float[Tensor, "live out"]:
        """What the pairs of a weight pay together."""
        return self.give(self.worth, self.worth)

    def reprice(self, measured: Measured, price: Float[Tensor, "live out"]) -> None:
        """Let pairs that are violated pay more and others less."""
        risen = (self.worth + RISE * torch.minimum(*self.take(price)) * measured.excess).clamp_min(0.0)
        self.worth = torch.where(self.used, risen, 0.0)

    def limit(self, price: Float[Tensor, "live out"]) -> None:
        """Leave each weight a share of its price."""
        room = ((1 - OWN) * price / self.total().clamp_min(torch.finfo(price.dtype).tiny)).clamp_max(1.0)
        self.worth = self.worth * torch.minimum(*self.take(room))

    def curvature(self, measured: Measured) -> Float[Tensor, "live out"]:
        r"""The diagonal of $\sum_p \Lambda_p y_p y_p^\top$."""
        yi, yj = measured.y
        return self.give(self.worth * yi * yi, self.worth * yj * yj)

    def pull(self, vectors: Float[Tensor, "live out columns"], measured: Measured) -> Float[Tensor, "live out columns"]:
        r"""Half the gradient of $\sum_p \Lambda_p \pi_p$: $\Lambda y_i (e_0 - y_i W_i - y_j W_j)$ for input i."""
        yi, yj = measured.y
        common = (self.worth * yi * yj)[:, None]
        result = self.give(common * measured.second, common * measured.first).neg_()
        result -= ((1 + SOFT) * self.curvature(measured)).unsqueeze(-1) * vectors
        result[..., 0] += self.give(self.worth * yi, self.worth * yj)
        return result


def violated(
    vectors: Float[Tensor, "live out columns"], price: Float[Tensor, "live out"], count: int, memory: int | None = None
) -> PricedPairs:
    """The `count` pairs of each row whose projection exceeds the two shares most."""
    live, rowwise = len(vectors), vectors.transpose(0, 1)
    rows = max(1, working_memory(memory, vectors.device, 2**25) // (6 * vectors.dtype.itemsize * live * live))
    parts = zip(rowwise.split(rows), price.mT.split(rows), strict=True)
    found = [most_violated(part @ part.mT, part[..., 0], prices, count) for part, prices in parts]
    index, excess = (torch.cat(tensors) for tensors in zip(*found, strict=True))
    return PricedPairs((index // live, index % live), (excess > 0).flatten(), live, vectors.dtype)


def most_violated(
    moments: Float[Tensor, "rows live live"],
    w: Float[Tensor, "rows live"],
    price: Float[Tensor, "rows live"],
    count: int,
    clear: float = CLEAR,
) -> tuple[Int[Tensor, "rows pairs"], Float[Tensor, "rows pairs"]]:
    r"""At most `count` pairs of each row, as places in the matrix, and their excess; 0 where not more than `clear`.

    With $M$ the second moments, $c_i = w_i M_{ii}^{-1/2}$ and $\rho$ the correlation of the two weights, the excess is
    $\rho (\rho (c_i^2 + c_j^2) - 2 c_i c_j) / (1 - \rho^2)$.
    """
    live = w.shape[-1]
    size = moments.diagonal(dim1=-2, dim2=-1)
    heavy = size / (size + LIGHT * price)
    unit = size.clamp_min(torch.finfo(w.dtype).tiny).rsqrt()
    cosine, c = moments * unit[:, :, None] * unit[:, None, :], w * unit
    square = c.square()
    excess = cosine * (square[:, :, None] + square[:, None, :]) - 2 * c[:, :, None] * c[:, None, :]
    excess = excess * cosine / (1 - cosine.square()).clamp_min(1e-3)
    excess = torch.minimum(excess * heavy[:, :, None], excess * heavy[:, None, :])
    best = excess.triu_(1).flatten(1).topk(min(count, live * (live - 1) // 2))
    # Below the diagonal everything is 0, which is no excess; the places of what is not used only have to differ.
    used = best.values > clear
    return torch.where(used, best.indices, 1), torch.where(used, best.values, 0.0)
