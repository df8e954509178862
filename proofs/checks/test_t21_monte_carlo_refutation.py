"""T21 against tails summed by hand, and on claims that are true and false."""

import math

import pytest
import torch
from scipy.stats import binom

from optprune.bounds.evidence import clopper_pearson, monte_carlo
from optprune.errors import InvalidInputError


@pytest.mark.parametrize(("failures", "trials"), [(1, 10), (7, 10), (50, 1000), (3, 100_000)])
@pytest.mark.parametrize("confidence", [0.9, 0.999])
def test_limits_are_equalities(failures, trials, confidence):
    low, high = clopper_pearson(failures, trials, confidence)
    side = (1 - confidence) / 2
    at_least = 1 - math.fsum(binom.pmf(range(failures), trials, low))
    at_most = math.fsum(binom.pmf(range(failures + 1), trials, high))
    assert at_least == pytest.approx(side, rel=1e-6)
    assert at_most == pytest.approx(side, rel=1e-6)
    assert abs(1 - math.fsum(binom.pmf(range(failures), trials, 0.999 * low)) - side) > 5e-4 * side
    assert abs(math.fsum(binom.pmf(range(failures + 1), trials, 0.999 * high)) - side) > 5e-4 * side


def test_ends():
    assert clopper_pearson(0, 20)[0] == 0.0
    assert clopper_pearson(20, 20)[1] == 1.0
    assert clopper_pearson(0, 1000, 0.9)[1] == pytest.approx(1 - 0.05 ** (1 / 1000), rel=1e-9)


@pytest.mark.parametrize("confidence", [0.9, 0.99])
def test_true_claims_are_rarely_refuted(confidence):
    # Exactly, not by simulation: the probability of each count, where the claim is the truth.
    for truth in (0.01, 0.1, 0.5):
        counts = range(201)
        refuting = [r for r in counts if clopper_pearson(r, 200, confidence)[0] > truth]
        assert math.fsum(binom.pmf(refuting, 200, truth)) <= (1 - confidence) / 2


@pytest.mark.parametrize(("truth", "claimed", "refuted"), [(0.1, 0.1, False), (0.08, 0.1, False), (0.13, 0.1, True)])
def test_trials_decide(truth, claimed, refuted, rng):
    def violated(count: int, generator: torch.Generator) -> torch.Tensor:
        return torch.rand(count, generator=generator) < truth

    found = monte_carlo(violated, claimed, rng, trials=10_500)
    assert found.trials == 10_500
    assert found.low < truth < found.high
    assert found.refuted == refuted
    assert ("not refuted" in str(found)) != refuted


def test_misuse_is_refused(rng):
    with pytest.raises(InvalidInputError, match="failures"):
        clopper_pearson(3, 2)
    with pytest.raises(InvalidInputError, match="confidence"):
        clopper_pearson(1, 2, 1.0)
    with pytest.raises(InvalidInputError, match="boolean per trial"):
        monte_carlo(lambda n, g: torch.zeros(n), 0.1, rng)
    with pytest.raises(InvalidInputError, match="probability"):
        monte_carlo(lambda n, g: torch.zeros(n, dtype=torch.bool), 1.5, rng)
