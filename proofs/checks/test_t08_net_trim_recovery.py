"""T08 against numbers: both programs draw by draw, frequencies of failure, and the formulas in more digits."""

import math

import mpmath as mp
import numpy as np
import pytest
import sympy
import torch
from scipy.integrate import quad
from scipy.optimize import linprog
from scipy.stats import binomtest

import optprune as op
from optprune.bounds.net_trim_recovery import cone_dimension, recovery_failure, recovery_samples
from optprune.errors import InvalidInputError


def neuron(rng: np.random.Generator, inputs: int, nonzeros: int) -> np.ndarray:
    weight = np.zeros(inputs)
    weight[rng.permutation(inputs)[:nonzeros]] = rng.standard_normal(nonzeros)
    return weight


def found(rows: np.ndarray, weight: np.ndarray, inactive: bool) -> bool:
    """Whether the linear program, with the inequalities of the inactive samples or without, ends at the weight."""
    active = rows @ weight > 0
    equal, less = rows[active], rows[~active] if inactive else rows[:0]
    done = linprog(
        np.ones(2 * len(weight)),
        A_eq=np.hstack([equal, -equal]),
        b_eq=equal @ weight,
        A_ub=np.hstack([less, -less]),
        b_ub=np.zeros(len(less)),
        bounds=(0, None),
        method="highs",
    )
    assert done.status == 0
    plus, minus = np.split(done.x, 2)
    return bool(np.linalg.norm(plus - minus - weight) <= 1e-6 * np.linalg.norm(weight))


@pytest.mark.parametrize("law", ["standard_normal", "uniform"])
def test_the_inequalities_never_decide(law):
    """T08 (a), first half: near the threshold, where about half of the draws are found."""
    rng, agreed = np.random.default_rng(0), []
    for _ in range(60):
        rows = rng.standard_normal((12, 20)) if law == "standard_normal" else rng.uniform(-1, 1, (12, 20))
        weight = neuron(rng, 20, 2)
        agreed.append(found(rows, weight, inactive=True))
        assert agreed[-1] == found(rows, weight, inactive=False)
    assert 10 < sum(agreed) < 50


def test_active_samples_are_as_good_as_fresh_ones():
    """T08 (a), second half: the two frequencies of success differ by no more than chance makes likely."""
    rng, trials, counts = np.random.default_rng(1), 400, np.zeros(2)
    for _ in range(trials):
        weight = neuron(rng, 20, 2)
        counts[0] += found(rng.standard_normal((12, 20)), weight, inactive=False)
        fresh = rng.standard_normal((rng.binomial(12, 0.5), 20))
        signs = np.where(fresh @ weight > 0, 1, -1)  # a row and its negative state the same equation
        counts[1] += found(fresh * signs[:, None], weight, inactive=False)
    assert counts.min() / trials > 0.2
    assert counts.max() / trials < 0.8
    assert abs(counts[0] - counts[1]) < 4 * math.sqrt(trials / 2)


@pytest.mark.parametrize(("inputs", "nonzeros", "samples"), [(20, 1, 24), (40, 2, 40), (24, 6, 64), (10, 10, 40)])
def test_failures_are_as_rare_as_bounded(inputs, nonzeros, samples):
    rng, trials = np.random.default_rng(2), 300
    weights = [neuron(rng, inputs, nonzeros) for _ in range(trials)]
    missed = sum(not found(rng.standard_normal((samples, inputs)), w, inactive=False) for w in weights)
    bound = recovery_failure(inputs, nonzeros, samples)
    assert bound < 0.8
    assert binomtest(missed, trials, bound, alternative="greater").pvalue > 1e-4


@pytest.mark.parametrize("wrong", ["all samples active", "half the dimension"])
def test_a_wrong_constant_is_refuted(wrong):
    """Frequencies of failure exceed what the formula says with the number of active samples or the cone wrong."""
    rng, trials, (inputs, nonzeros, samples) = np.random.default_rng(3), 60, (120, 20, 100)
    weights = [neuron(rng, inputs, nonzeros) for _ in range(trials)]
    missed = sum(not found(rng.standard_normal((samples, inputs)), w, inactive=False) for w in weights)
    width = math.sqrt(cone_dimension(inputs, nonzeros) / (2 if wrong == "half the dimension" else 1))
    every = np.arange(samples + 1)
    share = np.array([math.comb(samples, k) / 2**samples for k in every.tolist()])
    share = (every == samples).astype(float) if wrong == "all samples active" else share
    excess = np.maximum(np.sqrt(np.maximum(every - 0.5, 0)) - width, 0)
    claim = float(np.sum(share * np.exp(-(excess**2) / 2)))
    assert claim < 0.9
    assert binomtest(missed, trials, claim, alternative="greater").pvalue < 1e-6
    assert missed <= trials * recovery_failure(inputs, nonzeros, samples)


def test_net_trim_finds_the_neuron(rng):
    """The solver itself, at the number of samples that the bound asks for at one in a thousand, neurons together."""
    samples = recovery_samples(20, 2, 1e-3, neurons=4)
    weight = np.stack([neuron(np.random.default_rng(seed), 20, 2) for seed in range(4)])
    inputs = torch.randn(samples, 20, generator=rng, dtype=torch.float64)
    dense = torch.from_numpy(weight)
    answer = op.NetTrimADMM().run(op.NetTrim.from_layer(dense, inputs, 0.0))
    assert float((answer.matrix - dense).norm()) <= 1e-6 * float(dense.norm())


@pytest.mark.parametrize(("inputs", "nonzeros"), [(40, 2), (784, 20), (50, 50), (1, 1), (100_000, 3)])
def test_the_dimension_is_the_least_of_its_formula(inputs, nonzeros):
    def at(tau: float) -> float:
        beyond = 2 * quad(lambda g: (g - tau) ** 2 * math.exp(-g * g / 2), tau, tau + 40)[0] / math.sqrt(2 * math.pi)
        return nonzeros * (1 + tau * tau) + (inputs - nonzeros) * beyond

    least = min(at(tau) for tau in np.linspace(0, 6, 1201))
    found_least = cone_dimension(inputs, nonzeros)
    assert found_least <= least * (1 + 1e-9)
    assert found_least >= least * (1 - 1e-4)
    assert found_least <= 2 * nonzeros * math.log(inputs / nonzeros) + 1.25 * nonzeros + 1e-9


def test_the_mean_length_of_a_normal_vector():
    """Step 6, and no larger constant than one half will do."""
    with mp.workdps(40):
        for k in (1, 2, 3, 10, 1001, 10**6):
            length = mp.sqrt(2) * mp.exp(mp.loggamma(mp.mpf(k + 1) / 2) - mp.loggamma(mp.mpf(k) / 2))
            assert length**2 >= k - mp.mpf(1) / 2
            assert k < 1000 or length**2 < k - mp.mpf("0.499")


@pytest.mark.parametrize(
    ("inputs", "nonzeros", "samples", "neurons"),
    [(40, 2, 60, 1), (784, 20, 500, 300), (30, 30, 100, 1), (784, 5, 5000, 1), (2, 1, 0, 1)],
)
def test_the_sum_in_many_digits(inputs, nonzeros, samples, neurons):
    with mp.workdps(60):
        width = mp.sqrt(mp.mpf(cone_dimension(inputs, nonzeros)))
        total = mp.mpf(0)
        for k in range(samples + 1):
            root = mp.sqrt(max(mp.mpf(k) - mp.mpf(1) / 2, 0))
            total += mp.binomial(samples, k) * mp.exp(-(max(root - width, 0) ** 2) / 2)
        exact = min(mp.mpf(1), neurons * total / mp.mpf(2) ** samples)
        computed = mp.mpf(recovery_failure(inputs, nonzeros, samples, neurons))
    assert exact <= computed
    assert computed <= max(exact * (1 + mp.mpf("1e-6")), mp.mpf("3e-308"))


@pytest.mark.parametrize(("inputs", "nonzeros", "failure"), [(40, 2, 0.16), (784, 20, 1e-6), (784, 784, 0.5)])
def test_the_least_number_of_samples(inputs, nonzeros, failure):
    samples = recovery_samples(inputs, nonzeros, failure)
    assert recovery_failure(inputs, nonzeros, samples) <= failure < recovery_failure(inputs, nonzeros, samples - 1)
    assert samples > 2 * cone_dimension(inputs, nonzeros)
    assert recovery_samples(inputs, nonzeros, failure, neurons=10) > samples


def test_what_is_no_neuron_is_refused():
    with pytest.raises(InvalidInputError, match="nonzeros"):
        cone_dimension(10, 0)
    with pytest.raises(InvalidInputError, match="nonzeros"):
        recovery_failure(10, 11, 5)
    with pytest.raises(InvalidInputError, match="samples >= 0"):
        recovery_failure(10, 1, -1)
    with pytest.raises(InvalidInputError, match="between 0 and 1"):
        recovery_samples(10, 1, 0.0)


def test_the_ratio_of_squared_lengths_falls_below_one_symbolically():
    k = sympy.Symbol("k", positive=True)
    half = sympy.Rational(1, 2)
    ratio = (k + 1) ** 2 * (k - half) / (k**2 * (k + 3 * half))
    assert sympy.simplify(ratio - (k**3 + 3 * half * k**2 - half) / (k**3 + 3 * half * k**2)) == 0
    length = sympy.sqrt(2) * sympy.gamma(k + half) / sympy.gamma(k)  # of 2 k entries
    assert sympy.simplify(sympy.expand_func(length.subs(k, k + 1) / length) - (2 * k + 1) / (2 * k)) == 0
