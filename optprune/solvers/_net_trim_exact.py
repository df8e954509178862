"""From an approximate Net-Trim solution to the exact one: solve the pieces, correct those that are wrong, repeat."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from optprune.solution import Termination
from optprune.solvers._net_trim_first_order import State
from optprune.solvers._net_trim_interior import interior
from optprune.solvers._net_trim_layer import FREE, SMALLEST_MULTIPLIER, Layer
from optprune.solvers._net_trim_newton import Point, proximal_step
from optprune.solvers._net_trim_polish import Piece, ball_on_piece, piece
from optprune.solvers._net_trim_systems import Systems

_FIRST_STEP = 10.0  # proximal parameters at the start, in units of ADMM's
_GROWTH, _SHRINK = 4.0, 0.25
_TRUSTED = 0.05  # relative pull of the proximal terms below which a residual says something about the multiplier
_NEWTON_STEPS = 40
_FINEST = 1e-9
_HOPELESS, _DOUBTFUL = 1e6, 10.0
_NEVER = -(1 << 40)


@dataclass(frozen=True, eq=False)
class Exact:
    """The end of a solve, in solver units."""

    u: Float[Tensor, "out d"]
    lam: Float[Tensor, "out n"]
    mu: Float[Tensor, " out"]
    termination: Termination
    rounds: int
    newton: int


class _Neurons:
    """The changing state of the second phase, neurons first.

    `settled` neurons are at their optimum; with a joint ball that is never certain before the end.
    """

    def __init__(self, layer: Layer, state: State) -> None:
        self.layer, self.systems = layer, Systems(layer)
        self.decoupled = layer.radius is None or layer.per_neuron
        self.point = Point(state.s.clone(), state.lam)
        self.mu = state.mu.clamp(SMALLEST_MULTIPLIER, FREE)
        self.sigma = _FIRST_STEP / (state.rho * state.weight)
        self.tau = _FIRST_STEP / state.rho
        self.growth = torch.full_like(self.mu, _GROWTH)
        self.support, self.signs = state.s != 0, state.s.sign()
        self.tight = ~layer.active & (self.point.lam > 0)
        self.settled = torch.zeros_like(self.mu, dtype=torch.bool)
        self.trusted = ~self.settled
        self.spent = torch.zeros_like(self.mu, dtype=torch.int64)
        self.pieces: Piece | None = None

    def solve_pieces(self, rows: Int[Tensor, " rows"]) -> tuple[Point, Float[Tensor, " out"]]:
        """The optimum on the pieces, those of `rows` solved anew, and the ball's multiplier there."""
        part = piece(
            self.layer,
            self.systems,
            rows,
            self.point.u[rows],
            self.mu[rows, None] * self.point.lam[rows],
            self.signs[rows],
            self.support[rows],
            self.tight[rows],
        )
        self.pieces = part if self.pieces is None else self.pieces.replaced(rows, part)
        base, slope = self.pieces.lam_base, self.pieces.lam_slope
        on = self.layer.active
        mu = ball_on_piece(self.layer, torch.where(on, base, 0.0), torch.where(on, slope, 0.0))
        u = self.pieces.base + mu[:, None] * self.pieces.slope
        return Point(u, base / mu[:, None] + slope), mu

    def accept(self, exact: Point, proposal: Float[Tensor, " out"], bad: Bool[Tensor, " out"]) -> None:
        """Take the neurons whose piece is right, and move the multiplier."""
        good = ~bad
        assert self.pieces is not None
        reach = self.pieces.lam_base + self.mu[:, None] * self.pieces.lam_slope
        reach = torch.where(bad[:, None], self.mu[:, None] * self.point.lam, reach)
        reach = torch.linalg.vector_norm(torch.where(self.layer.active, reach, 0.0), dim=1)
        self.point.u[good], self.point.lam[good] = exact.u[good], exact.lam[good]
        if self.decoupled:
            self.settled = good
        mu = _next_multiplier(self.layer, self.mu, reach, proposal)
        self.mu = torch.where(self.trusted, mu, self.mu) if self.layer.per_neuron else mu

    def _stationary(self, rows: Tensor, before: Tensor, moved: Point) -> Bool[Tensor, " rows"]:
        r"""Whether the optimality conditions at the present multiplier nearly hold: the proximal terms' pull $(u_0 -
        u)/\sigma$ is small next to the prices, and $X(u_0 - u)/\tau$ next to $\lambda$.
        """
        move = moved.u - before
        price = torch.linalg.vector_norm(torch.where(moved.u != 0, self.layer.price, 0.0), dim=1)
        pull = torch.linalg.vector_norm(move, dim=1) / self.sigma[rows]
        push = torch.linalg.vector_norm(self.layer.forward(move), dim=1) / self.tau[rows]
        size = torch.linalg.vector_norm(moved.lam, dim=1)
        return (pull <= _TRUSTED * price) & (push <= _TRUSTED * size)

    def end(self, reason: Termination, rounds: int, newton: int) -> Exact:
        """The present point as the result."""
        return Exact(self.point.u, self.point.lam, self.mu, reason, rounds, newton)

    def correct(self, rows: Int[Tensor, " rows"], tolerance: float) -> int:
        """Move the neurons whose piece is wrong: by a proximal step, until those of a neuron have cost as much as an
        interior point method does. The number of Newton steps in it.
        """
        stuck = self.spent[rows] > self.layer.inputs.shape[1] // 2
        if bool(stuck.any()):
            self._from_inside(rows[stuck])
        rows = rows[~stuck]
        return self._proximal(rows, tolerance) if len(rows) else 0

    def _from_inside(self, rows: Int[Tensor, " rows"]) -> None:
        """Restart neurons at what the interior point method finds; where that fails it is not tried again."""
        found = interior(self.layer, rows, self.mu[rows])
        self.spent[rows] = torch.where(found.done, 0, _NEVER)
        done = rows[found.done]
        self.point.u[done], self.point.lam[done] = found.u[found.done], found.lam[found.done]
        self.support[done], self.tight[done] = found.support[found.done], found.tight[found.done]
        self.signs[done] = found.u[found.done].sign()
        self.mu[done] = found.mu[found.done].clamp(SMALLEST_MULTIPLIER, FREE)
        self.trusted[done] = True

    def _proximal(self, rows: Int[Tensor, " rows"], tolerance: float) -> int:
        """One proximal step of these neurons."""
        layer, before = self.layer, self.point.u[rows]
        moved, residual, steps = proximal_step(
            layer,
            self.systems,
            self.point,
            rows,
            self.mu[rows],
            self.sigma[rows],
            self.tau[rows],
            tolerance,
            _NEWTON_STEPS,
        )
        self.spent[rows] += steps
        solved = residual <= tolerance
        self.trusted[rows] = solved & self._stationary(rows, before, moved)
        self.point.u[rows], self.point.lam[rows] = moved.u, moved.lam
        # A step too long to solve is shortened, and that neuron's steps grow more slowly for a while.
        growth = self.growth[rows]
        self.growth[rows] = torch.where(solved, (1.2 * growth).clamp(max=_GROWTH), growth.sqrt().clamp(min=1.2))
        factor = torch.where(solved, self.growth[rows], _SHRINK)
        self.sigma[rows] *= factor
        self.tau[rows] *= factor
        sigma, tau = self.sigma[rows, None], self.tau[rows, None]
        ahead = layer.soften(moved.u - sigma * layer.correlate(moved.lam), sigma)
        self.support[rows], self.signs[rows] = ahead != 0, ahead.sign()
        through = layer.forward(moved.u) + tau * moved.lam
        self.tight[rows] = ~layer.active[rows] & (through >= layer.targets[rows]) & (moved.lam > 0)
        return int(steps.sum())


def finish(layer: Layer, state: State, tolerance: float, max_rounds: int) -> Exact:
    """Solve pieces and correct the wrong ones until all are right, or violations and gap within the tolerance."""
    neurons = _Neurons(layer, state)
    rows = torch.arange(len(neurons.mu), device=neurons.mu.device)
    newton = 0
    for rounds in range(1, max_rounds + 1):
        exact, proposal = neurons.solve_pieces(rows)
        bad = _violated(neurons, exact, proposal, tolerance) & ~neurons.settled
        rows = bad.nonzero()[:, 0]
        if not len(rows) or shortfall(layer, exact).within(tolerance):
            return Exact(exact.u, exact.lam, proposal, Termination.CONVERGED, rounds, newton)
        neurons.accept(exact, proposal, bad)
        left = shortfall(layer, neurons.point)
        if left.within(tolerance):
            return neurons.end(Termination.CONVERGED, rounds, newton)
        if left.impossible(_HOPELESS):
            return neurons.end(Termination.INFEASIBLE, rounds, newton)
        newton += neurons.correct(rows, max(_FINEST, 1e-2 * 0.1**rounds))
    left = shortfall(layer, neurons.point)
    return neurons.end(
        Termination.INFEASIBLE if left.impossible(_DOUBTFUL) else Termination.STEP_LIMIT, max_rounds, newton
    )


def _violated(neurons: _Neurons, exact: Point, mu: Tensor, tolerance: float) -> Bool[Tensor, " out"]:
    """Neurons whose optimality conditions fail on their piece (written so that NaN fails)."""
    layer, u, lam = neurons.layer, exact.u, exact.lam
    price = torch.where(layer.price > 0, layer.price, layer.inputs.shape[0])
    correlation = layer.correlate(lam)
    signs = (u * neurons.signs).amin(1) >= -tolerance * u.abs().amax(1)
    inside = ((correlation.abs() - layer.price) / price).amax(1) <= tolerance
    stationary = torch.where(neurons.support, correlation + layer.price * neurons.signs, 0.0)
    straight = (stationary.abs() / price).amax(1) <= 10 * tolerance
    pushing = torch.where(layer.active, 0.0, lam).amin(1) >= -tolerance * lam.abs().amax(1)
    below = torch.where(layer.active, 0.0, layer.forward(u) - layer.targets).amax(1) <= tolerance
    return ~(signs & inside & straight & pushing & below) | _off_ball(layer, lam, mu, tolerance)


@dataclass(frozen=True)
class Shortfall:
    """What a checker will find: the largest relative violation, the objective and its bound in solver units.

    `usual` is the objective of one weight of size 1 per neuron, about what it takes to make outputs of the
    targets' size.
    """

    violation: float
    objective: float
    bound: float
    usual: float

    def within(self, tolerance: float) -> bool:
        """Whether violation and relative gap are small enough to end."""
        return self.violation <= tolerance and abs(self.objective - self.bound) <= tolerance * self.objective

    def impossible(self, factor: float) -> bool:
        """Whether what is feasible is far larger than what nearly is, and than weights of the data's size."""
        return self.violation > 1e-6 and self.bound > factor * max(self.objective, self.usual)


def shortfall(layer: Layer, point: Point) -> Shortfall:
    """The shortfall of a primal and dual point."""
    u, lam, price, active = point.u, point.lam, layer.price, layer.active
    residual = layer.forward(u) - layer.targets
    missed = torch.linalg.vector_norm(torch.where(active, residual, 0.0), dim=1) * layer.size
    above = (torch.where(active, 0.0, residual).amax(1) * layer.size).amax()
    violation = above / (layer.targets.abs().amax(1) * layer.size).amax().clamp(min=1e-300)

    lam = torch.where(active, lam, lam.clamp(min=0))
    if bool((price == 0).any()):
        count = active.sum(1, keepdim=True)
        lam = torch.where(count > 0, lam - active * (lam.sum(1, keepdim=True) / count.clamp(min=1)), 0.0)
    correlation = layer.correlate(lam).abs()
    stretch = torch.where(price > 0, correlation / price.clamp(min=1e-300), 0.0).amax(1).clamp(min=1.0)
    gain = -(lam * layer.targets).sum(1) / stretch * layer.size
    energy = torch.linalg.vector_norm(torch.where(active, lam, 0.0), dim=1) / stretch
    objective = ((u.abs() * price).sum(1) * layer.size).sum()
    if layer.radius is None:
        assert layer.penalty is not None
        bound = (gain - layer.penalty * energy.square() / 2 * layer.size).sum()
        objective = objective + (missed.square() / (2 * layer.penalty * layer.size)).sum()
    elif layer.per_neuron:
        bound = (gain - layer.radius * energy * layer.size).sum()
        radius = layer.radius * layer.size
        scale = torch.linalg.vector_norm(layer.targets, dim=1) * layer.size
        over = (missed - radius) / torch.maximum(radius, scale.square().mean().sqrt()).clamp(min=1e-300)
        violation = torch.maximum(violation, over.amax())
    else:
        bound = gain.sum() - layer.radius * torch.linalg.vector_norm(energy)
        total = torch.linalg.vector_norm(missed)
        scale = torch.linalg.vector_norm(torch.linalg.vector_norm(layer.targets, dim=1) * layer.size)
        violation = torch.maximum(
            violation, (total - layer.radius) / torch.maximum(layer.radius, scale).clamp(min=1e-300)
        )
    usual = layer.size.sum() * layer.inputs.shape[0]  # prices have the number of samples as their median
    return Shortfall(*torch.stack((violation, objective, bound.clamp(min=0.0), usual)).tolist())


def _off_ball(layer: Layer, lam: Tensor, mu: Tensor, tolerance: float) -> Tensor:
    if layer.radius is None:
        return torch.zeros_like(mu, dtype=torch.bool)
    size = mu * torch.linalg.vector_norm(torch.where(layer.active, lam, 0.0), dim=1)
    slack = tolerance * torch.linalg.vector_norm(layer.targets, dim=1)
    if not layer.per_neuron:
        size = torch.linalg.vector_norm(size * layer.size)
        slack = torch.linalg.vector_norm(slack * layer.size)
    return ~((size <= layer.radius + slack) & ((size >= layer.radius - slack) | (mu >= FREE)))


def _next_multiplier(layer: Layer, mu: Tensor, reach: Tensor, proposal: Tensor) -> Tensor:
    r"""The multiplier after $\mu$, at which the residuals were `reach`.

    The residual grows with $\mu$, but more slowly than $\mu$ itself: $\mu\,\varepsilon / \text{residual}$
    never oversteps.
    """
    if layer.radius is None:
        return mu
    size = reach if layer.per_neuron else torch.linalg.vector_norm(reach * layer.size).expand_as(reach)
    safe = mu * (layer.radius / size.clamp(min=1e-300)).clamp(0.2, 5.0)
    # The true multiplier lies beyond `safe`, seen from mu; a proposal from wrong pieces need not.
    beyond = torch.where(
        safe >= mu, (proposal >= safe) & (proposal <= 3 * safe), (proposal <= safe) & (proposal >= safe / 3)
    )
    return torch.where(beyond, proposal, safe).clamp(SMALLEST_MULTIPLIER, FREE)
