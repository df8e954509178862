r"""Minorants of the rows' own from the moments of a random weight, found coordinate by coordinate.

Let $\omega$ be a random row with mean $w$ and covariance $V V^\top$, and $W_i = (w_i, V_i)$ for every input. Whatever
its distribution, $\mathbb P(\omega_i \ne 0) \ge w_i^2 / |W_i|^2$, and for two inputs
$\mathbb P(\omega_i \ne 0) + \mathbb P(\omega_j \ne 0) \ge \pi_{ij}$, the squared length of the projection of
$e_0 = (1, 0)$ onto the span of $W_i$ and $W_j$. With a price $\lambda_i$ for every kept weight, of which pairs $p$ pay
$\Lambda_p$,

$$\min_W \; \langle W, H W \rangle - 2 \langle b, w \rangle + \sum_i s_i \frac{w_i^2}{|W_i|^2} + \sum_p \Lambda_p \pi_p,
  \qquad s_i = \lambda_i - \sum_{p \ni i} \Lambda_p \ge 0$$

is, less what the budgets cost at these prices, the best bound of minorants $\operatorname{diag} \delta + \sum_p a_p
a_p^\top$. If there are enough columns, and $W$ is optimal, it is attained by $\delta_i = s_i w_i^2 / |W_i|^4$ and
$a_p = \Lambda_p^{1/2} Y_p^{-1} w_p$, $Y_p$ the second moments of the pair, with the offsets $t_p = \Lambda_p^{1/2}$.
Nothing is factorised, and the minimiser over one $W_i$ is an eigenvector of a 2 x 2 matrix.

A sweep is as much work as one product of the Gram matrix with every column of W. On 512 inputs with eigenvalues 1/j the
objective without pairs stands still after two hundred, which take half as long as the rounds of `tighten`, and two and
a half points of the gap above where these end. Coordinate steps are slow where the Gram matrix is ill-conditioned, and
`tighten` is better there.

References:
    Without pairs, the dual of Dong, Chen & Linderoth 2015, in the low-rank form of Burer & Monteiro 2003, by coordinate
    steps as in Wang, Chang & Kolter 2017; pairs: the rank-one convexification of Atamturk & Gomez 2019. The closed form
    and the combination are derived here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from optprune.certify._perspective import Perspective
from optprune.certify._priced_pairs import PricedPairs

BLOCK = 32
"""Inputs whose slopes are computed by one product with the Gram matrix."""

RANK = 16
"""Columns of V. With 8 the minorants end several points of the gap lower, with 24 at a fifth of one higher."""

MOMENTUM = 0.6
"""Largest momentum of a sweep. On the 512 inputs sweeps with 0.75 diverge."""

FIRM = 0.1
"""Weight of the proximal term of a sweep, in units of what pairs pay over the size of the vector, which is how fast the
slope of their demand may change. Without it sweeps go round in circles on some layers.
"""


def sweep(
    gram: Float[Tensor, "live live"],
    x: Float[Tensor, "live out *columns"],
    pull: Float[Tensor, "live out *columns"],
    best: Callable[[int, Tensor], Tensor],
) -> None:
    r"""One pass over the inputs, in place: $x_i$ becomes `best(i, g)` for the slope $g = \sum_{j \ne i} H_{ij} x_j +
    pull_i$, where $H$ has a unit diagonal.
    """
    size = len(gram)
    for start in range(0, size, BLOCK):
        stop = min(start + BLOCK, size)
        slope = gram[start:stop] @ x.flatten(1) + pull[start:stop].flatten(1)
        inner = gram[start:stop, start:stop]
        for k in range(stop - start):
            old = x[start + k]
            new = best(start + k, slope[k].view(old.shape) - old)
            slope[k + 1 :].addr_(inner[k + 1 :, k], (new - old).flatten())
            x[start + k] = new


def cheapest(
    slope: Float[Tensor, "out columns"], price: Float[Tensor, " out"], stiffness: Float[Tensor, " out"]
) -> Float[Tensor, "out columns"]:
    r"""The minimiser of $h |x|^2 + 2 \langle g, x \rangle + s x_0^2 / |x|^2$.

    It is $-(c |g_0| + d |g_1|) / h \, (c \operatorname{sign} g_0, \; d \, g_1 / |g_1|)$, where $g_1$ is $g$ without its
    first entry and $(c, d)$ the leading eigenvector of the symmetric matrix with $g_0^2 - h s$ and $|g_1|^2$ on the
    diagonal and $|g_0| |g_1|$ off it.
    """
    first, rest = slope[:, 0], slope[:, 1:]
    p, q = first.abs(), rest.norm(dim=-1)
    angle = 0.5 * torch.atan2(2 * p * q, p * p - q * q - stiffness * price)
    # The float next to a right angle has a cosine that is not 0, and the share of a weight without V would be 1.
    c, d = angle.cos(), angle.sin()
    c = torch.where(c > torch.finfo(c.dtype).eps, c, 0.0)
    length = (p * c + q * d) / stiffness
    new = rest.new_empty(slope.shape)
    new[:, 0] = -first.sign() * length * c
    new[:, 1:] = rest * (-length * d / q.clamp_min(torch.finfo(q.dtype).tiny))[:, None]
    return new


class Prices:
    """One price for a kept weight in every budget, moved until the shares spend the budgets.

    Attributes:
        relaxation: whose budgets these are.
        level: the price in each.
    """

    def __init__(self, relaxation: Perspective, level: Float[Tensor, "budgets 1"]) -> None:
        self.relaxation, self.level = relaxation, level

    @classmethod
    def guess(cls, relaxation: Perspective, w: Float[Tensor, "live out"]) -> Prices:
        """The square that one kept weight in twenty stays below."""
        r = relaxation
        squares = r.pattern.units(r.widen(w.mT.square())).flatten(1).sort(dim=-1, descending=True).values
        place = (0.95 * (squares > 0).sum(-1, keepdim=True)).long()
        level = squares.gather(-1, place.clamp_max(squares.shape[1] - 1))
        other = 0.1 * _sums(r, (r.b * r.root).mT.square()) / len(w)  # where nothing is kept
        return cls(r, torch.where(level > 0, level, other).clamp_min(torch.finfo(w.dtype).tiny ** 0.5))

    def spread(self) -> Float[Tensor, "live out"]:
        """The price of every weight."""
        r = self.relaxation
        return r.spread(self.level.expand(-1, r.pattern.layout(r.shape)[1])).mT.contiguous()

    def sums(self, x: Float[Tensor, "live out"]) -> Float[Tensor, "budgets 1"]:
        """Over every budget."""
        return _sums(self.relaxation, x)

    def move(self, shares: Float[Tensor, "live out"], power: float = 0.5) -> None:
        """Raise a price where more than the budget is asked for, and lower it where less is."""
        ratio = self.sums(shares) / self.relaxation.kept()  # NaN is nothing of a budget of nothing
        self.level = self.level * ratio.nan_to_num(1.0).clamp(0.8, 1.25) ** power


def _sums(relaxation: Perspective, x: Float[Tensor, "live out"]) -> Float[Tensor, "budgets 1"]:
    """Over every budget."""
    return relaxation.pattern.units(relaxation.widen(x.mT)).sum((-1, -2)).unsqueeze(-1)


class Descent:
    """Sweeps with Nesterov's momentum up to a limit, restarted row by row where a sweep turns back."""

    def __init__(self, gram: Float[Tensor, "live live"], x: Float[Tensor, "live out *columns"]) -> None:
        self.gram, self.x, self.ahead = gram, x, x
        self.age = torch.zeros(x.shape[1], dtype=x.dtype, device=x.device)

    def step(self, pull: Float[Tensor, "live out *columns"], best: Callable[[int, Tensor], Tensor]) -> None:
        """A sweep from the point ahead."""
        new = self.ahead.clone()
        sweep(self.gram, new, pull, best)
        moved, others = new - self.x, [axis for axis in range(new.dim()) if axis != 1]
        back = ((self.ahead - new) * moved).sum(others) > 0
        self.age = torch.where(back, 0.0, self.age + 1)
        momentum = (self.age / (self.age + 3)).clamp_max(MOMENTUM)
        self.x, self.ahead = new, new + momentum.view(-1, *[1] * (new.dim() - 2)) * moved


@dataclass(frozen=True, eq=False)
class Moments:
    """What a search ends with.

    Attributes:
        vectors: $W$.
        level: the price of a kept weight in every budget.
        pairs: with their share of the prices.
    """

    vectors: Float[Tensor, "live out columns"]
    level: Float[Tensor, "budgets 1"]
    pairs: PricedPairs

    def price(self, relaxation: Perspective) -> Float[Tensor, "live out"]:
        """Of every weight."""
        return Prices(relaxation, self.level).spread()

    def value(self, relaxation: Perspective) -> float:
        """The objective without prices: twice the bound, if the moments are optimal."""
        w = self.vectors
        linear = (relaxation.b * relaxation.root).mT
        own = (relaxation.gram @ w.flatten(1)).view_as(w) * w
        total = own.sum(dtype=torch.float64) - 2 * (linear * w[..., 0]).sum(dtype=torch.float64)
        return float(total + relaxation.energy.sum(dtype=torch.float64))


def guess(relaxation: Perspective, start: Float[Tensor, "out live"]) -> Moments:
    """Moments to start from, without pairs: a given weight, and a little noise.

    Args:
        relaxation: of a pattern whose units are single weights; its minorant is not used.
        start: a good weight, in the coordinates of `relaxation`.
    """
    w = (start / relaxation.root).mT.contiguous()
    prices = Prices.guess(relaxation, w)
    rank = min(RANK, len(w))
    noise = torch.randn(*w.shape, rank, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(w)
    size = (w.square().sum(0) / (w != 0).sum(0).clamp_min(1)).clamp_min(prices.level.amin())
    vectors = torch.cat([w.unsqueeze(-1), noise * (0.3 * (size / rank).sqrt()).unsqueeze(-1)], -1)
    return Moments(vectors, prices.level, PricedPairs.none(w))


def descend(relaxation: Perspective, found: Moments, sweeps: int, priced: int = 0, lag: int = 1) -> Moments:
    """Moments that are better for their prices.

    Args:
        relaxation: as in `guess`.
        found: what to start from.
        sweeps: how many.
        priced: sweeps at the beginning during which the pairs' share of the prices moves.
        lag: sweeps for which pairs are measured once; 3 save a third of the time, and go round in circles sooner.
    """
    pairs, prices = found.pairs.to(found.vectors.dtype), Prices(relaxation, found.level)
    descent, pull = Descent(relaxation.gram, found.vectors), torch.zeros_like(found.vectors)
    stiffness = torch.ones_like(found.vectors[..., 0])
    linear = -(relaxation.b * relaxation.root).mT
    for step in range(sweeps):
        x, price = descent.ahead, prices.spread()
        if step == 0 or (pairs.many and step % lag == 0):  # without pairs nothing changes
            measured = pairs.measure(x)
            if step < priced:
                pairs.reprice(measured, price)
            pairs.limit(price)
            # Shares of single weights are taken at the full price; what pairs ask for beyond them is linear in a step.
            inverse = 1 / x.square().sum(-1).clamp_min(torch.finfo(x.dtype).tiny)
            paid, single = pairs.total(), x[..., 0] * inverse
            stiffness = 1 + FIRM * paid * inverse
            pull = pairs.pull(x, measured) + (paid * single.square() - (stiffness - 1)).unsqueeze(-1) * x
            pull[..., 0] += linear - paid * single
        descent.step(pull, lambda i, g, s=price, h=stiffness: cheapest(g, s[i], h[i]))
        prices.move(shares_of(descent.x))
    return Moments(descent.x, prices.level, pairs)


def shares_of(vectors: Float[Tensor, "live out columns"]) -> Float[Tensor, "live out"]:
    r"""$w^2 / |W|^2$."""
    return vectors[..., 0].square() / vectors.square().sum(-1).clamp_min(torch.finfo(vectors.dtype).tiny)
