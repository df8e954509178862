"""Net-Trim's large layers in parts: neurons decouple, but for the multiplier of a common ball."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from optprune.problems.net_trim import NetTrim
from optprune.solution import Answer, Termination

Run = Callable[[NetTrim], Answer]

_TRIES = 40
_NEAR = 1e-3  # of the logarithm of the residual: from there on the secant is trusted
_FARTHEST = 30.0  # in the logarithm of the multiplier
_FREE = 16.0  # what stands for infinity there


def decoupled(problem: NetTrim, run: Run, neurons: int) -> Answer:
    """The answers of `neurons` at a time, put together; for a problem without a common ball."""
    return _joined([run(part) for part in _parts(problem, neurons)])


def common_ball(problem: NetTrim, run: Run, neurons: int, tolerance: float) -> Answer:
    r"""A joint ball in parts: the penalised form with the multiplier $\mu$, common to all, at which the residual
    is the radius.

    The residual grows with $\mu$, and at the root $\lambda_\Omega = r / \mu$: the search starts where the multipliers
    have the size at which they reach the prices, and is a bracketed secant in logarithms. Only one part is in work at
    a time.

    The answer is `CONVERGED` when all parts are and the residual is within the tolerance of the radius, relative to the
    targets; `STEP_LIMIT` when no multiplier was found, as for a radius that holds nothing.
    """
    assert problem.radius is not None
    size, radius = float(problem.size), float(problem.radius)
    if radius == 0:
        # Nothing is nothing for every neuron.
        return decoupled(replace(problem, radius=problem.radius.new_zeros(problem.shape[0])), run, neurons)
    start = math.log(_multiplier(problem))
    search = _Search(start)
    answer, last = None, math.nan
    for _ in range(_TRIES):
        answer = decoupled(replace(problem, radius=None, penalty=_tensor(problem, search.point)), run, neurons)
        reached = _residual(problem, answer, neurons)
        if abs(reached - radius) <= tolerance * max(radius, size):
            return answer
        # What the ceilings alone ask for is inside the ball: its multiplier is none, as if mu were infinite.
        if reached <= radius and abs(reached - last) <= tolerance * size:
            return decoupled(replace(problem, radius=None, penalty=_tensor(problem, start + _FREE)), run, neurons)
        last = reached
        if not search.record(math.log(max(reached, 1e-300)) - math.log(max(radius, 1e-300))):
            break
    assert answer is not None
    return replace(answer, termination=(Termination.STEP_LIMIT,))


def _tensor(problem: NetTrim, logarithm: float) -> Tensor:
    return torch.tensor(math.exp(logarithm), dtype=torch.float64, device=problem.targets.device)


def _parts(problem: NetTrim, neurons: int) -> Iterator[NetTrim]:
    """The problem, `neurons` at a time."""
    for first in range(0, problem.shape[0], neurons):
        own = slice(first, first + neurons)
        yield replace(
            problem,
            targets=problem.targets[:, own],
            active=problem.active[:, own],
            ceiling=None if problem.ceiling is None else problem.ceiling[:, own],
            radius=problem.radius[own] if problem.per_neuron and problem.radius is not None else problem.radius,
        )


def _joined(answers: list[Answer]) -> Answer:
    reasons = [answer.termination[0] for answer in answers]
    return Answer(
        torch.cat([answer.matrix for answer in answers]),
        (max(reasons, key=list(Termination).index),),
        max(answer.steps for answer in answers),
        {"multipliers": torch.cat([answer.hint["multipliers"] for answer in answers], dim=1)},
        {name: sum(answer.info[name] for answer in answers) for name in answers[0].info},
    )


def _residual(problem: NetTrim, answer: Answer, neurons: int) -> float:
    """The norm that the ball bounds."""
    total = 0.0
    for part, rows in zip(_parts(problem, neurons), answer.matrix.split(neurons), strict=True):
        total += float(torch.where(part.active, part.residual(rows), 0.0).square().sum())
    return math.sqrt(total)


def _multiplier(problem: NetTrim) -> float:
    r"""A $\mu$ of the right order: every $|\lambda|$ such that its sample alone gives an input the price 1."""
    samples = problem.inputs.shape[0]
    spread = float(problem.linear.mean_square().sqrt().median())
    usual = math.sqrt(max(int(problem.active.sum()), 1)) / samples
    found = float(problem.radius or 0.0) * spread / usual
    return found if math.isfinite(found) and found > 0 else 1.0


class _Search:
    """The root of a growing function of the multiplier's logarithm."""

    def __init__(self, start: float) -> None:
        self.point = start
        self._start = start
        self._ends: dict[bool, tuple[float, float]] = {}
        self._last: tuple[float, float] | None = None

    def record(self, value: float) -> bool:
        """Take in the value at `point` and choose the next; False where there is none."""
        self._ends[value > 0] = (self.point, value)
        slope = 1.0
        if self._last is not None and self.point != self._last[0]:
            slope = (value - self._last[1]) / (self.point - self._last[0])
        self._last = (self.point, value)
        # The residual grows more slowly than the multiplier: a slope above 1 is rounding, one near 0 a plateau.
        point = self.point - value / min(max(slope, 0.1), 1.0)
        if len(self._ends) == 2:
            low, high = self._ends[False][0], self._ends[True][0]
            if not low < point < high or (abs(value) > _NEAR and high - low > 1.0):
                point = min(max(point, low + 0.1 * (high - low)), high - 0.1 * (high - low))
            if high - low <= 1e-15 * abs(high):
                return False
        moved = point != self.point and abs(point - self._start) <= _FARTHEST + 1.0
        self.point = point
        return moved
