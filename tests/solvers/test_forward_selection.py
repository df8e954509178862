"""Forward selection against a plain loop, and where it is optimal."""

import pytest
import torch

import optprune as op
from optprune.errors import InvalidInputError
from optprune.problems import L0LeastSquares
from optprune.testing.instances import data


def plain(problem, row, count):
    """One row: try every entry, refit from scratch, take the best."""
    chosen = []
    while len(chosen) < count:
        found = {}
        for j in set(range(problem.shape[1])) - set(chosen):
            on = [*chosen, j]
            weight = torch.linalg.solve(problem.gram[on][:, on], problem.linear[row, on])
            found[j] = float(weight @ problem.linear[row, on])
        chosen.append(max(found, key=lambda j: found[j]))
    return chosen


@pytest.mark.parametrize("memory", [1, 2**26])
def test_the_supports_of_a_plain_loop(memory):
    problem = L0LeastSquares.from_layer(*data(1, 5, 12, 40), op.PerRow(4), 0.01)
    matrix = op.ForwardSelection(memory).run(problem).matrix
    for row in range(5):
        assert set(matrix[row].nonzero().flatten().tolist()) == set(plain(problem, row, 4))


def test_orthogonal_inputs_are_solved_exactly_by_rows_groups_and_layer():
    weight, inputs = data(2, 4, 8, 40)
    inputs = torch.linalg.qr(inputs).Q
    for pattern in (op.PerRow(3), op.NOfM(2, 4), op.PerLayer(9), op.Columns(3), op.Blocks(2, 2, 3)):
        problem = L0LeastSquares.from_layer(weight, inputs, pattern)
        best = op.Portfolio().run(problem).matrix
        assert torch.equal(op.ForwardSelection().run(problem).matrix != 0, best != 0)


def test_sparse_targets_are_found_where_elimination_from_the_dense_weight_is_not_needed():
    weight, inputs = data(3, 6, 30, 200)
    sparse = op.PerRow(3).project(weight)
    problem = L0LeastSquares.from_layer(sparse, inputs, op.PerRow(3))
    assert float(problem.objective(op.ForwardSelection().run(problem).matrix)) < 1e-20


def test_impossible_settings_are_refused():
    with pytest.raises(InvalidInputError, match="memory=0"):
        op.ForwardSelection(memory=0)
