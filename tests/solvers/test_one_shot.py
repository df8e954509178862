"""Magnitude and activation-weighted pruning: the supports they choose, and the exact refit."""

from __future__ import annotations

import pytest
import torch

import optprune as op
from optprune.criteria import relative_importance
from optprune.errors import InvalidInputError
from optprune.problems import L0LeastSquares, stack
from optprune.solvers import Promise
from optprune.testing.instances import data, every_pattern


@pytest.fixture
def layer():
    """The largest weight of each row sits on the input that carries least."""
    inputs = data(0)[1] * torch.tensor([0.01, 1, 1, 1, 1, 1, 1, 2], dtype=torch.float64)
    weight = torch.tensor([[8, 1, 2, 3, 4, 5, 6, 7], [-8, 7, -6, 5, -4, 3, -2, 1]], dtype=torch.float64)
    return weight, inputs


def test_magnitude_keeps_the_largest_weights(layer):
    problem = L0LeastSquares.from_layer(*layer, pattern=op.PerRow(3))
    matrix = op.Magnitude(refit=False).run(problem).matrix
    expected = [[8, 0, 0, 0, 0, 0, 6, 7], [-8, 7, -6, 0, 0, 0, 0, 0]]
    assert matrix.tolist() == expected


def test_wanda_weighs_them_with_their_inputs(layer):
    weight, inputs = layer
    problem = L0LeastSquares.from_layer(weight, inputs, op.PerRow(3))
    matrix = op.Wanda().run(problem).matrix
    scores = weight.abs() * inputs.norm(dim=0)
    for row, score in zip(matrix, scores, strict=True):
        assert set(row.nonzero().flatten().tolist()) == set(score.topk(3).indices.tolist())
    assert bool((matrix[:, 0] == 0).all())
    assert torch.equal(matrix[matrix != 0], weight[matrix != 0])


@pytest.mark.parametrize("pattern", every_pattern(), ids=repr)
@pytest.mark.parametrize("solver", [op.Magnitude, op.Wanda])
def test_the_refit_keeps_the_support_and_is_the_best_on_it(layer, solver, pattern):
    problem = L0LeastSquares.from_layer(*layer, pattern=pattern)
    plain, refitted = solver(refit=False).run(problem).matrix, solver(refit=True).run(problem).matrix
    assert torch.equal(plain != 0, refitted != 0)
    slope = torch.where(refitted != 0, problem.gradient(refitted), 0.0)
    assert float(slope.abs().max()) <= 1e-10
    assert float(problem.objective(refitted)) <= float(problem.objective(plain))
    support = op.Fixed(refitted != 0)
    best = op.Exhaustive().run(L0LeastSquares.from_layer(*layer, pattern=support)).matrix
    assert torch.allclose(best, refitted, rtol=1e-9)


def test_only_a_refit_is_promised():
    assert op.Magnitude().promises == op.Wanda(refit=True).promises == {Promise.REFITTED}
    assert op.Wanda().promises == op.Magnitude(refit=False).promises == frozenset()


def test_a_stack_has_one_termination_per_member(layer):
    problem = L0LeastSquares.from_layer(*layer, pattern=op.PerRow(3))
    answer = op.Magnitude().run(stack([problem, problem, problem]))
    assert answer.termination == (op.Termination.CLOSED_FORM,) * 3
    assert torch.equal(answer.matrix[1], op.Magnitude().run(problem).matrix)


def test_ria_adds_the_shares_of_input_and_output():
    weight = torch.tensor([[1.0, -3.0], [1.0, 1.0]], dtype=torch.float64)
    inputs = torch.eye(2, dtype=torch.float64) * torch.tensor([2.0, 4.0])
    scores = relative_importance(weight, op.Statistics.from_layer(weight, inputs))
    norms = inputs.square().mean(0).sqrt()
    expected = torch.tensor([[1 / 2 + 1 / 4, 3 / 4 + 3 / 4], [1 / 2 + 1 / 2, 1 / 4 + 1 / 2]]).square() * norms
    assert torch.allclose(scores, expected.double(), rtol=1e-12)


def test_ria_gives_a_zero_row_no_share():
    weight, inputs = data(0)
    weight[0] = 0.0
    scores = relative_importance(weight, op.Statistics.from_layer(weight, inputs))
    assert bool((scores[0] == 0).all())
    assert bool((scores[1] > 0).all())


def test_ria_refuses_a_negative_power():
    with pytest.raises(InvalidInputError, match="power=-1"):
        op.RIA(power=-1)


@pytest.mark.parametrize("solver", [op.Magnitude(), op.Wanda(), op.RIA(refit=False)], ids=repr)
def test_without_the_dense_weight_there_is_nothing_to_rank(layer, solver):
    weight, inputs = layer
    statistics = op.Statistics.from_samples(inputs, inputs @ weight.T)
    with pytest.raises(InvalidInputError, match=f"{type(solver).__name__} ranks the dense weights"):
        op.solve(L0LeastSquares(statistics, op.PerRow(3)), solver)
    nothing = op.Statistics.from_samples(inputs, 0 * inputs @ weight.T)
    assert float(op.solve(L0LeastSquares(nothing, op.PerRow(3)), solver).matrix.abs().max()) == 0.0
    support = op.Fixed(torch.arange(16).reshape(2, 8) % 3 == 0)
    assert bool((op.Magnitude().run(L0LeastSquares(statistics, support)).matrix != 0).equal(support.mask))
