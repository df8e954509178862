"""The multiple-choice knapsack: large budgets, cuts, monotonicity, and what is refused."""

import math

import pytest
import torch

from optprune.bounds.knapsack import lagrangian_bound
from optprune.errors import InvalidInputError
from optprune.numerics.knapsack import knapsack


def curves(rng: torch.Generator, groups: int, options: int, size: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Noisy decaying curves, neither convex nor monotone."""
    costs = [(torch.linspace(0, 1, options, dtype=torch.float64) * size).long() for _ in range(groups)]
    errors = []
    for cost in costs:
        height, rate = torch.rand(2, generator=rng, dtype=torch.float64).tolist()
        noise = 0.01 * torch.rand(options, generator=rng, dtype=torch.float64)
        errors.append((height + 0.1) * torch.exp(-(2 + 6 * rate) * cost / size) + noise)
    return costs, errors


def table(costs: list[torch.Tensor], errors: list[torch.Tensor], budget: int) -> float:
    """The optimum by a dense table over all budgets."""
    best = torch.zeros(budget + 1, dtype=torch.float64)
    for cost, error in zip(costs, errors, strict=True):
        later = torch.full_like(best, math.inf)
        for c, e in zip(cost.tolist(), error.tolist(), strict=True):
            if c <= budget:
                later[c:] = torch.minimum(later[c:], best[: budget + 1 - c] + e)
        best = later
    return float(best.min())


def test_equals_a_dense_table(rng):
    for _ in range(10):
        costs, errors = curves(rng, 6, 15, 200)
        for budget in (0, 37, 240, 700, 1300):
            found = knapsack(costs, errors, budget)
            assert found.exact
            assert found.error == pytest.approx(table(costs, errors, budget), rel=1e-13)


def test_a_larger_budget_is_never_worse(rng):
    costs, errors = curves(rng, 5, 20, 1000)
    found = [knapsack(costs, errors, budget).error for budget in range(0, 5000, 111)]
    assert found == sorted(found, reverse=True)
    assert knapsack(costs, errors, 5000).error == math.fsum(float(error.min()) for error in errors)


def test_billions_of_weights_are_exact(rng):
    costs, errors = curves(rng, 200, 100, 10**9)
    budget = 4 * 10**10 + 7
    found = knapsack(costs, errors, budget)
    assert found.exact
    assert found.cost <= budget
    bound = lagrangian_bound(costs, errors, budget, found.multiplier)
    assert bound <= found.error <= bound * 1.001


def test_a_cut_programme_stays_feasible_and_says_so(rng):
    costs, errors = curves(rng, 30, 40, 1000)
    best, cut = knapsack(costs, errors, 6000), knapsack(costs, errors, 6000, max_states=2)
    assert best.exact
    assert not cut.exact
    assert cut.states <= 3
    assert cut.cost <= 6000
    assert lagrangian_bound(costs, errors, 6000, cut.multiplier) <= best.error <= cut.error
    assert cut.error == math.fsum(float(e[o]) for e, o in zip(errors, cut.options, strict=True))


def test_every_count_may_be_an_option(rng):
    curve = torch.linspace(0, 1, 30_001, dtype=torch.float64)
    costs = [torch.arange(30_001)] * 3
    errors = [(-(2.0 + i) * curve).exp() for i in range(3)]
    found = knapsack(costs, errors, 20_000)
    assert found.exact
    assert found.cost == 20_000
    slopes = [float(error[o - 1] - error[o]) for error, o in zip(errors, found.options, strict=True) if o]
    assert max(slopes) <= min(slopes) * 1.01


@pytest.mark.parametrize(
    ("costs", "errors", "budget", "words"),
    [
        ([], [], 1, "groups"),
        ([[1]], [[0.1], [0.2]], 1, "groups"),
        ([[1, 2]], [[0.1]], 1, "group 0"),
        ([[-1]], [[0.1]], 1, "costs -1 to -1"),
        ([[1]], [[math.nan]], 1, "finite errors"),
        ([[1.5]], [[0.1]], 1, "integer costs"),
        ([[3], [4, 9]], [[0.1], [0.2, 0.1]], 6, "cheapest options of the 2 groups cost 7"),
    ],
)
def test_misuse(costs, errors, budget, words):
    with pytest.raises(InvalidInputError, match=words):
        knapsack([torch.tensor(c) for c in costs], [torch.tensor(e, dtype=torch.float64) for e in errors], budget)
