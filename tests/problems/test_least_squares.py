"""The l0 least-squares statement: its numbers are those of the formula."""

import pytest
import torch
from torch import Tensor

from optprune.errors import InvalidInputError
from optprune.patterns import NOfM, PerLayer, PerRow
from optprune.problems import L0LeastSquares, stack, unstack
from optprune.statistics import Statistics


@pytest.fixture
def layer(rng):
    return torch.randn(5, 8, generator=rng, dtype=torch.float64), torch.randn(30, 8, generator=rng, dtype=torch.float64)


@pytest.mark.parametrize("damping", [0.0, 0.1])
def test_objective_is_half_the_mean_squared_error_plus_the_ridge(
    layer: tuple[Tensor, Tensor], rng: torch.Generator, damping: float
):
    weight, inputs = layer
    problem = L0LeastSquares.from_layer(weight, inputs, PerLayer(10), damping)
    other = torch.randn(5, 8, generator=rng, dtype=torch.float64)
    mean_diagonal = inputs.square().mean()
    by_hand = (inputs @ (other - weight).T).square().sum() / 60 + damping * mean_diagonal / 2 * (
        other - weight
    ).square().sum()
    assert float(problem.objective(other)) == pytest.approx(float(by_hand), rel=1e-12)
    assert float(problem.objective(weight)) == 0.0
    assert float(problem.energy.sum() / 2) == pytest.approx(
        float(problem.objective(torch.zeros_like(weight))), rel=1e-12
    )


def test_gradient_is_that_of_the_objective(layer: tuple[Tensor, Tensor], rng: torch.Generator):
    weight, inputs = layer
    targets = torch.randn(30, 5, generator=rng, dtype=torch.float64)
    problem = L0LeastSquares(Statistics.from_samples(inputs, targets, weight), PerRow(3), 0.05)
    point = torch.randn(5, 8, generator=rng, dtype=torch.float64, requires_grad=True)
    (automatic,) = torch.autograd.grad(problem.objective(point).sum(), point)
    torch.testing.assert_close(problem.gradient(point.detach()), automatic)
    torch.testing.assert_close(point.detach() @ problem.gram - problem.linear, automatic)


def test_files_restore_the_statement(layer: tuple[Tensor, Tensor]):
    problem = L0LeastSquares.from_layer(*layer, NOfM(2, 4), 0.01)
    again = L0LeastSquares.restore(problem.tensors(), problem.settings())
    assert again.pattern == problem.pattern
    assert again.damping == problem.damping
    for name, tensor in problem.tensors().items():
        assert torch.equal(again.tensors()[name], tensor)


def test_violation_sees_a_weight_too_many(layer: tuple[Tensor, Tensor]):
    problem = L0LeastSquares.from_layer(*layer, PerRow(2))
    assert float(problem.violation(problem.pattern.project(layer[0]))["support"]) == 0.0
    assert float(problem.violation(layer[0])["support"]) > 0.1


def test_stack_and_unstack_are_inverse(layer: tuple[Tensor, Tensor], rng: torch.Generator):
    problems = [
        L0LeastSquares.from_layer(torch.randn(5, 8, generator=rng, dtype=torch.float64), layer[1], PerRow(2))
        for _ in range(3)
    ]
    batch = stack(problems)
    assert batch.batch_shape == (3,)
    for one, again in zip(problems, unstack(batch), strict=True):
        assert torch.equal(one.dense, again.dense)
    values = batch.objective(torch.zeros(3, 5, 8, dtype=torch.float64))
    assert [float(v) for v in values] == [float(p.objective(torch.zeros(5, 8, dtype=torch.float64))) for p in problems]


def test_stacking_different_settings_is_refused(layer: tuple[Tensor, Tensor]):
    with pytest.raises(InvalidInputError, match="stack"):
        stack([L0LeastSquares.from_layer(*layer, PerRow(2)), L0LeastSquares.from_layer(*layer, PerRow(3))])


@pytest.mark.parametrize("damping", [-1.0, float("nan"), float("inf")])
def test_impossible_damping_is_refused(layer: tuple[Tensor, Tensor], damping: float):
    with pytest.raises(InvalidInputError, match="damping"):
        L0LeastSquares.from_layer(*layer, PerRow(2), damping)
