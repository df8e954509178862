"""Patterns: exact counts, optimal supports, round trips."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from optprune.errors import InvalidInputError, NonFiniteError
from optprune.patterns import (
    Blocks,
    Columns,
    Fixed,
    NOfM,
    Pattern,
    PerLayer,
    PerRow,
    Rows,
    count_at,
    pattern_from_json,
)

SHAPE = (4, 6)
CHECKER = torch.arange(24).reshape(SHAPE) % 3 == 0
PATTERNS: list[Pattern] = [
    PerLayer(7),
    PerLayer(0),
    PerLayer(24),
    PerRow(2),
    NOfM(1, 3),
    NOfM(2, 2),
    Blocks(2, 3, 2),
    Blocks(1, 2, 5),
    Rows(3),
    Columns(2),
    Fixed(CHECKER),
]


@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
def test_support_keeps_the_exact_count_and_is_admitted(pattern, rng):
    scores = torch.rand(SHAPE, generator=rng)
    mask = pattern.support(scores)
    assert int(mask.sum()) == pattern.count(SHAPE)
    assert pattern.admits(mask)
    assert pattern.density(SHAPE) == pattern.count(SHAPE) / 24


@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
def test_ties_keep_the_exact_count_and_the_first(pattern):
    mask = pattern.support(torch.ones(SHAPE))
    assert int(mask.sum()) == pattern.count(SHAPE)
    if isinstance(pattern, PerRow | PerLayer):
        assert torch.equal(mask.reshape(-1)[: min(2, pattern.k)], torch.ones(min(2, pattern.k), dtype=torch.bool))


@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
def test_units_round_trip_with_batch_dimensions(pattern, rng):
    x = torch.rand(3, 2, *SHAPE, generator=rng)
    assert torch.equal(pattern.from_units(pattern.units(x), SHAPE), x)
    assert pattern.units(x).shape[2:] == pattern.layout(SHAPE)


@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
def test_support_of_a_batch_equals_the_supports_one_by_one(pattern, rng):
    scores = torch.rand(5, *SHAPE, generator=rng)
    assert torch.equal(pattern.support(scores), torch.stack([pattern.support(s) for s in scores]))


@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
def test_json_round_trip(pattern):
    assert pattern_from_json(pattern.to_json()) == pattern


@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
def test_project_is_idempotent_and_never_grows(pattern, rng):
    weight = torch.randn(SHAPE, generator=rng)
    once = pattern.project(weight)
    assert torch.equal(pattern.project(once), once)
    assert torch.equal(once[once != 0], weight[once != 0])


@pytest.mark.parametrize(
    "pattern", [PerLayer(3), PerRow(1), NOfM(1, 2), Blocks(1, 2, 2), Rows(1), Columns(2)], ids=repr
)
def test_support_is_the_best_of_all_admissible_ones(pattern, rng):
    shape = (2, 4)
    scores = torch.rand(shape, generator=rng, dtype=torch.float64)
    best = max(
        float(scores[mask].sum())
        for bits in itertools.product([False, True], repeat=8)
        if pattern.admits(mask := torch.tensor(bits).reshape(shape))
    )
    assert float(scores[pattern.support(scores)].sum()) == pytest.approx(best, abs=1e-15)


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1.0, 1e6, 1e30])
def test_project_orders_weights_of_any_scale(scale):
    weight = torch.tensor([[3.0, -1.0, 2.0, 0.5]]) * scale
    assert torch.equal(PerRow(2).project(weight) != 0, torch.tensor([[True, False, True, False]]))


@given(st.integers(1, 5), st.integers(1, 8), st.floats(0, 1), st.integers(1, 4))
def test_split_keeps_the_total_budget(rows, columns, density, groups):
    shape = (rows * groups, columns)
    for pattern in (
        PerLayer.at_density(density, shape),
        Rows.at_density(density, shape),
        PerRow.at_density(density, shape),
    ):
        parts = pattern.split(groups, shape)
        if isinstance(pattern, Rows) and max(p.k for p in parts if isinstance(p, Rows)) > rows:
            continue
        assert sum(part.count((rows, columns)) for part in parts) == pattern.count(shape)


def test_density_is_rounded_half_up():
    assert [count_at(d, 4) for d in (0.0, 0.124, 0.125, 0.375, 0.5, 1.0)] == [0, 0, 1, 2, 2, 4]


@pytest.mark.parametrize("density", [-0.1, 1.1, float("nan")])
def test_density_outside_the_unit_interval_is_refused(density):
    with pytest.raises(InvalidInputError, match="between 0 and 1"):
        count_at(density, 10)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (NOfM(2, 4), "4 must divide"),
        (Blocks(3, 2, 1), "must divide the matrix"),
        (PerLayer(25), "keeps 25 of 24"),
        (PerRow(7), "keeps 7 of 6"),
        (Rows(5), "keeps 5 of 4"),
        (Fixed(torch.ones(2, 2, dtype=torch.bool)), r"shape \(2, 2\)"),
    ],
    ids=repr,
)
def test_a_pattern_that_does_not_fit_says_why(pattern, message):
    with pytest.raises(InvalidInputError, match=message):
        pattern.validate(SHAPE)


@pytest.mark.parametrize(
    "make", [lambda: PerLayer(-1), lambda: NOfM(3, 2), lambda: NOfM(1, 0), lambda: Blocks(0, 1, 1)]
)
def test_impossible_numbers_are_refused_at_construction(make):
    with pytest.raises(InvalidInputError):
        make()


def test_nan_scores_are_refused():
    with pytest.raises(NonFiniteError):
        PerLayer(1).support(torch.tensor([[1.0, float("nan")]]))


@pytest.mark.parametrize(
    "record", [{}, {"type": "Nothing"}, {"type": "PerRow"}, {"type": "Fixed", "shape": [2, 2], "bits": "%"}]
)
def test_a_malformed_record_is_refused(record):
    with pytest.raises(InvalidInputError):
        pattern_from_json(record)
