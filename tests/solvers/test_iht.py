"""Iterative hard thresholding: what its docstring says of descent, settings and the patterns."""

from __future__ import annotations

import itertools

import pytest
import torch

import optprune as op
from optprune.errors import InvalidInputError
from optprune.problems import L0LeastSquares, stack
from optprune.testing.instances import data, every_pattern


@pytest.mark.parametrize("pattern", every_pattern(), ids=repr)
def test_it_is_between_the_optimum_and_refitted_magnitude(pattern):
    layers = stack([L0LeastSquares.from_layer(*data(200 + seed), pattern=pattern) for seed in range(10)])
    ours, best, simple = (
        layers.objective(solver.run(layers).matrix) for solver in (op.IHT(), op.Exhaustive(), op.Magnitude())
    )
    assert bool((ours >= best * (1 - 1e-9)).all())
    assert float(ours.sum()) <= 1.1 * float(best.sum())
    assert float(ours.sum()) <= float(simple.sum())


@pytest.mark.parametrize("pattern", [op.PerLayer(40), op.PerRow(5), op.NOfM(1, 3)], ids=repr)
def test_the_loss_never_rises_from_step_to_step(pattern):
    problem = L0LeastSquares.from_layer(*data(3, out=6, inputs=24, samples=60), pattern=pattern)
    state = op.IHT().init(problem)
    losses = [float(state.value.sum())]
    for _ in range(12):
        state = op.IHT().step(problem, state)
        losses.append(float(state.value.sum()))
    assert all(later <= before * (1 + 1e-12) for before, later in itertools.pairwise(losses))
    assert losses[-1] < losses[0]


def test_rows_with_budgets_of_their_own_are_solved_as_if_alone():
    weight, inputs = data(5, out=6, inputs=24, samples=60)
    together = op.IHT().run(L0LeastSquares.from_layer(weight, inputs, op.PerRow(7))).matrix
    alone = [op.IHT().run(L0LeastSquares.from_layer(row[None], inputs, op.PerRow(7))).matrix for row in weight]
    assert torch.allclose(together, torch.cat(alone), rtol=1e-9)


@pytest.mark.parametrize("setting", [{"grow": 0.5}, {"shrink": 1.0}, {"shortest": 0.0}, {"softness": 0.0}])
def test_impossible_settings_are_refused(setting):
    with pytest.raises(InvalidInputError, match=f"{next(iter(setting))}={next(iter(setting.values()))}"):
        op.IHT(**setting)
