"""ADMM around the user's training loop: constant, growing and progressive."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor

from optprune.errors import InvalidInputError
from optprune.network.plan import Plan
from optprune.training._checks import require
from optprune.training._layers import planned_layers
from optprune.training._splitting import Splitting, norm
from optprune.training.freeze import frozen_masks


@dataclass(eq=False)
class ADMM(Splitting):
    r"""$$W^{t+1} \approx \arg\min_W f(W) + \tfrac{\rho_t}{2} \lVert W - Z^t + \Lambda^t / \rho_t \rVert^2, \quad
      Z^{t+1} = \Pi_{\mathcal F}(W^{t+1} + \Lambda^t / \rho_t), \quad
      \Lambda^{t+1} = \Lambda^t + \rho_t (W^{t+1} - Z^{t+1}), \quad \rho_{t+1} = \gamma \rho_t.$$

    The user's loop does the first step for one period, warm-started; the end of the period does the others. $\Lambda$
    is kept when $\rho$ changes. With $\gamma = 1$ this is the constant schedule, with $\gamma > 1$ that of several
    $\rho$; if then the $W$ stay bounded and their step is solved well, $\lVert W - Z \rVert = O(1 / \rho_t)$. With
    constant $\rho$ and a set that is not convex the iterates may cycle, and no schedule promises a global optimum.

    Progressive pruning goes through other plans first: after `periods` periods with each, its pattern is pruned hard
    and what is zero then stays zero. So a density is lowered in stages, or columns are pruned before filters: a plan of
    `Columns` in `through` and one of `Rows` at the end.

    The patterns of the papers are those of the library: filters are `Rows`, channels of a convolution
    `Blocks(out, height * width, k)`, pattern sparsity of 3 x 3 kernels `NOfM(4, 9)`, with any four taps, not those of a
    list.

    The history holds, per period, `violation` ($\lVert W - Z \rVert$ with the new $Z$, all layers stacked), `change`
    ($\lVert Z^{t+1} - Z^t \rVert$), `multipliers` (the norm of $\Lambda$), `rho`, and `stage`.

    Attributes:
        rho: $\rho_0$.
        growth: $\gamma$, at least 1.
        through: plans for the same layers, gone through before the plan itself.
        periods: how many periods each of them gets.

    References:
        Zhang et al. 2018 (ECCV); Ye et al. 2018 for growing rho and progressive pruning, there with scaled duals that
        are not rescaled.
    """

    _: KW_ONLY
    rho: float = 1e-3
    growth: float = 1.0
    through: tuple[Plan, ...] = ()
    periods: int = 10

    def _check_settings(self) -> None:
        super()._check_settings()
        require(self, "growth", 1 <= self.growth < math.inf, "a finite number >= 1")
        require(self, "periods", self.periods >= 1, "an integer >= 1")

    def _begin(self) -> None:
        self._stages = [planned_layers(self._model, plan) for plan in (*self.through, self._plan)]
        for plan in self.through:
            if list(plan) != list(self._plan):
                raise InvalidInputError(
                    f"through holds a plan for {', '.join(plan)}; plans of the same layers are needed: "
                    f"{', '.join(self._plan)}"
                )
        self._stage = self._within = 0
        self._layers = self._stages[0]
        super()._begin()

    def _end_period(self, loss: float) -> dict[str, float]:
        weights, before = self._weights(), self._copies
        self._copies = self._projected(weights)
        self._move(weights, self._rho)
        facts = {
            "violation": self._violation(weights),
            "change": norm({name: copy - before[name] for name, copy in self._copies.items()}),
            "multipliers": norm(self._multipliers),
            "rho": self._rho,
            "stage": float(self._stage),
        }
        self._rho *= self.growth
        self._within += 1
        if self._stage < len(self.through) and self._within == self.periods:
            self._next_stage()
        self._settle()
        return facts

    def _next_stage(self) -> None:
        """Prune to the stage's pattern for good; what is left starts anew under the next one."""
        held = frozen_masks(self._model)
        masks = {name: layer.support(layer.weight) for name, layer in self._layers.items()}
        self._hold({name: mask & held.get(name, True) for name, mask in masks.items()})
        self._stage, self._within, self._rho = self._stage + 1, 0, self.rho
        self._layers = self._stages[self._stage]
        for name, weight in self._weights().items():
            self._copies[name] = self._layers[name].project(weight)
            self._multipliers[name].zero_()

    def _final_masks(self) -> dict[str, Tensor]:
        """The supports of the nearest admissible weights, through every stage that is left."""
        masks = {}
        for name, last in self._stages[-1].items():
            values = last.weight
            for stage in self._stages[self._stage :]:
                masks[name] = stage[name].support(values) & masks.get(name, True)
                values = torch.where(masks[name], values, 0.0)
        return masks

    def _numbers(self) -> dict[str, Any]:
        return {"rho": self._rho, "stage": self._stage, "within": self._within}

    def _restore(self, numbers: Mapping[str, Any]) -> None:
        self._rho, self._stage, self._within = numbers["rho"], numbers["stage"], numbers["within"]
        self._layers = self._stages[self._stage]
        self._settle()
