"""Training under an l0 constraint: projected steps with masks that stay for a while, per layer or with one budget."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from optprune.errors import InvalidInputError, layer_context
from optprune.network.calibration import Forward, calibration, device_of, evaluating
from optprune.network.layers import named_adapters
from optprune.network.plan import Plan
from optprune.patterns import Fixed, PerLayer
from optprune.training._layers import PlannedLayer
from optprune.training._masked import Masked


@dataclass(frozen=True)
class Budget:
    r"""$\sum_l c_l \lvert S_l \rvert \le C$: one budget for all layers.

    Attributes:
        total: $C$.
        costs: $c_l$, what a kept weight of a layer costs: 1 without it, so that weights are counted;
            `multiplications(model, plan, batches)` for multiply-accumulates.

    Raises:
        InvalidInputError: a negative budget, a cost that is not positive and finite.
    """

    total: float
    costs: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        costs = list((self.costs or {}).values())
        if not (self.total >= 0 and all(0 < cost < math.inf for cost in costs)):
            raise InvalidInputError(
                f"Budget({self.total}, {self.costs}) given; a total >= 0 and finite costs > 0 are needed"
            )

    def select(self, weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        r"""Keep weights of the masks in the order of $w^2 / c$ as long as the budget lasts.

        With equal costs this is the exact projection. With unequal ones it is the greedy rule for a knapsack, whose
        kept sum of squares is smaller than the best by less than the one weight at which the budget ends.

        Raises:
            InvalidInputError: a layer without a cost.
        """
        if self.costs is not None and (missing := [name for name in weights if name not in self.costs]):
            raise InvalidInputError(f"no cost for '{missing[0]}' in the budget; give one for every planned layer")
        cost = {name: 1.0 if self.costs is None else float(self.costs[name]) for name in weights}
        ratios = [
            torch.where(masks[name], weight.double().square() / cost[name], -1.0).flatten()
            for name, weight in weights.items()
        ]
        prices = torch.cat([torch.full_like(ratio, cost[name]) for name, ratio in zip(weights, ratios, strict=True)])
        order = torch.cat(ratios).argsort(descending=True, stable=True)
        order = order[: sum(int(mask.sum()) for mask in masks.values())]
        fits = prices[order].cumsum(0) <= self.total * (1 + 1e-12)
        chosen = torch.zeros(len(prices), dtype=torch.bool, device=prices.device)
        chosen[order[fits]] = True
        parts = chosen.split([weight.numel() for weight in weights.values()])
        return {name: part.reshape(weights[name].shape) for name, part in zip(weights, parts, strict=True)}


def multiplications(
    model: nn.Module, plan: Plan, batches: Iterable[Any], *, forward: Forward | None = None
) -> dict[str, float]:
    """Multiply-accumulates per sample that one weight of each planned layer takes part in: its output positions.

    Args:
        model: left as it is.
        plan: the layers.
        batches: the first one is run.
        forward: runs the model on a batch of another kind.

    Raises:
        InvalidInputError: a layer that the batch does not reach; names it.
    """
    adapters = named_adapters(model, plan)
    counts: dict[str, float] = dict.fromkeys(adapters, 0.0)
    samples: list[int] = []
    data = calibration(model, batches, forward, device_of(model, None), 2**30)

    def top(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        samples.append(len(next(iter([*args, *kwargs.values()]))))

    def count(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            counts[name] += adapters[name].outputs(output).shape[1]

        return hook

    handles = [adapter.module.register_forward_hook(count(name)) for name, adapter in adapters.items()]
    handles.append(model.register_forward_pre_hook(top, with_kwargs=True))
    try:
        with evaluating(model):
            data.run(model, next(iter(data)))
    finally:
        for handle in handles:
            handle.remove()
    for name, positions in counts.items():
        with layer_context(name):
            if not positions:
                raise InvalidInputError("it is not reached by the first batch; skip it in the plan")
    return {name: positions / sum(samples) for name, positions in counts.items()}


@dataclass(eq=False)
class IHT(Masked):
    r"""$W \leftarrow \Pi_{\mathcal F}(W - \eta g)$ once per period; in between, steps on the support that was found.

    The last step of a period is open: the optimizer moves every weight, and the projection that follows chooses anew.
    With `every=1` and plain gradient descent this is iterative hard thresholding: for a loss with an $L$-Lipschitz
    gradient and $\eta < 1/L$ full gradients make the loss fall monotonically, and limits are fixed points of the
    projected step. With mini-batches, momentum or adaptive steps neither is promised. An adaptive optimizer moves every
    weight by about its rate, whatever the gradient's size: an open step then lets weights compete that only a rate
    separates. The first period trains without a mask.

    The history holds, per period, `density`, `dropped` and `recovered` (weights that left and joined the support).

    Attributes:
        budget: one budget for all layers; the plan is then what each layer may keep at most (density 1 for no limit),
            in a pattern of single weights. The report is about the counts that each layer ended with.

    References:
        Blumensath & Davies 2009; Phan et al. 2020 for budgets per layer.
    """

    _: KW_ONLY
    budget: Budget | None = field(default=None)

    def _begin(self) -> None:
        if self.budget is not None:
            for name, layer in self._layers.items():
                with layer_context(name):
                    _require_single(layer)
        super()._begin()
        self._open()

    def _after_step(self) -> None:
        self._open()

    def _end_period(self, loss: float) -> dict[str, float]:
        facts = super()._end_period(loss)
        self._open()
        return facts

    def _open(self) -> None:
        """Let go where the next step is the last of a period, and before the first projection."""
        if (self._steps + 1) % self.every == 0:
            assert self._frozen is not None
            self._frozen.release()

    def _next_masks(self) -> dict[str, Tensor]:
        return self._final_masks()

    def _final_masks(self) -> dict[str, Tensor]:
        masks = super()._final_masks()
        if self.budget is None:
            return masks
        return self.budget.select({name: layer.weight for name, layer in self._layers.items()}, masks)

    def _final_plan(self) -> Plan:
        if self.budget is None:
            return self._plan
        return replace(self._plan, targets={name: _held(layer) for name, layer in self._layers.items()})


def _require_single(layer: PlannedLayer) -> None:
    if any(pattern.layout(layer.shape)[2] != 1 for pattern in layer.patterns):
        raise InvalidInputError(
            f"{layer.patterns[0]} given with one budget for all layers, which chooses single weights; plan PerLayer, "
            "PerRow or NOfM as the most that a layer may keep"
        )


def _held(layer: PlannedLayer) -> PerLayer | Fixed:
    """The pattern that a layer ended with; the groups of a convolution need not have equal counts."""
    mask = layer.weight.reshape(layer.adapter.shape) != 0
    return PerLayer(int(mask.sum())) if layer.adapter.groups == 1 else Fixed(mask.cpu())
