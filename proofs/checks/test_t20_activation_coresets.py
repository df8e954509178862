"""T20 on random layers, where it is an equality, and where the printed power of t fails."""

import math

import pytest
import torch
from torch import Tensor

from optprune.bounds.coreset import coreset_draws, coreset_error, largest_contributions
from optprune.bounds.evidence import monte_carlo
from optprune.errors import InvalidInputError

RADIUS = 2.0


def layer(rng: torch.Generator, signed: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    incoming = torch.randn(50, 3, generator=rng, dtype=torch.float64)
    outgoing = torch.randn(4, 50, generator=rng, dtype=torch.float64)
    x = torch.randn(3, generator=rng, dtype=torch.float64)
    return incoming, outgoing if signed else outgoing.abs(), RADIUS * x / x.norm()


def missed(c: Tensor, values: Tensor, draws: int, trials: int, rng: torch.Generator) -> Tensor:
    """The largest error over the outputs, in each trial."""
    share = c / c.sum()
    index = torch.multinomial(share, draws * trials, replacement=True, generator=rng)
    sums = (values / share)[:, index].reshape(len(values), trials, draws).mean(-1)
    return (sums - values.sum(-1, keepdim=True)).abs().amax(0)


@pytest.mark.parametrize("factor", [1.0, 0.999])
def test_no_neuron_contributes_more(factor, rng):
    incoming, outgoing, _ = layer(rng)
    c = factor * largest_contributions(incoming, outgoing, RADIUS)
    x = torch.randn(500, 3, generator=rng, dtype=torch.float64)
    along = RADIUS * torch.cat([x / x.norm(dim=-1, keepdim=True), incoming / incoming.norm(dim=-1, keepdim=True)])
    values = (along @ incoming.mT).clamp(min=0)[:, None, :] * outgoing.abs()
    assert bool((values <= c * (1 + 1e-12)).all()) == (factor == 1.0)


@pytest.mark.parametrize("delta", [0.1, 0.01, 0.001])
@pytest.mark.parametrize("signed", [False, True])
def test_draws_do_not_refute_the_error(delta, signed, rng):
    incoming, outgoing, x = layer(rng, signed)
    c = largest_contributions(incoming, outgoing, RADIUS)
    values = (incoming @ x).clamp(min=0) * outgoing
    error = coreset_error(float(c.sum()), 40, delta, 4, signed=signed)
    tried = monte_carlo(lambda n, g: missed(c, values, 40, n, g) >= error, delta, rng, trials=3000)
    assert not tried.refuted
    assert monte_carlo(lambda n, g: missed(c, values, 40, n, g) >= error / 12, delta, rng, trials=3000).refuted


def test_the_printed_power_of_t_fails_where_t_is_large(rng):
    # One output, two alternatives of equal size: the mean of fair coins times t.
    total, error, delta = 80.0, 0.5, 0.1
    printed = math.ceil(total * math.log(2 / delta) / error**2)
    ours = math.ceil(coreset_draws(total, error, delta, signed=False))

    def failed(draws: int, count: int, generator: torch.Generator) -> Tensor:
        coins = torch.binomial(torch.full((count,), float(draws)), torch.full((count,), 0.5), generator=generator)
        return total * (coins / draws - 0.5).abs() >= error

    assert monte_carlo(lambda n, g: failed(printed, n, g), delta, rng, trials=3000).low > 0.5
    assert not monte_carlo(lambda n, g: failed(ours, n, g), delta, rng, trials=3000).refuted
    assert monte_carlo(lambda n, g: failed(ours // 4, n, g), delta, rng, trials=3000).refuted


def test_sizes_and_errors_are_inverses():
    for signed in (False, True):
        draws = coreset_draws(7.9, 0.5, 0.05, 10, signed=signed)
        assert coreset_error(7.9, draws, 0.05, 10, signed=signed) == pytest.approx(0.5, rel=1e-12)
        assert coreset_draws(79.0, 0.5, 0.05, 10, signed=signed) == pytest.approx(100 * draws, rel=1e-12)
    with pytest.raises(InvalidInputError, match="radius"):
        largest_contributions(torch.ones(2, 2), torch.ones(1, 2), 0.0)
    with pytest.raises(InvalidInputError, match="draws"):
        coreset_error(1.0, 0, 0.1)
    with pytest.raises(InvalidInputError, match="delta"):
        coreset_draws(1.0, 0.1, 1.0)
