"""T15: coverage over many splits, ranks against sums of binomial probabilities, and the cases of equality."""

import math

import pytest
import torch
from scipy.stats import beta, binom

from optprune.bounds.conformal import (
    bonferroni,
    conditional_rank,
    conformal_rank,
    exceedance_p_value,
    fixed_sequence,
    mean_bound,
    order_bound,
)
from optprune.bounds.evidence import monte_carlo
from optprune.errors import InvalidInputError, NonFiniteError

POINTS, ALPHA, DELTA, SPLITS = 200, 0.1, 0.05, 300


@pytest.mark.parametrize(("points", "alpha", "rank"), [(9, 0.3, 7), (200, 0.1, 181), (99, 0.01, 99), (98, 0.01, 99)])
def test_ranks_of_decimal_levels(points, alpha, rank):
    assert conformal_rank(points, alpha) == rank


@pytest.mark.parametrize(("points", "alpha", "delta"), [(200, 0.1, 0.05), (1000, 0.05, 0.01), (20, 0.3, 0.2)])
def test_the_conditional_rank_is_the_smallest(points, alpha, delta):
    rank = conditional_rank(points, alpha, delta)
    # U_(k) < 1 - alpha if at least k of the n uniform variables are.
    below = [math.fsum(binom.pmf(range(k, points + 1), points, 1 - alpha)) for k in (rank - 1, rank)]
    assert below[1] <= delta < below[0]


def test_too_few_points_say_nothing():
    assert conditional_rank(28, 0.1, 0.05) == 29
    assert order_bound(torch.arange(28.0), 29) == math.inf
    assert conditional_rank(29, 0.1, 0.05) == 29


@pytest.mark.parametrize("tied", [False, True])
def test_coverage_over_splits(tied, rng):
    pool = torch.rand(SPLITS, POINTS, generator=rng, dtype=torch.float64)

    def coverage(rank: int) -> torch.Tensor:
        if not tied:
            return torch.tensor([order_bound(scores, rank) for scores in pool])
        coarse = (pool * 8).floor()  # uniform on 0 to 7: a bound t covers (t + 1) / 8
        return torch.tensor([(order_bound(scores, rank) + 1) / 8 for scores in coarse])

    rank = conformal_rank(POINTS, ALPHA)
    found = coverage(rank)
    error = float(found.std()) / math.sqrt(SPLITS)
    assert float(found.mean()) >= 1 - ALPHA - 2 * error
    if not tied:
        assert float(found.mean()) == pytest.approx(rank / (POINTS + 1), abs=4 * error)
    strict = coverage(conditional_rank(POINTS, ALPHA, DELTA))
    # Binomial: more misses than this have probability below 1e-4 if each split misses with probability DELTA.
    assert int((strict < 1 - ALPHA).sum()) <= binom.isf(1e-4, SPLITS, DELTA)


def test_a_smaller_rank_or_another_level_fails(rng):
    rank = conditional_rank(POINTS, ALPHA, DELTA)
    exact = float(beta.cdf(1 - ALPHA, rank, POINTS + 1 - rank))

    def missed(count: int, generator: torch.Generator) -> torch.Tensor:
        pool = torch.rand(count, POINTS, generator=generator, dtype=torch.float64)
        return pool.kthvalue(rank - 1, dim=-1).values < 1 - ALPHA

    assert monte_carlo(missed, DELTA, rng, trials=20_000).refuted
    assert conditional_rank(POINTS, ALPHA, exact) == rank
    assert conditional_rank(POINTS, ALPHA, 0.999 * exact) == rank + 1


def test_p_values_and_sequences_of_tests(rng):
    for exceeded in (0, 3, 20, POINTS):
        assert exceedance_p_value(exceeded, POINTS, ALPHA) == pytest.approx(
            math.fsum(binom.pmf(range(exceeded + 1), POINTS, ALPHA)), rel=1e-9
        )
    assert fixed_sequence([0.01, 0.02, 0.2, 0.001], 0.05) == 2
    assert fixed_sequence([], 0.05) == 0
    assert fixed_sequence([math.nan, 0.0], 0.05) == 0
    assert bonferroni(0.05, 5) == 0.01

    # Eight candidates, ever sparser, exceed with probabilities 0.02 to 0.16 on the same points; 0.1 is the limit.
    rates = torch.linspace(0.02, 0.16, 8, dtype=torch.float64)

    def false_claim(count: int, generator: torch.Generator) -> torch.Tensor:
        uniform = torch.rand(count, POINTS, 1, generator=generator, dtype=torch.float64)
        exceeded = (uniform < rates).sum(1)
        found = [fixed_sequence([exceedance_p_value(int(r), POINTS, ALPHA) for r in row], DELTA) for row in exceeded]
        return torch.tensor([bool((rates[:n] > ALPHA).any()) for n in found])

    assert not monte_carlo(false_claim, DELTA, rng, trials=300).refuted


@pytest.mark.parametrize("rate", [0.02, 0.3, 0.95])
def test_the_bound_of_a_mean(rate, rng):
    def missed(count: int, generator: torch.Generator) -> torch.Tensor:
        draws = (torch.rand(count, 300, generator=generator) < rate).double()
        return torch.tensor([mean_bound(row, 0.1) < rate for row in draws])

    assert not monte_carlo(missed, 0.1, rng, trials=500).refuted
    values = (torch.rand(300, generator=rng) < rate).double()
    hoeffding = float(values.mean()) + math.sqrt(math.log(10) / 600)
    assert float(values.mean()) < mean_bound(values, 0.1) <= max(1.0, hoeffding)
    if rate == 0.02:
        assert mean_bound(values, 0.1) < hoeffding - 0.02


def test_one_score_gives_the_bound_by_hand():
    # One score 0 and the largest stake 3/4: 1 + 3 m / 4 = 1 / delta.
    assert mean_bound(torch.zeros(1), 0.9) == pytest.approx((1 / 0.9 - 1) / min(0.75, math.sqrt(8 * math.log(1 / 0.9))))
    assert mean_bound(torch.zeros(1), 0.5) == 1.0


def test_misuse_is_refused():
    with pytest.raises(InvalidInputError, match="alpha"):
        conformal_rank(10, 0.0)
    with pytest.raises(InvalidInputError, match="at least one"):
        conditional_rank(0, 0.1, 0.1)
    with pytest.raises(InvalidInputError, match="rank"):
        order_bound(torch.ones(3), 5)
    with pytest.raises(NonFiniteError):
        order_bound(torch.tensor([1.0, math.nan]), 1)
    with pytest.raises(InvalidInputError, match=r"\[0, 1\]"):
        mean_bound(torch.tensor([0.2, 1.2]), 0.1)
    with pytest.raises(InvalidInputError, match="exceedances"):
        exceedance_p_value(4, 3, 0.1)
