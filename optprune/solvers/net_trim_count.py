"""The Net-Trim radius at which a wanted number of weights is left."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from optprune.errors import InvalidInputError
from optprune.problems.net_trim import NetTrim
from optprune.solution import Termination
from optprune.solvers._net_trim_first_order import FirstOrder, State
from optprune.solvers._net_trim_layer import Layer
from optprune.solvers.net_trim_admm import NetTrimADMM

LOOSE_SOLVES, EXACT_SOLVES = 16, 8
_LOOSE_STEPS = 60
_SHARE = 0.01
_LEAST, _MOST = 1e-4, 1e4


def radius_for_count(problem: NetTrim, k: int, solver: NetTrimADMM | None = None) -> NetTrim:
    r"""The problem with the radius $f \lVert Y_\Omega \rVert_F$ at which its solution has at most `k` nonzeros, and nearly `k`.

    A larger ball needs fewer weights, so that $f$ is bracketed and interpolated: first by at most `LOOSE_SOLVES` short ADMM runs, each
    warm-started from the one before, then by at most `EXACT_SOLVES` full ones, the last of which decides. The bias is not counted.
    A ball per neuron keeps its form: $\varepsilon_m = f \lVert y_m \rVert$.

    Args:
        problem: a single problem with a radius, whose value is not used.
        k: most nonzeros of the penalised weights; the search ends within one percent below it where the count allows.
        solver: settings of the full solves.

    Raises:
        InvalidInputError: `k` is not in [0, penalised weights], or no radius is large enough for it.
    """
    solver = solver or NetTrimADMM()
    weights = int(problem.penalised.sum()) * problem.shape[0]
    if not 0 <= k <= weights or problem.batch_shape or problem.radius is None:
        raise InvalidInputError(
            f"k = {k} for a problem of {weights} penalised weights given; 0 <= k <= {weights}, for a single problem with a radius"
        )
    unit = problem.targets.square().sum(0).sqrt() if problem.per_neuron else problem.size
    search = _Bracket(k)
    layer = Layer.of(problem)
    method = FirstOrder(layer, solver.relaxation)
    state = method.start()
    for _ in range(LOOSE_SOLVES):
        if search.found:
            break
        radius = search.trial * unit
        method.layer = replace(layer, radius=radius / layer.size if problem.per_neuron else radius)
        state = _run(method, state)
        search.record(int(((state.s != 0) & problem.penalised).sum()))
    search.reopen()
    for _ in range(EXACT_SOLVES):
        candidate = replace(problem, radius=search.trial * unit)
        answer = solver.run(candidate)
        count = int(((answer.matrix != 0) & problem.penalised).sum())
        # What has no solution is a ball too small.
        search.record(weights + 1 if answer.termination[0] is Termination.INFEASIBLE else count)
        if search.found:
            break
    if search.enough is None:
        raise InvalidInputError(f"no radius up to {_MOST:g} times the outputs' norm leaves at most {k} weights; ask for more")
    return replace(problem, radius=search.enough * unit)


def _run(method: FirstOrder, state: State) -> State:
    for step in range(_LOOSE_STEPS):
        measured = step % 15 == 14
        state = method.step(state, measure=measured)
        if measured and step < _LOOSE_STEPS - 15:
            state = method.rebalance(state)
    return state


class _Bracket:
    """Root search for a decreasing count over the logarithm of the radius's share."""

    def __init__(self, k: int) -> None:
        self.k = k
        self.low, self.low_count = math.log(_LEAST), math.inf
        self.high, self.high_count = math.log(_MOST), -1.0
        self.enough: float | None = None
        self.found = False
        self._point = math.log(0.1)

    @property
    def trial(self) -> float:
        """The share to try next."""
        return math.exp(self._point)

    def record(self, count: int) -> None:
        """Take in the count at `trial` and choose the next."""
        if count <= self.k:
            self.high, self.high_count = self._point, count
            self.enough = self.trial
        else:
            self.low, self.low_count = self._point, count
        self.found = self.k - max(1, _SHARE * self.k) <= count <= self.k or (self.k == 0 == count)
        self._point = self._next()

    def reopen(self) -> None:
        """Start the exact phase at the best loose share, with a bracket around it that is not yet trusted."""
        start = math.log(self.enough) if self.enough is not None else self.high
        self.low, self.low_count = math.log(_LEAST), math.inf
        self.high, self.high_count = math.log(_MOST), -1.0
        self.enough, self.found, self._point = None, False, start

    def _next(self) -> float:
        if math.isinf(self.low_count):
            return max(self._point - 0.15, 0.5 * (self._point + self.low)) if self.high_count > 0 else self._point - 0.5
        if self.high_count < 0:
            return self._point + (0.05 if self.low_count < 1.2 * self.k + 2 else 0.7)
        # Aim a little below k, where the search may end; stay off the ends of the bracket.
        aim = self.k - 0.5 * max(1.0, _SHARE * self.k)
        share = (self.low_count - aim) / (self.low_count - self.high_count)
        return self.low + min(max(share, 0.1), 0.9) * (self.high - self.low)
