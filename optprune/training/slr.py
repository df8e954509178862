"""Surrogate Lagrangian relaxation around the user's training loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

from torch import Tensor

from optprune.bounds.surrogate import step_factor
from optprune.training._checks import require
from optprune.training._splitting import Splitting, inner, norm


@dataclass(eq=False)
class SLR(Splitting):
    r"""$$\max_\Lambda \min_{W,\, Z} L_\rho(W, Z, \Lambda), \qquad
      \Lambda \leftarrow \Lambda + s_k (W - Z), \quad s_k \lVert h_k \rVert = \alpha_k s_{k-1} \lVert h_{k-1} \rVert,
      \quad \alpha_k = 1 - \frac{1}{M k^{1 - k^{-r}}}.$$

    The two sub-problems are improved in turn, and the multipliers move after each of them, provided that it improved.

    *Who calls what, when.* A period is the first sub-problem: `every` steps of the user's optimizer on
    $f + \sum_n \frac{\rho}{2} \lVert W_n - Z_n + \Lambda_n / \rho \rVert^2$, with $Z$, $\Lambda$, $\rho$ and $s$ fixed;
    `penalty` and `step` change none of them. The call of `step` that ends the period then, at once and without the
    loss:

    1. tests the first surrogate condition, $L_\rho(W^k, Z^{k-1}, \Lambda) < L_\rho(W^{k-1}, Z^{k-1}, \Lambda)$.
       $W^{k-1}$ is a clone made when the last period ended. $f$ is what `objective()` returns; without it $f(W^k)$ is
       the mean loss over the period, and $f(W^{k-1})$ that of the period before (in the first period the loss of its
       first step, taken at $W^0$). If it holds, $s$ is updated with $h = W^k - Z^{k-1}$ and $\Lambda$ moves along it;
       if not, both stay.
    2. solves the second sub-problem exactly, $Z^k = \Pi_{\mathcal F}(W^k + \Lambda / \rho)$ with the new $\Lambda$.
    3. tests the second condition, $L_\rho(W^k, Z^k, \Lambda) < L_\rho(W^k, Z^{k-1}, \Lambda)$, where $f$ is the same on
       both sides; it fails only where $Z$ could not be improved. If it holds, $s$ and $\Lambda$ are updated with
       $h = W^k - Z^k$.
    4. grows $\rho$, if it grows. After a rejection the next period trains $W$ on with the $\Lambda$ that was kept.

    $k$ counts accepted half-steps, $\lVert h_{k-1} \rVert$ is the violation of the last accepted one (the first:
    $\lVert W^0 - Z^0 \rVert$ with $Z^0 = \Pi(W^0)$), norms are of all layers stacked. Where $h = 0$ nothing can move,
    and the half-step counts as not accepted.

    Two caveats. The theorem behind the step sizes is about the multipliers: it needs $\prod \alpha_k \to 0$ and $(1 -
    \alpha_k) / s_k \to 0$, which hold for every $M > 1$ (`optprune.bounds.surrogate`), but for $r = 0.1$ not within any
    number of epochs; what one sees is a nearly constant length of the moves. And it says nothing about $W$: the dual
    without a quadratic term is $-\infty$ unless $\Lambda = 0$ or the weights are bounded, and neither the gap nor $W =
    Z$ follows. With a mean over mini-batches in place of $f$ the first condition is a test on an estimate.

    The history holds, per period: `lagrangian_before`, `lagrangian` (the two sides of the first condition), `first` and
    `second` (1 where the condition held), `accepted` (k), `alpha` (of the last accepted half-step), `step_size` (s),
    `violation` (of the last half-step), `multipliers` (the norm of $\Lambda$), `rho`.

    Attributes:
        rho: $\rho_0$.
        step_size: $s_0$.
        M: more than 1; the larger, the slower the moves shrink.
        r: between 0 and 1.
        growth: factor on $\rho$ per period, at least 1; 1 is the method of the paper.
        objective: returns $f$ at the present weights, for instance the mean loss over a fixed part of the data; called
            when the method is attached and at the end of each period.

    Guarantees:
        T22 for the step sizes.

    References:
        Gurevin et al. 2021 (IJCAI); Bragin et al. 2015 for the step rule and its theorem.
    """

    _: KW_ONLY
    rho: float = 0.1
    step_size: float = 1e-2
    M: float = 300.0
    r: float = 0.1
    growth: float = 1.0
    objective: Callable[[], Tensor | float] | None = field(default=None, repr=False)

    def _check_settings(self) -> None:
        super()._check_settings()
        require(self, "step_size", 0 < self.step_size < math.inf, "a finite number > 0")
        require(self, "growth", 1 <= self.growth < math.inf, "a finite number >= 1")
        require(self, "M", 1 < self.M < math.inf, "a finite number > 1")
        require(self, "r", 0 < self.r < 1, "a number between 0 and 1")

    def _begin(self) -> None:
        super()._begin()
        self._before = {name: weight.clone() for name, weight in self._weights().items()}
        self._reference = self._violation(self._before)
        self._s, self._k, self._alpha = self.step_size, 0, 1.0
        self._loss_before = None if self.objective is None else float(self.objective())

    def _after_step(self) -> None:
        if self._loss_before is None:
            self._loss_before = float(self._total)

    def _end_period(self, loss: float) -> dict[str, float]:
        weights = self._weights()
        value = loss if self.objective is None else float(self.objective())
        assert self._loss_before is not None
        before = self._loss_before + self._coupling(self._before)
        after = value + self._coupling(weights)
        first = after < before and self._accept(weights)
        old = self._coupling(weights)
        kept, self._copies = self._copies, self._projected(weights)
        second = self._coupling(weights) < old
        if second:
            second = self._accept(weights)
        else:
            self._copies = kept
        facts = {
            "lagrangian_before": before,
            "lagrangian": after,
            "first": float(first),
            "second": float(second),
            "accepted": float(self._k),
            "alpha": self._alpha,
            "step_size": self._s,
            "violation": self._violation(weights),
            "multipliers": norm(self._multipliers),
            "rho": self._rho,
        }
        for name, weight in weights.items():
            self._before[name].copy_(weight)
        self._loss_before = value
        self._rho *= self.growth
        self._settle()
        return facts

    def _coupling(self, weights: dict[str, Tensor]) -> float:
        r"""$\langle \Lambda, W - Z \rangle + \frac{\rho}{2} \lVert W - Z \rVert^2$, summed in float64."""
        h = {name: weights[name] - copy for name, copy in self._copies.items()}
        return inner(self._multipliers, h) + 0.5 * self._rho * norm(h) ** 2

    def _accept(self, weights: dict[str, Tensor]) -> bool:
        """Update s by the step rule and move the multipliers; False where there is no violation to move along."""
        violation = self._violation(weights)
        if violation == 0.0:
            return False
        self._k += 1
        self._alpha = step_factor(self._k, self.M, self.r)
        self._s *= self._alpha * (self._reference / violation if self._reference else 1.0)
        self._reference = violation
        self._move(weights, self._s)
        return True

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        return super()._tensors() | {"before": self._before}

    def _numbers(self) -> dict[str, Any]:
        return {
            "rho": self._rho,
            "s": self._s,
            "k": self._k,
            "alpha": self._alpha,
            "reference": self._reference,
            "loss_before": self._loss_before,
        }

    def _restore(self, numbers: Mapping[str, Any]) -> None:
        self._rho, self._s, self._k, self._alpha = (numbers[key] for key in ("rho", "s", "k", "alpha"))
        self._reference, self._loss_before = numbers["reference"], numbers["loss_before"]
        self._settle()
