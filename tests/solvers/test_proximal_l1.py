"""The l1 relaxation: its optimality conditions, budgets met by the penalty, and settings."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import optprune as op
from optprune.errors import InvalidInputError
from optprune.problems import L0LeastSquares, stack
from optprune.testing.instances import data, every_pattern


@pytest.mark.parametrize("pattern", every_pattern(), ids=repr)
def test_it_is_between_the_optimum_and_three_halves_of_it(pattern):
    layers = stack([L0LeastSquares.from_layer(*data(200 + seed), pattern=pattern) for seed in range(10)])
    ours, best = (layers.objective(solver.run(layers).matrix) for solver in (op.ProximalL1(), op.Exhaustive()))
    assert bool((ours >= best * (1 - 1e-9)).all())
    assert float(ours.sum()) <= 1.5 * float(best.sum())


@pytest.mark.parametrize("pattern", [op.PerLayer(9), op.PerRow(6), op.Columns(4), op.Blocks(1, 2, 7)], ids=repr)
def test_at_one_penalty_it_solves_the_penalised_problem(pattern):
    """Stationarity: a nonzero unit's gradient is -mu V_u / |V_u|, a zero unit's is at most mu long."""
    problem = L0LeastSquares.from_layer(*data(3, out=4, inputs=12, samples=50), pattern=pattern)
    solver = op.ProximalL1(inner=1000)
    state = solver.init(problem)
    level = 0.6 * state.high
    state = replace(state, low=level, high=level)
    for _ in range(999):
        state = solver.step(problem, state)
    weight, slope = (pattern.units(x) for x in (state.weight, state.layer.slope(state.weight)))
    size, mu = weight.norm(dim=-1), level.unsqueeze(-1)
    used = size > 0
    assert 0 < int(used.sum()) < used.numel()
    push = torch.where(used, (slope + mu.unsqueeze(-1) * weight / size.unsqueeze(-1)).norm(dim=-1), 0.0)
    assert float(push.max()) <= 1e-8 * float(mu.max())
    assert bool((torch.where(used, 0.0, slope.norm(dim=-1)) <= mu * (1 + 1e-8)).all())


def test_the_bracket_holds_the_penalty_that_meets_the_budget():
    problem = L0LeastSquares.from_layer(*data(4, out=6, inputs=30, samples=90), pattern=op.PerRow(9))
    solver = op.ProximalL1(inner=500, tolerance=1e-3)
    state = solver.init(problem)
    while int(solver.residual(problem, state)) == 0:
        state = solver.step(problem, state)
    assert bool((state.high <= 1.001 * state.low).all())
    left = []
    for level in (state.low, state.high):
        held = replace(state, low=level, high=level, age=0)
        for _ in range(499):
            held = solver.step(problem, held)
        left.append((held.weight != 0).sum(-1))
    assert bool((left[0] >= 9).all() and (left[1] <= 9).all() and (left[0] - left[1] <= 2).all())


@pytest.mark.parametrize("setting", [{"inner": 0}, {"range": 1.0}, {"tolerance": 0.0}])
def test_impossible_settings_are_refused(setting):
    with pytest.raises(InvalidInputError, match=f"{next(iter(setting))}={next(iter(setting.values()))}"):
        op.ProximalL1(**setting)
