"""The first-order phase of the Net-Trim solver: ADMM with one linear system for every penalty."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from optprune.solvers._net_trim_layer import Layer, ball_multiplier
from optprune.solvers._net_trim_linear import linear_step

_TINY, _NOISE = 1e-30, 1e-6
_LEAST = 0.05
_PENALTY = 60.0


@dataclass(frozen=True, eq=False)
class State:
    """Splitting $t = Xw$, $s = w$ with scaled multipliers; neurons first.

    Plain tensors: a state is made at every step, and checking its shapes would cost more than the step.

    Attributes:
        s: `(out, d)`.
        t: `(out, n)`.
        pull: multipliers of $s = w$ over the penalty `(out, d)`.
        press: those of $t = Xw$ `(out, n)`.
        rho: penalty `(out,)`.
        mu: the ball's multiplier `(out,)`.
        primal: relative primal residual when last measured `(out,)`.
        dual: relative dual residual `(out,)`.
        weight: $c$, the weight of $s = w$ against $t = Xw$.
    """

    s: Tensor
    t: Tensor
    pull: Tensor
    press: Tensor
    rho: Tensor
    mu: Tensor
    primal: Tensor
    dual: Tensor
    weight: float

    def to(self, dtype: torch.dtype) -> State:
        """The same state in another precision."""
        changed = {name: tensor.to(dtype) for name, tensor in vars(self).items() if isinstance(tensor, Tensor)}
        return replace(self, **changed)

    @property
    def lam(self) -> Float[Tensor, "out n"]:
        r"""The multipliers of $t = Xw$, unscaled."""
        return self.press * self.rho[:, None]


class FirstOrder:
    r"""ADMM on $\min \sum p_j|s_j| + h(t)$ subject to $t = Xw$, $s = w$, in the norm $\lVert t \rVert^2 + c
    \lVert s \rVert^2$.

    The linear step solves with $X^\top X + cI$ whatever the penalty $\rho$ is, so that every neuron can
    have its own and change it; by one factor, or by conjugate gradients where that would be too large.
    $\rho$ balances the relative residuals, the scaled multipliers are rescaled with it.

    All of it is in float32, whose rounding is far below the residual at which this phase ends.

    References:
        Aghasi, Abdi, Romberg 2020, Algorithm 1 (there $c = 1$ and $\rho$ fixed); Boyd et al. 2011, section 3.4.
    """

    def __init__(self, layer: Layer, relaxation: float, linear: str = "auto") -> None:
        self.exact, self.layer, self.relaxation = layer, layer.to(torch.float32), relaxation
        self.weight = float(layer.inputs.mean_square().sum())
        self.weight = self.weight if self.weight > 0 else 1.0
        self._mask = self.layer.active.to(torch.float32)
        self.linear = linear_step(layer, self.layer, self.weight, linear)

    def with_radius(self, radius: Float[Tensor, "..."]) -> FirstOrder:
        """The same linear system for another radius, in solver units."""
        other = copy(self)
        other.exact = replace(self.exact, radius=radius)
        other.layer = replace(self.layer, radius=radius.to(torch.float32))
        return other

    def start(self) -> State:
        """Everything at zero, the penalties near where they mostly end."""
        layer = self.layer
        out, samples = layer.targets.shape
        d = layer.inputs.shape[1]
        zero = layer.targets.new_zeros
        ones = layer.targets.new_ones(out)
        mu = 1 / layer.size if layer.penalty is None else layer.penalty
        return State(
            zero(out, d),
            zero(out, samples),
            zero(out, d),
            zero(out, samples),
            ones * _PENALTY,
            mu,
            ones * torch.inf,
            ones * torch.inf,
            self.weight,
        )

    def step(self, state: State, measure: bool = False) -> State:
        """One over-relaxed step; with `measure` its relative residuals are taken, without they are carried on.

        Neurons x samples are many numbers: what is made here is changed in place.
        """
        layer, c = self.layer, self.weight
        right = layer.correlate(state.t - state.press).add_(state.s - state.pull, alpha=c)
        w = self.linear.solve(right, torch.maximum(state.primal, state.dual))
        through = layer.forward(w)
        above = torch.lerp(state.t, through, self.relaxation).add_(state.press).sub_(layer.targets)
        on = above * self._mask
        mu = ball_multiplier(layer, torch.linalg.vector_norm(on, dim=1), state.rho, state.mu)
        t = above + layer.targets
        # On active samples a share of the way back to the target, off them all that is above the ceiling.
        press = above.sub_(on).clamp_(min=0).addcmul_(on, 1 / (1 + mu * state.rho)[:, None])
        t.sub_(press)
        ahead = torch.lerp(state.s, w, self.relaxation).add_(state.pull)
        threshold = layer.price / (state.rho[:, None] * c)
        pull = ahead.clamp(-threshold, threshold)
        s = ahead.sub_(pull)
        primal, dual = state.primal, state.dual
        if measure:
            # Targets have unit mean square: of a neuron that all but vanishes no more is asked than of them.
            least = _LEAST * t.shape[1] ** 0.5
            primal = _norm(t - through, s - w, c) / _norm(t, s, c).clamp(min=least)
            dual = _norm(t - state.t, s - state.s, c) / _norm(press, pull, c).clamp(min=_TINY)
        return State(s, t, pull, press, state.rho, mu, primal, dual, c)

    def rebalance(self, state: State) -> State:
        """A new penalty per neuron from the last measured residuals."""
        ratio = (state.primal.clamp(min=_NOISE) / state.dual.clamp(min=_NOISE)).sqrt().clamp(0.1, 10.0)
        ratio = torch.where((ratio > 1.5) | (ratio < 0.67), ratio, 1.0)
        scale = (1 / ratio)[:, None]
        return State(
            state.s,
            state.t,
            state.pull * scale,
            state.press * scale,
            state.rho * ratio,
            state.mu,
            state.primal,
            state.dual,
            state.weight,
        )


def _norm(t: Tensor, s: Tensor, weight: float) -> Tensor:
    return (t.square().sum(1) + weight * s.square().sum(1)).sqrt()
