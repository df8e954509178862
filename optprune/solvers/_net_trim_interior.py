"""An interior point method for the few Net-Trim neurons at which Newton's steps get stuck."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from optprune.solvers._net_trim_layer import Layer
from optprune.solvers._net_trim_systems import CHUNK

_STEPS = 80
_TO_BOUNDARY = 0.99
_DONE = 1e-10
_FEASIBLE = 1e-6  # what rounding leaves at a vertex that few samples hold; only the pieces are taken from there
_LEAST_RADIUS, _LEAST_WEIGHT = 1e-7, 1e-6


@dataclass(frozen=True, eq=False)
class Central:
    """Neurons near their optimum, from inside.

    Attributes:
        u: weights `(rows, d)`.
        lam: multipliers `(rows, n)`.
        mu: the ball's multiplier `(rows,)`.
        support: weights that outweigh their distance to being priced out `(rows, d)`.
        tight: ceilings whose multiplier outweighs what is left below them `(rows, n)`.
        done: which neurons got there.
    """

    u: Float[Tensor, "rows d"]
    lam: Float[Tensor, "rows n"]
    mu: Float[Tensor, " rows"]
    support: Bool[Tensor, "rows d"]
    tight: Bool[Tensor, "rows n"]
    done: Bool[Tensor, " rows"]


def interior(layer: Layer, rows: Int[Tensor, " rows"], mu: Float[Tensor, " rows"]) -> Central:
    r"""The neurons `rows` by a primal-dual interior point method, those with a ball of their own with that ball, the
    others at the given multipliers; a few at a time.

    With $u = a - b$, $a, b \ge 0$, and slacks $s$ of the ceilings and $\kappa$ of the ball, the conditions are $p \pm
    X^\top \lambda \ge 0$, complementary to $a$ and $b$, $\lambda = \eta r$ on active samples, $\lambda = w \ge 0$
    off them, complementary to $s$, and $\eta \kappa = 0$. A step solves with $\eta X_\Omega^\top X_\Omega +
    X_{\Omega^c}^\top \operatorname{diag}(w / s) X_{\Omega^c} + \frac{\eta}{\kappa} h h^\top + \operatorname{diag}(
    a / z_a + b / z_b)^{-1}$, $h = X_\Omega^\top r$, `(d, d)`. Points need not be feasible before the end.

    Args:
        layer: the problem.
        rows: which neurons.
        mu: their multipliers; where a neuron has its own ball, the start.

    References:
        Mehrotra 1992; Wright 1997, chapter 10.
    """
    samples, d = layer.inputs.shape
    parts = [_solve(layer, own, at) for own, at in _split(rows, mu, max(CHUNK // (samples * d), 1))]
    names = Central.__dataclass_fields__
    return Central(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})


def _split(rows: Tensor, mu: Tensor, count: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(rows.split(count), mu.split(count), strict=True))


@dataclass(frozen=True, eq=False)
class _Iterate:
    r"""$u = a - b$ with $a, b > 0$ and their reduced prices, slacks $s > 0$ and multipliers $w > 0$ of the ceilings,
    slack $\kappa$ and multiplier $\eta = 1/\mu$ of the ball $\tfrac12 \lVert r \rVert^2 \le \tfrac12 \varepsilon^2$.
    What is not there (slacks of active samples, parts of a free weight, a ball that is none) is 1 and stays.
    """

    free: Tensor
    a: Tensor
    b: Tensor
    price_a: Tensor
    price_b: Tensor
    s: Tensor
    w: Tensor
    kappa: Tensor
    eta: Tensor

    PAIRS = (("a", "price_a"), ("b", "price_b"), ("s", "w"), ("kappa", "eta"))

    @property
    def u(self) -> Tensor:
        return self.free + self.a - self.b


def _solve(layer: Layer, rows: Tensor, mu: Tensor) -> Central:
    frame = _Frame.of(layer, rows)
    state = frame.start(mu)
    done = torch.zeros_like(mu, dtype=torch.bool)
    for _ in range(_STEPS):
        residual = frame.residual(state)
        done = done | frame.small(state, residual)
        if bool(done.all()):
            break
        state = frame.advance(state, residual, done)
    lam = torch.where(frame.on, state.eta[:, None] * frame.missed(state.u), torch.where(frame.off, state.w, 0.0))
    u = state.u
    # In units in which weights and prices are at most about 1.
    size = torch.maximum(state.a, state.b) / u.abs().amax(1, keepdim=True).clamp(min=_LEAST_WEIGHT)
    reduced = torch.minimum(state.price_a, state.price_b) / torch.where(frame.priced, layer.price, 1.0)
    support = (size > reduced) | ~frame.priced
    tight = frame.off & (state.w / lam.abs().amax(1, keepdim=True).clamp(min=1e-300) > state.s)
    return Central(u, lam, 1 / state.eta, support, tight, done)


@dataclass(frozen=True, eq=False)
class _Frame:
    """What stays the same: some neurons of a layer, and which of an iterate's parts there are."""

    layer: Layer
    targets: Tensor
    on: Tensor
    off: Tensor
    priced: Tensor
    radius: Tensor | None

    @classmethod
    def of(cls, layer: Layer, rows: Tensor) -> _Frame:
        targets, on = layer.targets[rows], layer.active[rows]
        radius = None
        if layer.per_neuron:
            assert layer.radius is not None
            size = torch.linalg.vector_norm(torch.where(on, targets, 0.0), dim=1)
            # A ball needs an inside, also that around no samples.
            radius = torch.maximum(layer.radius[rows], torch.where(size > 0, _LEAST_RADIUS * size, 1.0))
        return cls(layer, targets, on, ~on, layer.price > 0, radius)

    def start(self, mu: Tensor) -> _Iterate:
        ones = torch.ones_like(self.targets[:, :1] * self.layer.price)
        price = torch.where(self.priced, self.layer.price, 1.0) * ones
        s = torch.where(self.off, self.targets.clamp(min=1.0), 1.0)
        kappa = torch.ones_like(mu) if self.radius is None else self.radius.square() / 2
        return _Iterate(torch.zeros_like(ones), ones, ones, price, price.clone(), s, torch.ones_like(s), kappa, 1 / mu)

    def missed(self, u: Tensor) -> Tensor:
        """The residual on active samples, 0 elsewhere."""
        return torch.where(self.on, self.layer.forward(u) - self.targets, 0.0)

    def residual(self, state: _Iterate) -> dict[str, Tensor]:
        """How far the linear (and the ball's) equations are from holding, and what they are made of."""
        through = self.layer.forward(state.u)
        missed = torch.where(self.on, through - self.targets, 0.0)
        lam = torch.where(self.on, state.eta[:, None] * missed, state.w)
        slope = self.layer.correlate(lam)
        price = self.layer.price
        ball = torch.zeros_like(state.kappa)
        if self.radius is not None:
            ball = (self.radius.square() - missed.square().sum(1)) / 2 - state.kappa
        return {
            "missed": missed,
            "slope": slope,
            "a": torch.where(self.priced, price + slope - state.price_a, 0.0),
            "b": torch.where(self.priced, price - slope - state.price_b, 0.0),
            "s": torch.where(self.off, self.targets - through - state.s, 0.0),
            "kappa": ball,
        }

    def products(self, state: _Iterate) -> Tensor:
        """The sum of the complementary products."""
        total = ((state.a * state.price_a + state.b * state.price_b) * self.priced).sum(1)
        total = total + torch.where(self.off, state.s * state.w, 0.0).sum(1)
        return total if self.radius is None else total + state.kappa * state.eta

    def count(self) -> Tensor:
        ball = 0 if self.radius is None else 1
        return 2 * self.priced.sum() + self.off.sum(1) + ball

    def small(self, state: _Iterate, residual: dict[str, Tensor]) -> Tensor:
        """Near enough to the optimum (written so that NaN is not)."""
        # Next to nothing is little compared with one weight of size 1.
        objective = ((state.a + state.b) * self.layer.price).sum(1) + self.layer.inputs.shape[0]
        prices = torch.maximum(residual["a"].abs(), residual["b"].abs()) / self.layer.price.clamp(min=1e-300)
        free = torch.where(self.priced, 0.0, residual["slope"]).abs().amax(1) / self.layer.inputs.shape[0]
        outside = residual["s"].abs().amax(1)
        ball = 0.0 if self.radius is None else residual["kappa"].abs() / self.radius.square()
        linear = torch.where(self.priced, prices, 0.0).amax(1) + free + outside + ball
        return (self.products(state) <= _DONE * objective) & (linear <= _FEASIBLE)

    def advance(self, state: _Iterate, residual: dict[str, Tensor], done: Tensor) -> _Iterate:
        """Mehrotra's predictor and corrector on one factorisation."""
        inverse = torch.where(self.priced, 1 / (state.a / state.price_a + state.b / state.price_b), 0.0)
        weight = torch.where(self.on, state.eta[:, None], state.w / state.s)
        system = self.layer.inputs.weighted_gram(weight)
        pull = self.layer.correlate(residual["missed"])
        if self.radius is not None:
            system += (state.eta / state.kappa)[:, None, None] * pull[:, :, None] * pull[:, None, :]
        system.diagonal(dim1=1, dim2=2).add_(inverse)
        # Far along the path the diagonal spans many powers of ten.
        scale = system.diagonal(dim1=1, dim2=2).rsqrt()
        system.mul_(scale[:, :, None]).mul_(scale[:, None, :]).diagonal(dim1=1, dim2=2).add_(1e-14)
        factor, failed = torch.linalg.cholesky_ex(system)

        def move(goal: dict[str, Tensor]) -> dict[str, Tensor]:
            return self._move(state, residual, goal, inverse, weight, pull, scale, factor)

        nothing = {name: torch.zeros_like(getattr(state, name)) for name, _ in _Iterate.PAIRS}
        trial = move(nothing)
        length = self._length(state, trial)
        ahead = _moved(state, trial, length)
        average = self.products(state) / self.count()
        centred = average * (self.products(ahead) / self.products(state)).clamp(0.0, 1.0) ** 3
        goal = {
            one: centred.reshape(-1, *[1] * (trial[one].dim() - 1)) - trial[one] * trial[two]
            for one, two in _Iterate.PAIRS
        }
        step = move(goal)
        length = _TO_BOUNDARY * self._length(state, step)
        return _moved(state, step, torch.where(done | (failed > 0), 0.0, length.clamp(max=1.0)))

    def _move(
        self,
        state: _Iterate,
        residual: dict[str, Tensor],
        goal: dict[str, Tensor],
        inverse: Tensor,
        weight: Tensor,
        pull: Tensor,
        scale: Tensor,
        factor: Tensor,
    ) -> dict[str, Tensor]:
        """Newton's step towards complementary products of `goal`."""
        up = goal["a"] / state.price_a - state.a - state.a / state.price_a * residual["a"]
        down = goal["b"] / state.price_b - state.b - state.b / state.price_b * residual["b"]
        press = torch.where(self.off, goal["s"] / state.s - state.w - weight * residual["s"], 0.0)
        right = torch.where(self.priced, (up - down) * inverse, -residual["slope"]) - self.layer.correlate(press)
        harder = torch.zeros_like(state.eta)
        if self.radius is not None:
            harder = goal["kappa"] / state.kappa - state.eta - state.eta / state.kappa * residual["kappa"]
            right = right - harder[:, None] * pull
        u = torch.cholesky_solve((right * scale)[..., None], factor)[..., 0] * scale
        through = self.layer.forward(u)
        w = torch.where(self.off, press + weight * through, 0.0)
        s = torch.where(self.off, residual["s"] - through, 0.0)
        kappa, eta = torch.zeros_like(state.kappa), torch.zeros_like(state.eta)
        if self.radius is not None:
            kappa = residual["kappa"] - (pull * u).sum(1)
            eta = harder + state.eta / state.kappa * (pull * u).sum(1)
        slope = torch.where(self.priced, (up - down - u) * inverse, 0.0)
        a = torch.where(self.priced, up - state.a / state.price_a * slope, 0.0)
        b = torch.where(self.priced, down + state.b / state.price_b * slope, 0.0)
        price_a = torch.where(self.priced, residual["a"] + slope, 0.0)
        price_b = torch.where(self.priced, residual["b"] - slope, 0.0)
        free = torch.where(self.priced, 0.0, u)
        pairs = {"a": a, "price_a": price_a, "b": b, "price_b": price_b, "s": s, "w": w, "kappa": kappa, "eta": eta}
        return pairs | {"free": free}

    def _length(self, state: _Iterate, step: dict[str, Tensor]) -> Tensor:
        """The longest step, at most 1 / 0.99, that keeps everything positive."""
        length = torch.full_like(state.eta, 1 / _TO_BOUNDARY)
        for name in (name for pair in _Iterate.PAIRS for name in pair):
            value, move = getattr(state, name), step[name]
            limit = torch.where(move < 0, -value / move, torch.inf).reshape(len(length), -1).amin(1)
            length = torch.minimum(length, limit)
        return length


def _moved(state: _Iterate, step: dict[str, Tensor], length: Tensor) -> _Iterate:
    wide = length[:, None]
    return _Iterate(
        **{name: getattr(state, name) + (wide if move.dim() > 1 else length) * move for name, move in step.items()}
    )
