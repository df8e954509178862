r"""Weights split in two, $W$ with the loss and $Z$ with the pattern, tied by multipliers and a quadratic penalty."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from optprune.errors import InvalidInputError, layer_context
from optprune.training._base import Method
from optprune.training._checks import require

WIDE = torch.float32
"""Copies and multipliers of weights in half precision are kept in this."""


@dataclass(eq=False)
class Splitting(Method):
    r"""$$L_\rho(W, Z, \Lambda) = f(W) + \sum_n \langle \Lambda_n, W_n - Z_n \rangle
      + \frac{\rho}{2} \sum_n \lVert W_n - Z_n \rVert_F^2, \qquad \operatorname{supp} Z_n \in \mathcal F_n.$$

    `penalty` is $L_\rho - f$, a function of the live $W$. The multipliers $\Lambda$ are stored as they stand here, not
    divided by $\rho$: a change of $\rho$ leaves them alone, which is what rescaling scaled duals is for.

    Attributes:
        rho: $\rho$ of the first period.
    """

    _: KW_ONLY
    rho: float

    def _check_settings(self) -> None:
        require(self, "rho", 0 < self.rho < math.inf, "a finite number > 0")

    def _begin(self) -> None:
        self._rho = self.rho
        self._copies = {name: layer.project(_wide(layer.weight)).clone() for name, layer in self._layers.items()}
        self._multipliers = {name: torch.zeros_like(copy) for name, copy in self._copies.items()}
        self._penalised = False
        self._settle()

    @property
    def copies(self) -> dict[str, Tensor]:
        """$Z$ by layer, in the shape of the weights; copies."""
        self._require_attached("copies")
        return {name: copy.clone() for name, copy in self._copies.items()}

    @property
    def multipliers(self) -> dict[str, Tensor]:
        r"""$\Lambda$ by layer; copies. The scaled duals are $\Lambda / \rho$."""
        self._require_attached("multipliers")
        return {name: multiplier.clone() for name, multiplier in self._multipliers.items()}

    def penalty(self) -> Tensor:
        r"""$L_\rho - f = \sum_n \frac{\rho}{2} \lVert W_n - Z_n + \Lambda_n / \rho \rVert^2
        - \frac{1}{2\rho} \lVert \Lambda_n \rVert^2$, differentiable in $W$; 0 after hard pruning.

        Raises:
            InvalidInputError: before `attach`, after `finish`, or the model is not the one that was attached.
        """
        zero = super().penalty()
        if self._pruned:
            return zero
        self._penalised = True
        squares = [
            F.mse_loss(_wide(layer.parameter), self._anchors[name], reduction="sum")
            for name, layer in self._layers.items()
        ]
        return torch.stack(squares).sum() * (self._rho / 2) - self._constant

    def step(self, loss: Tensor | float | None = None) -> None:
        super().step(loss)
        self._penalised = False

    def _require_running(self, call: str) -> None:
        super()._require_running(call)
        if call == "step" and not (self._pruned or self._penalised):
            raise InvalidInputError(
                f"step without penalty: {type(self).__name__} prunes through its penalty; call "
                "(loss + method.penalty()).backward() before every step of the optimizer"
            )
        for name, layer in self._layers.items():
            if layer.parameter.device != self._copies[name].device:
                with layer_context(name):
                    raise InvalidInputError(
                        f"its weight was moved from {self._copies[name].device} to {layer.parameter.device} after "
                        "attach; move the model first, then attach"
                    )

    def _weights(self) -> dict[str, Tensor]:
        return {name: _wide(layer.weight) for name, layer in self._layers.items()}

    def _settle(self) -> None:
        r"""Form what the penalty needs of $Z$, $\Lambda$ and $\rho$, which stay as they are through a period."""
        self._anchors = {name: self._copies[name] - m / self._rho for name, m in self._multipliers.items()}
        self._constant = norm(self._multipliers) ** 2 / (2 * self._rho)

    def _projected(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        r"""$\Pi(W + \Lambda / \rho)$, the exact minimiser of $L_\rho$ over $Z$."""
        return {
            name: layer.project(weights[name] + self._multipliers[name] / self._rho)
            for name, layer in self._layers.items()
        }

    def _move(self, weights: dict[str, Tensor], step: float) -> None:
        r"""$\Lambda \leftarrow \Lambda + s (W - Z)$."""
        for name, multiplier in self._multipliers.items():
            multiplier.add_(weights[name] - self._copies[name], alpha=step)

    def _violation(self, weights: dict[str, Tensor]) -> float:
        r"""$\lVert W - Z \rVert$, all layers stacked, in float64."""
        return norm({name: weights[name] - copy for name, copy in self._copies.items()})

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        return {"copies": self._copies, "multipliers": self._multipliers}


def norm(tensors: dict[str, Tensor]) -> float:
    """The norm of all tensors stacked, in float64."""
    return math.sqrt(sum(float(torch.linalg.vector_norm(t, dtype=torch.float64)) ** 2 for t in tensors.values()))


def inner(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """The inner product of all tensors stacked, summed in float64."""
    return sum(float((a[name] * b[name]).sum(dtype=torch.float64)) for name in a)


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.to(WIDE)
