"""Greedy elimination: the published algorithm's support, one trace for all budgets, budgets shared by increments."""

import pytest
import torch

import optprune as op
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
