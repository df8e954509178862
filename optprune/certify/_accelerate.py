"""Accelerated proximal gradient for the perspective relaxation: many cheap steps, for layers too large to factorise
by row.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from optprune.certify._perspective import Best, Perspective


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
    lipschitz = 2 * _largest(curvature).clamp_min(torch.finfo(start.dtype).tiny)
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


def _largest(matrix: Float[Tensor, "d d"], steps: int = 30, width: int = 8) -> Float[Tensor, ""]:
    """A little more than the largest eigenvalue of a positive semidefinite matrix, by power iteration on a few vectors.
    Steps that are somewhat too long cost a restart and not the bound.
    """
    rng = torch.Generator(matrix.device).manual_seed(0)
    vectors = torch.randn(len(matrix), width, generator=rng, dtype=matrix.dtype, device=matrix.device)
    for _ in range(steps):
        vectors = matrix @ torch.linalg.qr(vectors).Q
    return 1.05 * torch.linalg.matrix_norm(vectors, ord=2)


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
        """Safeguarded Newton on the total of z, monotone and piecewise linear in sigma; every total gives a bound.
        Budgets that are met leave the search, of which a layer of small groups has many.
        """
        positive = norms > 0
        largest = norms.amax(-1, keepdim=True).clamp_min(torch.finfo(norms.dtype).tiny)
        smallest = torch.where(positive, norms, torch.inf).amin(-1, keepdim=True).clamp_max(largest)
        free = positive.sum(-1, keepdim=True) <= self.kept
        low, high = offset / largest, (1 + offset) / smallest
        found = high if self.sigma is None else self.sigma.clamp(low, high)
        kept = torch.as_tensor(self.kept, dtype=norms.dtype, device=norms.device).expand_as(found)
        rest = (~free).nonzero()[:, 0]
        part, budget, low, high, sigma = (x[rest] for x in (norms, kept, low, high, found))
        for _ in range(rounds):
            z = (sigma * part - offset).clamp(0, 1)
            excess = z.sum(-1, keepdim=True) - budget
            going = (excess.abs() > 1e-6 * (1 + budget))[:, 0]
            count = int(going.sum())
            if 2 * count <= len(part):
                found[rest] = sigma
                if not count:
                    break
                rest, part, budget, low, high, sigma, z, excess = (
                    x[going] for x in (rest, part, budget, low, high, sigma, z, excess)
                )
            low, high = torch.where(excess < 0, sigma, low), torch.where(excess >= 0, sigma, high)
            slope = (((z > 0) & (z < 1)) * part).sum(-1, keepdim=True)
            newton = sigma - excess / slope
            inside = (newton > low) & (newton < high)
            sigma = torch.where(inside, newton, (low * high).sqrt())
        found[rest] = sigma
        self.sigma = found
        return torch.where(free, positive.to(norms.dtype), (found * norms - offset).clamp(0, 1))
