"""Dividing a budget: min(cap, level times weight), and the exact program for errors of drawn edges."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from optprune.errors import InvalidInputError


def water_fill(
    weights: Float[Tensor, "*groups n"], caps: Float[Tensor, "*groups n"], budget: Float[Tensor, "*groups"]
) -> Float[Tensor, "*groups n"]:
    r"""$m_i = \min(c_i, \tau w_i)$ with the level $\tau$ at which the sum is the budget.

    For every $r > 0$ it minimises $\sum_i w_i^{1 + r} m_i^{-r}$ subject to $\sum_i m_i \le B$ and $m_i \le c_i$ (T18).
    In closed form: in the order of $c_i / w_i$ the capped ones come first, and $\tau$ is what is left of the budget
    over what is left of the weights. Everything is capped where the budget exceeds the caps; weight 0 gets nothing.

    Raises:
        InvalidInputError: a negative weight, cap or budget.
    """
    if bool((weights < 0).any() | (caps < 0).any() | (torch.as_tensor(budget) < 0).any()):
        raise InvalidInputError("a negative weight, cap or budget given; all are numbers >= 0")
    budget = torch.as_tensor(budget, dtype=weights.dtype, device=weights.device).expand(weights.shape[:-1])
    caps = torch.where(weights > 0, caps, 0.0)
    level = torch.where(caps > 0, caps / torch.where(weights > 0, weights, 1.0), 0.0)
    order = level.argsort(dim=-1, stable=True)
    sorted_level, w, c = level.gather(-1, order), weights.gather(-1, order), caps.gather(-1, order)
    before = c.cumsum(-1) - c
    behind = w.flip(-1).cumsum(-1).flip(-1)
    # Item i is capped if filling to its level, with those before it at their caps, still fits.
    fits = before + sorted_level * behind <= budget[..., None]
    capped = fits.long().cumprod(-1).sum(-1, keepdim=True)
    last = (capped - 1).clamp(min=0)
    spent = torch.where(capped > 0, (before + c).gather(-1, last), 0.0)
    at = capped.clamp(max=weights.shape[-1] - 1)
    rest = torch.where(capped < weights.shape[-1], behind.gather(-1, at), 0.0)
    tau = torch.where(rest > 0, (budget[..., None] - spent) / torch.where(rest > 0, rest, 1.0), torch.inf)
    filled = torch.where(weights > 0, tau * torch.where(weights > 0, weights, 1.0), 0.0)
    return torch.minimum(caps, filled)


def allocate_draws(
    alpha: Float[Tensor, "*groups n"],
    costs: Float[Tensor, "*groups n"],
    caps: Float[Tensor, "*groups n"],
    budget: Float[Tensor, "*groups"],
) -> Float[Tensor, "*groups n"]:
    r"""Minimises $\sum_i c_i \varepsilon_i(m_i)$, $\varepsilon_i(m) = u + \sqrt{u^2 + 6 u}$, $u = \alpha_i / (6 m)$.

    These are the errors of T14 (c), convex and decreasing in $m$; subject to $\sum m_i \le B$ and $m_i \le$ `caps`. At
    the optimum all slopes of uncapped items are equal: bisection for the slope, Newton's method for each $m_i$ (T18).
    For large $m$ it is `water_fill` with weights $(c_i^2 \alpha_i)^{1/3}$.
    """
    live = (alpha > 0) & (costs > 0) & (caps > 0)
    a, cost = torch.where(live, alpha, 1.0), torch.where(live, costs, 1.0)
    cap = torch.where(live, caps, 0.0)
    budget = torch.as_tensor(budget, dtype=alpha.dtype, device=alpha.device).expand(alpha.shape[:-1])

    def amounts(price: Tensor) -> Tensor:
        # The slope at m is 6 cost / alpha times u^2 (1 + (u + 3) / root).
        return torch.minimum(a / 6 * torch.exp(-_log_of_slope(price + torch.log(a / (6 * cost)))), cap)

    ends = [torch.full_like(budget, value) for value in (-80.0, 80.0)]
    price = _bisect(lambda price: amounts(price[..., None]).sum(-1) <= budget, *ends)
    return torch.where((cap.sum(-1) <= budget)[..., None], cap, amounts(price[..., None]))


def _log_of_slope(wanted: Tensor) -> Tensor:
    r"""The $\ln u$ at which $\ln(u^2 (1 + (u + 3) / \sqrt{u^2 + 6 u}))$ is as wanted.

    In $\ln u$ its slope lies between 3/2 and 2, its value near one of two straight lines; Newton's method from there.
    """
    log_u = torch.minimum((wanted - math.log(1.5**0.5)) / 1.5, (wanted - math.log(2.0)) / 2)
    for _ in range(4):
        u = torch.exp(log_u)
        root = (u.square() + 6 * u).sqrt()
        factor = 1 + (u + 3) / root
        slope = 2 - 9 * u / (root**3 * factor)
        log_u = log_u - (2 * log_u + torch.log(factor) - wanted) / slope
    return log_u


def whole(
    amounts: Float[Tensor, "*groups n"], caps: Int[Tensor, "*groups n"], budget: Int[Tensor, "*groups"]
) -> Int[Tensor, "*groups n"]:
    """Integers next to the amounts: rounded down, what is left of the budget to the largest remainders.

    The sum is the smaller of the budget and the caps' sum, never more.
    """
    # An amount just below an integer is that integer.
    floor = torch.minimum((amounts + 1e-9).floor().long(), caps)
    free = torch.minimum(caps.sum(-1), budget) - floor.sum(-1)
    remainder = torch.where(floor < caps, amounts - floor, -torch.inf)
    rank = remainder.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    raised = floor + ((rank < free[..., None]) & (floor < caps)).long()
    short = torch.minimum(caps.sum(-1), budget) - raised.sum(-1)
    if bool((short < 0).any()):
        raise InvalidInputError("amounts whose integer parts exceed the budget given; their sum may not exceed it")
    # Where the amounts left budget over, it goes to the first items with room.
    room = caps - raised
    extra = torch.minimum(room, (short[..., None] - (room.cumsum(-1) - room)).clamp(min=0))
    return raised + extra


def _bisect(holds: Callable[[Tensor], Tensor], low: Tensor, high: Tensor) -> Tensor:
    """The smallest point at which a monotone property holds, to the last digits; one search per element."""
    for _ in range(52):
        middle = (low + high) / 2
        found = holds(middle)
        low, high = torch.where(found, low, middle), torch.where(found, middle, high)
    return high
