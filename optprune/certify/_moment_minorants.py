"""From moments to evidence: minorants that are feasible, and the point that goes with them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from optprune.certify._lanczos import largest_eigenvalue
from optprune.certify._moments import Descent, Moments, Prices
from optprune.certify._perspective import Perspective
from optprune.certify._priced_pairs import SOFT, PricedPairs
from optprune.numerics.rounding import UNIT
from optprune.numerics.working_memory import working_memory

FLOOR = 0.003
"""Share of a minorant that is the layer's own, so that none is nearly 0."""

LANCZOS = 50
"""Steps for the eigenvalue that says how far minorants are from feasible."""

FREE = (3e-4, 1e-3, 1e-2, 1.0)
"""By how much a row's minorant is shortened for the error of that, and again until it is feasible; the last leaves the
layer's own.
"""

POINTS, EVERY = 90, 5
"""Sweeps for the point, and after how many its bound is looked at."""


@dataclass(frozen=True, eq=False)
class Minorants:
    r"""$M = \operatorname{diag} \delta + \sum_p a_p a_p^\top$ for every row, where $H$ has a unit diagonal.

    Attributes:
        delta: $\delta$.
        pairs: their places.
        weights: the two entries of every $a_p$, flattened over rows.
        offsets: $t_p$.
    """

    delta: Float[Tensor, "live out"]
    pairs: PricedPairs
    weights: tuple[Float[Tensor, " all"], Float[Tensor, " all"]]
    offsets: Float[Tensor, " all"]

    def paired(self, x: Float[Tensor, "live out"]) -> Float[Tensor, "live out"]:
        """Products of the pairs with a vector per row."""
        (first, second), (a, b) = self.pairs.take(x), self.weights
        common = a * first + b * second
        return self.pairs.give(a * common, b * common)

    def product(self, x: Float[Tensor, "live out"]) -> Float[Tensor, "live out"]:
        """Mx, row by row."""
        return self.delta * x + self.paired(x)

    def times(self, factor: Float[Tensor, " out"]) -> Minorants:
        """Each row's by a factor of its own."""
        root = factor.sqrt().repeat_interleave(self.pairs.many)
        a, b = self.weights
        return replace(self, delta=self.delta * factor, weights=(a * root, b * root))

    def mixed(self, share: float, floor: Float[Tensor, "live 1"]) -> Minorants:
        """With a share of another minorant, which is diagonal and the same for all rows, in place of these."""
        scaled = self.times(torch.full_like(self.delta[0], 1 - share))
        return replace(scaled, delta=scaled.delta + share * floor)

    def dense(self, rows: Tensor) -> Float[Tensor, "rows live live"]:
        """As matrices."""
        live, out = self.pairs.shape
        matrix = torch.diag_embed(self.delta[:, rows].mT)
        i, j = (place[rows] for place in self.pairs.places)
        a, b = (x.view(out, -1)[rows] for x in self.weights)
        for row, column, value in ((i, i, a * a), (j, j, b * b), (i, j, a * b), (j, i, a * b)):
            matrix.view(len(rows), -1).scatter_add_(1, row * live + column, value)
        return matrix


@dataclass(frozen=True, eq=False)
class Settled:
    """Evidence, in the scaling of the relaxation.

    Attributes:
        minorants: feasible ones.
        point: where the rest is linearised.
        value: twice the bound, without rounding terms.
    """

    minorants: Minorants
    point: Float[Tensor, "live out"]
    value: float


def settle(relaxation: Perspective, found: Moments, memory: int | None = None) -> Settled:
    """Feasible minorants near those of the moments, and a point.

    Args:
        relaxation: in float64, with a feasible minorant for all rows.
        found: moments that are nearly optimal.
        memory: bytes for the matrices of a chunk of rows; see `working_memory`.
    """
    minorants = _feasible(relaxation, _implied(relaxation, found), found.vectors, memory)
    prices = Prices(relaxation, found.level.double())
    return Settled(minorants, *best_point(relaxation, minorants, prices, found.vectors[..., 0].double(), POINTS))


def _implied(relaxation: Perspective, found: Moments) -> Minorants:
    r"""The minorants that belong to moments, exactly so where these are optimal.

    With $g$ the slope at $W_i$ and $\mu$ the larger eigenvalue of the matrix of `cheapest`, the quotient
    $s w_i^2 / |W_i|^4$ is $s g_0^2 / (\mu + s)^2$, which has a value also where $W_i = 0$.
    """
    vectors, pairs = found.vectors.double(), found.pairs.to(torch.float64)
    price = replace(found, level=found.level.double()).price(relaxation)
    pairs.limit(price)
    price = price - pairs.total()
    measured = pairs.measure(vectors)
    slope = (relaxation.gram @ vectors.flatten(1)).view_as(vectors) - vectors + pairs.pull(vectors, measured)
    slope[..., 0] -= (relaxation.b * relaxation.root).mT
    p, q = slope[..., 0].square(), slope[..., 1:].square().sum(-1)
    largest = 0.5 * (p - price + q) + ((0.5 * (p - price - q)).square() + p * q).sqrt()
    delta = price * p / (largest.clamp_min(0.0) + price).square() + SOFT * pairs.curvature(measured)
    (yi, yj), root = measured.y, pairs.worth.sqrt()
    return Minorants(delta, pairs, (root * yi, root * yj), root)


def _feasible(
    relaxation: Perspective, minorants: Minorants, vectors: Float[Tensor, "live out columns"], memory: int | None
) -> Minorants:
    r"""About the largest multiples $\theta M$ with $H - \theta M \succeq 0$, mixed with a little of the layer's own."""
    length = (1 - FREE[0]) * _longest(relaxation.gram, minorants, vectors)
    floor = relaxation.root.square().unsqueeze(-1)
    wrong = torch.arange(len(length), device=length.device)
    for free in FREE[1:]:
        scaled = minorants.times((1 - FLOOR) * length)
        scaled = replace(scaled, delta=scaled.delta + FLOOR * floor)
        wrong = wrong[~_below(relaxation.gram, scaled, wrong, memory)]
        if not len(wrong):
            return scaled
        length[wrong] *= 1 - free
    scaled = minorants.times((1 - FLOOR) * length)
    return replace(scaled, delta=scaled.delta + torch.where(length > 0, FLOOR, 1 - FREE[1]) * floor)


def _below(
    gram: Float[Tensor, "live live"], minorants: Minorants, rows: Tensor, memory: int | None
) -> Bool[Tensor, " rows"]:
    """Whether the Gram matrix less each row's minorant has a Cholesky factor, with room for the proof."""
    live, safe = len(gram), gram.clone()
    safe.diagonal().sub_(32 * (live + 4) ** 2 * UNIT)
    at_once = max(1, working_memory(memory, gram.device, 2**24) // (3 * gram.dtype.itemsize * live * live))
    parts = [torch.linalg.cholesky_ex(safe - minorants.dense(part))[1] == 0 for part in rows.split(at_once)]
    return torch.cat(parts)


def _longest(
    gram: Float[Tensor, "live live"], minorants: Minorants, vectors: Float[Tensor, "live out columns"]
) -> Float[Tensor, " out"]:
    r"""About the largest $\theta$ with $H - \theta M \succeq 0$ for every row; 0 where numbers have no end.

    All rows share the factor of $H$. Where $M$ is too large, $V$ is near the eigenvectors that say so.
    """
    factor = torch.linalg.cholesky(gram)

    def product(v: Float[Tensor, "out live"]) -> Float[Tensor, "out live"]:
        w = torch.linalg.solve_triangular(factor.mT, v.mT, upper=True)
        return torch.linalg.solve_triangular(factor, minorants.product(w), upper=False).mT

    near = (factor.mT @ vectors[..., 1:].double().sum(-1)).mT
    noise = torch.randn(near.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(near)
    largest = largest_eigenvalue(product, _unit(near) + 0.1 * _unit(noise), LANCZOS)
    return 1 / torch.where(largest > 0, largest, torch.inf)


def _unit(x: Float[Tensor, "out live"]) -> Float[Tensor, "out live"]:
    return x / x.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)


@dataclass(frozen=True, eq=False)
class _Kept:
    r"""The minimiser of $w^2 + 2 g w - \delta w^2$ plus the least of $\delta w^2 / z + s z$ over $z \in [0, 1]$.

    Attributes:
        near: $\sqrt{s \delta}$, the slope up to which the weight is 0.
        far: $\sqrt{s / \delta}$, the slope from which on it is kept.
        rest: $1 - \delta$.
    """

    near: Float[Tensor, "live out"]
    far: Float[Tensor, "live out"]
    rest: Float[Tensor, "live out"]

    def __call__(self, index: int, slope: Float[Tensor, " out"]) -> Float[Tensor, " out"]:
        size = slope.abs()
        between = ((size - self.near[index]) / self.rest[index]).clamp_min(0.0)
        return -slope.sign() * torch.where(size >= self.far[index], size, between)


def best_point(
    relaxation: Perspective, minorants: Minorants, prices: Prices, start: Float[Tensor, "live out"], sweeps: int
) -> tuple[Float[Tensor, "live out"], float]:
    """A good point for given minorants, and twice the bound there, by sweeps in which the pairs' share, which is
    concave, is its tangent.
    """
    delta, pairs, offsets = minorants.delta, minorants.pairs, minorants.offsets
    linear = (relaxation.b * relaxation.root).mT - pairs.give(*(offsets * a for a in minorants.weights))
    charge = pairs.give(offsets.square(), offsets.square())
    point, descent = start, Descent(relaxation.gram, start)
    best = _value(relaxation, minorants, point, linear, charge)
    for count in range(1, sweeps + 1):
        price = prices.spread()
        own = (price - charge).clamp_min(1e-3 * price)
        far = (own / delta).sqrt()
        kept = _Kept((own * delta).sqrt(), far, (1 - delta).clamp_min(1e-12))
        descent.step(-linear - minorants.paired(descent.ahead), kept)
        prices.move((descent.x.abs() / far).clamp_max(1.0))
        if count % EVERY == 0:
            value = _value(relaxation, minorants, descent.x, linear, charge)
            point = torch.where(value > best, descent.x, point)
            best = torch.maximum(best, value)
    return point, float(best.sum() if relaxation.pattern.row_separable else best[0])


def _value(
    relaxation: Perspective,
    minorants: Minorants,
    x: Float[Tensor, "live out"],
    linear: Float[Tensor, "live out"],
    charge: Float[Tensor, "live out"],
) -> Float[Tensor, " out"]:
    """Twice the bound of each row, or of the layer in every entry where its rows share a budget; minus infinity
    where numbers have no end.
    """
    rest = relaxation.gram @ x - minorants.product(x)
    gains = relaxation.widen(((linear - rest).square() / minorants.delta + charge).mT)
    kept = torch.where(relaxation.pattern.support(gains.nan_to_num(torch.inf)), gains, 0.0).sum(-1)
    value = (relaxation.energy - (x * rest).sum(0) - kept).nan_to_num(-torch.inf, -torch.inf)
    return value if relaxation.pattern.row_separable else value.sum().expand_as(value)


def evidence_of(relaxation: Perspective, settled: Settled, size: float) -> dict[str, Tensor]:
    """What was settled in the layer's own scaling, `size` the unit of its outputs, with as many pairs as the row that
    uses most.
    """
    unit, minorants = relaxation.unit, settled.minorants
    evidence = {
        "minorant": relaxation.widen((minorants.delta / unit.square()[:, None]).mT),
        "point": relaxation.widen((settled.point * unit[:, None] * size).mT),
    }
    places = torch.stack(minorants.pairs.places, -1)
    weights = torch.stack(minorants.weights, -1).view(places.shape)
    offsets = (minorants.offsets * size).view(places.shape[:2])
    used = offsets > 0
    most = int(used.sum(-1).max()) if used.numel() else 0
    if most:
        offsets, order = offsets.sort(dim=-1, descending=True)
        order = order[:, :most, None].expand(-1, -1, 2)
        places, weights = places.gather(1, order), weights.gather(1, order)
        weights = torch.where((offsets[:, :most] > 0).unsqueeze(-1), weights / unit[places], 0.0)
        inputs = relaxation.live.nonzero().squeeze(-1)
        evidence |= {"pairs": inputs[places], "pair_weights": weights, "pair_offsets": offsets[:, :most].contiguous()}
    return evidence
