r"""Edges kept by chance, each with a probability of its own, and weighted by its inverse.

Edge $j$ is kept with probability $p_j$ and then weighs $w_j / p_j$ (Horvitz and Thompson): sums are right on average,
edges with $p_j = 1$ add no error, and nothing is drawn twice. Choices may be independent, or made in pairs, so that
their number is certain: what one edge loses another gains, and sums of terms of one sign do not spread further.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from optprune.bounds._theorem import theorem
from optprune.bounds.bernstein import Real, bernstein_radius


@theorem("T19")
def kept_variance(
    squares: Float[Tensor, "*points edges"], probabilities: Float[Tensor, "*#points edges"]
) -> Float[Tensor, "*points"]:
    r"""$\sum_j c_j^2 (1 - p_j) / p_j$, the variance of $\sum_j c_j B_j / p_j$; infinite where $p_j = 0 \ne c_j$.

    Args:
        squares: $c_j^2$; or their means over points, which gives the mean of the variances.
        probabilities: $p$.

    Guarantees:
        T19 (a): exact for independent choices, an upper bound for pairs and terms of one sign.
    """
    chance = torch.where(probabilities > 0, (1 - probabilities) / probabilities, torch.inf)
    return torch.where(squares > 0, squares * chance, 0.0).sum(-1)


@theorem("T19")
def kept_radius(
    terms: Float[Tensor, "*points edges"], probabilities: Float[Tensor, "*#points edges"], delta: Real
) -> Float[Tensor, "*points"]:
    r"""How far a sum of signed terms moves when its edges are kept in pairs: Bernstein for each sign by itself.

    The sum over both signs of `bernstein_radius` at $\delta / 2$, $V$ = `kept_variance` and
    $b = \max |c_j| \max(1, 1/p_j - 1)$ over the edges of that sign with $p_j < 1$; where all terms have one sign, that
    one at $\delta$.

    Args:
        terms: $c_j = w_j x_j$, for points $x$.
        probabilities: $p$.
        delta: for each point by itself.

    Guarantees:
        T19 (b), for each point by itself.
    """
    both = bool((terms > 0).any()) and bool((terms < 0).any())
    each = delta / 2 if both else delta
    halves = (terms.clamp(min=0), (-terms).clamp(min=0)) if both else (terms.abs(),)
    return torch.stack([_radius(half, probabilities, each) for half in halves]).sum(0)


def _radius(terms: Tensor, probabilities: Tensor, delta: Real) -> Tensor:
    """Of nonnegative terms."""
    reach = torch.where(probabilities > 0, 1 / probabilities - 1, torch.inf).clamp(min=1.0)
    largest = torch.where((probabilities < 1) & (terms > 0), terms * reach, 0.0).amax(-1)
    radius = bernstein_radius(kept_variance(terms.square(), probabilities), largest, delta)
    return torch.where(largest.isinf(), torch.inf, radius)
