"""T09 against enumeration in rational arithmetic, and where the bound is an equality."""

import itertools
import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from optprune.bounds.knapsack import lagrangian_bound
from optprune.errors import InvalidInputError
from optprune.numerics.knapsack import knapsack

Tables = tuple[list[Tensor], list[Tensor]]


def instance(rng: torch.Generator, ties: bool) -> tuple[Tables, int]:
    """Up to four groups of up to six options; errors in eighths where ties are wanted."""
    sizes = torch.randint(1, 7, (int(torch.randint(1, 5, (1,), generator=rng)),), generator=rng).tolist()
    costs = [torch.randint(0, 12, (size,), generator=rng) for size in sizes]
    errors = [torch.rand(size, generator=rng, dtype=torch.float64) for size in sizes]
    if ties:
        errors = [(8 * error).floor() / 8 for error in errors]
    least = sum(int(cost.min()) for cost in costs)
    return (costs, errors), least + int(torch.randint(0, 20, (1,), generator=rng))


def optimum(tables: Tables, budget: int) -> Fraction:
    costs, errors = tables
    options = itertools.product(*(range(len(cost)) for cost in costs))
    return min(
        sum((Fraction(float(error[o])) for error, o in zip(errors, chosen, strict=True)), Fraction())
        for chosen in options
        if sum(int(cost[o]) for cost, o in zip(costs, chosen, strict=True)) <= budget
    )


def relaxed(tables: Tables, budget: int, multiplier: Fraction) -> Fraction:
    total = -multiplier * budget
    for cost, error in zip(*tables, strict=True):
        total += min(Fraction(e) + multiplier * c for c, e in zip(cost.tolist(), error.tolist(), strict=True))
    return total


@pytest.mark.parametrize("ties", [False, True])
def test_no_choice_is_below_the_bound_and_none_above_the_programme(ties, rng):
    for _ in range(150):
        tables, budget = instance(rng, ties)
        best = optimum(tables, budget)
        found = knapsack(*tables, budget)
        assert found.exact
        assert found.cost <= budget
        assert found.error == pytest.approx(float(best), rel=1e-14, abs=0)
        for multiplier in (found.multiplier, 0.0, 1e-3, 0.1, 7.3, 1e300):
            bound = lagrangian_bound(*tables, budget, multiplier)
            exact = relaxed(tables, budget, Fraction(multiplier))
            assert exact <= best
            assert Fraction(bound) <= max(exact, Fraction(0))
            assert bound >= float(exact) - 1e-14 * (1 + 2 * multiplier * budget)


def test_the_multiplier_is_the_best_one(rng):
    for _ in range(100):
        (costs, errors), budget = instance(rng, ties=False)
        own = relaxed((costs, errors), budget, Fraction(knapsack(costs, errors, budget).multiplier))
        pairs = [
            (cost.tolist(), error.tolist(), a, b)
            for cost, error in zip(costs, errors, strict=True)
            for a, b in itertools.permutations(range(len(cost)), 2)
        ]
        # L is concave and piecewise linear; its corners are slopes between two options of a group.
        slopes = {
            (Fraction(error[a]) - Fraction(error[b])) / (cost[b] - cost[a])
            for cost, error, a, b in pairs
            if cost[b] > cost[a]
        }
        most = max(relaxed((costs, errors), budget, slope) for slope in {Fraction(0), *slopes} if slope >= 0)
        assert float(most - own) == pytest.approx(0, abs=1e-15)


def test_the_gap_is_less_than_one_step(rng):
    """(e) on curves with many small steps: the first choice is nearly optimal, so that the bound is."""
    for _ in range(20):
        costs = [torch.arange(200) * int(torch.randint(1, 9, (1,), generator=rng)) for _ in range(5)]
        errors = [torch.rand(200, generator=rng, dtype=torch.float64).sort(descending=True).values for _ in costs]
        budget = int(torch.randint(0, sum(int(cost[-1]) for cost in costs), (1,), generator=rng))
        found = knapsack(costs, errors, budget)
        bound = lagrangian_bound(costs, errors, budget, found.multiplier)
        assert bound <= found.error
        assert found.error - bound <= max(float(error[0] - error[-1]) for error in errors)


def convex() -> tuple[Tables, int, float]:
    """Errors 2^-k at cost k, twice; the budget is met at a corner of both, where bound and optimum are one number."""
    curve = torch.tensor([2.0**-k for k in range(8)], dtype=torch.float64)
    return ([torch.arange(8), torch.arange(8)], [curve, 3 * curve]), 7, 2.0**-3 + 3 * 2.0**-4


def test_equality_where_the_budget_meets_a_corner():
    tables, budget, best = convex()
    found = knapsack(*tables, budget)
    assert found.error == best == float(optimum(tables, budget))
    assert best * (1 - 1e-14) <= lagrangian_bound(*tables, budget, found.multiplier) <= best


@pytest.mark.parametrize("factor", [0.999, 1.001])
def test_a_constant_that_is_slightly_wrong_fails(factor):
    """A budget that is charged too little makes a bound that is none; charged too much, the equality is lost."""
    tables, budget, best = convex()
    mu = knapsack(*tables, budget).multiplier
    true = lagrangian_bound(*tables, budget, mu)
    wrong = true + (1 - factor) * mu * budget
    assert wrong > best if factor < 1 else wrong < best * (1 - 1e-6)


@pytest.mark.parametrize(
    ("cost", "error", "budget", "multiplier"),
    [
        ([-1], [0.5], 3, 0.1),
        ([1], [-0.5], 3, 0.1),
        ([1], [math.inf], 3, 0.1),
        ([1], [0.5], -1, 0.1),
        ([1], [0.5], 3, -0.1),
    ],
)
def test_numbers_outside_of_the_hypotheses_are_refused(cost, error, budget, multiplier):
    tables = [torch.tensor(cost)], [torch.tensor(error, dtype=torch.float64)]
    with pytest.raises(InvalidInputError):
        lagrangian_bound(*tables, budget, multiplier)
