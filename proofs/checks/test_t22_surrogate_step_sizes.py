"""T22 against exact sums, published values, and small programs whose dual is known."""

import itertools
import math
from fractions import Fraction

import pytest
import sympy
import torch

from optprune.bounds.surrogate import step_factor, step_product, step_product_bounds, step_ratio
from optprune.errors import InvalidInputError

GRID = list(itertools.product((1.01, 1.5, 2.0, 10.0, 300.0, 1e4), (0.05, 0.1, 0.5, 0.99)))


def test_published_values():
    assert [round(step_factor(k, 300, 0.1), 6) for k in (1, 2, 3)] == [0.996667, 0.996818, 0.997027]
    assert round(step_product(100, 300, 0.1), 4) == 0.8905
    assert round(step_product(10_000, 300, 0.1), 4) == 0.5553
    assert step_ratio(1000, 2, 0.1) == pytest.approx(5.3e19, rel=0.01)


@pytest.mark.parametrize(("M", "r"), GRID)
def test_factors_lie_in_their_range(M, r):
    for k in (1, 2, 3, 10, 1000, 10**6):
        alpha = step_factor(k, M, r)
        assert 0 < 1 - 1 / M <= alpha * (1 + 1e-15)
        assert alpha <= (1 - 1 / (M * k)) * (1 + 1e-15) < 1
    assert step_factor(1, M, r) == 1 - 1 / M


@pytest.mark.parametrize(("M", "r"), GRID)
def test_product_is_the_product_and_lies_between_its_bounds(M, r):
    product = Fraction(1)
    for n in range(1, 41):
        product *= Fraction(step_factor(n, M, r))
        assert step_product(n, M, r) == pytest.approx(float(product), rel=1e-11)
    for n in (1, 2, 10, 1000, 10**5):
        low, high = step_product_bounds(n, M, r)
        assert low * (1 - 1e-12) <= step_product(n, M, r) <= high * (1 + 1e-12)


def test_the_lower_bound_is_met_to_its_remainder():
    n, M, r = 1000, 1e4, 0.3
    k = torch.arange(1, n + 1, dtype=torch.float64)
    terms = k ** (k**-r - 1)
    product = step_product(n, M, r)
    assert step_product_bounds(n, M, r)[0] <= product
    # The sum smaller by one in a thousand is no lower bound any more.
    wrong = math.exp(-0.999 * float(terms.sum()) / M - float(terms.square().sum()) / (2 * M * (M - 1)))
    assert wrong > product


@pytest.mark.parametrize(("M", "r"), [(1.5, 0.9), (2.0, 0.9), (4.0, 0.5), (300.0, 0.5)])
def test_ratio_falls_at_the_stated_rate(M, r):
    counts = (10**3, 10**4, 10**5, 10**6)
    scaled = [step_ratio(n, M, r) * n ** (1 - 1 / M) for n in counts]
    ratios = [step_ratio(n, M, r) for n in counts]
    assert ratios == sorted(ratios, reverse=True)
    # n^(1 - 1/M) times the ratio is bounded: it has a limit, which it approaches ever more slowly.
    growth = [b / a for a, b in itertools.pairwise(scaled)]
    assert all(abs(b - 1) <= abs(a - 1) + 1e-9 for a, b in itertools.pairwise(growth))
    assert abs(growth[-1] - 1) < 0.15


def test_constant_of_the_rate_is_that_of_the_proof():
    M, r, n = 3.0, 0.6, 10**5
    bound = 1 / (math.e * r)
    terms = [math.log(k) * k ** (-1 - r) for k in range(1, n + 1)]
    tail = (math.log(n) / r + 1 / r**2) * n**-r
    E = math.exp(bound) * (math.fsum(terms) + tail)
    c = math.exp(-(1 + E) / M - math.exp(2 * bound) * math.pi**2 / 6 / (2 * M * (M - 1)))
    for m in (1, 10, 1000, n):
        assert c * m ** (-1 / M) <= step_product(m, M, r) <= (m + 1) ** (-1 / M)


def test_surrogate_step_comes_closer():
    rng = torch.Generator().manual_seed(0)
    met = 0
    for _ in range(200):
        phi = torch.randn(30, generator=rng, dtype=torch.float64).abs()
        h = torch.randn(30, 3, generator=rng, dtype=torch.float64)
        best = torch.randn(3, generator=rng, dtype=torch.float64)
        value = float((phi + h @ best).min())  # of the dual at `best`, which need not be the maximiser
        here = best + torch.randn(3, generator=rng, dtype=torch.float64)
        for x in ((phi + h @ here) < value).nonzero().flatten().tolist():
            gain = value - float(phi[x] + h[x] @ here)
            assert float((best - here) @ h[x]) >= gain * (1 - 1e-12)
            limit = 2 * gain / float(h[x].square().sum())
            for share in (0.001, 0.5, 0.999):
                assert float((here + share * limit * h[x] - best).norm()) < float((here - best).norm())
            met += 1
    assert met > 100


def test_the_longest_step_is_exact_for_one_constraint():
    # phi = 0 and h = 1 at the only point: L = Lambda, so the bound on the step is twice the distance.
    best, here = 3.0, 1.0
    limit = 2 * (best - here)
    assert abs(here + 0.999 * limit - best) < abs(here - best)
    assert abs(here + 1.001 * limit - best) > abs(here - best)


def test_without_a_quadratic_term_the_dual_is_minus_infinity():
    multiplier = torch.tensor([[0.0, 1e-3], [0.0, 0.0]], dtype=torch.float64)
    values = []
    for t in (1e3, 1e6, 1e9):
        z = torch.zeros(2, 2, dtype=torch.float64)
        z[0, 1] = t * multiplier[0, 1].sign()
        values.append(float((multiplier * (0 - z)).sum()))
    assert values == [-1.0, -1e3, -1e6]


@pytest.mark.parametrize(
    ("k", "M", "r"), [(0, 2.0, 0.5), (1, 1.0, 0.5), (1, math.inf, 0.5), (1, 2.0, 0.0), (1, 2.0, 1.0)]
)
def test_outside_of_the_range(k, M, r):
    with pytest.raises(InvalidInputError, match="finite M > 1"):
        step_factor(k, M, r)


def test_steps_of_the_proof_symbolically():
    x, a, M, r, k = sympy.symbols("x a M r k", positive=True)
    remainder = x + x**2 / (2 * (1 - x)) + sympy.log(1 - x)
    assert remainder.subs(x, 0) == 0
    assert sympy.simplify(sympy.diff(remainder, x) - x**2 / (2 * (1 - x) ** 2)) == 0
    assert sympy.simplify(x**2 / (2 * (1 - 1 / M)) - a**2 / (2 * M * (M - 1))).subs(x, a / M).simplify() == 0
    exponent = k**-r * sympy.log(k)
    assert sympy.simplify(sympy.diff(exponent, k).subs(k, sympy.exp(1 / r))) == 0
    assert sympy.simplify(exponent.subs(k, sympy.exp(1 / r)) - 1 / (sympy.E * r)) == 0
