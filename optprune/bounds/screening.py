"""Weights that every optimal pruning keeps, or prunes, read off a lower bound."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from optprune.bounds._theorem import theorem
from optprune.numerics.rounding import gamma
from optprune.patterns import Pattern


@theorem("T12")
def screened(
    lower_bound: float, upper_bound: float, gains: Float[Tensor, "out in"], pattern: Pattern
) -> tuple[Bool[Tensor, "out in"], Bool[Tensor, "out in"]]:
    r"""The weights that are zero, and those of units that are in use, in every optimal solution.

    Where $J(U) \ge \ell + \tfrac12 (\sum_{K} s - \sum_{S} s)$ for every $U$ supported in $S \in \mathcal F$, $K$ the
    admissible support of the largest total: with $s_{[k]}$ and $s_{[k+1]}$ the least unit of $K$ and the best other one
    of a budget (0 where there is none), a unit $j \notin K$ is zero throughout in every optimal solution if
    $\ell + \tfrac12 (s_{[k]} - s_j) > u$, and a unit $j \in K$ is in use in every one if
    $\ell + \tfrac12 (s_j - s_{[k+1]}) > u$.

    Args:
        lower_bound: $\ell$, and
        gains: $s$, both as `minorant_parts` gives them.
        upper_bound: $u$, no smaller than the optimum: the objective of an admissible weight, rounded up.
        pattern: $\mathcal F$.

    Guarantees:
        T12, rounding included.
    """
    shape = (int(gains.shape[0]), int(gains.shape[1]))
    kept = pattern.units(pattern.support(gains)).any(-1)
    totals = pattern.units(gains).sum(-1)
    last = torch.where(kept, totals, torch.inf).amin(-1, keepdim=True)
    best_other = torch.where(kept, 0.0, totals).amax(-1, keepdim=True)
    # Gains are sums over a unit, and their differences and the bound round: less than this share of their sizes.
    doubt = (
        2 * gamma(gains.numel() + 8) * (totals + totals.amax(-1, keepdim=True) + abs(lower_bound) + abs(upper_bound))
    )
    pruned = ~kept & (lower_bound + 0.5 * (last - totals) - doubt > upper_bound)
    used = kept & (lower_bound + 0.5 * (totals - best_other) - doubt > upper_bound)
    weights = pattern.layout(shape)[2]
    zero, needed = (pattern.from_units(x.unsqueeze(-1).expand(*x.shape, weights), shape) for x in (pruned, used))
    return zero, needed
