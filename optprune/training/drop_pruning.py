"""Drop Pruning around the user's training loop: weights leave and come back at random while the density settles."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor

from optprune.numerics.sampling import generator
from optprune.numerics.selection import top_k
from optprune.training._checks import require
from optprune.training._masked import Masked

_SALT = 2_654_435_769


@dataclass(eq=False)
class DropPruning(Masked):
    r"""$$\kappa_{t+1} \approx \kappa_t - p_{out} (\kappa_t - \hat\kappa_t)_+ + p_{in}(t) (1 - \kappa_t), \qquad
      \hat\kappa_t = \kappa^\star - \frac{p_{in}(t)}{p_{out}} (1 - \kappa^\star).$$

    At the end of a period, in every budget of every layer: of the kept units, as many as lie above $\hat\kappa_t$, the
    smallest ones, are dropped with probability $p_{out}$ each; of the dropped ones each comes back, with value 0, with
    probability $p_{in}(t)$. The corrected $\hat\kappa_t$ makes the wanted density $\kappa^\star$ the fixed point, which
    is approached at the rate $1 - p_{out} - p_{in}$.

    $p_{in}(t) = c_t \cdot$ `recovery` $\cdot p_{out} \kappa^\star / (1 - \kappa^\star)$, at most $1 - p_{out}$, where
    $c_t$ falls from 1 to 0 like half a cosine over the first four fifths of the rounds; so $\hat\kappa_t \ge 0$ for
    every density. The last of the `rounds` keeps the largest units, exactly as many as the plan says; later periods
    train on.

    The history holds, per period, `density`, `dropped`, `recovered`.

    Attributes:
        rounds: periods until the mask is final.
        drop: $p_{out}$, in (0, 1].
        recovery: in [0, 1].
        seed: of the generator that draws, on the CPU; its state is part of `state_dict`.

    References:
        Jia et al. 2018 for the idea; the probabilities and the correction are derived here, from the recursion above.
    """

    _: KW_ONLY
    rounds: int = 20
    drop: float = 0.5
    recovery: float = 0.1
    seed: int = 0

    def _check_settings(self) -> None:
        require(self, "rounds", self.rounds >= 1, "an integer >= 1")
        require(self, "drop", 0 < self.drop <= 1, "a probability > 0")
        require(self, "recovery", 0 <= self.recovery <= 1, "a number between 0 and 1")

    def _begin(self) -> None:
        super()._begin()
        # Weights are often drawn from a generator with the seed 0; its numbers would go with their sizes.
        self._generator = generator(self.seed + _SALT)
        self._round = 0

    def _next_masks(self) -> dict[str, Tensor]:
        self._round += 1
        if self._round > self.rounds:
            return self._mask
        if self._round == self.rounds:
            return {name: layer.support(layer.weight) for name, layer in self._layers.items()}
        masks = {}
        for name, layer in self._layers.items():
            present = layer.units(self._mask[name])
            parts = zip(layer.scores(layer.weight), present, layer.kept, strict=True)
            masks[name] = layer.mask([self._drawn(scores, now, wanted) for scores, now, wanted in parts])
        return masks

    def _drawn(self, scores: Tensor, now: Tensor, wanted: int | Tensor) -> Tensor:
        """The units `(budgets, units)` of the next period."""
        budgets, units = now.shape
        target = torch.as_tensor(wanted, device=now.device).expand(budgets) / units
        back = self._recovery(target)
        corrected = target - back / self.drop * (1 - target)
        kept = now.sum(-1)
        excess = (kept - corrected * units).round().clamp(min=0).minimum(kept).long()
        smallest = top_k(torch.where(now, -scores, -math.inf), excess)
        dropped = smallest & (self._uniform(now) < self.drop)
        recovered = ~now & (self._uniform(now) < back.unsqueeze(-1))
        return (now & ~dropped) | recovered

    def _recovery(self, target: Tensor) -> Tensor:
        """$p_{in}$ of this round for each budget; 0 where nothing is pruned."""
        share = (self._round - 1) / (0.8 * self.rounds)
        annealed = 0.5 * (1 + math.cos(math.pi * share)) if share < 1 else 0.0
        odds = torch.where(target < 1, target / (1 - target).clamp_min(1e-12), 0.0)
        return (annealed * self.recovery * self.drop * odds).clamp(max=1 - self.drop)

    def _uniform(self, like: Tensor) -> Tensor:
        return torch.rand(like.shape, generator=self._generator).to(like.device)

    def _numbers(self) -> dict[str, Any]:
        return {"round": self._round, "generator": self._generator.get_state()}

    def _restore(self, numbers: Mapping[str, Any]) -> None:
        self._round = numbers["round"]
        self._generator.set_state(numbers["generator"])
