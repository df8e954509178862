"""The conformance suite: what every solver owes its callers, tried on every golden instance that it accepts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optprune.certify import recheck
from optprune.errors import OptPruneError, UnsupportedError
from optprune.problems import L0LeastSquares, Problem, stack_key
from optprune.solution import Answer, Certificate, Solution, Termination
from optprune.solvers import Promise, Solver, solve, solve_all
from optprune.testing.instances import (
    Golden,
    edge_instances,
    l0_instances,
    net_trim_instances,
    relu_instances,
    rescaled,
)

RECOMPUTED = 1e-12
"""Relative agreement of a certificate's objective with the problem's own."""
STATIONARY = 1e-8
"""Largest gradient on the support of a refitted answer, relative to the linear term, inputs at unit scale."""
OPTIMAL = 1e-6
"""Relative excess over the optimum of an answer that claims it."""
VIOLATION = 1e-8
"""Largest violation of the constraints of a convex problem, relative to the data's scale."""
CERTIFIED = 1e-5
"""Largest certified relative gap of a convex problem that is claimed solved."""
SAME = 1e-9
"""Relative agreement of answers that differ only in how they were asked for."""
FACTORS = (2.0**-17, 2.0**13)
"""Scales of inputs and weights under which the answer must follow; powers of two round nothing."""


@dataclass(frozen=True)
class Fault:
    """One thing that a solver owes and did not keep.

    Attributes:
        instance: name of the golden instance; "" for a fault of the solver's declaration.
        check: name of the check.
        message: what was found and what was expected.
    """

    instance: str
    check: str
    message: str

    def __str__(self) -> str:
        return f"{self.check}: {self.message}" + (f" [{self.instance}]" if self.instance else "")


@dataclass(frozen=True)
class ConformanceReport:
    """What was tried and what was found.

    Attributes:
        solver: its settings, as text.
        instances: names of the instances that it ran on.
        refused: instances that it refused with an `UnsupportedError`, and why.
        unchecked: what this run does not say.
        faults: none for a solver that conforms.
    """

    solver: str
    instances: tuple[str, ...]
    refused: Mapping[str, str]
    unchecked: tuple[str, ...]
    faults: tuple[Fault, ...]

    def __str__(self) -> str:
        lines = [f"{self.solver}: {len(self.faults)} faults on {len(self.instances)} instances"]
        lines += [f"  fault, {fault}" for fault in self.faults]
        lines += [f"  refused {name}: {reason}" for name, reason in self.refused.items()]
        lines += [f"  not checked: {what}" for what in self.unchecked]
        return "\n".join(lines)


class ConformanceError(OptPruneError, AssertionError):
    """A solver does not keep what every solver owes; `report` holds the faults, the message lists them."""

    def __init__(self, report: ConformanceReport) -> None:
        super().__init__(str(report))
        self.report = report


def check_solver(solver: Solver, instances: Sequence[Golden] | None = None) -> ConformanceReport:
    """Run a solver on golden instances and check everything that a caller relies on.

    Finite answer of the right shape, admissible support, a claim that the certificate bears out, a lower bound below
    the known optimum, what the solver `promises` (and the optimum where the problem is convex), the same answer twice,
    alone and in a stack, at any scale of the data, and nothing of the caller's changed.

    Args:
        solver: its settings.
        instances: tried if the solver accepts them; by default all of this package.

    Raises:
        ConformanceError: lists every fault.
        UnsupportedError: the solver accepts none of the instances, so that nothing can be said.
    """
    pool = (
        (*l0_instances(), *net_trim_instances(), *edge_instances(), *relu_instances())
        if instances is None
        else tuple(instances)
    )
    faults = [Fault("", "declaration", message) for message in _declaration(solver)]
    trials: list[_Trial] = []
    names, refused = [], {}
    for golden in pool:
        if not isinstance(golden.problem, solver.accepts):
            continue
        try:
            outcome = _Trial.of(solver, golden)
        except UnsupportedError as error:
            refused[golden.name] = str(error)
        except Exception as error:
            error.add_note(f"raised by {solver} on the golden instance '{golden.name}'")
            raise
        else:
            names.append(golden.name)
            if isinstance(outcome, _Trial):
                trials.append(outcome)
            else:
                faults += outcome
    if not names:
        raise UnsupportedError(
            f"{solver} accepts none of the {len(pool)} instances given; "
            "make some for its problems: check_solver(solver, [Golden(...)])"
        )
    for trial in trials:
        faults += [Fault(trial.golden.name, check.__name__[1:], text) for check in _CHECKS for text in check(trial)]
    stacks = _stacks(trials)
    for members in stacks:
        faults += _batched(solver, members)
    unchecked = []
    if not stacks:
        unchecked.append("stacks: no two of the instances have equal shape and settings")
    if not solver.promises and not all(trial.golden.convex for trial in trials):
        unchecked.append("quality: the solver promises nothing of its answers beyond an admissible support")
    report = ConformanceReport(repr(solver), tuple(names), refused, tuple(unchecked), tuple(faults))
    if faults:
        raise ConformanceError(report)
    return report


@dataclass(frozen=True)
class _Trial:
    """One instance solved twice, and what the checks compare it with.

    Attributes:
        truth: the problem as it was before the solver saw it.
        given: the problem that the solver saw.
        first: the answer of the first run; `solution` is that of the second.
        calls: what the first run told its progress callback.
        disturbed: global settings that the runs changed.
    """

    solver: Solver
    golden: Golden
    truth: Problem
    given: Problem
    first: Answer
    solution: Solution
    certificate: Certificate
    calls: tuple[tuple[Any, ...], ...]
    disturbed: tuple[str, ...]

    @classmethod
    def of(cls, solver: Solver, golden: Golden) -> _Trial | list[Fault]:
        """The trial; or the faults of an answer that nothing else can be asked of."""
        truth, given, before = _copy(golden.problem), _copy(golden.problem), _process_state()
        calls: list[tuple[Any, ...]] = []
        first = solver.run(given, lambda *call: calls.append(call))
        faults = [Fault(golden.name, "values", message) for message in _values(truth, first)]
        if faults:
            return faults
        solution = solve(given, solver)
        if solution.certificate is None:
            return [Fault(golden.name, "values", "the first run is finite, the second is not")]
        after = _process_state()
        disturbed = tuple(name for name in before if before[name] != after[name])
        return cls(solver, golden, truth, given, first, solution, solution.certificate, tuple(calls), disturbed)


def _declaration(solver: Solver) -> Iterator[str]:
    settings = type(solver)
    if not is_dataclass(settings) or settings.__setattr__ is object.__setattr__:
        yield f"{settings.__name__} is not a frozen dataclass; its settings are data"
    for name in ("summary", "source"):
        if not getattr(settings, name, ""):
            yield f"{settings.__name__}.{name} is empty; `optprune methods` prints it"


def _values(problem: Problem, answer: Answer) -> Iterator[str]:
    matrix = answer.matrix
    if tuple(matrix.shape) != problem.shape:
        yield f"a matrix of shape {tuple(matrix.shape)}; the problem's is {problem.shape}"
    if matrix.dtype != torch.float64:
        yield f"a matrix of dtype {matrix.dtype}; answers are float64"
    if len(answer.termination) != 1:
        yield f"{len(answer.termination)} terminations for one problem"
    bad = int((~matrix.isfinite()).sum())
    if bad:
        yield f"{bad} NaN or infinite entries, ended {answer.termination}"


def _admissible(trial: _Trial) -> Iterator[str]:
    matrix, problem = trial.solution.matrix, trial.truth
    if isinstance(problem, L0LeastSquares) and not problem.pattern.admits(matrix != 0):
        yield f"{int((matrix != 0).sum())} nonzero weights are not a support that {problem.pattern} admits"
    for name, value in problem.violation(matrix).items():
        if float(value) > VIOLATION:
            yield f"constraint '{name}' is violated by {float(value):.3g} of the data's scale; {VIOLATION:g} is allowed"


def _claim(trial: _Trial) -> Iterator[str]:
    termination, steps = trial.solution.termination, trial.solution.steps
    if not termination.ok:
        yield f"ended '{termination.value}' after {steps} steps on a problem that has a solution"
    if termination is Termination.CONVERGED and steps == 0:
        yield "claims convergence without a step; a formula's answer is 'closed form'"
    gap = trial.certificate.gap
    allowed = CERTIFIED * abs(trial.certificate.objective) + trial.golden.floor
    if trial.golden.convex and termination.ok and gap > allowed:
        yield f"claims '{termination.value}' where the certified gap is {gap:.3g}; {allowed:.3g} is allowed"


def _certified(trial: _Trial) -> Iterator[str]:
    golden, problem, certificate = trial.golden, trial.truth, trial.certificate
    objective = float(problem.objective(trial.solution.matrix))
    if abs(certificate.objective - objective) > RECOMPUTED * abs(objective):
        yield f"the certificate's objective is {certificate.objective!r}, the problem's {objective!r}"
    if recheck(problem, trial.solution.matrix, trial.solution.evidence) != certificate:
        yield "its evidence does not give its certificate again"
    slack = golden.tolerance * abs(golden.optimum) + golden.floor
    if certificate.lower_bound > golden.optimum + slack:
        yield f"lower bound {certificate.lower_bound!r} above the optimum {golden.optimum!r}"
    if objective < golden.optimum - slack - OPTIMAL * abs(golden.optimum):
        yield f"objective {objective!r} below the optimum {golden.optimum!r}: not an admissible answer"


def _promised(trial: _Trial) -> Iterator[str]:
    golden, problem, matrix = trial.golden, trial.truth, trial.solution.matrix
    promises = trial.solver.promises
    if golden.convex or Promise.OPTIMAL in promises:
        excess = float(problem.objective(matrix)) - golden.optimum
        allowed = OPTIMAL * abs(golden.optimum) + golden.floor
        if excess > allowed:
            yield f"{excess:.3g} above the optimum {golden.optimum!r}; {allowed:.3g} is allowed"
    if Promise.REFITTED in promises and isinstance(problem, L0LeastSquares):
        slope = _slope(problem, matrix)
        if slope > STATIONARY:
            yield f"relative gradient {slope:.3g} on the support; a refitted answer has at most {STATIONARY:g}"


def _slope(problem: L0LeastSquares, matrix: Tensor) -> float:
    """Gradient on the support, relative to the linear term, with inputs at unit scale."""
    diagonal = problem.gram.diagonal()
    unit = torch.where(diagonal > 0, diagonal.rsqrt(), 0.0)
    slope = torch.where(matrix != 0, problem.gradient(matrix) * unit, 0.0).norm()
    return float(slope / (problem.linear * unit).norm().clamp_min(torch.finfo(torch.float64).tiny))


def _repeatable(trial: _Trial) -> Iterator[str]:
    first, second = trial.first, trial.solution
    if not torch.equal(first.matrix, second.matrix):
        yield f"two runs differ by {float((first.matrix - second.matrix).abs().max()):.3g}"
    if (first.termination[0], first.steps) != (second.termination, second.steps):
        yield f"two runs end {first.termination} ({first.steps} steps) and {second.termination} ({second.steps} steps)"
    for call in trial.calls:
        if len(call) != 2 or not 0 <= call[0] <= call[1]:
            yield f"progress was called with {call}; (steps made, most steps) is meant"


def _untouched(trial: _Trial) -> Iterator[str]:
    after = trial.given.tensors()
    for name, before in trial.truth.tensors().items():
        if not torch.equal(before, after[name]):
            yield f"changed the problem's {name}"
    for name in trial.disturbed:
        yield f"changed the caller's {name}"


def _equivariant(trial: _Trial) -> Iterator[str]:
    inputs, weights = FACTORS
    answer = trial.solver.run(rescaled(trial.truth, inputs, weights)).matrix / weights
    far = _apart(trial, trial.solution.matrix, answer)
    if far > SAME:
        yield f"inputs times {inputs:g} and weights times {weights:g} change the answer by {far:.3g}, relative"


_CHECKS: tuple[Callable[[_Trial], Iterator[str]], ...] = (
    _admissible,
    _claim,
    _certified,
    _promised,
    _repeatable,
    _untouched,
    _equivariant,
)


def _stacks(trials: Sequence[_Trial]) -> list[list[_Trial]]:
    """Trials that run as one batch; only regular instances, whose answers do not hang on the last bit."""
    groups: dict[Hashable, list[_Trial]] = defaultdict(list)
    for trial in trials:
        if trial.golden.regular:
            groups[stack_key(trial.truth)].append(trial)
    return [members for members in groups.values() if len(members) > 1]


def _batched(solver: Solver, members: Sequence[_Trial]) -> Iterator[Fault]:
    solutions = solve_all([trial.truth for trial in members], solver, certified=False)
    for trial, solution in zip(members, solutions, strict=True):
        far = _apart(trial, trial.solution.matrix, solution.matrix)
        if not far <= SAME:
            yield Fault(trial.golden.name, "batched", f"the answer in a stack differs by {far:.3g} from the one alone")
        if solution.termination is not trial.solution.termination:
            message = f"ends '{solution.termination.value}' in a stack, '{trial.solution.termination.value}' alone"
            yield Fault(trial.golden.name, "batched", message)


def _apart(trial: _Trial, one: Tensor, other: Tensor) -> float:
    """Relative distance of two answers; of their objectives where the minimiser is not unique."""
    if trial.golden.regular:
        return float((one - other).norm() / one.norm().clamp_min(torch.finfo(torch.float64).tiny))
    first, second = float(trial.truth.objective(one)), float(trial.truth.objective(other))
    return max(0.0, abs(first - second) - trial.golden.floor) / max(abs(first), torch.finfo(torch.float64).tiny)


def _copy(problem: Problem) -> Problem:
    return problem.restore({name: tensor.clone() for name, tensor in problem.tensors().items()}, problem.settings())


def _process_state() -> dict[str, object]:
    """What belongs to the caller: torch's settings, torch's and numpy's global random generators.

    Python's own generator is not among them: beartype draws from it where annotations are checked.
    """
    return {
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "number of threads": torch.get_num_threads(),
        "gradient mode": torch.is_grad_enabled(),
        "deterministic mode": torch.are_deterministic_algorithms_enabled(),
        "float32 matmul precision": torch.get_float32_matmul_precision(),
        "torch random state": torch.get_rng_state().numpy().tobytes(),
        "numpy random state": repr(np.random.get_state(legacy=False)),  # noqa: NPY002 (read, not used)
    }
