"""Local search: it ends where no exchange and no move helps, never above its start, and close to the optimum."""

import itertools

import pytest
import torch

import optprune as op
from optprune.errors import InvalidInputError
from optprune.problems import L0LeastSquares, stack
from optprune.solvers._refit import refit
from optprune.testing.instances import data, every_pattern


@pytest.mark.parametrize("pattern", every_pattern(), ids=repr)
def test_it_is_close_to_the_optimum(pattern):
    layers = stack([L0LeastSquares.from_layer(*data(300 + seed), pattern=pattern) for seed in range(10)])
    ours, best = (layers.objective(solver.run(layers).matrix) for solver in (op.SwapSearch(), op.Exhaustive()))
    assert bool((ours >= best * (1 - 1e-9)).all())
    assert float(ours.sum()) <= 1.01 * float(best.sum())


@pytest.mark.parametrize("pattern", [op.PerRow(5), op.NOfM(2, 4), op.PerLayer(17), op.Columns(5)], ids=repr)
def test_no_exchange_of_two_weights_helps_at_the_end(pattern):
    problem = L0LeastSquares.from_layer(*data(9, out=3, inputs=12, samples=50), pattern=pattern)
    matrix = op.SwapSearch().run(problem).matrix
    value, units = float(problem.objective(matrix)), pattern.units(matrix != 0).any(-1)
    for budget, kept in enumerate(units):
        for leaves, enters in itertools.product(
            kept.nonzero().flatten().tolist(), (~kept).nonzero().flatten().tolist()
        ):
            changed = units.clone()
            changed[budget, leaves], changed[budget, enters] = False, True
            size = pattern.layout(problem.shape)[2]
            mask = pattern.from_units(changed.unsqueeze(-1).expand(*changed.shape, size), problem.shape)
            assert float(problem.objective(refit(problem, mask)[0])) >= value * (1 - 1e-5)


@pytest.mark.parametrize("start", [op.Magnitude(), op.Wanda(), op.ADMM(), op.OBC(), None], ids=repr)
@pytest.mark.parametrize("pattern", [op.PerLayer(40), op.NOfM(2, 4), op.Blocks(2, 2, 12)], ids=repr)
def test_it_never_ends_above_its_start(start, pattern):
    problem = L0LeastSquares.from_layer(*data(10, out=8, inputs=16, samples=60), pattern=pattern)
    first = (start or op.Magnitude()).run(problem).matrix
    answer = op.SwapSearch(start).run(problem)
    assert float(problem.objective(answer.matrix)) <= float(problem.objective(first)) * (1 + 1e-12)
    assert answer.termination == (op.Termination.CONVERGED,)


def test_limits_are_reported():
    problem = L0LeastSquares.from_layer(*data(11, out=8, inputs=32, samples=90), pattern=op.PerLayer(80))
    free = op.SwapSearch(op.Magnitude()).run(problem)
    assert free.info["exchanges"] > 8
    for limits in ({"max_exchanges": 1, "max_rounds": 1}, {"max_rounds": 1}):
        answer = op.SwapSearch(op.Magnitude(), **limits).run(problem)
        assert answer.termination == (op.Termination.STEP_LIMIT,)
        assert float(problem.objective(answer.matrix)) >= float(problem.objective(free.matrix))


def test_memory_changes_nothing():
    problem = L0LeastSquares.from_layer(*data(12, out=9, inputs=24, samples=60), pattern=op.PerLayer(90))
    torch.testing.assert_close(op.SwapSearch(memory=1).run(problem).matrix, op.SwapSearch().run(problem).matrix)


@pytest.mark.parametrize("setting", [{"max_exchanges": 0}, {"tolerance": 0.0}, {"memory": 0}, {"max_rounds": -1}])
def test_impossible_settings_are_refused(setting):
    with pytest.raises(InvalidInputError, match=f"{next(iter(setting))}={next(iter(setting.values()))}"):
        op.SwapSearch(**setting)
