"""What is wrong with a Net-Trim point: the conditions that fail on a piece, and what a checker will find."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from optprune.solvers._net_trim_layer import Layer
from optprune.solvers._net_trim_polish import Piece


@dataclass(frozen=True, eq=False)
class Verdict:
    """Neurons on their pieces, at given multipliers of the ball.

    Attributes:
        u: weights `(rows, d)`.
        lam: multipliers `(rows, n)`.
        wrong: how many weights and ceilings are on the wrong side `(rows,)`.
        bad: whether an optimality condition fails `(rows,)`.
        support: the weights that a Newton step from here leaves in the support `(rows, d)`.
        signs: their signs `(rows, d)`.
        tight: the ceilings that it leaves tight `(rows, n)`.
    """

    u: Float[Tensor, "rows d"]
    lam: Float[Tensor, "rows n"]
    wrong: Int[Tensor, " rows"]
    bad: Bool[Tensor, " rows"]
    support: Bool[Tensor, "rows d"]
    signs: Float[Tensor, "rows d"]
    tight: Bool[Tensor, "rows n"]


def verdict(
    layer: Layer,
    piece: Piece,
    mu: Float[Tensor, " rows"],
    support: Bool[Tensor, "rows d"],
    signs: Float[Tensor, "rows d"],
    tight: Bool[Tensor, "rows n"],
    tolerance: float,
) -> Verdict:
    """Which conditions fail on the pieces with these supports, signs and tight ceilings (so that NaN fails)."""
    u, lam, through, correlation = piece.at(mu)
    price = torch.where(layer.price > 0, layer.price, layer.inputs.shape[0])
    excess = (correlation.abs() - layer.price) / price
    turned = support & (layer.price > 0) & ~(u * signs >= -tolerance * u.abs().amax(1, keepdim=True))
    missing = ~support & ~(excess <= tolerance)
    pulling = tight & ~(lam >= -tolerance * lam.abs().amax(1, keepdim=True))
    above = torch.where(layer.active, 0.0, through - layer.targets)
    broken = ~tight & ~(above <= tolerance)
    wrong = turned.sum(1) + missing.sum(1) + pulling.sum(1) + broken.sum(1)
    stationary = torch.where(support, (correlation + layer.price * signs).abs() / price, 0.0)
    exact = (excess.amax(1) <= tolerance) & (stationary.amax(1) <= 10 * tolerance) & (above.amax(1) <= tolerance)
    return Verdict(
        u,
        lam,
        wrong,
        (wrong > 0) | ~exact,
        (support & ~turned) | missing,
        torch.where(missing, -correlation.sign(), signs),
        (tight & ~pulling) | broken,
    )


@dataclass(frozen=True)
class Shortfall:
    """What a checker will find: the largest relative violation, the objective and its bound in solver units.

    `usual` is the objective of one weight of size 1 per neuron, about what it takes to make outputs of the
    targets' size.
    """

    violation: float
    objective: float
    bound: float
    usual: float

    def within(self, tolerance: float) -> bool:
        """Whether violation and relative gap are small enough to end."""
        return self.violation <= tolerance and abs(self.objective - self.bound) <= tolerance * self.objective

    def impossible(self, factor: float) -> bool:
        """Whether what is feasible is far larger than what nearly is, and than weights of the data's size."""
        return self.violation > 1e-6 and self.bound > factor * max(self.objective, self.usual)


def shares(layer: Layer, u: Float[Tensor, "rows d"], lam: Float[Tensor, "rows n"]) -> Float[Tensor, "5 rows"]:
    """What each neuron contributes to the shortfall: how far its ceilings and its ball are exceeded, its part of the
    objective, and the two of the bound; in the largest neuron's units.
    """
    price, active = layer.price, layer.active
    residual = layer.forward(u) - layer.targets
    missed = torch.linalg.vector_norm(torch.where(active, residual, 0.0), dim=1) * layer.size
    above = torch.where(active, 0.0, residual).amax(1) * layer.size
    lam = torch.where(active, lam, lam.clamp(min=0))
    if bool((price == 0).any()):
        count = active.sum(1, keepdim=True)
        lam = torch.where(count > 0, lam - active * (lam.sum(1, keepdim=True) / count.clamp(min=1)), 0.0)
    correlation = layer.correlate(lam).abs()
    stretch = torch.where(price > 0, correlation / price.clamp(min=1e-300), 0.0).amax(1).clamp(min=1.0)
    gain = -(lam * layer.targets).sum(1) / stretch * layer.size
    energy = torch.linalg.vector_norm(torch.where(active, lam, 0.0), dim=1) / stretch
    return torch.stack((above, missed, (u.abs() * price).sum(1) * layer.size, gain, energy))


def shortfall(layer: Layer, parts: Float[Tensor, "5 out"]) -> Shortfall:
    """The shortfall of a layer, from its neurons' shares."""
    above, missed, cost, gain, energy = parts
    violation = above.amax() / (layer.targets.abs().amax(1) * layer.size).amax().clamp(min=1e-300)
    objective = cost.sum()
    if layer.radius is None:
        assert layer.penalty is not None
        bound = (gain - layer.penalty * energy.square() / 2 * layer.size).sum()
        objective = objective + (missed.square() / (2 * layer.penalty * layer.size)).sum()
    elif layer.per_neuron:
        bound = (gain - layer.radius * energy * layer.size).sum()
        radius = layer.radius * layer.size
        scale = torch.linalg.vector_norm(layer.targets, dim=1) * layer.size
        over = (missed - radius) / torch.maximum(radius, scale.square().mean().sqrt()).clamp(min=1e-300)
        violation = torch.maximum(violation, over.amax())
    else:
        bound = gain.sum() - layer.radius * torch.linalg.vector_norm(energy)
        total = torch.linalg.vector_norm(missed)
        scale = torch.linalg.vector_norm(torch.linalg.vector_norm(layer.targets, dim=1) * layer.size)
        violation = torch.maximum(
            violation, (total - layer.radius) / torch.maximum(layer.radius, scale).clamp(min=1e-300)
        )
    usual = layer.size.sum() * layer.inputs.shape[0]  # prices have the number of samples as their median
    return Shortfall(*torch.stack((violation, objective, bound.clamp(min=0.0), usual)).tolist())
