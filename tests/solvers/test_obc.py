"""Greedy elimination: the published algorithm's support, one trace for all budgets, budgets shared by increments."""

import dataclasses

import pytest
import torch

import optprune as op
from optprune.errors import InvalidInputError
from optprune.problems import L0LeastSquares
from optprune.testing.instances import data, every_pattern


@pytest.mark.parametrize("pattern", every_pattern(), ids=repr)
def test_the_budget_is_used_to_the_last_weight(pattern):
    problem = L0LeastSquares.from_layer(*data(5), pattern=pattern)
    matrix = op.OBC().run(problem).matrix
    assert int((matrix != 0).sum()) == pattern.count(problem.shape)
    assert pattern.admits(matrix != 0)


def test_one_weight_less_is_the_best_one_less():
    """From the full layer one elimination is optimal."""
    problem = L0LeastSquares.from_layer(*data(6), pattern=op.PerLayer(15))
    best = op.Exhaustive().run(problem)
    torch.testing.assert_close(op.OBC().run(problem).matrix, best.matrix)


def test_a_smaller_budget_is_a_smaller_support():
    weight, inputs = data(7, out=6, inputs=20, samples=80)
    larger, smaller = (
        op.OBC().run(L0LeastSquares.from_layer(weight, inputs, op.PerRow(k))).matrix != 0 for k in (12, 7)
    )
    assert bool((larger | ~smaller).all())


def test_dead_and_repeated_inputs_go_first():
    weight, inputs = data(8, out=3, inputs=8, samples=60)
    inputs[:, 2] = 0
    inputs[:, 5] = inputs[:, 4]
    problem = L0LeastSquares.from_layer(weight, inputs, op.PerRow(6))
    matrix = op.OBC().run(problem).matrix
    assert not bool((matrix[:, 2] != 0).any())
    assert not bool(((matrix[:, 4] != 0) & (matrix[:, 5] != 0)).any())
    assert float(problem.objective(matrix)) <= 1e-12 * float(problem.objective(0 * matrix))


@pytest.mark.parametrize("pattern", [op.PerLayer(30), op.Blocks(2, 3, 8)], ids=repr)
def test_one_elimination_gives_the_objective_of_every_budget(pattern):
    problem = L0LeastSquares.from_layer(*data(21, out=6, inputs=12, samples=50), pattern=pattern)
    curve = op.OBC().curve(problem)
    units = pattern.layout(problem.shape)[1]
    assert curve.shape == (units + 1,)
    scale = float(curve[0])
    for k in (0, 1, units // 3, units - 1, units):
        same = dataclasses.replace(problem, pattern=dataclasses.replace(pattern, k=k))
        expected = float(problem.objective(op.OBC().run(same).matrix))
        assert float(curve[k]) == pytest.approx(expected, rel=1e-6, abs=1e-9 * scale)


def test_a_curve_needs_a_budget_of_the_layer():
    for pattern in (op.PerRow(3), op.NOfM(2, 4), op.Fixed(torch.ones(2, 8, dtype=torch.bool))):
        with pytest.raises(InvalidInputError, match="budgets of the whole layer"):
            op.OBC().curve(L0LeastSquares.from_layer(*data(22), pattern=pattern))


def test_impossible_settings_are_refused():
    with pytest.raises(InvalidInputError, match="memory=0"):
        op.OBC(memory=0)
