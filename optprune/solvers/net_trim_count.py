"""The Net-Trim radius at which a wanted number of weights is left."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import torch

from optprune.errors import InvalidInputError
from optprune.problems.net_trim import NetTrim
from optprune.solution import Answer, Solution
from optprune.solvers._base import conclude
from optprune.solvers._net_trim_first_order import FirstOrder, State
from optprune.solvers._net_trim_layer import Layer
from optprune.solvers.net_trim_admm import NetTrimADMM

LOOSE_SOLVES, EXACT_SOLVES = 16, 8
_LOOSE_STEPS, _LOOSE_LOOK, _LOOSE = 240, 15, 1e-3
_SHARE = 0.02
_LEAST, _MOST = 1e-2, 1e4
_NARROW = 1e-3


def solve_for_count(
    problem: NetTrim, k: int, solver: NetTrimADMM | None = None, *, certified: bool = True
) -> tuple[NetTrim, Solution]:
    r"""The problem with the radius $f \lVert Y_\Omega \rVert_F$ at which at most `k` nonzeros are left, and nearly `k`,
    with its solution.

    A larger ball needs fewer weights, so that $f$ is bracketed and interpolated: first by at most `LOOSE_SOLVES` short
    ADMM runs, each warm-started from the one before, then by at most `EXACT_SOLVES` full ones, the last good one of
    which is the solution. The bias is not counted. A ball per neuron keeps its form: $\varepsilon_m = f \lVert y_m
    \rVert$. The search does not go below $f = 0.01$: an exact fit needs no more weights than the samples pose
    conditions, so that a large `k` may be out of reach and is then not attained. Nor does it go below the problem's
    own radius, behind a pruned prefix what the dense weight leaves: a smaller ball may hold nothing at all.

    Args:
        problem: a single problem with a radius, the least of the search.
        k: most nonzeros of the penalised weights; the search ends within two percent below it where the count allows.
        solver: settings of the full solves.
        certified: find a lower bound and check it.

    Raises:
        InvalidInputError: `k` is not in [0, penalised weights], or no radius is large enough for it.
    """
    start = time.perf_counter()
    solver = solver or NetTrimADMM()
    weights = int(problem.penalised.sum()) * problem.shape[0]
    if not 0 <= k <= weights or problem.batch_shape or problem.radius is None:
        raise InvalidInputError(
            f"k = {k} for a problem of {weights} penalised weights given; 0 <= k <= {weights} is accepted, for a "
            "single problem with a radius"
        )
    unit = problem.targets.square().sum(0).sqrt() if problem.per_neuron else problem.size
    # With nonnegative ceilings zero is admissible once the ball holds it.
    top = 1.0 if problem.ceiling is None or bool((problem.ceiling >= 0).all()) else None
    least = max(_LEAST, float(torch.where(unit > 0, problem.radius / unit, 0.0).max()))
    if top is not None:
        least = min(least, top)
    search = _Bracket(k, max(math.log(0.1), math.log(least)), top, least)
    method = FirstOrder(Layer.of(replace(problem, radius=unit)), solver.relaxation, solver.linear_solver)
    whole = method.exact.radius
    assert whole is not None
    state = method.start()
    while search.open(LOOSE_SOLVES):
        state = _run(method.with_radius(search.trial * whole), state)
        search.record(int(((state.s != 0) & (method.exact.price > 0)).sum()))
    search = _Bracket(k, math.log(search.enough or search.trial), top, least)
    best: tuple[float, Answer] | None = None
    while search.open(EXACT_SOLVES):
        answer, state = solver.solve_layer(method.with_radius(search.trial * whole), state)
        # An answer that is no solution does not count; its ball is mostly too small.
        count = int(((answer.matrix != 0) & problem.penalised).sum()) if answer.termination[0].ok else weights + 1
        if count <= k:
            best = (search.trial, answer)
        search.record(count)
    if best is None and top is not None:
        best = (top, solver.run(replace(problem, radius=top * unit)))
    if best is None:
        raise InvalidInputError(
            f"no radius up to {_MOST:g} times the outputs' norm leaves at most {k} weights; ask for more"
        )
    found = replace(problem, radius=best[0] * unit)
    return found, conclude(found, solver, best[1], time.perf_counter() - start, certified)


def _run(method: FirstOrder, state: State) -> State:
    """ADMM to a loose tolerance, from the state at another radius."""
    for step in range(1, _LOOSE_STEPS + 1):
        measured = step % _LOOSE_LOOK == 0
        state = method.step(state, measure=measured)
        if measured:
            if float(torch.maximum(state.primal, state.dual).quantile(0.9)) <= _LOOSE:
                break
            state = method.rebalance(state)
    return state


class _Bracket:
    """Root search for a decreasing count over the logarithm of the radius's share of the outputs' norm."""

    def __init__(self, k: int, start: float, top: float | None, least: float) -> None:
        self.k, self._least = k, math.log(least)
        self.low, self.low_count = self._least, math.inf
        self.high, self.high_count = (math.log(_MOST), math.inf) if top is None else (math.log(top), 0.0)
        self.enough = top
        self._point, self._stride, self._tries, self._met = start, 0.05, 0, k == 0 and top is not None

    def open(self, tries: int) -> bool:
        """Whether to go on: not met, not exhausted, and room between the ends."""
        return not self._met and self._tries < tries and self.high - self.low > _NARROW

    @property
    def trial(self) -> float:
        """The share to try next."""
        return math.exp(self._point)

    def record(self, count: int) -> None:
        """Take in the count at `trial` and choose the next."""
        self._tries += 1
        if count <= self.k:
            self.high, self.high_count, self.enough = self._point, count, self.trial
        else:
            self.low, self.low_count = self._point, count
        least = self._point <= self._least
        self._met = count <= self.k and (least or count >= self.k - max(1, _SHARE * self.k))
        self._point = self._next(count)

    def _next(self, count: int) -> float:
        """Ever longer strides until both ends are counted, then regula falsi and bisection in turn."""
        if math.isinf(self.low_count) or math.isinf(self.high_count):
            self._stride *= 2
            sign = 1.0 if count > self.k else -1.0
            point = self._point + sign * self._stride
            return min(max(point, self.low), 0.5 * (self.high + self._point))
        if self._tries % 2:
            return 0.5 * (self.low + self.high)
        aim = self.k - 0.5 * max(1.0, _SHARE * self.k)
        share = (self.low_count - aim) / (self.low_count - self.high_count)
        return self.low + min(max(share, 0.05), 0.95) * (self.high - self.low)
