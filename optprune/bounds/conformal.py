r"""Distribution-free bounds of a realised network's error, from held-out points that nothing was fitted to.

Let $e_1, \dots, e_n$ be any score of the finished network on held-out points, and $e_{n+1}$ that of a new point, all
exchangeable. The $k$-th smallest of the $n$ is then a bound of the new one with a known probability, whatever the
network, the score or the distribution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import torch
from jaxtyping import Float
from scipy.stats import beta, binom
from torch import Tensor

from optprune.bounds._theorem import theorem
from optprune.errors import InvalidInputError, NonFiniteError


@theorem("T15")
def conformal_rank(points: int, alpha: float) -> int:
    r"""$k = \lceil (1 - \alpha)(n + 1) \rceil$; $n + 1$ stands for an infinite bound.

    $\alpha$ is read as the decimal that it prints as, so that 0.3 of 9 points is rank 7.

    Guarantees:
        T15 (a): $\Pr\{e_{n+1} \le e_{(k)}\} \ge 1 - \alpha$, over the held-out points and the new one together.

    Raises:
        InvalidInputError: alpha is not in (0, 1), or there is no point.
    """
    _require_points(points)
    _require_probability("alpha", alpha)
    return math.ceil((1 - Fraction(repr(float(alpha)))) * (points + 1))


@theorem("T15")
def conditional_rank(points: int, alpha: float, delta: float) -> int:
    r"""The smallest $k$ with $\Pr\{\operatorname{Beta}(k, n + 1 - k) < 1 - \alpha\} \le \delta$.

    $n + 1$, an infinite bound, where there is none.

    Guarantees:
        T15 (b): with probability $1 - \delta$ over the held-out points, $e_{(k)}$ bounds the score of at least a
        fraction $1 - \alpha$ of all new points.

    Raises:
        InvalidInputError: alpha or delta is not in (0, 1), or there is no point.

    References:
        Vovk 2012, proposition 2a.
    """
    _require_points(points)
    _require_probability("alpha", alpha)
    _require_probability("delta", delta)
    low, high = 1, points + 1  # the beta probability falls with the rank
    while low < high:
        middle = (low + high) // 2
        if beta.cdf(1 - alpha, middle, points + 1 - middle) <= delta:
            high = middle
        else:
            low = middle + 1
    return low


@theorem("T15")
def order_bound(scores: Float[Tensor, " n"], rank: int) -> float:
    """The score of this rank, counted from the smallest as 1; infinite for rank n + 1.

    Guarantees:
        T15, for a rank that `conformal_rank` or `conditional_rank` gives.

    Raises:
        InvalidInputError: the rank is not 1 to n + 1.
        NonFiniteError: a score is NaN.
    """
    if bool(scores.isnan().any()):
        raise NonFiniteError(f"{int(scores.isnan().sum())} NaN among {len(scores)} scores, which have no order")
    if not 1 <= rank <= len(scores) + 1:
        raise InvalidInputError(f"rank {rank} of {len(scores)} scores given; 1 to {len(scores) + 1} is accepted")
    return math.inf if rank > len(scores) else float(scores.double().kthvalue(rank).values)


@theorem("T15")
def exceedance_p_value(exceeded: int, points: int, alpha: float) -> float:
    r"""$\Pr\{\operatorname{Bin}(n, \alpha) \le r\}$, for $r$ exceedances of a limit.

    Small where new points would hardly exceed the limit as seldom as that with probability $\alpha$ or more.

    Guarantees:
        T15 (c): at most $\delta$ with probability at most $\delta$, if the true probability is $\alpha$ or more.

    Raises:
        InvalidInputError: the count is not 0 to n, or alpha is not in (0, 1).
    """
    _require_points(points)
    _require_probability("alpha", alpha)
    if not 0 <= exceeded <= points:
        raise InvalidInputError(f"{exceeded} exceedances of {points} points given; 0 to {points} is accepted")
    return float(binom.cdf(exceeded, points, alpha))


@theorem("T15")
def fixed_sequence(p_values: Sequence[float], delta: float) -> int:
    r"""How many candidates are certified when they are tested one by one, in an order fixed beforehand.

    The first whose p-value exceeds $\delta$ ends the tests; every one before it is certified at the full level.

    Guarantees:
        T15 (d): with probability $1 - \delta$ no false claim is made, whatever the dependence between the candidates.

    Raises:
        InvalidInputError: delta is not in (0, 1).
    """
    _require_probability("delta", delta)
    return next((count for count, p in enumerate(p_values) if not p <= delta), len(p_values))


@theorem("T15")
def bonferroni(delta: float, candidates: int) -> float:
    r"""$\delta / K$: the level at which each of $K$ candidates is certified, so that all claims hold together.

    Guarantees:
        T15 (d).

    Raises:
        InvalidInputError: delta is not in (0, 1), or there is no candidate.
    """
    _require_probability("delta", delta)
    if candidates < 1:
        raise InvalidInputError(f"{candidates} candidates given; at least one is needed")
    return delta / candidates


@theorem("T15")
def mean_bound(values: Float[Tensor, " n"], delta: float) -> float:
    r"""An upper bound of the mean of scores in $[0, 1]$: the empirical Bernstein bound in its betting form.

    The largest $\mu$ at which a gambler who bets that the mean is below it has not made $1 / \delta$ of a unit:
    $\prod_i (1 + \lambda_i (\mu - e_i)) \le 1 / \delta$, with
    $\lambda_i = \min(\tfrac34, \sqrt{2 \ln(1/\delta) / (n \hat\sigma^2_{i-1})})$ and
    $\hat\sigma^2_{i-1}$ the regularised variance of the scores before. The product grows with $\mu$.

    Args:
        values: independent (or martingale differences about one mean), in the order in which they were drawn.
        delta: the probability that the mean is larger.

    Guarantees:
        T15 (e).

    Raises:
        InvalidInputError: a score is outside of [0, 1], or delta not in (0, 1).

    References:
        Waudby-Smith & Ramdas 2024, section 4; the bound is read off a bisection, rounded up.
    """
    _require_points(len(values))
    _require_probability("delta", delta)
    x = values.double()
    if not bool(((x >= 0) & (x <= 1)).all()):
        raise InvalidInputError(f"scores from {float(x.min())} to {float(x.max())} given; they must lie in [0, 1]")
    n = len(x)
    counts = torch.arange(1, n + 1, dtype=torch.float64, device=x.device)
    means = (0.5 + x.cumsum(0)) / (counts + 1)
    variances = (0.25 + (x - means).square().cumsum(0)) / (counts + 1)
    before = torch.cat([variances.new_tensor([0.25]), variances[:-1]])
    goal = math.log(1 / delta)
    stakes = (2 * goal / (n * before)).sqrt().clamp(max=0.75)

    def gained(mean: float) -> float:
        return float(torch.log1p(stakes * (mean - x)).sum())

    low, high = 0.0, 1.0
    if gained(high) <= goal:
        return high
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if gained(middle) <= goal else (low, middle)
    return high


def _require_points(points: int) -> None:
    if points < 1:
        raise InvalidInputError(f"{points} held-out points given; at least one is needed")


def _require_probability(name: str, value: float) -> None:
    if not 0.0 < value < 1.0:
        raise InvalidInputError(f"{name}={value} given; a probability in (0, 1) is needed")
