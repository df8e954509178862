"""Accelerated proximal gradient for the perspective relaxation: many cheap steps, for layers too large to factorise
by row.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from optprune.certify._perspective import Best, Perspective
from optprune.numerics.linalg import spectral_norm


def accelerate(
    relaxation: Perspective,
    start: Float[Tensor, "out live"],
    growth: float,
    *,
    max_steps: int = 2000,
    check_every: int = 25,
) -> Float[Tensor, "out live"]:
    """FISTA with adaptive restart, row by row; one product with the Gram matrix and one proximal step per iteration.

    Args:
        relaxation: what to minimise.
        start: the point to start from.
        growth: stop when five evaluations raise twice the bound by less than this.
        max_steps: most steps.
        check_every: steps between two evaluations of the bound.

    References:
        Beck & Teboulle 2009; restart: O'Donoghue & Candes 2015.
    """
    curvature = relaxation.curvature()
    lipschitz = 2 * spectral_norm(curvature).clamp_min(torch.finfo(start.dtype).tiny)
    step = Proximal(relaxation, lipschitz)
    x = y = start
    xa = ya = x @ curvature
    theta = torch.ones(len(x), 1, dtype=x.dtype, device=x.device)
    best = Best(relaxation)
    best.offer(x, xa)
    for count in range(1, max_steps + 1):
        new = step(y - 2 * (ya - relaxation.b) / lipschitz)
        new_a = new @ curvature
        restart = ((y - new) * (new - x)).sum(-1, keepdim=True) > 0
        theta = torch.where(restart, 1.0, theta)
        following = (1 + (1 + 4 * theta.square()).sqrt()) / 2
        momentum = torch.where(restart, 0.0, (theta - 1) / following)
        y, ya = new + momentum * (new - x), new_a + momentum * (new_a - xa)
        x, xa, theta = new, new_a, following
        if count % check_every == 0:
            best.offer(x, xa)
            if best.stalled(growth, window=5):
                break
    assert best.point is not None
    return best.point


@runtime_checkable
class Units(Protocol):
    """What the proximal step asks of a relaxation."""

    def kept(self) -> Float[Tensor, "budgets 1"] | float:
        """The budget."""
        ...

    def norms(self, x: Float[Tensor, "out live"]) -> Float[Tensor, "budgets units"]:
        """The norm of every unit."""
        ...

    def spread(self, z: Float[Tensor, "budgets units"]) -> Float[Tensor, "out live"]:
        """Give every weight the share of its unit."""
        ...


class Proximal:
    r"""$V \cdot L z / (L z + 2)$ with $z = \operatorname{clip}(\sigma \lVert V_{unit}\rVert - 2/L, 0, 1)$, $\sum z =
    k$.
    """

    def __init__(self, relaxation: Units, lipschitz: Tensor) -> None:
        self.relaxation, self.lipschitz, self.kept = relaxation, lipschitz, relaxation.kept()
        self.sigma: Tensor | None = None

    def __call__(self, v: Float[Tensor, "out live"]) -> Float[Tensor, "out live"]:
        z = self.relaxation.spread(self._shares(self.relaxation.norms(v), 2 / self.lipschitz))
        return v * (self.lipschitz * z / (self.lipschitz * z + 2))

    def _shares(
        self, norms: Float[Tensor, "budgets units"], offset: Tensor, rounds: int = 20
    ) -> Float[Tensor, "budgets units"]:
        """Safeguarded Newton on the total of z, monotone and piecewise linear in sigma; every total gives a bound."""
        positive = norms > 0
        largest = norms.amax(-1, keepdim=True).clamp_min(torch.finfo(norms.dtype).tiny)
        smallest = torch.where(positive, norms, torch.inf).amin(-1, keepdim=True).clamp_max(largest)
        free = positive.sum(-1, keepdim=True) <= self.kept
        low, high = offset / largest, (1 + offset) / smallest
        sigma = high if self.sigma is None else self.sigma.clamp(low, high)
        for _ in range(rounds):
            z = (sigma * norms - offset).clamp(0, 1)
            excess = z.sum(-1, keepdim=True) - self.kept
            low, high = torch.where(excess < 0, sigma, low), torch.where(excess >= 0, sigma, high)
            if bool((free | (excess.abs() <= 1e-6 * (1 + self.kept))).all()):
                break
            slope = torch.where((z > 0) & (z < 1), norms, 0.0).sum(-1, keepdim=True)
            newton = sigma - excess / slope
            inside = (newton > low) & (newton < high)
            sigma = torch.where(inside, newton, (low * high).sqrt())
        self.sigma = sigma
        return torch.where(free, positive.to(norms.dtype), (sigma * norms - offset).clamp(0, 1))
