"""Elimination: each step takes the cheapest unit, at the price that a fresh solve finds."""

import pytest
import torch

from optprune.numerics import elimination
from optprune.numerics.elimination import eliminate


def example(bands, height, columns, seed=0):
    rng = torch.Generator().manual_seed(seed)
    rows = torch.randn(2, 3 * columns, columns, generator=rng, dtype=torch.float64)
    gram = rows.mT @ rows / len(rows)
    return gram, torch.randn(2, bands, height, columns, generator=rng, dtype=torch.float64)


def excess(gram, weight, columns):
    """Half the energy of the weight that a fit on these columns cannot explain."""
    linear = weight @ gram
    block, kept = gram[columns][:, columns], linear[:, columns]
    return 0.5 * float((weight * linear).sum() - (kept * torch.linalg.solve(block, kept.mT).mT).sum())


@pytest.mark.parametrize(
    ("height", "columns", "width", "group", "spare", "block"),
    [
        pytest.param(1, 12, 1, 12, 12, 5, id="to the end"),
        pytest.param(1, 12, 1, 4, 2, 4, id="2 of 4"),
        pytest.param(3, 10, 1, 10, 7, 3, id="columns"),
        pytest.param(2, 12, 3, 4, 3, 6, id="tiles"),
        pytest.param(1, 8, 8, 1, 1, 64, id="whole rows"),
    ],
)
def test_each_step_is_the_cheapest_and_costs_what_a_fresh_fit_says(
    monkeypatch, height, columns, width, group, spare, block
):
    monkeypatch.setattr(elimination, "BLOCK", block)
    gram, weight = example(3, height, columns)
    trace = eliminate(torch.linalg.inv(gram), weight, width=width, group=group, spare=spare, memory=1)
    assert trace.order.shape == (2, 3, spare * columns // width // group)
    for problem in range(2):
        for band in range(3):
            left, spent = list(range(columns // width)), 0.0
            lost = [0] * (columns // width // group)
            for unit, cost in zip(trace.order[problem, band].tolist(), trace.cost[problem, band].tolist(), strict=True):
                prices = {}
                for other in left:
                    if lost[other // group] < spare:
                        rest = [c for u in left if u != other for c in range(u * width, (u + 1) * width)]
                        prices[other] = excess(gram[problem], weight[problem, band], rest) - spent
                assert cost == pytest.approx(prices[unit], rel=1e-9)
                assert cost == pytest.approx(min(prices.values()), rel=1e-9)
                left.remove(unit)
                lost[unit // group] += 1
                spent += cost


def test_blocks_and_memory_change_nothing(monkeypatch):
    gram, weight = example(5, 1, 30, seed=1)
    inverse = torch.linalg.inv(gram)
    first = eliminate(inverse, weight, group=30, spare=25)
    monkeypatch.setattr(elimination, "BLOCK", 7)
    second = eliminate(inverse, weight, group=30, spare=25, memory=1)
    assert torch.equal(first.order, second.order)
    torch.testing.assert_close(first.cost, second.cost)
