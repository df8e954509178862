"""T14 against a root finder, against draws, and where its constants are exact."""

import math

import pytest
import sympy
import torch
from scipy.optimize import brentq
from scipy.special import gammaln
from torch import Tensor

from optprune.bounds.bernstein import bernstein_radius, bernstein_tail, drawn_radius, draws_needed, relative_error
from optprune.bounds.evidence import monte_carlo
from optprune.errors import InvalidInputError


def half_neuron(rng: torch.Generator, edges: int = 40) -> tuple[Tensor, Tensor]:
    """Terms of a point and sensitivities over it and thirty others."""
    weight = torch.rand(edges, generator=rng, dtype=torch.float64).pow(3)
    inputs = torch.rand(31, edges, generator=rng, dtype=torch.float64)
    share = weight * inputs / (inputs @ weight)[:, None]
    return weight * inputs[0], share.amax(0)


def drawn(terms: Tensor, probabilities: Tensor, draws: int, trials: int, rng: torch.Generator) -> Tensor:
    """The reweighted sums of independent draws."""
    index = torch.multinomial(probabilities, draws * trials, replacement=True, generator=rng)
    return (terms / probabilities)[index].reshape(trials, draws).mean(-1)


@pytest.mark.parametrize("variance", [0.0, 1e-6, 1.0, 1e6])
@pytest.mark.parametrize("largest", [1e-6, 1.0, 1e4])
@pytest.mark.parametrize("delta", [0.5, 0.05, 1e-16])
def test_the_radius_inverts_the_tail(variance, largest, delta):
    radius = float(bernstein_radius(variance, largest, delta))
    found = brentq(lambda t: math.log(2 / delta) - t * t / (2 * (variance + largest * t / 3)), radius / 2, radius * 2)
    assert radius == pytest.approx(found, rel=1e-9)
    assert float(bernstein_tail(radius, variance, largest)) == pytest.approx(delta, rel=1e-9)
    assert float(bernstein_tail(0.999 * radius, variance, largest)) > delta * 1.0002
    assert float(bernstein_tail(1.001 * radius, variance, largest)) < delta * 0.9998


@pytest.mark.parametrize("error", [0.01, 0.5, 1.0, 7.0])
@pytest.mark.parametrize("constant", [1.0, 3.0])
def test_sample_size_and_error_are_inverses(error, constant):
    draws = draws_needed(error, 2.64, 0.05, constant)
    assert float(relative_error(draws, 2.64, 0.05, constant)) == pytest.approx(error, rel=1e-12)
    alpha = 2 * constant * 2.64 * math.log(2 / 0.05)
    assert float(draws) == pytest.approx(alpha * (error + 3) / (3 * error**2), rel=1e-12)


def test_no_draws_and_no_edges():
    assert float(relative_error(0, 2.0, 0.1)) == math.inf
    assert float(relative_error(0, 0.0, 0.1)) == 0.0
    nothing = torch.zeros(3, dtype=torch.float64)
    assert float(drawn_radius(nothing, nothing, 0, 0.1)) == 0.0
    assert float(drawn_radius(torch.tensor([1.0, 0.0]).double(), torch.tensor([0.0, 1.0]).double(), 9, 0.1)) == math.inf
    with pytest.raises(InvalidInputError, match="delta"):
        bernstein_radius(1.0, 1.0, 1.0)


@pytest.mark.parametrize("delta", [0.1, 0.01, 0.001])
@pytest.mark.parametrize("signed", [False, True])
def test_draws_do_not_refute_it(delta, signed, rng):
    terms, sensitivity = half_neuron(rng)
    probabilities = sensitivity / sensitivity.sum()
    if signed:
        terms = terms * torch.randn(len(terms), generator=rng, dtype=torch.float64).sign()
    total, draws = float(terms.sum()), 50
    exact = float(drawn_radius(terms, probabilities, draws, delta))
    radii = [exact] if signed else [exact, total * float(relative_error(draws, sensitivity.sum(), delta))]
    assert signed or radii[0] < radii[1]
    for radius in radii:
        tried = monte_carlo(
            lambda n, g, t=radius: (drawn(terms, probabilities, draws, n, g) - total).abs() >= t,
            delta,
            rng,
            trials=4000,
        )
        assert not tried.refuted
    halved = monte_carlo(
        lambda n, g: (drawn(terms, probabilities, draws, n, g) - total).abs() >= exact / 2, delta, rng, trials=20000
    )
    assert halved.refuted


def test_draws_are_unbiased_to_four_standard_errors(rng):
    terms, sensitivity = half_neuron(rng)
    probabilities = sensitivity / sensitivity.sum()
    sums = drawn(terms, probabilities, 20, 10_000, rng)
    assert abs(float(sums.mean() - terms.sum())) <= 4 * float(sums.std()) / 100


def binomial_log_pmf(n: float, k: float) -> float:
    return float(gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)) - n * math.log(2)


@pytest.mark.parametrize("factor", [1.0, 0.999])
def test_the_constant_of_the_variance_is_exact(factor):
    # One probability of a fair binomial, exactly, is a lower bound of its tail.
    n, deviations = 1e12, 300.0
    t = deviations * math.sqrt(n / 4)
    log_bound = math.log(2) - t * t / (2 * (factor * n / 4 + 0.5 * t / 3))
    assert (binomial_log_pmf(n, n / 2 + t) <= log_bound) == (factor == 1.0)


@pytest.mark.parametrize("third", [3.0, 3.003])
def test_the_constant_of_the_largest_value_is_exact(third):
    y = torch.tensor([1e-3, 3e-3, 0.1, 1.0, 2.5], dtype=torch.float64)
    # e^y - 1 - y by its series, where the difference would cancel.
    series = torch.stack([y**k / float(math.factorial(k)) for k in range(2, 40)]).sum(0)
    assert bool((series <= y**2 / (2 * (1 - y / third))).all()) == (third == 3.0)


@pytest.mark.parametrize("delta", [0.01, 0.001])
def test_the_published_inverse_is_refuted(delta, rng):
    # Equal terms of which one in a hundred is not zero: C S = 100, and the relative error is a scaled binomial.
    draws, total = 400_000, 100.0
    alpha = 2 * total * math.log(2 / delta)
    published = 0.5 * (alpha / (3 * draws) + math.sqrt((alpha / (3 * draws)) ** 2 + 2 * alpha / draws))

    def sums(trials: int, generator: torch.Generator) -> Tensor:
        chance = torch.full((trials,), float(draws), dtype=torch.float64)
        return torch.binomial(chance, torch.full_like(chance, 1 / total), generator=generator) * total / draws

    right = float(relative_error(draws, total, delta))
    assert published < 0.72 * right
    assert not monte_carlo(lambda n, g: (sums(n, g) - 1).abs() >= right, delta, rng, trials=20_000).refuted
    assert monte_carlo(lambda n, g: (sums(n, g) - 1).abs() >= published, delta, rng, trials=20_000).refuted


def test_the_inverses_are_roots_symbolically():
    b, level, variance, c, m = sympy.symbols("b l V c m", positive=True)
    radius = b * level / 3 + sympy.sqrt((b * level / 3) ** 2 + 2 * variance * level)
    assert sympy.expand(radius**2 - 2 * level * (variance + b * radius / 3)) == 0
    assert sympy.expand(radius**2 - 2 * level * (variance + b * radius / sympy.Rational(3003, 1000))) != 0
    alpha = 2 * c * level
    error = (alpha / (3 * m) + sympy.sqrt((alpha / (3 * m)) ** 2 + 4 * alpha / m)) / 2
    draws = c * (6 + 2 * error) * level / (3 * error**2)
    assert sympy.simplify(draws - m) == 0
