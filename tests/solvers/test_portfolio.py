"""The default: never worse than what it combines, row by row where rows are independent, frugal when told so."""

import itertools

import pytest
import torch

import optprune as op
from optprune.errors import InvalidInputError
from optprune.problems import L0LeastSquares, stack
from optprune.testing.instances import data, every_pattern

MEMBERS = (op.SwapSearch(op.ADMM()), op.SwapSearch(op.OBC()))


@pytest.mark.parametrize("pattern", every_pattern(), ids=repr)
def test_it_is_close_to_the_optimum(pattern):
    layers = stack([L0LeastSquares.from_layer(*data(400 + seed), pattern=pattern) for seed in range(10)])
    ours, best = (layers.objective(solver.run(layers).matrix) for solver in (op.Portfolio(), op.Exhaustive()))
    assert bool((ours >= best * (1 - 1e-9)).all())
    assert float(ours.sum()) <= 1.003 * float(best.sum())


@pytest.mark.parametrize("pattern", [op.PerLayer(70), op.PerRow(9), op.NOfM(2, 4), op.Columns(9)], ids=repr)
@pytest.mark.parametrize("shakes", [0, 2])
def test_it_is_never_worse_than_its_members(pattern, shakes):
    layers = stack(
        [L0LeastSquares.from_layer(*data(s, out=8, inputs=24, samples=60), pattern=pattern) for s in range(4)]
    )
    ours = layers.row_objective(op.Portfolio(shakes=shakes).run(layers).matrix)
    members = torch.stack([layers.row_objective(member.run(layers).matrix) for member in MEMBERS])
    best = members.amin(0)
    if not pattern.row_separable:
        ours, best = ours.sum(-1), members.sum(-1).amin(0)
    assert bool((ours <= best * (1 + 1e-9)).all())
    if not shakes and (pattern.row_separable or pattern == op.Columns(9)):  # rows that share a budget are recombined
        torch.testing.assert_close(ours, best)


@pytest.mark.parametrize("pattern", [op.PerLayer(200), op.PerRow(10)], ids=repr)
def test_shakes_find_better_supports(pattern):
    """Where inputs are correlated; on independent ones exchanges end at the optimum."""
    scales = torch.arange(1, 41, dtype=torch.float64) ** -1.5
    members = []
    for seed in range(4):
        rng = torch.Generator().manual_seed(seed)
        turn = torch.linalg.qr(torch.randn(40, 40, generator=rng, dtype=torch.float64)).Q
        inputs = (torch.randn(400, 40, generator=rng, dtype=torch.float64) * scales @ turn).clamp(min=0)
        members.append(
            L0LeastSquares.from_layer(torch.randn(20, 40, generator=rng, dtype=torch.float64), inputs, pattern)
        )
    layers = stack(members)
    plain, shaken = (layers.objective(op.Portfolio(shakes=n).run(layers).matrix) for n in (0, 3))
    assert bool((shaken <= plain * (1 + 1e-9)).all())
    assert float(shaken.sum()) < 0.999 * float(plain.sum())


def test_a_larger_budget_is_never_worse():
    weight, inputs = data(13, out=6, inputs=20, samples=70)
    problems = [L0LeastSquares.from_layer(weight, inputs, op.PerLayer(k)) for k in range(0, 121, 8)]
    errors = [float(p.objective(op.Portfolio().run(p).matrix)) for p in problems]
    assert all(after <= before * (1 + 1e-9) for before, after in itertools.pairwise(errors))


def test_work_beyond_the_limit_is_not_begun_and_info_says_so():
    problem = L0LeastSquares.from_layer(*data(14, out=8, inputs=16, samples=60), pattern=op.PerRow(4))
    frugal = op.Portfolio(most_work=0).run(problem)
    assert (frugal.info["starts"], frugal.info["polished"]) == (1.0, 0.0)
    torch.testing.assert_close(frugal.matrix, op.ADMM().run(problem).matrix)
    full = op.Portfolio().run(problem)
    assert (full.info["starts"], full.info["polished"], full.info["shakes"]) == (2.0, 2.0, 3.0)


def test_the_fast_preset_is_one_short_admm():
    problem = L0LeastSquares.from_layer(*data(15, out=8, inputs=16, samples=60), pattern=op.PerRow(4))
    assert op.Portfolio("fast").run(problem).steps < op.ADMM().run(problem).steps


@pytest.mark.parametrize("setting", [{"most_work": -1.0}, {"most_work": float("nan")}, {"shakes": -1}])
def test_impossible_settings_are_refused(setting):
    with pytest.raises(InvalidInputError, match=next(iter(setting))):
        op.Portfolio(**setting)
