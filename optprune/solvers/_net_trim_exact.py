"""From an approximate Net-Trim solution to the exact one."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from optprune.solution import Termination
from optprune.solvers._net_trim_first_order import State
from optprune.solvers._net_trim_layer import FREE, SMALLEST_MULTIPLIER, Layer
from optprune.solvers._net_trim_newton import Point, proximal_step
from optprune.solvers._net_trim_polish import Piece, ball_on_piece, piece

_BOOST = float(os.environ.get("NTBOOST", "10"))
_GROWTH = float(os.environ.get("NTGROW", "4"))
_SHRINK = float(os.environ.get("NTSHRINK", "0.25"))
_DRIFT = float(os.environ.get("NTDRIFT", "0.05"))
_NEWTON = int(os.environ.get("NTMAXN", "40"))
_HOPELESS, _DOUBTFUL = 1e6, 2.0
_DEBUG = os.environ.get("NTDEBUG")


@dataclass(frozen=True, eq=False)
class Exact:
    u: Tensor
    lam: Tensor
    mu: Tensor
    termination: Termination
    rounds: int
    newton: int


@dataclass(eq=False)
class _Guess:
    """What each neuron's piece is taken to be."""

    support: Bool[Tensor, "out d"]
    signs: Float[Tensor, "out d"]
    tight: Bool[Tensor, "out n"]


def finish(layer: Layer, state: State, tolerance: float, max_rounds: int) -> Exact:
    mu = state.mu.clamp(SMALLEST_MULTIPLIER, FREE)
    point = Point(state.s.clone(), state.lam)
    sigma, tau = _BOOST / (state.rho * state.weight), _BOOST / state.rho
    guess = _Guess(state.s != 0, state.s.sign(), ~layer.active & (state.t >= layer.targets) & (point.lam > 0))
    out = len(mu)
    decoupled = layer.radius is None or layer.per_neuron
    pending = torch.arange(out, device=mu.device)
    settled = torch.zeros_like(mu, dtype=torch.bool)
    trusted = ~settled
    cache: Piece | None = None
    newton = 0
    for rounds in range(1, max_rounds + 1):
        start = time.perf_counter()
        part = piece(
            layer,
            pending,
            point.u[pending],
            mu[pending, None] * point.lam[pending],
            guess.signs[pending],
            guess.support[pending],
            guess.tight[pending],
        )
        cache = part if cache is None else cache.replaced(pending, part)
        on = layer.active
        exact = ball_on_piece(layer, torch.where(on, cache.lam_base, 0.0), torch.where(on, cache.lam_slope, 0.0))
        u = cache.base + exact[:, None] * cache.slope
        lam = cache.lam_base / exact[:, None] + cache.lam_slope
        bad = violated(layer, u, lam, guess, exact, tolerance) & ~settled
        wrong = bad.nonzero()[:, 0]
        if _DEBUG:
            print("round", rounds, "piece rows", len(pending), "%.3fs" % (time.perf_counter() - start), "bad", len(wrong), "nnz", int((u != 0).sum()))
        if not len(wrong) or shortfall(layer, u, lam).within(tolerance):
            return Exact(u, lam, exact, Termination.CONVERGED, rounds, newton)
        good = ~bad
        point.u[good], point.lam[good] = u[good], lam[good]
        left = shortfall(layer, point.u, point.lam)
        if left.within(tolerance):
            return Exact(point.u, point.lam, mu, Termination.CONVERGED, rounds, newton)
        if left.impossible(_HOPELESS):
            return Exact(point.u, point.lam, mu, Termination.INFEASIBLE, rounds, newton)
        if decoupled:
            settled = good
        reach = torch.where(bad[:, None], mu[:, None] * point.lam, cache.lam_base + mu[:, None] * cache.lam_slope)
        reach = torch.linalg.vector_norm(torch.where(on, reach, 0.0), dim=1)
        proposal = next_multiplier(layer, mu, reach, exact)
        mu = torch.where(trusted, proposal, mu) if layer.per_neuron else proposal
        start = time.perf_counter()
        target = max(1e-9, 1e-2 * 0.1**rounds)
        moved, residual, steps = proximal_step(layer, point, wrong, mu[wrong], sigma[wrong], tau[wrong], target, _NEWTON)
        drift = torch.linalg.vector_norm(moved.u - point.u[wrong], dim=1)
        size = torch.linalg.vector_norm(moved.u, dim=1)
        solved = residual <= target
        trusted[wrong] = solved & (drift <= _DRIFT * size)
        point.u[wrong], point.lam[wrong] = moved.u, moved.lam
        newton += steps
        if _DEBUG:
            print("   newton rows", steps, "res %.1e" % residual.max(), "%.3fs" % (time.perf_counter() - start), "drift %.1e" % (drift / size).max(), "unsolved", int((~solved).sum()), "untrusted", int((~trusted).sum()))
            if len(wrong) < 6:
                print("     mu", mu[wrong].tolist(), exact[wrong].tolist(), "sigma", sigma[wrong].tolist())
        factor = torch.where(solved, torch.where(drift > 1e-4 * size, _GROWTH, 1.0), _SHRINK)
        sigma[wrong] *= factor
        tau[wrong] *= factor
        pre = layer.soften(moved.u - sigma[wrong, None] * layer.correlate(moved.lam), sigma[wrong, None])
        guess.support[wrong], guess.signs[wrong] = pre != 0, pre.sign()
        ahead = layer.forward(moved.u) + tau[wrong, None] * moved.lam
        guess.tight[wrong] = ~layer.active[wrong] & (ahead >= layer.targets[wrong]) & (moved.lam > 0)
        pending = wrong
    left = shortfall(layer, point.u, point.lam)
    reason = Termination.INFEASIBLE if left.impossible(_DOUBTFUL) else Termination.STEP_LIMIT
    return Exact(point.u, point.lam, mu, reason, max_rounds, newton)


def violated(layer: Layer, u: Tensor, lam: Tensor, guess: _Guess, mu: Tensor, tolerance: float) -> Tensor:
    """Neurons whose optimality conditions fail on their piece (written so that NaN fails)."""
    price = torch.where(layer.price > 0, layer.price, layer.inputs.shape[0])
    correlation = layer.correlate(lam)
    signs = (u * guess.signs).amin(1) >= -tolerance * u.abs().amax(1)
    inside = ((correlation.abs() - layer.price) / price).amax(1) <= tolerance
    stationary = torch.where(guess.support, correlation + layer.price * guess.signs, 0.0)
    straight = (stationary.abs() / price).amax(1) <= 10 * tolerance
    pushing = torch.where(layer.active, 0.0, lam).amin(1) >= -tolerance * lam.abs().amax(1)
    below = torch.where(layer.active, 0.0, layer.forward(u) - layer.targets).amax(1) <= tolerance
    return ~(signs & inside & straight & pushing & below) | _off_ball(layer, lam, mu, tolerance)


@dataclass(frozen=True)
class Shortfall:
    """What a checker will find: the largest relative violation, the objective and its bound in solver units."""

    violation: float
    objective: float
    bound: float

    def within(self, tolerance: float) -> bool:
        return self.violation <= tolerance and abs(self.objective - self.bound) <= tolerance * self.objective

    def impossible(self, factor: float) -> bool:
        """Whether whatever is feasible is far larger than what nearly is."""
        return self.violation > 1e-6 and self.bound > factor * self.objective


def shortfall(layer: Layer, u: Tensor, lam: Tensor) -> Shortfall:
    """The shortfall of a primal and dual point."""
    price, active = layer.price, layer.active
    residual = layer.forward(u) - layer.targets
    missed = torch.linalg.vector_norm(torch.where(active, residual, 0.0), dim=1) * layer.size
    above = (torch.where(active, 0.0, residual).amax(1) * layer.size).amax()
    violation = above / (layer.targets.abs().amax(1) * layer.size).amax().clamp(min=1e-300)

    lam = torch.where(active, lam, lam.clamp(min=0))
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
        violation = torch.maximum(violation, (total - layer.radius) / torch.maximum(layer.radius, scale).clamp(min=1e-300))
    # On the bias the multipliers must be orthogonal to the inputs; making them so costs about this.
    bound = bound - (torch.where(price > 0, 0.0, correlation * u.abs()).sum(1) * layer.size).sum()
    return Shortfall(*torch.stack((violation, objective, bound.clamp(min=0.0))).tolist())


def _off_ball(layer: Layer, lam: Tensor, mu: Tensor, tolerance: float) -> Tensor:
    if layer.radius is None:
        return torch.zeros_like(mu, dtype=torch.bool)
    size = mu * torch.linalg.vector_norm(torch.where(layer.active, lam, 0.0), dim=1)
    slack = tolerance * torch.linalg.vector_norm(layer.targets, dim=1)
    if not layer.per_neuron:
        size = torch.linalg.vector_norm(size * layer.size)
        slack = torch.linalg.vector_norm(slack * layer.size)
    return ~((size <= layer.radius + slack) & ((size >= layer.radius - slack) | (mu >= FREE)))


def next_multiplier(layer: Layer, mu: Tensor, reach: Tensor, proposal: Tensor) -> Tensor:
    if layer.penalty is not None:
        return mu
    size = reach if layer.per_neuron else torch.linalg.vector_norm(reach * layer.size).expand_as(reach)
    safe = mu * (layer.radius / size.clamp(min=1e-300)).clamp(0.2, 5.0)
    # The true multiplier lies beyond `safe`, seen from mu; a proposal from wrong pieces need not.
    beyond = torch.where(safe >= mu, (proposal >= safe) & (proposal <= 3 * safe), (proposal <= safe) & (proposal >= safe / 3))
    return torch.where(beyond, proposal, safe).clamp(SMALLEST_MULTIPLIER, FREE)
