"""The column sweep: the published update, exact budgets, blocks that only save time."""

import pytest
import torch

import optprune as op
from optprune.errors import InvalidInputError
from optprune.problems import L0LeastSquares
from optprune.testing.instances import data, every_pattern


def problem_of(pattern, seed=20, **size):
    return L0LeastSquares.from_layer(*data(seed, **size), pattern=pattern)


@pytest.mark.parametrize("pattern", every_pattern(), ids=repr)
def test_the_budget_is_used_to_the_last_weight(pattern):
    problem = problem_of(pattern)
    kept = op.SparseGPT(block=3).run(problem).matrix != 0
    assert pattern.admits(kept)
    assert int(kept.sum()) == pattern.count(problem.shape)


def test_each_column_corrects_those_to_its_right_optimally():
    """Given its support, a row ends as Algorithm 1 says: each pruned weight is absorbed by the columns after it."""
    problem = problem_of(op.PerRow(7), out=3, inputs=12, samples=60)
    answer = op.SparseGPT(block=12, damping=0.0).run(problem).matrix
    gram = problem.gram
    for row in range(3):
        weight = problem.dense[row].clone()
        for column in range(12):
            if answer[row, column] == 0 and weight[column] != 0:
                right = slice(column + 1, 12)
                push = weight[column] * torch.linalg.solve(gram[right, right], gram[right, column])
                weight[right] += push
                weight[column] = 0
        torch.testing.assert_close(answer[row], weight)


@pytest.mark.parametrize("pattern", [op.NOfM(2, 4), op.Columns(7), op.PerRow(6)], ids=repr)
def test_blocks_that_hold_every_choice_change_nothing(pattern):
    problem = problem_of(pattern, out=4, inputs=16, samples=70)
    whole = op.SparseGPT(block=16).run(problem).matrix
    if not isinstance(pattern, op.PerRow):
        for block in (1, 4, 6):
            torch.testing.assert_close(op.SparseGPT(block=block).run(problem).matrix, whole)
    else:
        assert bool(((op.SparseGPT(block=4).run(problem).matrix != 0).unflatten(-1, (4, 4)).sum(-1) <= 2).all())


def test_nothing_pruned_is_nothing_changed():
    problem = problem_of(op.PerRow(8))
    torch.testing.assert_close(op.SparseGPT().run(problem).matrix, problem.dense)


def test_correction_and_refit_pay():
    problem = problem_of(op.PerRow(10), out=16, inputs=40, samples=200)
    wanda, swept, refitted = (
        float(problem.objective(solver.run(problem).matrix))
        for solver in (op.Wanda(), op.SparseGPT(), op.SparseGPT(refit=True))
    )
    assert refitted < swept < wanda


@pytest.mark.parametrize("setting", [{"block": 0}, {"damping": -0.1}, {"damping": float("inf")}])
def test_impossible_settings_are_refused(setting):
    with pytest.raises(InvalidInputError, match=next(iter(setting))):
        op.SparseGPT(**setting)
