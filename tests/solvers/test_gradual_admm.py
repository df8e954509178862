"""ADMM on a schedule: the sizes of its supports, the published coordinates, quality."""

from __future__ import annotations

import pytest
import torch

import optprune as op
from optprune.errors import InvalidInputError
from optprune.problems import L0LeastSquares, stack
from optprune.testing.instances import data, every_pattern


@pytest.mark.parametrize("pattern", every_pattern(), ids=repr)
def test_it_is_close_to_the_optimum_and_never_below(pattern):
    layers = stack([L0LeastSquares.from_layer(*data(200 + seed), pattern=pattern) for seed in range(10)])
    ours, best = (layers.objective(solver.run(layers).matrix) for solver in (op.GradualADMM(), op.Exhaustive()))
    assert bool((ours >= best * (1 - 1e-9)).all())
    assert float(ours.sum()) <= 1.1 * float(best.sum())


@pytest.mark.parametrize("pattern", [op.PerLayer(30), op.PerRow(5), op.NOfM(2, 4), op.Columns(6)], ids=repr)
def test_supports_shrink_on_the_cubic_schedule_to_the_budget(pattern):
    problem = L0LeastSquares.from_layer(*data(1, out=6, inputs=24, samples=60), pattern=pattern)
    solver = op.GradualADMM(max_steps=10)
    state, sizes = solver.init(problem), []
    for _ in range(solver.max_steps):
        state = solver.step(problem, state)
        sizes.append(int((state.sparse != 0).sum()))
    kept, total = pattern.count(problem.shape), 6 * 24
    unit = pattern.layout(problem.shape)[2]
    for step, size in enumerate(sizes, start=1):
        assert size == kept + unit * round((1 - step / 10) ** 3 * (total - kept) / unit)
    assert pattern.admits(state.sparse != 0)


def test_without_softness_the_first_step_is_the_papers():
    problem = L0LeastSquares.from_layer(*data(2, out=3, inputs=12, samples=40), pattern=op.PerRow(4))
    solver = op.GradualADMM(max_steps=1, softness=float("inf"))
    state = solver.step(problem, solver.init(problem))
    norm = problem.gram.diagonal().sqrt()
    gram, dense = problem.gram / norm / norm[:, None], problem.dense * norm
    z = torch.where(op.PerRow(4).support(dense.square()), dense, 0.0)
    u = dense - z
    w = (dense @ gram + z - u) @ torch.linalg.inv(gram + torch.eye(12, dtype=torch.float64))
    assert torch.allclose(state.smooth, w, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("setting", [{"rho": 0.0}, {"softness": 0.0}])
def test_impossible_settings_are_refused(setting):
    with pytest.raises(InvalidInputError, match=f"{next(iter(setting))}=0.0"):
        op.GradualADMM(**setting)
