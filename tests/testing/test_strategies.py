"""What the strategies draw is valid, varied and shrinks; the properties that every solver has hold on it."""

from __future__ import annotations

import sys

import pytest
import torch
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st

import optprune as op
from optprune.certify import certify
from optprune.errors import MissingDependencyError
from optprune.testing import strategies

pytestmark = pytest.mark.usefixtures("unchecked")  # beartype draws from `random`, which hypothesis minds

shapes = st.tuples(st.integers(1, 4), st.integers(1, 6))


@given(shapes.flatmap(lambda shape: st.tuples(st.just(shape), strategies.patterns(shape))))
def test_patterns_fit_their_shape(drawn):
    shape, pattern = drawn
    pattern.validate(shape)
    assert 0 <= pattern.count(shape) <= shape[0] * shape[1]


@pytest.mark.parametrize("kind", [op.PerLayer, op.PerRow, op.NOfM, op.Blocks, op.Rows, op.Columns, op.Fixed])
def test_every_pattern_is_drawn(kind):
    assert isinstance(find(strategies.patterns((2, 4)), lambda pattern: isinstance(pattern, kind)), kind)


def test_hostile_layers_are_drawn():
    quick = settings(max_examples=2000, phases=[Phase.generate])
    for wanted in (
        lambda layer: bool((layer[1] == 0).all(0).any()),
        lambda layer: bool((layer[0] == 0).all(1).any()),
        lambda layer: layer[1].shape[0] < layer[1].shape[1],
        lambda layer: float(layer[1].abs().max()) > 1e5,
        lambda layer: layer[1].shape[1] > 1 and layer[1].T.unique(dim=0).shape[0] < layer[1].shape[1],
    ):
        assert find(strategies.layers(), wanted, settings=quick) is not None


def test_examples_shrink_to_small_layers():
    weight, inputs = find(strategies.layers(), lambda layer: True)
    assert tuple(weight.shape) == (1, 1)
    assert tuple(inputs.shape) == (1, 1)


@settings(max_examples=25)
@given(strategies.l0_problems(2, 4, 12))
def test_the_bound_is_below_the_optimum_and_admm_above(problem):
    floor = 1e-12 * float(problem.energy.sum())
    matrix = op.ADMM(growth=1.3).run(problem).matrix
    optimum = float(problem.objective(op.Exhaustive().run(problem).matrix))
    assert problem.pattern.admits(matrix != 0)
    assert float(problem.objective(matrix)) >= optimum * (1 - 1e-9) - floor
    assert certify(problem, matrix)[0].lower_bound <= optimum * (1 + 1e-9) + floor


@settings(max_examples=25)
@given(strategies.net_trim_problems(2, 3, 8))
def test_net_trim_bounds_hold_for_any_admissible_matrix(problem):
    """The bound of one matrix is below the objective of the dense one, which is admissible."""
    solution = op.solve(problem, op.NetTrimADMM())
    assert solution.certificate is not None
    assert bool(solution.matrix.isfinite().all())
    assert solution.certificate.lower_bound <= solution.certificate.objective * (1 + 1e-9) + 1e-300


def test_without_hypothesis_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "hypothesis.strategies", None)
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    with pytest.raises(MissingDependencyError, match=r"optprune\[dev\]"):
        strategies.patterns((2, 4))


def test_numbers_come_from_the_seed_alone():
    before = torch.get_rng_state()
    find(strategies.layers(), lambda layer: True)
    assert torch.equal(torch.get_rng_state(), before)
