"""Rows of two answers: within the budget, never worse, and close to the best choice of rows."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import optprune as op
from optprune.problems import L0LeastSquares, stack
from optprune.solvers._recombine import affordable, recombined
from optprune.testing.instances import data, every_pattern


@given(
    st.lists(st.tuples(st.floats(-1, 1), st.integers(-4, 4)), min_size=1, max_size=8),
    st.integers(0, 3),
)
def test_the_rows_taken_are_affordable_and_nearly_the_best(rows, left):
    """Against every choice of rows; no row that is missing is worth more than the largest change."""
    change = torch.tensor([c for c, _ in rows], dtype=torch.float64)
    units = torch.tensor([u for _, u in rows])
    taken = affordable(change, units, torch.tensor(left))
    assert int((units * taken).sum()) <= left
    total = float((change * taken).sum())
    choices = itertools.product([False, True], repeat=len(rows))
    admissible = [torch.tensor(c) for c in choices if sum(u for (_, u), t in zip(rows, c, strict=True) if t) <= left]
    best = min(float((change * c).sum()) for c in admissible)
    assert best - 1e-12 <= total <= min(0.0, best + float(change.abs().max())) + 1e-12


def test_equal_counts_are_chosen_row_by_row():
    change, units = torch.tensor([[-1.0, 2.0, -3.0]]), torch.zeros(1, 3, dtype=torch.long)
    assert affordable(change, units, torch.tensor([0])).tolist() == [[True, False, True]]


@pytest.mark.parametrize("pattern", every_pattern(), ids=repr)
def test_what_is_recombined_is_admissible_and_no_worse_than_either(pattern):
    layers = stack([L0LeastSquares.from_layer(*data(500 + seed), pattern=pattern) for seed in range(6)])
    one, other = (solver.run(layers).matrix for solver in (op.Magnitude(), op.IHT()))
    for first, second in ((one, other), (other, one)):
        matrix = recombined(layers, first, second)
        assert pattern.admits(matrix != 0)
        least = torch.minimum(layers.objective(first), layers.objective(second))
        assert bool((layers.objective(matrix) <= least * (1 + 1e-12)).all())
        rows = torch.stack([(matrix == x).all(-1) for x in (first, second)])
        assert bool(rows.any(0).all())
