"""The solver interface, the loop and the stopping rule, written once."""

from __future__ import annotations

import enum
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Generic, TypeVar

import torch
from jaxtyping import Int
from torch import Tensor

from optprune.certify import certify
from optprune.errors import InvalidInputError, SolveError, UnsupportedError
from optprune.problems import Problem, stack, stack_key
from optprune.solution import Answer, Solution, Termination

Progress = Callable[[int, int], None]
"""Called with (steps made, most steps) at every check."""

P = TypeVar("P", bound=Problem)
S = TypeVar("S")

RUNNING, CONVERGED, INFEASIBLE, NON_FINITE = range(4)
_TERMINATIONS = {
    RUNNING: Termination.STEP_LIMIT,
    CONVERGED: Termination.CONVERGED,
    INFEASIBLE: Termination.INFEASIBLE,
    NON_FINITE: Termination.NON_FINITE,
}


class Promise(enum.Enum):
    """What a solver says of every answer that it ends well; `check_solver` holds it to that."""

    REFITTED = "the gradient vanishes on the support"
    OPTIMAL = "no admissible matrix has a smaller objective"


class Solver(ABC, Generic[P]):
    """A frozen settings record that can run on the problems it accepts."""

    accepts: ClassVar[tuple[type[Problem], ...]]
    summary: ClassVar[str]
    source: ClassVar[str]

    @property
    def promises(self) -> frozenset[Promise]:
        """What holds of the answers beyond an admissible support, with these settings."""
        return frozenset()

    @abstractmethod
    def run(self, problem: P, progress: Progress | None = None) -> Answer:
        """Solve a problem, or a stack of problems, and say why it stopped."""


@dataclass(frozen=True)
class IterativeSolver(Solver[P], Generic[P, S]):
    """A solver that is `init`, `step`, `residual` and `finish`; the loop is here.

    The state is a dataclass of tensors with the problem's leading batch dimensions (or none, for what all share). An
    element of a stack that has stopped is frozen, so that a stack gives what its members give one by one. The device
    is read once every `check_every` steps. An element that ends NON_FINITE has no answer: its matrix is NaN.

    Attributes:
        max_steps: most steps.
        check_every: steps between two looks at the residual.
    """

    max_steps: int
    check_every: int

    def __post_init__(self) -> None:
        if self.max_steps < 1 or self.check_every < 1:
            raise InvalidInputError(
                f"{type(self).__name__} with max_steps={self.max_steps}, check_every={self.check_every} given; "
                "both must be at least 1"
            )

    @abstractmethod
    def init(self, problem: P) -> S:
        """The state before the first step."""

    @abstractmethod
    def step(self, problem: P, state: S) -> S:
        """The next state; does not change the given one."""

    @abstractmethod
    def residual(self, problem: P, state: S) -> Int[Tensor, "*batch"]:
        """One code per batch element: RUNNING, CONVERGED, INFEASIBLE or NON_FINITE."""

    @abstractmethod
    def finish(self, problem: P, state: S) -> Answer:
        """The answer of the last state; its termination and steps are filled in by the loop."""

    def run(self, problem: P, progress: Progress | None = None) -> Answer:
        state = self.init(problem)
        codes = torch.zeros(problem.batch_shape, dtype=torch.int8)
        steps = 0
        while steps < self.max_steps and bool((codes == RUNNING).any()):
            for _ in range(min(self.check_every, self.max_steps - steps)):
                state = _freeze(codes, state, self.step(problem, state))
                steps += 1
            codes = torch.where(codes == RUNNING, self.residual(problem, state).to("cpu", torch.int8), codes)
            if progress is not None:
                progress(steps, self.max_steps)
        answer = self.finish(problem, state)
        terminations = tuple(_TERMINATIONS[int(code)] for code in codes.reshape(-1))
        lost = (codes == NON_FINITE)[..., None, None].to(answer.matrix.device)
        return replace(answer, matrix=answer.matrix.masked_fill(lost, torch.nan), termination=terminations, steps=steps)


def _freeze(codes: Tensor, old: Any, new: Any) -> Any:
    """Keep the old state of the elements that have stopped."""
    if codes.dim() == 0 or not bool((codes != RUNNING).any()):
        return new
    changes = {}
    for field in fields(new):
        before, after = getattr(old, field.name), getattr(new, field.name)
        if isinstance(after, Tensor) and after is not before and after.dim() >= codes.dim():
            stopped = (codes != RUNNING).to(after.device)
            changes[field.name] = torch.where(
                stopped.reshape(*codes.shape, *[1] * (after.dim() - codes.dim())), before, after
            )
    return replace(new, **changes)


def solve(
    problem: Problem,
    solver: Solver,
    *,
    throw: bool = False,
    certified: bool = True,
    progress: Progress | None = None,
) -> Solution:
    """Solve one layer problem and certify the answer.

    Args:
        problem: a single problem.
        solver: settings of a solver that accepts the problem's type.
        throw: raise `SolveError` when the solver does not reach its goal, instead of reporting it in `termination`.
        certified: find a lower bound and check it; False leaves `certificate` empty.
        progress: called at every check of an iterative solver.

    Raises:
        UnsupportedError: the solver does not accept the problem.
        SolveError: only with `throw=True`; carries the solution.
    """
    return solve_all([problem], solver, throw=throw, certified=certified, progress=progress)[0]


def solve_all(
    problems: Sequence[Problem],
    solver: Solver,
    *,
    throw: bool = False,
    certified: bool = True,
    progress: Progress | None = None,
) -> list[Solution]:
    """Solve many problems; those of equal shape and settings run as one batch. Arguments and errors as `solve`."""
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for index, problem in enumerate(problems):
        _require_accepted(problem, solver)
        groups[stack_key(problem)].append(index)
    solutions: dict[int, Solution] = {}
    for members in groups.values():
        single = len(members) == 1
        batch = problems[members[0]] if single else stack([problems[i] for i in members])
        start = time.perf_counter()
        answer = solver.run(batch, progress)
        seconds = (time.perf_counter() - start) / len(members)
        for position, index in enumerate(members):
            part = answer if single else _member(answer, position)
            solutions[index] = conclude(problems[index], solver, part, seconds, certified)
    for solution in solutions.values() if throw else ():
        if not solution.termination.ok:
            raise SolveError(f"{solver} stopped: {solution.termination.value} after {solution.steps} steps", solution)
    return [solutions[i] for i in range(len(problems))]


def _require_accepted(problem: Problem, solver: Solver) -> None:
    if not isinstance(solver, Solver):
        raise InvalidInputError(f"solver {solver!r} given; a Solver is needed, its settings in parentheses: ADMM()")
    if not isinstance(problem, solver.accepts):
        accepted = ", ".join(t.__name__ for t in solver.accepts)
        raise UnsupportedError(
            f"{type(solver).__name__} given a {type(problem).__name__}; it accepts {accepted}. "
            "`optprune methods` lists solvers by problem"
        )
    if problem.batch_shape:
        raise InvalidInputError(
            "a stack of problems given; pass its members (`unstack`), equal shapes are batched here"
        )


def _member(answer: Answer, position: int) -> Answer:
    return replace(
        answer,
        matrix=answer.matrix[position],
        termination=(answer.termination[position],),
        hint={name: tensor[position] for name, tensor in answer.hint.items()},
    )


def conclude(problem: Problem, solver: Solver, answer: Answer, seconds: float, certified: bool) -> Solution:
    """What is handed back of an answer: the solver's claim, and next to it what the checker finds."""
    weight, bias = problem.split(answer.matrix)
    certificate, evidence, info = None, {}, dict(answer.info)
    if certified and bool(answer.matrix.isfinite().all()):
        start = time.perf_counter()
        certificate, evidence = certify(problem, answer.matrix, answer.hint)
        info["certificate_seconds"] = time.perf_counter() - start
    return Solution(
        weight,
        bias,
        answer.matrix,
        answer.termination[0],
        certificate,
        evidence,
        repr(solver),
        answer.steps,
        seconds,
        info,
    )
