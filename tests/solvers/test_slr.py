"""Surrogate Lagrangian relaxation: step sizes, acceptance, diagnostics, quality."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch

import optprune as op
from optprune.errors import InvalidInputError
from optprune.problems import L0LeastSquares, stack
from optprune.testing.instances import data, every_pattern


@pytest.mark.parametrize("pattern", every_pattern(), ids=repr)
def test_it_is_close_to_the_optimum_and_never_below(pattern):
    layers = stack([L0LeastSquares.from_layer(*data(200 + seed), pattern=pattern) for seed in range(10)])
    ours, best = (layers.objective(solver.run(layers).matrix) for solver in (op.SLR(), op.Exhaustive()))
    assert bool((ours >= best * (1 - 1e-9)).all())
    assert float(ours.sum()) <= 1.15 * float(best.sum())


def test_alpha_is_the_papers():
    alpha = op.SLR(m=300, r=0.1).alpha
    assert alpha(torch.tensor([1, 2, 3])).tolist() == pytest.approx([0.996667, 0.996818, 0.997027], abs=5e-7)
    assert float(alpha(torch.arange(1, 101)).prod()) == pytest.approx(0.8905, abs=5e-5)
    assert float(alpha(torch.arange(1, 10_001)).prod()) == pytest.approx(0.5553, abs=5e-5)


def trajectory(solver, problem, steps):
    states = [solver.init(problem)]
    for _ in range(steps):
        states.append(solver.step(problem, states[-1]))
    return states


def test_exact_halves_are_all_accepted_and_moves_shrink_by_alpha_alone():
    solver = op.SLR(rho=0.2, growth=1.0, m=300)
    problem = L0LeastSquares.from_layer(*data(1, out=4, inputs=20, samples=80), pattern=op.PerLayer(24))
    states = trajectory(solver, problem, 30)
    first = solver.first_step * float(states[0].violation)
    for before, after in itertools.pairwise(states):
        k = int(after.accepted)
        assert int(after.rejected) == 0 or k == int(before.accepted) + 1
        moves = float(after.step * after.violation)
        assert moves == pytest.approx(first * math.prod(solver.alpha(torch.arange(1, k + 1)).tolist()), rel=1e-9)
    assert int(states[-1].accepted) >= 58


def test_a_half_that_lowers_nothing_moves_nothing():
    """At a stationary pair both halves stay where they are: multipliers and step too."""
    problem = L0LeastSquares.from_layer(*data(2), op.PerRow(8))
    solver = op.SLR()
    state = solver.init(problem)
    after = solver.step(problem, replace(state, violation=torch.ones_like(state.violation)))
    assert torch.equal(after.multipliers, state.multipliers)
    assert torch.equal(after.step, state.step)
    assert int(after.accepted) == 0
    assert int(after.rejected) == 2


def test_the_loss_half_minimises_the_lagrangian():
    problem = L0LeastSquares.from_layer(*data(3, out=4, inputs=20, samples=80), pattern=op.PerRow(6))
    solver = op.SLR()
    before, after = trajectory(solver, problem, 5)[-2:]
    layer = before.layer
    slope = layer.slope(after.smooth) + before.multipliers + before.rho * (after.smooth - before.sparse)
    assert float(slope.norm()) <= 1e-10 * float(layer.linear.norm())


def test_the_answer_reports_multipliers_violation_and_step():
    answer = op.SLR().run(L0LeastSquares.from_layer(*data(4), op.PerRow(3)))
    assert answer.info["multiplier_norm"] > 0
    assert answer.info["violation"] >= 0
    assert answer.info["step"] > 0
    assert answer.info["accepted"] + answer.info["rejected"] == 2 * answer.steps


@pytest.mark.parametrize(
    "setting", [{"rho": 0.0}, {"growth": 0.9}, {"m": 1.0}, {"r": 1.0}, {"first_step": 0.0}, {"patience": 0}]
)
def test_impossible_settings_are_refused(setting):
    with pytest.raises(InvalidInputError, match=f"{next(iter(setting))}={next(iter(setting.values()))}"):
        op.SLR(**setting)
