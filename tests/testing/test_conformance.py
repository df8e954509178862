"""The suite rejects planted faults, each for its own reason; `test_checklists` runs it on every solver we have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch

import optprune as op
from optprune.errors import UnsupportedError
from optprune.problems import L0LeastSquares, Problem
from optprune.solution import Answer, Termination
from optprune.solvers import Promise, Solver
from optprune.testing import ConformanceError, Golden, check_solver, l0_instances, net_trim_instances

FEW = [golden for golden in l0_instances() if "gaussian" in golden.name][:6] + [
    golden for golden in l0_instances() if golden.name.startswith("correlated")
]


@pytest.mark.parametrize("solver", [op.ADMM(), op.Magnitude(refit=False), op.Wanda(refit=True)], ids=repr)
def test_the_other_settings_conform(solver):
    assert check_solver(solver, FEW).faults == ()


@dataclass(frozen=True)
class Planted(Solver[L0LeastSquares]):
    """A good solver with something done to its answer."""

    change: Callable[[Any, Answer], Answer]
    before: Callable[[L0LeastSquares], object] = id

    accepts: ClassVar[tuple[type[Problem], ...]] = (L0LeastSquares,)
    summary: ClassVar[str] = "for tests"
    source: ClassVar[str] = "none"

    @property
    def promises(self) -> frozenset[Promise]:
        return frozenset({Promise.REFITTED})

    def run(self, problem, progress=None):
        self.before(problem)
        return self.change(problem, op.Magnitude().run(problem, progress))


def checks(solver: Solver, instances=FEW) -> set[str]:
    """Names of the checks that a solver fails."""
    with pytest.raises(ConformanceError) as caught:
        check_solver(solver, instances)
    assert all(str(fault) in str(caught.value) for fault in caught.value.report.faults)
    return {fault.check for fault in caught.value.report.faults}


def test_the_unchanged_solver_passes():
    assert check_solver(Planted(lambda problem, answer: answer), FEW).faults == ()


def off_by(relative):
    def change(problem, answer):
        noise = torch.randn(problem.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        return replace(answer, matrix=answer.matrix * (1 + relative * noise))

    return Planted(change)


@pytest.mark.parametrize("relative", [1e-3, 1e-5])
def test_weights_that_are_off(relative):
    assert "promised" in checks(off_by(relative))


def test_weights_off_by_rounding_are_no_fault():
    assert check_solver(off_by(1e-12), FEW).faults == ()


def test_one_weight_too_many():
    def change(problem, answer):
        flat = answer.matrix.clone().flatten(-2)
        first_zero = (flat == 0).int().argmax(-1, keepdim=True)
        return replace(answer, matrix=flat.scatter(-1, first_zero, 1e-13).unflatten(-1, problem.shape))

    assert "admissible" in checks(Planted(change))


def test_convergence_claimed_at_the_start():
    def change(problem, answer):
        return Answer(problem.pattern.project(problem.dense), (Termination.CONVERGED,) * len(answer.termination), 0)

    assert {"claim", "promised"} <= checks(Planted(change))


@pytest.mark.parametrize("termination", [Termination.STEP_LIMIT, Termination.INFEASIBLE, Termination.NON_FINITE])
def test_giving_up_on_a_solvable_problem(termination):
    planted = Planted(lambda problem, answer: replace(answer, termination=(termination,) * len(answer.termination)))
    assert checks(planted) == {"claim"}


def test_nan_and_wrong_shape_and_dtype():
    nan = Planted(lambda problem, answer: replace(answer, matrix=answer.matrix * float("nan")))
    assert checks(nan) == {"values"}
    single = Planted(lambda problem, answer: replace(answer, matrix=answer.matrix.float()))
    assert "values" in checks(single)
    flat = Planted(lambda problem, answer: replace(answer, matrix=answer.matrix[..., :1, :]))
    assert "values" in checks(flat)


def test_changed_inputs():
    solver = Planted(lambda problem, answer: answer, before=lambda problem: problem.statistics.gram.mul_(1.01))
    assert "untouched" in checks(solver)


def test_changed_random_state():
    solver = Planted(lambda problem, answer: answer, before=lambda problem: torch.rand(1))
    assert checks(solver) == {"untouched"}


def test_an_answer_that_depends_on_chance():
    def change(problem, answer):
        noise = torch.rand((), generator=generator, dtype=torch.float64)
        return replace(answer, matrix=answer.matrix * (1 + 1e-13 * noise))

    generator = torch.Generator().manual_seed(0)
    assert checks(Planted(change)) == {"repeatable"}


def test_an_absolute_threshold():
    assert checks(Planted(lambda problem, answer: replace(answer, matrix=answer.matrix.clamp(max=100)))) == {
        "equivariant"
    }


def test_a_stack_that_mixes_its_members():
    def change(problem, answer):
        return replace(answer, matrix=answer.matrix.flip(0)) if problem.batch_shape else answer

    assert checks(Planted(change)) == {"batched"}


def test_a_false_promise_of_the_optimum():
    @dataclass(frozen=True)
    class Boast(Planted):
        @property
        def promises(self):
            return frozenset({Promise.OPTIMAL})

    assert checks(Boast(lambda problem, answer: answer)) == {"promised"}


def test_settings_that_can_change_and_a_missing_source():
    class Loose(op.Magnitude):
        pass

    @dataclass
    class Mutable(Solver[L0LeastSquares]):
        accepts = (L0LeastSquares,)
        summary = "for tests"
        source = ""

        def run(self, problem, progress=None):
            return op.Magnitude().run(problem)

    assert checks(Mutable()) == {"declaration"}
    assert check_solver(Loose(), FEW).faults == ()


def test_a_crash_names_the_instance():
    def crash(problem):
        raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted") as caught:
        check_solver(Planted(lambda problem, answer: answer, before=crash), FEW)
    assert any(FEW[0].name in note for note in caught.value.__notes__)


def test_refusals_are_reported_and_a_refusal_of_all_is_an_error():
    def refuse_rows(problem):
        if isinstance(problem.pattern, op.PerRow):
            raise UnsupportedError("no rows")

    report = check_solver(Planted(lambda problem, answer: answer, before=refuse_rows), FEW)
    assert len(report.refused) == 1
    assert "no rows" in str(report)
    with pytest.raises(UnsupportedError, match="accepts none"):
        check_solver(op.ADMM(), [])


def test_what_was_not_checked_is_said():
    report = check_solver(op.Wanda(), [FEW[0]])
    assert any("promises nothing" in line for line in report.unchecked)
    assert any("equal shape" in line for line in report.unchecked)
    assert "not checked" in str(report)


def test_a_lower_bound_above_the_optimum_is_found():
    problem = FEW[0].problem
    lying = Golden("optimum said too low", problem, 1e-9, True, convex=False, scale=1.0)
    object.__setattr__(lying, "optimum", 0.0)
    assert checks(op.Magnitude(), [lying]) == {"certified"}


@dataclass(frozen=True)
class PlantedNetTrim(Solver[op.NetTrim]):
    """Net-Trim's solver with something done to its answer."""

    change: Callable[[Any, Answer], Answer]

    accepts: ClassVar[tuple[type[Problem], ...]] = (op.NetTrim,)
    summary: ClassVar[str] = "for tests"
    source: ClassVar[str] = "none"

    def run(self, problem, progress=None):
        return self.change(problem, op.NetTrimADMM().run(problem, progress))


LAYERS = [golden for golden in net_trim_instances() if "seed" in golden.name and "joint" in golden.name]


def test_net_trim_unchanged_passes():
    assert check_solver(PlantedNetTrim(lambda problem, answer: answer), LAYERS).faults == ()


@pytest.mark.parametrize(
    ("factor", "failed"),
    [(1.001, {"claim", "promised"}), (0.999, {"admissible"}), (1.00001, {"promised"})],
)
def test_net_trim_off_by_little(factor, failed):
    """A larger matrix is not optimal, a smaller one leaves the ball."""
    planted = PlantedNetTrim(lambda problem, answer: replace(answer, matrix=answer.matrix * factor))
    assert failed <= checks(planted, LAYERS)


def test_net_trim_feasible_and_not_optimal():
    """The dense layer is admissible, and its certificate says how far from optimal it is."""

    def change(problem, answer):
        dense = torch.linalg.lstsq(problem.inputs, problem.targets).solution.mT
        return replace(answer, matrix=dense)

    linear = [golden for golden in net_trim_instances() if golden.name.startswith("linear")]
    assert {"claim", "promised"} <= checks(PlantedNetTrim(change), linear)
