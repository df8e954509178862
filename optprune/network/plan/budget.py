"""What shares one budget of the network, and whole counts that spend it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from optprune.errors import InvalidInputError
from optprune.network.allocation import Allocation, Optimum, require_costs
from optprune.network.calibration import Forward, calibration, device_of, evaluating, survey
from optprune.network.capture import layer_uses
from optprune.network.layers import Adapter, candidates, named_adapters
from optprune.network.plan.rules import Rules, assemble, resolve
from optprune.network.targets import Plan, Rule
from optprune.patterns import Pattern, PerLayer, Shape
from optprune.patterns._base import count_at


def _shared(shape: Shape) -> Pattern:
    """The rule of the layers that share the budget, before they have one."""
    return PerLayer(shape[0] * shape[1])


@dataclass(frozen=True)
class Shared:
    """The layers that share one budget.

    Attributes:
        model: theirs.
        adapters: of the layers that share.
        costs: of one kept weight of each.
        budget: for all of them together.
        rules: of all planned layers; those of the layers that share are still open.
    """

    model: nn.Module
    adapters: dict[str, Adapter]
    costs: dict[str, int]
    budget: int
    rules: Rules

    @property
    def sizes(self) -> list[int]:
        """Weights of each layer."""
        return [math.prod(adapter.shape) for adapter in self.adapters.values()]

    def plan(
        self, method: str, targets: Mapping[str, Pattern], settings: Mapping[str, Any], optimum: Optimum | None = None
    ) -> Plan:
        """The plan in which the layers have got their targets."""
        spent = 0
        for name, adapter in self.adapters.items():
            parts = targets[name].split(adapter.groups, adapter.shape)
            own = (adapter.shape[0] // adapter.groups, adapter.shape[1])
            spent += self.costs[name] * sum(part.count(own) for part in parts)
        allocation = Allocation(method, self.budget, spent, self.costs, settings, optimum)
        return assemble(self.model, self.rules | dict(targets), allocation)


def share(
    model: nn.Module,
    density: float,
    cost: Mapping[str, int] | None,
    skip: str | Iterable[str],
    override: Mapping[str, Rule] | None,
) -> Shared:
    """The layers that are neither skipped nor overridden, and `density` of what their weights cost.

    Raises:
        InvalidInputError: the density is no fraction, a cost is missing, a name matches no layer, or no layer shares.
        UnsupportedError: a layer cannot be pruned as it is; names it.
    """
    rules = resolve(model, _shared, skip, override)
    adapters = named_adapters(model, [name for name, rule in rules.items() if rule is _shared])
    if not adapters:
        raise InvalidInputError("every layer is skipped or overridden; none is left to share the budget")
    costs = dict.fromkeys(adapters, 1) if cost is None else require_costs(cost, list(adapters))
    total = sum(costs[name] * math.prod(adapter.shape) for name, adapter in adapters.items())
    return Shared(model, adapters, costs, count_at(density, total), rules)


def macs(
    model: nn.Module, batches: Iterable[Any], *, forward: Forward | None = None, memory: int = 2**30
) -> dict[str, int]:
    """Multiplications per sample of one kept weight, per layer: the positions of a convolution, 1 for a linear layer.

    Given as `cost` to a planner, its density is the fraction of the dense network's multiplications that is kept.

    Args:
        model: put into evaluation mode for the time of the call.
        batches: one batch that reaches every layer is enough.
        forward: runs the model on a batch of another kind.
        memory: bytes for an iterator that can be read only once.

    Raises:
        InvalidInputError: no data, or a layer that is never reached; names it.
    """
    adapters = named_adapters(model, candidates(model))
    with evaluating(model):
        data = calibration(model, batches, forward, device_of(model, None), memory)
        survey(data)
        return layer_uses(model, adapters, data)


def above(scores: Sequence[Tensor], costs: Sequence[int], budget: int) -> list[int]:
    """Counts of each layer above one threshold on the scores of all weights.

    Weights enter by descending score, the first layer's first among equals, as long as the budget lasts.

    Args:
        scores: per layer, a number per weight `(size,)`.
        costs: of one weight of each layer.
        budget: for all together.
    """
    order = torch.cat(list(scores)).argsort(descending=True, stable=True)
    layer = torch.repeat_interleave(torch.arange(len(scores)), torch.tensor([len(own) for own in scores]))[order]
    spent = torch.tensor(costs)[layer].cumsum(0)
    return torch.bincount(layer[spent <= budget], minlength=len(scores)).tolist()


def levelled(
    density: Callable[[float], Sequence[float]], sizes: Sequence[int], costs: Sequence[int], budget: int
) -> list[int]:
    r"""Whole counts at the level $t$ where $\sum_l \kappa_l s_l\, \rho_l(t)$ meets the budget.

    Densities $\rho_l(t)$, cut to [0, 1], must not fall with $t$, be 0 somewhere and 1 somewhere. Counts are rounded
    down; what is left goes to the largest fractions, and then to whatever it still buys.
    """

    def exact(level: float) -> list[float]:
        return [size * min(1.0, max(0.0, share)) for size, share in zip(sizes, density(level), strict=True)]

    def price(level: float) -> float:
        return math.fsum(cost * count for cost, count in zip(costs, exact(level), strict=True))

    low, high = -1.0, 1.0
    while price(high) < min(budget, sum(c * s for c, s in zip(costs, sizes, strict=True))):
        high *= 2
    while price(low) > budget:
        low *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if price(middle) <= budget else (low, middle)
    wanted = exact(low)
    counts = [math.floor(count) for count in wanted]
    left = budget - sum(cost * count for cost, count in zip(costs, counts, strict=True))
    by_fraction = sorted(range(len(sizes)), key=lambda i: counts[i] - wanted[i])
    for most in (1, None):
        for i in by_fraction:
            extra = min(sizes[i] - counts[i], left // costs[i], *(() if most is None else (most,)))
            counts[i] += extra
            left -= costs[i] * extra
    return counts
