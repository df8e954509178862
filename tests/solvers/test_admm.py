"""ADMM for the l0 problem: what its docstring says of settings, units, budgets and accuracy."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

import optprune as op
from optprune.errors import InvalidInputError
from optprune.problems import L0LeastSquares, stack
from optprune.solution import Termination
from optprune.testing.instances import data, every_pattern, l0_instances


@pytest.mark.parametrize("pattern", every_pattern(), ids=repr)
def test_it_is_between_the_optimum_and_refitted_magnitude(pattern):
    """Over ten layers: never below the optimum, close to it, and better than magnitude where there is a choice."""
    layers = stack([L0LeastSquares.from_layer(*data(200 + seed), pattern=pattern) for seed in range(10)])
    ours, best, simple = (
        layers.objective(solver.run(layers).matrix) for solver in (op.ADMM(), op.Exhaustive(), op.Magnitude())
    )
    assert bool((ours >= best * (1 - 1e-9)).all())
    assert float(ours.sum()) <= 1.03 * float(best.sum())
    assert float(ours.sum()) <= float(simple.sum())


@pytest.mark.parametrize("golden", [g for g in l0_instances() if "gaussian" in g.name], ids=lambda g: g.name)
def test_the_budget_is_used_to_the_last_weight(golden):
    problem = golden.problem
    matrix = op.ADMM().run(problem).matrix
    assert int((matrix != 0).sum()) == problem.pattern.count(problem.shape)


@pytest.mark.parametrize(
    "setting",
    [
        {"rho": 0.0},
        {"growth": 1.0},
        {"patience": 0},
        {"tolerance": 0.0},
        {"rho": float("nan")},
        {"settling": 1.0},
        {"settling": -0.1},
        {"refit_tolerance": 0.0},
    ],
)
def test_impossible_settings_are_refused(setting):
    with pytest.raises(InvalidInputError, match=f"{next(iter(setting))}={next(iter(setting.values()))}"):
        op.ADMM(**setting)


def test_too_few_steps_end_at_the_limit_and_still_refit():
    problem = L0LeastSquares.from_layer(*data(1), op.PerRow(3))
    answer = op.ADMM(max_steps=3).run(problem)
    assert answer.termination == (op.Termination.STEP_LIMIT,)
    assert answer.steps == 3
    slope = problem.gradient(answer.matrix)
    assert float(torch.where(answer.matrix != 0, slope, 0.0).abs().max()) <= 1e-12


def test_more_patience_costs_steps_and_not_accuracy():
    problem = L0LeastSquares.from_layer(*data(2, out=6, inputs=24, samples=100), pattern=op.PerLayer(40))
    quick, slow = op.ADMM(growth=1.5).run(problem), op.ADMM(growth=1.02, max_steps=2000).run(problem)
    assert quick.steps < slow.steps
    assert float(problem.objective(slow.matrix)) <= float(problem.objective(quick.matrix))


def test_a_support_that_hardly_changes_counts_as_settled():
    problem = L0LeastSquares.from_layer(*data(2, out=24, inputs=40, samples=200), pattern=op.PerLayer(400))
    exact, loose = (op.ADMM(rho=0.05, check_every=1, patience=2, settling=s).run(problem) for s in (0.0, 0.02))
    assert loose.steps < exact.steps
    assert float(problem.objective(loose.matrix)) <= 1.02 * float(problem.objective(exact.matrix))


def test_a_rough_refit_says_how_rough_and_costs_its_square():
    """On a layer large and easy enough for conjugate gradients."""
    problem = L0LeastSquares.from_layer(*data(6, out=128, inputs=160, samples=640), pattern=op.PerRow(80))
    exact, rough = (op.ADMM(refit_tolerance=t, check_every=5).run(problem) for t in (1e-10, 1e-3))
    assert 0 < exact.info["refit_residual"] <= 1e-10 < rough.info["refit_residual"] <= 1e-3
    assert bool(((exact.matrix != 0) == (rough.matrix != 0)).all())
    excess = float(problem.objective(rough.matrix)) / float(problem.objective(exact.matrix)) - 1
    assert 0 < excess <= 1e-4


def test_rank_deficient_rows_are_counted():
    weight, inputs = data(3, samples=2)
    answer = op.ADMM().run(L0LeastSquares.from_layer(weight, inputs, op.PerRow(4)))
    assert answer.info["rank_deficient_rows"] == 2.0
    assert op.ADMM().run(L0LeastSquares.from_layer(*data(3), op.PerRow(4))).info["rank_deficient_rows"] == 0.0


def test_cascade_targets_are_fitted_not_the_dense_weight():
    """With targets that another weight produces, nothing pruned means that other weight."""
    weight, inputs = data(4)
    other = weight + 0.1
    problem = L0LeastSquares(op.Statistics.from_samples(inputs, inputs @ other.mT, weight), op.PerRow(8))
    assert torch.allclose(op.ADMM().run(problem).matrix, other, rtol=1e-10)


@pytest.mark.parametrize("pattern", [op.PerRow(4), op.NOfM(2, 4)], ids=repr)
def test_numbers_that_leave_the_range_end_one_member_and_no_other(pattern):
    """Between two looks the steps go on with NaN; then the element says so and has no answer."""

    @dataclass(frozen=True)
    class Poisoned(op.ADMM):
        def step(self, problem, state):
            state = super().step(problem, state)
            bad = torch.tensor([0.0, float("nan")])[:, None, None] if state.multipliers.dim() == 3 else float("nan")
            return replace(state, multipliers=state.multipliers + bad)

    problems = [L0LeastSquares.from_layer(*data(seed), pattern=pattern) for seed in (7, 8)]
    alone = op.solve(problems[1], Poisoned())
    assert (alone.termination, alone.certificate) == (Termination.NON_FINITE, None)
    good, bad = op.solve_all(problems, Poisoned())
    assert bool(bad.matrix.isnan().all())
    assert bad.termination is Termination.NON_FINITE
    assert good.termination is Termination.CONVERGED
    torch.testing.assert_close(good.matrix, op.solve(problems[0], op.ADMM()).matrix)
