"""What holds of every solver of the l0 problem, whatever it does inside."""

import pytest
import torch

import optprune as op
from optprune.problems import L0LeastSquares
from optprune.testing.instances import data

SOLVERS = [op.Portfolio(), op.Portfolio("fast"), op.SwapSearch(), op.OBC(), op.ADMM(), op.Magnitude(), op.Wanda()]
"""Those that treat all inputs alike; a sweep over columns does not."""
SHAPES = [(1, 4), (3, 8), (5, 12), (2, 24)]


def problem_of(pattern, out=5, inputs=12, seed=30):
    return L0LeastSquares.from_layer(*data(seed, out=out, inputs=inputs, samples=4 * inputs), pattern=pattern)


@pytest.mark.parametrize("solver", [*SOLVERS, op.SparseGPT()], ids=repr)
@pytest.mark.parametrize("shape", SHAPES, ids=repr)
def test_n_of_m_is_exact_in_every_group(solver, shape):
    for n, m in ((1, 2), (2, 4), (1, 4), (3, 4), (0, 2), (4, 4)):
        problem = problem_of(op.NOfM(n, m), *shape)
        kept = (solver.run(problem).matrix != 0).unflatten(-1, (-1, m)).sum(-1)
        assert bool((kept == n).all())


@pytest.mark.parametrize("solver", [*SOLVERS, op.SparseGPT()], ids=repr)
@pytest.mark.parametrize("pattern", [op.PerLayer(31), op.PerRow(5), op.NOfM(2, 4)], ids=repr)
def test_ties_do_not_change_the_count(solver, pattern):
    """Weights of equal size on uncorrelated inputs of equal size: every support is as good as any other."""
    inputs = torch.linalg.qr(data(31, inputs=12, samples=48)[1]).Q
    problem = L0LeastSquares.from_layer(torch.ones(5, 12, dtype=torch.float64), inputs, pattern)
    matrix = solver.run(problem).matrix
    assert int((matrix != 0).sum()) == pattern.count(problem.shape)


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
@pytest.mark.parametrize("pattern", [op.PerLayer(31), op.PerRow(5), op.Columns(7)], ids=repr)
def test_the_order_of_inputs_and_outputs_does_not_matter(solver, pattern):
    weight, inputs = data(32, out=5, inputs=12, samples=60)
    rng = torch.Generator().manual_seed(33)
    rows, columns = torch.randperm(5, generator=rng), torch.randperm(12, generator=rng)
    straight = solver.run(L0LeastSquares.from_layer(weight, inputs, pattern)).matrix
    shuffled = solver.run(L0LeastSquares.from_layer(weight[rows][:, columns], inputs[:, columns], pattern)).matrix
    torch.testing.assert_close(shuffled, straight[rows][:, columns])


@pytest.mark.parametrize("start", SOLVERS, ids=repr)
@pytest.mark.parametrize("pattern", [op.PerLayer(31), op.PerRow(5), op.NOfM(2, 4), op.Columns(7)], ids=repr)
def test_a_warm_start_never_worsens(start, pattern):
    problem = problem_of(pattern)
    warm = start.run(problem).matrix
    polished = op.SwapSearch(start).run(problem).matrix
    assert float(problem.objective(polished)) <= float(problem.objective(warm)) * (1 + 1e-12)
