"""T18 against cvxpy and against its own conditions."""

from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import sympy
import torch
from torch import Tensor

from optprune.bounds.bernstein import relative_error
from optprune.errors import InvalidInputError
from optprune.numerics.water_filling import allocate_draws, water_fill, whole


def items(rng: torch.Generator, n: int = 24) -> tuple[Tensor, Tensor, Tensor]:
    alpha = 100 * torch.rand(n, generator=rng, dtype=torch.float64).square() + 0.1
    costs = torch.rand(n, generator=rng, dtype=torch.float64) + 0.1
    return alpha, costs, (40 * torch.rand(n, generator=rng, dtype=torch.float64)).ceil()


def optimum(objective, caps: Tensor, budget: float) -> np.ndarray:
    m = cp.Variable(len(caps), pos=True)
    constraints: list[Any] = [cp.sum(m) <= budget, m <= caps.numpy()]
    cp.Problem(cp.Minimize(objective(m)), constraints).solve(solver="CLARABEL")
    assert m.value is not None
    return m.value


@pytest.mark.parametrize("budget", [40.0, 150.0, 350.0])
@pytest.mark.parametrize("power", [0.5, 1.0])
def test_water_filling_is_the_optimum(budget, power, rng):
    alpha, costs, caps = items(rng)
    weights = (costs * alpha**0.5) ** (1 / (1 + power))
    found = water_fill(weights, caps, torch.tensor(budget))
    assert float(found.sum()) == pytest.approx(budget, rel=1e-12)
    target = (weights ** (1 + power)).numpy()
    reference = optimum(lambda m: target @ cp.power(m, -power), caps, budget)
    assert found.numpy() == pytest.approx(reference, rel=1e-3)

    def value(m: Tensor) -> float:
        return float((weights ** (1 + power) * m**-power).sum())

    assert value(found) <= float(target @ reference**-power) * (1 + 1e-9)
    # Weights with a slightly wrong exponent fill to another, worse, point.
    wrong = water_fill(weights**1.01, caps, torch.tensor(budget))
    assert value(wrong) > value(found)


@pytest.mark.parametrize("budget", [40.0, 150.0, 350.0])
def test_draws_are_divided_at_the_optimum(budget, rng):
    alpha, costs, caps = items(rng)
    found = allocate_draws(alpha, costs, caps, torch.tensor(budget))
    assert float(found.sum()) == pytest.approx(budget, rel=1e-9)
    assert torch.equal(found, allocate_draws(alpha, costs, caps, torch.tensor(budget)))

    u = (alpha / 6 / found).numpy()
    value = float(costs.numpy() @ (u + np.sqrt(u**2 + 6 * u)))
    m = cp.Variable(len(alpha), pos=True)
    v = cp.Variable(len(alpha), pos=True)
    # epsilon solves m epsilon^2 = alpha (1 + epsilon / 3): m >= alpha / epsilon^2 + alpha / (3 epsilon).
    needed = cp.multiply(alpha.numpy(), cp.power(v, -2)) + cp.multiply((alpha / 3).numpy(), cp.inv_pos(v))
    program = cp.Problem(cp.Minimize(costs.numpy() @ v), [needed <= m, m <= caps.numpy(), cp.sum(m) <= budget])
    program.solve(solver="CLARABEL")
    assert value == pytest.approx(program.value, rel=1e-3)
    assert found.numpy() == pytest.approx(m.value, rel=1e-2, abs=1e-2)


def test_the_error_is_that_of_drawn_edges():
    alpha, m = torch.tensor([3.0, 50.0]).double(), torch.tensor([4.0, 7.0]).double()
    u = alpha / (6 * m)
    log_term = torch.log(torch.tensor(2 / 0.1)).double()
    expected = relative_error(m, alpha / (2 * log_term), 0.1)
    assert torch.allclose(u + (u.square() + 6 * u).sqrt(), expected, rtol=1e-7)


def test_slopes_are_equal_where_nothing_is_capped(rng):
    alpha, costs, caps = items(rng)
    m = allocate_draws(alpha, costs, 1e9 * caps, torch.tensor(200.0)).requires_grad_()
    u = alpha / (6 * m)
    (slopes,) = torch.autograd.grad((costs * (u + (u.square() + 6 * u).sqrt())).sum(), m)
    assert torch.allclose(slopes, slopes[0].expand_as(slopes), rtol=1e-6)


def test_whole_numbers_spend_the_budget(rng):
    for budget in (0, 7, 150, 10_000):
        alpha, costs, caps = items(rng)
        found = whole(
            allocate_draws(alpha, costs, caps, torch.tensor(float(budget))), caps.long(), torch.tensor(budget)
        )
        assert int(found.sum()) == min(budget, int(caps.sum()))
        assert bool(((found >= 0) & (found <= caps.long())).all())


def test_nothing_to_give_and_nothing_to_get():
    weights = torch.tensor([[0.0, 1.0, 2.0], [0.0, 0.0, 0.0]]).double()
    caps = torch.tensor([[5.0, 5.0, 0.0], [1.0, 1.0, 1.0]]).double()
    assert water_fill(weights, caps, torch.tensor([3.0, 3.0])).tolist() == [[0.0, 3.0, 0.0], [0.0, 0.0, 0.0]]
    assert water_fill(weights, caps, torch.tensor([9.0, 0.0])).tolist() == [[0.0, 5.0, 0.0], [0.0, 0.0, 0.0]]
    ones = torch.ones(3).double()
    assert float(allocate_draws(ones, ones, ones, torch.tensor(0.0)).sum()) < 1e-6
    with pytest.raises(InvalidInputError, match="negative"):
        water_fill(-ones, ones, torch.tensor(1.0))


def test_error_slope_and_its_logarithm_symbolically():
    m, alpha, u = sympy.symbols("m alpha u", positive=True)
    share = alpha / (6 * m)
    error = share + sympy.sqrt(share**2 + 6 * share)
    root = sympy.sqrt(u**2 + 6 * u)
    slope = -u / m * (1 + (u + 3) / root)
    assert sympy.simplify(sympy.diff(error, m) - slope.subs(u, share)) == 0
    # u / m = 6 u^2 / alpha, and the derivative in ln u.
    logarithm = 2 * sympy.log(u) + sympy.log(1 + (u + 3) / root)
    stated = 2 - 9 * u / (root**3 * (1 + (u + 3) / root))
    assert sympy.simplify(u * sympy.diff(logarithm, u) - stated) == 0
    assert [sympy.limit(stated, u, end) for end in (0, sympy.oo)] == [sympy.Rational(3, 2), 2]
