"""T01 against an interior-point reference, against rational arithmetic, and where it is an equality."""

from decimal import Decimal, localcontext
from fractions import Fraction

import cvxpy as cp
import numpy as np
import pytest
import torch

from optprune.certify.net_trim import dual_bound
from optprune.problems.net_trim import NetTrim

FORMS = ["joint", "per neuron", "penalised", "ceiling", "bias", "linear"]


def program(form: str, seed: int) -> NetTrim:
    rng = torch.Generator().manual_seed(seed)
    n, d, out = 24, 7, 4
    inputs = torch.randn(n, d, generator=rng, dtype=torch.float64)
    weight = torch.randn(out, d, generator=rng, dtype=torch.float64)
    bias = torch.randn(out, generator=rng, dtype=torch.float64)
    if form == "ceiling":
        seen = inputs + 0.1 * torch.randn(n, d, generator=rng, dtype=torch.float64)
        return NetTrim.cascade(weight, seen, inputs @ weight.mT, gamma=1.2, gain=0.05)
    if form == "penalised":
        return NetTrim.from_layer(weight, inputs, penalty=0.7)
    outputs = inputs @ weight.mT + (bias if form == "bias" else 0.0)
    size = outputs.clamp(min=0).square()
    radius = 0.2 * (size.sum(0) if form == "per neuron" else size.sum()).sqrt()
    return NetTrim.from_layer(weight, inputs, radius, bias if form == "bias" else None, relu=form != "linear")


def reference(problem: NetTrim) -> tuple[float, np.ndarray]:
    """Optimal value and multipliers from an interior-point method."""
    assert isinstance(problem.inputs, torch.Tensor)
    x, y, active = problem.inputs.numpy(), problem.targets.numpy(), problem.active.numpy()
    ceiling = np.zeros_like(y) if problem.ceiling is None else problem.ceiling.numpy()
    u, residual = cp.Variable(problem.shape), cp.Variable(y.shape)
    # The multipliers of this equation are those of the active entries, whichever form the ball takes.
    fit = cp.multiply(active, x @ u.T - y) == residual
    signs = cp.multiply(~active, x @ u.T - ceiling) <= 0
    norm = cp.sum(cp.abs(u @ np.diag(problem.penalised.numpy().astype(float))))
    balls = []
    if problem.penalty is not None:
        norm += cp.sum_squares(residual) / (2 * float(problem.penalty))
    elif problem.per_neuron:
        assert problem.radius is not None
        balls = [cp.norm(residual[:, m]) <= float(r) for m, r in enumerate(problem.radius)]
    else:
        assert problem.radius is not None
        balls = [cp.norm(residual, "fro") <= float(problem.radius)]
    value = cp.Problem(cp.Minimize(norm), [*balls, fit, signs]).solve(
        solver="CLARABEL", tol_gap_abs=1e-9, tol_gap_rel=1e-9, tol_feas=1e-9
    )
    assert isinstance(value, float)
    return value, active * np.asarray(fit.dual_value) + ~active * np.asarray(signs.dual_value)


@pytest.mark.parametrize("form", FORMS)
def test_no_multipliers_exceed_the_optimum_and_the_best_reach_it(form):
    problem = program(form, seed=3)
    optimum, multipliers = reference(problem)
    best = float(dual_bound(problem, torch.from_numpy(multipliers)).value)
    assert optimum * (1 - 1e-6) <= best <= optimum * (1 + 1e-9)
    rng = torch.Generator().manual_seed(4)
    for scale in (1e-3, 1e-2, 0.1, 1.0, 10.0):
        noise = torch.randn(multipliers.shape, generator=rng, dtype=torch.float64)
        near = dual_bound(problem, torch.from_numpy(multipliers) * (1 + scale * noise))
        far = dual_bound(problem, scale * noise)
        assert float(near.value) <= optimum * (1 + 1e-9)
        assert float(far.value) <= optimum * (1 + 1e-9)


@pytest.mark.parametrize("form", ["joint", "per neuron", "ceiling"])
def test_the_gap_pays_for_every_weight_that_is_off_its_bound(form):
    """Part (e), at the dense weight, which is feasible in each of these programs."""
    problem = program(form, seed=5)
    _, multipliers = reference(problem)
    rng = torch.Generator().manual_seed(5)
    torch.randn(24, 7, generator=rng, dtype=torch.float64)
    dense = torch.randn(4, 7, generator=rng, dtype=torch.float64)
    assert max(float(v) for v in problem.violation(dense).values()) < 1e-12
    found = dual_bound(problem, torch.from_numpy(multipliers))
    gap = float(problem.objective(dense) - found.value)
    assert gap >= float(((1 - found.correlation) * dense.abs()).sum()) - 1e-9


@pytest.mark.parametrize("form", ["joint", "per neuron"])
def test_the_computed_bound_is_below_the_exact_one(form):
    """Rational arithmetic up to the square root, which is taken with 60 digits."""
    problem = program(form, seed=6)
    assert problem.radius is not None
    rng = torch.Generator().manual_seed(7)
    raw = -problem.targets + 0.1 * torch.randn(problem.targets.shape, generator=rng, dtype=torch.float64)
    found = dual_bound(problem, raw)
    lam = torch.where(problem.active, raw, raw.clamp(min=0))
    exact = [[Fraction(v) for v in row] for row in lam.tolist()]
    assert isinstance(problem.inputs, torch.Tensor)
    x = [[Fraction(v) for v in row] for row in problem.inputs.tolist()]
    y = problem.targets.tolist()
    scale = [max(Fraction(s), Fraction(1)) for s in found.stretch.tolist()]
    with localcontext() as context:
        context.prec = 60
        gains, energies = [], []
        for m, s in enumerate(scale):
            column = [row[m] for row in exact]
            for j in range(len(x[0])):
                assert abs(sum(a[j] * b for a, b in zip(x, column, strict=True))) <= s
            gains.append(-sum(l * Fraction(row[m]) for l, row in zip(column, y, strict=True)) / s)
            energies.append(
                sum(l * l for l, on in zip(column, problem.active[:, m].tolist(), strict=True) if on) / s**2
            )
        radii = [Decimal(float(r)) for r in problem.radius.reshape(-1)]
        if problem.per_neuron:
            cost = sum((r * decimal(e).sqrt() for r, e in zip(radii, energies, strict=True)), Decimal(0))
        else:
            cost = radii[0] * decimal(Fraction(sum(energies))).sqrt()
        bound = decimal(Fraction(sum(gains))) - cost
        assert Decimal(float(found.value)) <= max(bound, Decimal(0))
        assert float(found.value) >= float(bound) - 1e-10
    assert float(bound) > 0, "the instance would not notice a wrong bound"


def decimal(value: Fraction) -> Decimal:
    return Decimal(value.numerator) / Decimal(value.denominator)


def test_one_weight_is_an_equality_and_a_smaller_radius_breaks_it():
    one = torch.ones(1, 1, dtype=torch.float64)
    problem = NetTrim.from_layer(one, one, 0.25)  # min |u| with |u - 1| <= 1/4: the optimum is 3/4
    assert float(dual_bound(problem, -one).value) == pytest.approx(0.75, rel=1e-14)
    wrong = NetTrim.from_layer(one, one, 0.25 * (1 - 1e-3))
    assert float(dual_bound(wrong, -one).value) > 0.75
