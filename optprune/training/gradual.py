"""Gradual magnitude pruning around the user's training loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor

from optprune.numerics.selection import top_k
from optprune.training._checks import require
from optprune.training._masked import Masked


@dataclass(eq=False)
class Gradual(Masked):
    r"""$$\kappa_t = \kappa^\star + (1 - \kappa^\star) \Bigl(1 - \frac{t}{T}\Bigr)^3, \qquad t = 1, \dots, T:$$

    at the end of period t every budget keeps its largest units up to that density; what is pruned stays pruned. From
    period $T$ = `rounds` on the mask is final.

    The history holds, per period, `density`, `dropped`, `recovered` (always 0).

    Attributes:
        rounds: $T$.

    References:
        Zhu & Gupta 2017, eq. (1).
    """

    _: KW_ONLY
    rounds: int = 20

    def _check_settings(self) -> None:
        require(self, "rounds", self.rounds >= 1, "an integer >= 1")

    def _begin(self) -> None:
        super()._begin()
        self._round = 0

    def _next_masks(self) -> dict[str, Tensor]:
        self._round += 1
        if self._round > self.rounds:
            return self._mask
        left = (1 - self._round / self.rounds) ** 3
        masks = {}
        for name, layer in self._layers.items():
            units = []
            for scores, kept in zip(layer.scores(layer.weight), layer.kept, strict=True):
                wanted = torch.as_tensor(kept, device=scores.device)
                now = (wanted + left * (scores.shape[-1] - wanted) + 0.5).floor().long()
                units.append(top_k(scores, now))
            masks[name] = layer.mask(units) & self._mask[name]
        return masks

    def _numbers(self) -> dict[str, Any]:
        return {"round": self._round}

    def _restore(self, numbers: Mapping[str, Any]) -> None:
        self._round = numbers["round"]
