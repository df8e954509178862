"""From an approximate Net-Trim solution to the exact one: solve the pieces, correct those that are wrong, repeat."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from optprune.solution import Termination
from optprune.solvers._net_trim_first_order import State
from optprune.solvers._net_trim_interior import interior
from optprune.solvers._net_trim_layer import FREE, SMALLEST_MULTIPLIER, Layer
from optprune.solvers._net_trim_newton import Point, proximal_step
from optprune.solvers._net_trim_polish import Piece, ball_on_piece, ball_terms, off_ball, piece
from optprune.solvers._net_trim_systems import Systems
from optprune.solvers._net_trim_verdict import Shortfall, Verdict, shares, shortfall, verdict

_FIRST_STEP = 10.0  # proximal parameters at the start, in units of ADMM's
_GROWTH, _SHRINK = 4.0, 0.25
_TRUSTED = 0.05  # relative pull of the proximal terms below which a residual says something about the multiplier
_NEWTON_STEPS = 40
_FINEST = 1e-9
_HOPELESS, _DOUBTFUL = 1e6, 10.0
_NEVER = -(1 << 40)
_FEW = 4  # Newton's step is tried where at most one entry in so many is wrong
_SURE = 4  # with so many times fewer, the piece says where the ball is
_STRETCH = 5.0  # most by which a multiplier changes in a round
_SETTLED = 1e-2  # of the tolerance: what a piece's own equations may miss
_ROUGH, _REHEARSALS = 1e-4, 12  # tolerance in single precision, and most rounds


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

    `rows` are the neurons whose piece is not known to be right. Where neurons decouple, only they are looked at; with a
    joint ball its multiplier moves with every piece, and all are looked at, the others without a product.

    A piece that is wrong is followed by Newton's step on the optimality conditions: what is on the wrong side changes
    sides, and the piece is solved anew. That ends in a few rounds where it starts near; it has to, `allowed` being how
    many entries may be wrong, half as many every time. Otherwise a proximal step from the last point follows, which is
    slower and cannot fail. On a 784 x 300 layer with a joint ball this takes the Newton steps of the proximal method
    from 1,746 to 17.
    """

    def __init__(self, layer: Layer, state: State, systems: Systems, tolerance: float, settled: float) -> None:
        self.layer, self.systems, self.tolerance, self.settled = layer, systems, tolerance, settled
        self.precise = layer.targets.dtype == torch.float64
        state = state.to(layer.targets.dtype)
        self.decoupled = layer.radius is None or layer.per_neuron
        self.point = Point(state.s.clone(), state.lam)
        self.mu = state.mu.clamp(SMALLEST_MULTIPLIER, FREE)
        self.sigma = _FIRST_STEP / (state.rho * state.weight)
        self.tau = _FIRST_STEP / state.rho
        self.growth = torch.full_like(self.mu, _GROWTH)
        self.support, self.signs = state.s != 0, state.s.sign()
        self.tight = ~layer.active & (self.point.lam > 0)
        self.everyone = torch.arange(len(self.mu), device=self.mu.device)
        self.rows = self.unseen = self.everyone
        self.allowed = self._few(self.everyone)
        self.trusted = torch.ones_like(self.mu, dtype=torch.bool)
        self.fine = ~self.trusted
        self.spent = torch.zeros_like(self.mu, dtype=torch.int64)
        self.corrections = self.newton = 0
        self.pieces = Piece.from_point(self.point.u, self.point.lam, self.mu)
        self.terms, self.shares = self.mu.new_empty(3, len(self.mu)), self.mu.new_empty(5, len(self.mu))

    @cached_property
    def double(self) -> Systems:
        """Systems in double precision, for what single precision does not bear."""
        return Systems(self.layer, self.systems.most)

    def _few(self, rows: Tensor) -> Int[Tensor, " rows"]:
        """How many entries of a piece may be wrong for Newton's step from it to be tried."""
        return (self.support[rows].sum(1) + self.tight[rows].sum(1)) // _FEW + 2

    def _verdict(self, rows: Tensor) -> Verdict:
        sets = self.support[rows], self.signs[rows], self.tight[rows]
        return verdict(self.layer.some(rows), self.pieces.some(rows), self.mu[rows], *sets, self.tolerance)

    def _solve(self, rows: Tensor, systems: Systems, start: Piece) -> Bool[Tensor, " rows"]:
        """Solve the pieces of some neurons; whether they are accurate."""
        sets = self.signs[rows], self.support[rows], self.tight[rows]
        found, fine = piece(self.layer, systems, rows, start, self.mu[rows], *sets, self.settled)
        self.pieces.put(rows, found)
        return fine

    def _pieces(self, rows: Int[Tensor, " rows"]) -> Bool[Tensor, " rows"]:
        """Solve the pieces of some neurons, and note what they say about the ball; which of them are far from right."""
        if not len(rows):
            return torch.zeros_like(rows, dtype=torch.bool)
        slow = rows[~self._solve(rows, self.systems, self.pieces.some(rows))]
        if self.precise and len(slow):
            start = Piece.from_point(self.point.u[slow], self.point.lam[slow], self.mu[slow])
            self._solve(slow, self.double, start)
        far = self._verdict(rows).wrong > self._few(rows) // _SURE
        # There the residual of the last point is taken to grow like the multiplier: that never oversteps.
        base = torch.where(far[:, None], 0.0, self.pieces.lam[0, rows])
        slope = torch.where(far[:, None], self.point.lam[rows], self.pieces.lam[1, rows])
        on = self.layer.active[rows]
        self.terms[:, rows] = ball_terms(torch.where(on, base, 0.0), torch.where(on, slope, 0.0))
        return far

    def solve_pieces(self) -> Int[Tensor, " left"]:
        """The optimum on the pieces of `rows` and the multipliers there; take the neurons whose pieces are right, and
        make Newton's step with those where little is wrong. The others.
        """
        rows = self.rows
        looked = rows if self.decoupled else self.everyone
        far = self._pieces(rows)
        here, before = self.layer.some(looked), self.mu[looked]
        mu = ball_on_piece(here, self.terms[:, looked])
        mu = torch.maximum(torch.minimum(mu, _STRETCH * before), before / _STRETCH)
        if self.decoupled:
            mu = torch.where(far & ~self.trusted[rows], before, mu)
        self.mu[looked] = mu
        found = self._verdict(looked)
        off = off_ball(here, self.terms[:, looked], mu, self.tolerance)
        bad = found.bad | off if self.decoupled else found.bad
        bad[slice(None) if self.decoupled else rows] |= far
        right = ~bad
        self.fine[looked] = right
        self.point.u[looked[right]], self.point.lam[looked[right]] = found.u[right], found.lam[right]
        allowed = self.allowed[looked]
        undecided = (found.wrong > 0) | (off & (mu != before))
        undecided[slice(None) if self.decoupled else rows] |= far
        newton = bad & (found.wrong <= allowed) & undecided
        moved = looked[newton]
        self.support[moved], self.signs[moved] = found.support[newton], found.signs[newton]
        self.tight[moved] = found.tight[newton]
        self.allowed[moved] = torch.where(found.wrong > 0, allowed // 2, allowed)[newton]
        self.rows = looked[bad]
        self.done = not len(self.rows) and not bool(off.any())
        self.rounding = not bool(found.wrong[bad].any())
        return looked[bad & ~newton]

    def rehearse(self) -> None:
        """Newton's steps alone, while they help."""
        ended = torch.zeros_like(self.trusted)
        for _ in range(_REHEARSALS):
            ended[self.solve_pieces()] = True
            self.rows = self.rows[~ended[self.rows]]
            if not len(self.rows):
                break

    def follow(self, rough: _Neurons) -> None:
        """Go on from what was found in single precision."""
        self.support, self.signs, self.tight = rough.support, rough.signs.to(self.signs.dtype), rough.tight
        self.mu = rough.mu.to(self.mu.dtype)
        self.pieces.put(rough.fine, rough.pieces.some(rough.fine).to(self.mu.dtype))
        self.allowed = self._few(self.everyone)

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

    def look(self) -> Shortfall:
        """The shortfall of the present point; where neurons decouple, only those not at their optimum have changed."""
        rows = self.unseen if self.decoupled else self.everyone
        self.shares[:, rows] = shares(self.layer.some(rows), self.point.u[rows], self.point.lam[rows])
        self.unseen = self.rows
        return shortfall(self.layer, self.shares)

    def end(self, reason: Termination, rounds: int) -> Exact:
        """The present point as the result."""
        return Exact(self.point.u, self.point.lam, self.mu, reason, rounds, self.newton)

    def correct(self, rows: Int[Tensor, " rows"]) -> None:
        """Move neurons whose piece is wrong: by a proximal step, until those of a neuron have cost as much as an
        interior point method does.
        """
        stuck = self.spent[rows] > self.layer.inputs.shape[1] // 2
        if bool(stuck.any()):
            self._from_inside(rows[stuck])
        if not bool(stuck.all()):
            self.corrections += 1
            self._proximal(rows[~stuck], max(_FINEST, 1e-2 * 0.1**self.corrections))
        self.allowed[rows] = self._few(rows)
        self.pieces.put(rows, Piece.from_point(self.point.u[rows], self.point.lam[rows], self.mu[rows]))

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

    def _proximal(self, rows: Int[Tensor, " rows"], tolerance: float) -> None:
        """One proximal step of these neurons."""
        layer, before = self.layer, self.point.u[rows]
        moved, residual, steps = proximal_step(
            layer,
            self.double,
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
        self.newton += int(steps.sum())


def _rehearsed(layer: Layer, state: State, tolerance: float) -> _Neurons:
    """The neurons after Newton's steps in single precision, which cost less than half of those in double: most of the
    pieces that are looked at are not the last ones. The small systems stay in single precision, refinement does not.
    """
    single = layer.to(torch.float32)
    systems = Systems(single, int((state.s != 0).sum(1).max()))
    rough = _Neurons(single, state, systems, _ROUGH, _ROUGH)
    rough.rehearse()
    neurons = _Neurons(layer, state, systems, tolerance, _SETTLED * tolerance)
    neurons.follow(rough)
    return neurons


def finish(layer: Layer, state: State, tolerance: float, max_rounds: int) -> Exact:
    """Solve pieces and correct the wrong ones until all are right, or violations and gap within the tolerance."""
    neurons = _rehearsed(layer, state, tolerance)
    for rounds in range(1, max_rounds + 1):
        left = neurons.solve_pieces()
        if neurons.done:
            return neurons.end(Termination.CONVERGED, rounds)
        if neurons.rounding or rounds & (rounds - 1) == 0:
            short = neurons.look()
            if short.within(tolerance):
                return neurons.end(Termination.CONVERGED, rounds)
            if short.impossible(_HOPELESS):
                return neurons.end(Termination.INFEASIBLE, rounds)
        if len(left):
            neurons.correct(left)
    impossible = neurons.look().impossible(_DOUBTFUL)
    return neurons.end(Termination.INFEASIBLE if impossible else Termination.STEP_LIMIT, max_rounds)
