"""T17 on random chains whose half-neurons are perturbed as far as they may be."""

import math

import pytest
import torch
from torch import Tensor

from optprune.bounds.bernstein import draws_needed
from optprune.bounds.sipp import (
    condition_numbers,
    corenet_draws,
    layer_error,
    local_errors,
    network_error,
    points_needed,
)
from optprune.errors import InvalidInputError


def perturbed(weight: Tensor, error: float, rng: torch.Generator) -> Tensor:
    """Every half-neuron multiplied by its own factor between 1 - error and 1 + error."""
    factor = 1 + error * (2 * torch.rand(2, len(weight), 1, generator=rng, dtype=torch.float64).round() - 1)
    return torch.where(weight > 0, factor[0] * weight, factor[1] * weight)


@pytest.mark.parametrize("bias", [0.0, 0.5])
def test_errors_compose(bias, rng):
    told = 0
    for _ in range(60):
        inputs = value = torch.randn(1, 5, generator=rng, dtype=torch.float64)
        changed, errors, conditions = inputs, [], []
        for number, width in enumerate((6, 4, 2)):
            weight = torch.randn(width, value.shape[1], generator=rng, dtype=torch.float64)
            shift = bias * torch.randn(width, generator=rng, dtype=torch.float64)
            conditions.append(float(condition_numbers(weight, value, shift).max()))
            errors.append(1e-3)
            value, changed = value @ weight.mT + shift, changed @ perturbed(weight, 1e-3, rng).mT + shift
            bound = network_error(errors, conditions)
            if math.isfinite(bound):
                told += 1
                assert bool(((changed - value).abs() <= bound * value.abs() * (1 + 1e-9)).all())
            if number < 2:
                value, changed = value.clamp(min=0), changed.clamp(min=0)
    assert told > 60


@pytest.mark.parametrize("factor", [1.0, 0.999])
def test_one_weight_of_each_sign_is_an_equality(factor):
    weight, inputs = torch.tensor([[3.0, -1.0]]).double(), torch.tensor([[1.0, 1.0]]).double()
    condition = factor * float(condition_numbers(weight, inputs))
    before, local = 1e-4, 2e-4
    moved = torch.tensor([[1 + before, 1 - before]], dtype=torch.float64)
    # Errors of a layer's inputs lower the negative half, those of the layer itself likewise.
    changed = torch.tensor([[3 * (1 + local), -(1 - local)]], dtype=torch.float64)
    true = float((moved @ changed.mT - 2) / 2)
    # The negative half ends at (1 - before)(1 - local): its products differ in the sign of the last term alone.
    exact = 2.0 * (before + local) + before * local
    assert true == pytest.approx(exact, rel=1e-9)
    assert (true <= layer_error(before, local, condition)) == (factor == 1.0)


def test_local_errors_end_below_the_error():
    for conditions in ([1.0], [2.0, 3.0, 1.0], [1.0] * 30):
        for error in (1.0, 0.1):
            ended = network_error(local_errors(error, conditions), conditions)
            assert ended <= 0.5 * math.sqrt(math.e) * error
            assert ended >= 0.5 * error / len(conditions)
    with pytest.raises(InvalidInputError, match="condition"):
        network_error([0.1], [0.5])
    with pytest.raises(InvalidInputError, match=r"\(0, 1\]"):
        local_errors(1.5, [1.0])


def test_a_hidden_error_above_one_says_nothing():
    assert network_error([0.5, 0.1], [3.0, 1.0]) == math.inf
    assert network_error([0.1, 0.5], [1.0, 30.0]) == pytest.approx(30 * 0.65)


@pytest.mark.parametrize("error", [0.05, 1.0])
def test_the_printed_number_of_draws_suffices(error):
    neurons, widest, delta = 410, 300, 0.1
    total = torch.tensor([1.0, 2.5, 40.0]).double()
    printed = corenet_draws(error, total, neurons, widest, delta)
    constant = 3 * math.log(neurons * widest)
    needed = draws_needed(error, total, delta / (4 * neurons), constant)
    assert bool((needed <= printed * (1 + 1e-12)).all())
    # At error 1 nothing is given away: a constant larger by one in a thousand asks for more.
    more = draws_needed(error, total, delta / (4 * neurons), 1.001 * constant)
    assert bool((more > printed).all()) == (error == 1.0)


def test_conditions_of_dead_and_cancelling_neurons():
    weight = torch.tensor([[1.0, -1.0], [1.0, 0.0], [0.0, 0.0]]).double()
    found = condition_numbers(weight, torch.tensor([[1.0, 1.0], [0.0, 2.0]]).double())
    assert found.tolist() == [[math.inf, 1.0, 1.0], [1.0, 1.0, 1.0]]
    with_bias = condition_numbers(weight, torch.tensor([[1.0, 1.0]]).double(), torch.tensor([4.0, 4.0, 0.0]).double())
    assert with_bias.tolist() == [[1.0, 1.0, 1.0]]


def test_the_printed_number_of_points():
    assert points_needed(300 * 410, 1e-16) == 152  # LeNet-300-100 in the published settings


@pytest.mark.parametrize("constant", [1.0, 3.0, 3000.0])
@pytest.mark.parametrize("delta", [0.1, 1e-3])
def test_one_point_less_than_needed_fails(constant, delta):
    # One edge, its share small with probability exp(-1/K'): the largest of n points is small with the n-th power.
    small = math.exp(-1 / constant)
    needed = points_needed(1, delta, constant)
    assert small**needed <= delta / 8 < small ** (needed - 1)
    if constant == 3000.0:
        assert small ** points_needed(1, delta, 0.999 * constant) > delta / 8
    assert points_needed(1000, delta, constant) == math.ceil(constant * math.log(8000 / delta))
    with pytest.raises(InvalidInputError, match="edges=0"):
        points_needed(0, delta)
