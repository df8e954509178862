r"""Bernstein's inequality, its exact inverse, and what it says of edges drawn with replacement.

A half-neuron is a sum $z = \sum_j w_j a_j$ of nonnegative terms; drawing $m$ of its edges with probabilities $q$ and
weighting edge $j$ by $n_j / (m q_j)$, $n_j$ its multiplicity, leaves the sum unchanged on average.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from optprune.bounds._theorem import theorem
from optprune.errors import InvalidInputError

Real = float | Tensor


@theorem("T14")
def bernstein_tail(radius: Real, variance: Real, largest: Real) -> Float[Tensor, "..."]:
    r"""$\min(1, 2 \exp(-t^2 / (2 (V + b t / 3))))$, which $\Pr\{|\sum_i Y_i| \ge t\}$ does not exceed.

    Args:
        radius: $t \ge 0$.
        variance: $V \ge \sum_i \operatorname{Var} Y_i$ of independent $Y_i$ with mean 0.
        largest: $b \ge |Y_i|$, always.

    Guarantees:
        T14 (a). Nothing is random where $V = b = 0$: the value is then 0 for $t > 0$.
    """
    t, v, b = _reals(radius, variance, largest)
    tail = 2 * torch.exp(-t.square() / (2 * (v + b * t / 3)))
    return torch.where(t > 0, tail.clamp(max=1.0), 1.0)


@theorem("T14")
def bernstein_radius(variance: Real, largest: Real, delta: Real) -> Float[Tensor, "..."]:
    r"""$t = b \ell / 3 + \sqrt{(b \ell / 3)^2 + 2 V \ell}$, $\ell = \ln(2 / \delta)$: the inverse of `bernstein_tail`.

    Args:
        variance: $V$.
        largest: $b$.
        delta: the probability with which $|\sum_i Y_i| \ge t$ at most.

    Guarantees:
        T14 (b): the tail at this radius is $\delta$, no more and no less.

    Raises:
        InvalidInputError: delta is not in (0, 1).
    """
    v, b = _reals(variance, largest)
    linear = b * _log_two_over(delta) / 3
    return linear + (linear.square() + 2 * v * _log_two_over(delta)).sqrt()


@theorem("T14")
def draws_needed(error: Real, total: Real, delta: Real, constant: Real = 1.0) -> Float[Tensor, "..."]:
    r"""$m = C S (6 + 2 \varepsilon) \ln(2/\delta) / (3 \varepsilon^2)$ draws of a half-neuron; rounding up is left to
    the caller.

    Args:
        error: $\varepsilon > 0$, relative to $z$.
        total: $S = \sum_j s_j$, where $q_j = s_j / S$.
        delta: the probability of an error of $\varepsilon z$ or more, at most.
        constant: $C$, with $w_j a_j \le C s_j z$ for every edge.

    Guarantees:
        T14 (c).

    References:
        Baykal et al. 2019 (SiPP), sample complexity of the randomised variant.
    """
    epsilon, spread = _reals(error, total)
    return constant * spread * (6 + 2 * epsilon) * _log_two_over(delta) / (3 * epsilon.square())


@theorem("T14")
def relative_error(draws: Real, total: Real, delta: Real, constant: Real = 1.0) -> Float[Tensor, "..."]:
    r"""$\varepsilon(m)$, the inverse of `draws_needed`; infinite for $m = 0$ unless $S = 0$.

    With $\alpha = 2 C S \ln(2/\delta)$ it is $\tfrac12 [\alpha/(3m) + \sqrt{(\alpha/(3m))^2 + 4 \alpha / m}]$.

    Guarantees:
        T14 (c).

    References:
        Baykal et al. 2019; their published code has $2 \alpha / m$ under the root, which is no bound.
    """
    m, spread = _reals(draws, total)
    per_draw = torch.where(spread > 0, constant * spread / m, 0.0)
    return torch.where(per_draw.isinf(), torch.inf, bernstein_radius(per_draw, per_draw, delta))


@theorem("T14")
def drawn_radius(
    terms: Float[Tensor, "*points edges"],
    probabilities: Float[Tensor, "*#points edges"],
    draws: Real,
    delta: Real,
) -> Float[Tensor, "*points"]:
    r"""How far a sum of signed terms moves when $m$ of them are drawn: Bernstein with the exact variance.

    With $V = \sum_j c_j^2 / q_j - z^2$ and $b = \max_{j : q_j > 0} |c_j / q_j - z|$ it is `bernstein_radius` at $V / m$
    and $b / m$; no constant, no sensitivities. Infinite where a term that is not 0 is never drawn.

    Args:
        terms: $c_j = w_j a_j(x)$, of any sign, for points $x$.
        probabilities: $q$, summing to 1.
        draws: $m$, broadcasting over the points.
        delta: for each point by itself.

    Guarantees:
        T14 (d), for each point by itself.
    """
    drawn = probabilities > 0
    ratio = torch.where(drawn, terms / torch.where(drawn, probabilities, 1.0), 0.0)
    total = terms.sum(-1)
    # The variance as a mean of squares: the difference of two large numbers is not formed.
    variance = (probabilities * (ratio - total[..., None]).square()).sum(-1)
    largest = torch.where(drawn, (ratio - total[..., None]).abs(), 0.0).amax(-1)
    m = torch.as_tensor(draws, dtype=torch.float64, device=terms.device)
    radius = bernstein_radius(variance / m, largest / m, delta)
    reached = ~(~drawn & (terms != 0)).any(-1) & (m > 0)
    return torch.where(reached, radius, torch.where((terms != 0).any(-1), torch.inf, 0.0))


def _reals(*values: Real) -> list[Tensor]:
    device = next((v.device for v in values if isinstance(v, Tensor)), torch.device("cpu"))
    return [torch.as_tensor(value, dtype=torch.float64, device=device) for value in values]


def _log_two_over(delta: Real) -> Tensor:
    delta = torch.as_tensor(delta, dtype=torch.float64)
    if not bool(((delta > 0) & (delta < 1)).all()):
        raise InvalidInputError(f"delta {delta.tolist()} given; a probability in (0, 1) is needed")
    return torch.log(2 / delta)
