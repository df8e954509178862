"""T23 along the solver's own iteration, and where one of its inequalities is an equality."""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from optprune.patterns import NOfM, Pattern, PerLayer, PerRow
from optprune.problems import L0LeastSquares
from optprune.solvers import ADMM
from optprune.solvers.admm import ADMMState
from optprune.statistics import Statistics


def problem(pattern: Pattern, rng: torch.Generator) -> L0LeastSquares:
    x = torch.randn(60, 8, generator=rng, dtype=torch.float64) @ torch.randn(8, 8, generator=rng, dtype=torch.float64)
    w = torch.randn(5, 8, generator=rng, dtype=torch.float64)
    noise = 0.3 * torch.randn(60, 5, generator=rng, dtype=torch.float64)
    return L0LeastSquares(Statistics.from_samples(x, x @ w.T + noise, w), pattern)


def steps(solver: ADMM, given: L0LeastSquares, count: int) -> Iterator[tuple[ADMMState, ADMMState]]:
    state = solver.init(given)
    for _ in range(count):
        following = solver.step(given, state)
        yield state, following
        state = following


def unrestricted(state: ADMMState) -> tuple[Tensor, float]:
    """The minimiser without a budget and the norm of the Hessian, in the solver's coordinates."""
    values, vectors = state.spectrum.values, state.spectrum.vectors
    gram = (vectors * values) @ vectors.mT
    return torch.linalg.solve(gram, state.linear.mT).mT, float(values.max())


@pytest.mark.parametrize("pattern", [PerLayer(13), PerRow(3), NOfM(1, 4)], ids=str)
@pytest.mark.parametrize(("rho", "growth"), [(5.0, 1.3), (0.5, 1.5), (40.0, 1.05)])
def test_every_step_obeys_the_inequalities_and_the_constant(pattern, rho, growth, rng):
    solver = ADMM(rho=rho, growth=growth, precision="float64")
    given = problem(pattern, rng)
    best, eta = unrestricted(solver.init(given))
    start = solver.init(given)
    sigma = growth / (rho * (growth - 1))
    constant = 2 * eta * float((start.sparse - best).norm()) * math.exp(3 * eta * sigma)
    room = 1 + 1e-9
    penalties = []
    for before, after in steps(solver, given, 60):
        penalty = before.rho
        penalties.append(penalty)
        w, e, v = ((m - best).norm() for m in (after.smooth, before.sparse, before.multipliers + best))
        assert w <= (e + v / penalty) * room
        assert after.multipliers.norm() <= eta * w * room
        apart, step = (after.smooth - after.sparse).norm(), (after.sparse - before.sparse).norm()
        assert apart <= (v + after.multipliers.norm()) / penalty * room
        assert float(apart) <= constant / penalty
        assert float(step) <= constant / penalty
        assert bool((given.pattern.support(after.sparse.square()) | (after.sparse == 0)).all())
    assert float(apart) < 0.01 * float(after.sparse.norm())
    assert math.fsum(1 / p for p in penalties) == pytest.approx(sigma * (1 - growth**-60), rel=1e-9)


@pytest.mark.parametrize("factor", [1.0, 0.999])
def test_the_bound_of_the_multipliers_is_an_equality_where_one_weight_is_pruned(factor):
    x = torch.eye(4, dtype=torch.float64) * 2.0
    w = torch.tensor([[4.0, 3.0, 2.0, 1.0]], dtype=torch.float64)
    given = L0LeastSquares(Statistics.from_samples(x, x @ w.T, w), PerLayer(3))
    solver = ADMM(rho=2.0, growth=1.5, precision="float64")
    best, eta = unrestricted(solver.init(given))
    assert eta == pytest.approx(1.0, rel=1e-12)
    for _, after in steps(solver, given, 5):
        bound = factor * eta * float((after.smooth - best).norm())
        assert (float(after.multipliers.norm()) <= bound * (1 + 1e-12)) == (factor == 1.0)
