"""Methods that hold a mask from the first step on and change it from period to period."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from optprune.training._base import Method


@dataclass(eq=False)
class Masked(Method):
    """The weights outside of a mask are zero after every step; the end of a period chooses the next mask.

    What the optimizer remembers of a pruned weight is erased, if it is known, so that a weight that comes back has
    value 0 and no momentum. `penalty` is 0: these methods leave the loss alone.
    """

    def _begin(self) -> None:
        self._mask = {name: torch.ones_like(layer.weight, dtype=torch.bool) for name, layer in self._layers.items()}
        self._hold(self._mask)

    def _end_period(self, loss: float) -> dict[str, float]:
        before = {name: mask.clone() for name, mask in self._mask.items()}
        for name, mask in self._next_masks().items():
            self._mask[name].copy_(mask)
        self._hold(self._mask)
        total = sum(mask.numel() for mask in before.values())
        return {
            "density": sum(int(mask.sum()) for mask in self._mask.values()) / total,
            "dropped": float(sum(int((before[name] & ~mask).sum()) for name, mask in self._mask.items())),
            "recovered": float(sum(int((mask & ~before[name]).sum()) for name, mask in self._mask.items())),
        }

    @abstractmethod
    def _next_masks(self) -> dict[str, Tensor]:
        """The masks of the next period, in the shape of the weights."""

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        return {"mask": self._mask}
