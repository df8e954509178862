"""Removing neurons: the layers are smaller, right on average, and what is promised holds."""

import pytest
import torch
from torch import nn

from optprune.bounds.evidence import monte_carlo
from optprune.errors import InvalidInputError, UnsupportedError
from optprune.network.coreset import remove_neurons


@pytest.fixture
def model(rng) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng, dtype=torch.float64))
        weight = model.get_parameter("2.weight")
        weight *= torch.linspace(0, 1, 40, dtype=torch.float64) ** 3
    return model


@pytest.mark.parametrize("asked", [{"neurons": 12}, {"draws": 30}])
def test_the_pair_is_smaller_and_the_rest_as_it_was(model, asked):
    smaller, removed = remove_neurons(model, "0", "2", 3.0, **asked)
    first, second = smaller[0], smaller[2]
    assert isinstance(first, nn.Linear)
    assert isinstance(second, nn.Linear)
    k = len(removed.kept)
    assert k == 12 if "neurons" in asked else 5 < k < 30
    assert (first.out_features, second.in_features) == (k, k)
    assert first.weight.shape == (k, 6)
    assert second.weight.shape == (3, k)
    assert first.bias.shape == (k,)
    index = list(removed.kept)
    assert torch.equal(first.weight, model.get_submodule("0").weight[index])
    assert torch.equal(smaller[4].weight, model[4].weight)
    ratio = second.weight / model.get_submodule("2").weight[:, index]
    assert torch.allclose(ratio, ratio[:1].expand_as(ratio))
    assert model.get_submodule("0").weight.shape == (40, 6)
    smaller(torch.zeros(1, 6, dtype=torch.float64)).sum().backward()


def test_everything_kept_changes_nothing(model, rng):
    model.get_submodule("2").weight.data += 0.1
    same, removed = remove_neurons(model, "0", "2", 3.0, neurons=40)
    x = torch.randn(5, 6, generator=rng, dtype=torch.float64)
    assert torch.allclose(same(x), model(x), rtol=1e-12)
    assert removed.error == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("asked", [{"neurons": 20}, {"draws": 40}])
def test_right_on_average_and_within_the_error(model, asked, rng):
    x = torch.randn(1, 6, generator=rng, dtype=torch.float64)
    x = 3 * x / x.norm()
    with torch.no_grad():
        truth = model[:3](x)[0]
        found = torch.stack([remove_neurons(model, "0", "2", 3.0, seed=s, **asked)[0][:3](x)[0] for s in range(250)])
    spread = found.std(0) / 250**0.5
    assert bool(((found.mean(0) - truth).abs() <= 4.5 * spread).all())
    error = remove_neurons(model, "0", "2", 3.0, **asked)[1].error
    errors = iter((found - truth).abs().amax(-1) > error)
    tried = monte_carlo(lambda n, g: torch.tensor([bool(next(errors)) for _ in range(n)]), 0.05, rng, trials=250)
    assert not tried.refuted


def test_a_promise_that_says_nothing_is_vacuous(model):
    assert remove_neurons(model, "0", "2", 3.0, draws=2)[1].vacuous
    assert not remove_neurons(model, "0", "2", 3.0, neurons=39)[1].vacuous


def test_misuse_is_refused(model):
    for asked in ({}, {"neurons": 3, "draws": 3}, {"neurons": 41}, {"draws": 0}):
        with pytest.raises(InvalidInputError, match="given"):
            remove_neurons(model, "0", "2", 3.0, **asked)
    with pytest.raises(InvalidInputError, match="read what the first"):
        remove_neurons(model, "2", "0", 3.0, neurons=2)
    with pytest.raises(InvalidInputError, match="radius"):
        remove_neurons(model, "0", "2", -1.0, neurons=2)
    convolution = nn.Sequential(nn.Conv1d(1, 1, 1), nn.Linear(1, 1))
    with pytest.raises(UnsupportedError, match="Linear"):
        remove_neurons(convolution, "0", "1", 1.0, neurons=1)
