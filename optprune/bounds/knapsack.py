"""Lower bound for the multiple-choice knapsack, by relaxing its budget."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from optprune.bounds._theorem import theorem
from optprune.errors import InvalidInputError

EXACT = 2**53
"""Integers up to here are exact in float64."""


@theorem("T09")
def lagrangian_bound(
    costs: Sequence[Int[Tensor, "_"]],
    errors: Sequence[Float[Tensor, "_"]],
    budget: int,
    multiplier: float,
) -> float:
    r"""$L(\mu) = \sum_l \min_o (e_{lo} + \mu c_{lo}) - \mu B$: no choice within the budget has a smaller total error.

    Every operation rounds towards the safe side, so that the number is below what exact arithmetic gives; 0 where that
    is larger.

    Args:
        costs: $c_l \ge 0$, integers, one tensor per group.
        errors: $e_l \ge 0$, alike.
        budget: $B$.
        multiplier: $\mu \ge 0$, any; `knapsack` gives the best one.

    Raises:
        InvalidInputError: a number is negative, not finite, or an integer above $2^{53}$.

    Guarantees:
        T09 (a), (d).
    """
    if not (0 <= multiplier < math.inf and 0 <= budget <= EXACT):
        raise InvalidInputError(
            f"multiplier {multiplier}, budget {budget} given; a finite multiplier >= 0 and a budget in [0, 2^53] "
            "are needed"
        )
    total = 0.0
    for number, (cost, error) in enumerate(zip(costs, errors, strict=True)):
        if not bool(((cost >= 0) & (cost <= EXACT)).all()) or not bool(((error >= 0) & error.isfinite()).all()):
            raise InvalidInputError(f"group {number}: costs in [0, 2^53] and finite errors >= 0 are needed")
        price = _below(cost.to("cpu", torch.float64) * multiplier)
        total = _below_zero(total + float(_below(error.to("cpu", torch.float64) + price).min()))
    paid = multiplier * budget
    paid = paid if paid == 0.0 and 0 in (multiplier, budget) else math.nextafter(paid, math.inf)
    return max(0.0, math.nextafter(total - paid, -math.inf))


def _below(x: Tensor) -> Tensor:
    """The next float64 below rounded nonnegative numbers; exact zeros stay."""
    return torch.nextafter(x, torch.zeros_like(x))


def _below_zero(x: float) -> float:
    return 0.0 if x == 0.0 else math.nextafter(x, 0.0)
