"""T19 by summing over all choices of a few edges, and by trials."""

import itertools

import pytest
import sympy
import torch
from torch import Tensor

from optprune.bounds.evidence import monte_carlo
from optprune.bounds.horvitz_thompson import kept_radius, kept_variance
from optprune.numerics.pivotal import choose_in_pairs, settle
from optprune.numerics.water_filling import water_fill


def choices(edges: int) -> Tensor:
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=edges)), dtype=torch.float64)


def chances(bits: Tensor, p: Tensor) -> Tensor:
    return torch.where(bits > 0, p, 1 - p).prod(-1)


def edges(rng: torch.Generator, n: int = 9) -> tuple[Tensor, Tensor]:
    terms = torch.randn(n, generator=rng, dtype=torch.float64)
    return terms, (0.1 + 1.2 * torch.rand(n, generator=rng, dtype=torch.float64)).clamp(max=1.0)


@pytest.mark.parametrize("factor", [1.0, 0.999, 1.001])
def test_mean_and_variance_over_all_choices(factor, rng):
    terms, p = edges(rng)
    bits = choices(len(p))
    sums, weight = (bits * terms / p).sum(-1), chances(bits, p)
    assert float(weight @ sums) == pytest.approx(float(terms.sum()), rel=1e-12)
    spread = float(weight @ (sums - terms.sum()).square())
    assert (spread == pytest.approx(factor * float(kept_variance(terms.square(), p)), rel=1e-9)) == (factor == 1.0)


@pytest.mark.parametrize("delta", [0.1, 0.01, 0.001])
@pytest.mark.parametrize("signed", [False, True])
def test_trials_do_not_refute_the_radius(delta, signed, rng):
    terms = torch.randn(60, generator=rng, dtype=torch.float64)
    terms = terms if signed else terms.abs()
    p = water_fill(terms.abs(), torch.ones_like(terms), torch.tensor(30.0, dtype=torch.float64))
    radius = float(kept_radius(terms, p, delta))

    def missed(by: float, count: int, generator: torch.Generator) -> Tensor:
        bits = choose_in_pairs(p.expand(count, -1), generator)
        return ((bits * terms / p).sum(-1) - terms.sum()).abs() >= by

    def independent(by: float, count: int, generator: torch.Generator) -> Tensor:
        bits = torch.rand(count, len(p), generator=generator, dtype=torch.float64) < p
        return ((bits * terms / p).sum(-1) - terms.sum()).abs() >= by

    for experiment in (missed, independent):
        tried = monte_carlo(lambda n, g, e=experiment: e(radius, n, g), delta, rng, trials=10_000)
        assert not tried.refuted
    assert monte_carlo(lambda n, g: independent(radius / 4, n, g), delta, rng, trials=10_000).refuted


def test_pairs_keep_probabilities_and_the_count(rng):
    p = water_fill(torch.rand(13, generator=rng).double(), torch.ones(13).double(), torch.tensor(5.0).double())
    bits = choose_in_pairs(p.expand(20_000, -1), rng).double()
    assert bool((bits.sum(-1) == 5).all())
    error = (p * (1 - p) / 20_000).sqrt()
    assert bool(((bits.mean(0) - p).abs() <= 5 * error + 1e-12).all())
    # No two choices go together: covariances are negative, but for what 20,000 trials cannot tell.
    covariance = torch.cov(bits.mT) - torch.diag(bits.var(0))
    assert float(covariance.max()) < 4 * 0.25 / 20_000**0.5
    assert float(covariance.sum()) == pytest.approx(-float((p * (1 - p)).sum()), rel=0.05)
    open_sum = choose_in_pairs(torch.full((5000, 3), 0.5, dtype=torch.float64), rng).double().sum(-1)
    assert set(open_sum.tolist()) == {1.0, 2.0}
    assert float(open_sum.mean()) == pytest.approx(1.5, abs=0.03)


def test_certain_edges_and_impossible_ones():
    terms = torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64)
    assert float(kept_radius(terms, torch.tensor([1.0, 1.0, 0.0]).double(), 0.1)) == 0.0
    assert float(kept_radius(terms, torch.tensor([1.0, 0.0, 0.5]).double(), 0.1)) == float("inf")
    assert float(kept_variance(terms.square(), torch.tensor([1.0, 0.0, 0.5]).double())) == float("inf")


def expected_error(p: Tensor, p0: Tensor, weight: Tensor, gram: Tensor) -> float:
    """Over all choices, by the definition."""
    bits = choices(len(p))
    missed = weight * (bits - p0)
    return float(chances(bits, p) @ ((missed @ gram) * missed).sum(-1))


def formula(p: Tensor, p0: Tensor, weight: Tensor, gram: Tensor) -> float:
    m = weight * (p - p0)
    return float((m @ gram) @ m + (gram.diagonal() * weight.square() * p * (1 - p)).sum())


def row(rng: torch.Generator, signed: bool) -> tuple[Tensor, Tensor, Tensor]:
    inputs = torch.rand(20, 8, generator=rng, dtype=torch.float64)
    weight = torch.randn(8, generator=rng, dtype=torch.float64)
    weight = weight if signed else weight.abs()
    p0 = water_fill(weight.abs(), torch.ones_like(weight), torch.tensor(4.0))
    return p0, weight / p0, inputs.mT @ inputs / 20


def test_the_expected_error_is_linear_in_each_probability(rng):
    for _ in range(5):
        p0, weight, gram = row(rng, True)
        for p in (p0, torch.rand(8, generator=rng, dtype=torch.float64)):
            assert formula(p, p0, weight, gram) == pytest.approx(expected_error(p, p0, weight, gram), rel=1e-9)
        ends = [p0.clone(), p0.clone(), p0.clone()]
        for p, value in zip(ends, (0.0, 0.5, 1.0), strict=True):
            p[3] = value
        low, middle, high = (formula(p, p0, weight, gram) for p in ends)
        assert middle == pytest.approx((low + high) / 2, rel=1e-9)


@pytest.mark.parametrize("signed", [False, True])
def test_settled_choices_keep_the_expected_error(signed, rng):
    better = 0
    for _ in range(50):
        p0, weight, gram = row(rng, signed)
        kept = settle(p0[None], weight[None], gram, torch.tensor([4]))[0].double()
        before, after = formula(p0, p0, weight, gram), formula(kept, p0, weight, gram)
        assert int(kept.sum()) <= 4
        assert signed or after <= before * (1 + 1e-9)
        better += after <= before
    assert better >= 45


def test_rows_share_a_budget(rng):
    weight = torch.randn(6, 10, generator=rng, dtype=torch.float64)
    inputs = torch.rand(30, 10, generator=rng, dtype=torch.float64)
    gram = inputs.mT @ inputs / 30
    for groups, budget in ((1, 23), (6, 4)):
        flat = weight.abs().reshape(groups, -1)
        p = water_fill(flat, torch.ones_like(flat), torch.full((groups,), float(budget))).reshape(weight.shape)
        kept = settle(p, weight / p, gram, torch.full((groups,), budget))
        assert bool((kept.reshape(groups, -1).sum(-1) <= budget).all())
        assert int(kept.sum()) >= groups * budget - (6 if groups == 1 else 0)
        assert bool(kept[p > 1 - 1e-12].all())


def test_pairs_keep_means_and_the_error_is_linear_symbolically():
    p, q = sympy.symbols("p q", positive=True)
    assert sympy.simplify(p / (p + q) * (p + q) - p) == 0
    assert sympy.simplify((1 - q) / (2 - p - q) + (1 - p) / (2 - p - q) * (p + q - 1) - p) == 0
    y, old, new, g = (sympy.symbols(f"{name}0:3", real=True) for name in ("y", "o", "n", "g"))
    gram = sympy.Matrix([[g[0], sympy.Symbol("a"), 0], [sympy.Symbol("a"), g[1], 0], [0, 0, g[2]]])
    moved = sympy.Matrix([y[j] * (new[j] - old[j]) for j in range(3)])
    phi = (moved.T * gram * moved)[0] + sum(g[j] * y[j] ** 2 * new[j] * (1 - new[j]) for j in range(3))
    assert [sympy.expand(sympy.diff(phi, n, 2)) for n in new] == [0, 0, 0]
    t = sympy.Symbol("t")
    along = phi.subs({new[0]: new[0] + t, new[1]: new[1] - t}, simultaneous=True)
    assert sympy.expand(sympy.diff(along, t, 2) / 2 + 2 * sympy.Symbol("a") * y[0] * y[1]) == 0
