"""The loop, its stopping rule and the batching, on a solver whose every step is known."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from torch import Tensor

import optprune as op
from optprune.errors import InvalidInputError, SolveError, UnsupportedError
from optprune.problems import L0LeastSquares, Problem, stack
from optprune.solution import Answer, Termination
from optprune.solvers import IterativeSolver, solve_all
from optprune.solvers._base import CONVERGED, INFEASIBLE, NON_FINITE, RUNNING
from optprune.testing.instances import data


@dataclass(frozen=True)
class CountState:
    """How many steps each element has made, and a number that all share."""

    count: Tensor
    shared: float


@dataclass(frozen=True)
class Count(IterativeSolver[L0LeastSquares, CountState]):
    """Counts steps; an element ends, with the code asked for, when it reaches the integer in its weight's corner."""

    max_steps: int = 20
    check_every: int = 1
    code: int = CONVERGED

    accepts: ClassVar[tuple[type[Problem], ...]] = (L0LeastSquares,)
    summary: ClassVar[str] = "for tests"
    source: ClassVar[str] = "none"

    def init(self, problem):
        return CountState(torch.zeros(problem.batch_shape, dtype=torch.float64), 0.0)

    def step(self, problem, state):
        return CountState(state.count + 1, state.shared + 1)

    def residual(self, problem, state):
        return torch.where(state.count >= problem.dense[..., 0, 0], self.code, RUNNING)

    def finish(self, problem, state):
        matrix = torch.zeros_like(problem.dense)
        matrix[..., 0, 0] = state.count
        return Answer(matrix, (), 0, hint={"count": state.count}, info={"shared": state.shared})


def problem(stop: float, k: int = 2) -> L0LeastSquares:
    weight, inputs = data(0)
    weight[0, 0] = stop
    return L0LeastSquares.from_layer(weight, inputs, op.PerRow(k))


def test_the_loop_ends_where_the_residual_says():
    solution = op.solve(problem(7), Count())
    assert (solution.steps, solution.termination) == (7, Termination.CONVERGED)
    assert float(solution.weight[0, 0]) == 7.0


def test_the_residual_is_looked_at_every_so_many_steps():
    assert op.solve(problem(7), Count(check_every=5)).steps == 10
    assert op.solve(problem(19), Count(max_steps=20, check_every=7)).steps == 20  # 7, 14, and the 6 that are left


def test_the_step_limit_is_a_value():
    solution = op.solve(problem(30), Count())
    assert (solution.steps, solution.termination) == (20, Termination.STEP_LIMIT)
    assert not solution.termination.ok
    assert solution.certificate is not None  # the answer holds whatever the claim


@pytest.mark.parametrize(
    ("code", "termination"), [(INFEASIBLE, Termination.INFEASIBLE), (NON_FINITE, Termination.NON_FINITE)]
)
def test_other_ends(code, termination):
    assert op.solve(problem(3), Count(code=code)).termination is termination


def test_throw_raises_with_the_solution_inside():
    with pytest.raises(SolveError, match=r"Count\(.*\) stopped: step limit after 20 steps") as caught:
        op.solve(problem(30), Count(), throw=True)
    assert caught.value.solution.steps == 20
    assert op.solve(problem(3), Count(), throw=True).termination is Termination.CONVERGED


def test_a_stack_gives_what_its_members_give():
    """Each element is frozen where it stopped, so that the others do not carry it on."""
    stops = [3.0, 7.0, 30.0, 1.0]
    answer = Count().run(stack([problem(stop) for stop in stops]))
    assert answer.matrix[:, 0, 0].tolist() == [3.0, 7.0, 20.0, 1.0]
    converged, limit = Termination.CONVERGED, Termination.STEP_LIMIT
    assert answer.termination == (converged, converged, limit, converged)
    assert answer.steps == 20
    assert answer.info["shared"] == 20.0  # what has no batch dimension runs on


def test_solve_all_stacks_equal_shapes_and_keeps_the_order():
    runs = []

    @dataclass(frozen=True)
    class Recorded(Count):
        def init(self, problem):
            runs.append(problem.batch_shape)
            return super().init(problem)

    problems = [problem(3), problem(4, k=5), problem(5), problem(6)]
    solutions = solve_all(problems, Recorded())
    assert sorted(runs) == [(), (3,)]
    assert [float(solution.weight[0, 0]) for solution in solutions] == [3.0, 4.0, 5.0, 6.0]
    for given, solution in zip(problems, solutions, strict=True):
        assert solution.certificate is not None
        assert solution.certificate.objective == pytest.approx(float(given.objective(solution.weight)))
        assert solution.solver == repr(Recorded())
    assert solve_all([], Count()) == []


def test_solve_all_throws_for_one_member():
    with pytest.raises(SolveError, match="step limit"):
        solve_all([problem(3), problem(30)], Count(), throw=True)


def test_progress_is_told_at_every_look():
    calls = []
    op.solve(problem(7), Count(check_every=3), progress=lambda done, most: calls.append((done, most)))
    assert calls == [(3, 20), (6, 20), (9, 20)]


def test_a_certificate_can_be_declined():
    solution = op.solve(problem(3), Count(), certified=False)
    assert solution.certificate is None
    assert solution.evidence == {}
    assert "no certificate" in str(solution)


def test_a_non_finite_answer_has_no_certificate():
    @dataclass(frozen=True)
    class Nan(Count):
        def finish(self, problem, state):
            answer = super().finish(problem, state)
            return replace(answer, matrix=answer.matrix * float("nan"))

    solution = op.solve(problem(3), Nan(code=NON_FINITE))
    assert solution.termination is Termination.NON_FINITE
    assert solution.certificate is None


def test_a_problem_of_another_type_is_refused():
    net_trim = op.NetTrim.from_layer(*data(0), radius=1.0)
    with pytest.raises(UnsupportedError, match="Count given a NetTrim; it accepts L0LeastSquares"):
        op.solve(net_trim, Count())


@pytest.mark.parametrize("settings", [{"max_steps": 0}, {"check_every": 0}, {"max_steps": -5}])
def test_a_loop_that_would_not_run_is_refused(settings):
    with pytest.raises(InvalidInputError, match="both must be at least 1"):
        Count(**settings)


def test_the_caller_is_not_asked_for_gradients():
    weight, inputs = data(0)
    solution = op.solve(L0LeastSquares.from_layer(weight.requires_grad_(), inputs, op.PerRow(2)), op.ADMM())
    assert not solution.weight.requires_grad
    assert torch.is_grad_enabled()
