"""The l0 problem behind a ReLU: fits, exchanges, cutting planes, certificates, networks."""

import itertools

import jaxtyping
import pytest
import torch
from torch import nn

import optprune as op
from optprune.certify import certify, recheck
from optprune.errors import InvalidInputError
from optprune.problems import L0ReLU
from optprune.solution import Termination
from optprune.solvers._relu_fit import fit_relu
from optprune.testing.instances import data


def layer(seed, pattern, out=3, inputs=8, samples=60, damping=0.01):
    weight, rows = data(seed, out, inputs, samples)
    return L0ReLU.from_layer(weight, rows, pattern, damping, bias=0.3 * data(seed + 1, out, inputs)[0][:, 0])


def test_the_objective_is_half_the_squared_error_behind_the_relu_where_outputs_are_positive():
    weight, rows = data(3)
    problem = L0ReLU.from_layer(weight, rows, op.PerRow(4), bias=torch.full((2,), 50.0, dtype=torch.float64))
    changed = weight + 0.1 * data(4)[0]
    error = ((rows @ changed.T + 50).relu() - (rows @ weight.T + 50).relu()).square().sum() / (2 * len(rows))
    damping = 0.005 * rows.square().sum(0).mean() / len(rows) * (changed - weight).square().sum()
    assert float(problem.objective(changed)) == pytest.approx(float(error + damping), rel=1e-12)


def test_the_objective_is_never_below_half_the_squared_error(rng):
    problem = layer(5, op.PerRow(4))
    for _ in range(20):
        weight = torch.randn(problem.shape, generator=rng, dtype=torch.float64)
        outputs = (problem.inputs @ weight.T + problem.bias).relu() - problem.targets.relu()
        assert float(problem.objective(weight)) >= float(outputs.square().sum()) / (2 * len(outputs))


def test_the_majorant_touches_and_is_nowhere_below(rng):
    problem = layer(6, op.PerRow(4))
    point = torch.randn(problem.shape, generator=rng, dtype=torch.float64)
    above = problem.majorant(point)
    assert float(above.objective(point)) == pytest.approx(float(problem.objective(point)), rel=1e-12)
    assert torch.allclose(above.gradient(point), problem.gradient(point), rtol=1e-12, atol=1e-12)
    for _ in range(20):
        other = point + torch.randn(problem.shape, generator=rng, dtype=torch.float64)
        assert float(above.objective(other)) >= float(problem.objective(other)) * (1 - 1e-12)


@pytest.mark.parametrize("damping", [1e-6, 0.01, 1.0])
def test_a_fit_is_stationary_on_its_support_whatever_its_size(damping, rng):
    problem = layer(7, op.PerRow(4), damping=damping)
    mask = torch.rand(problem.shape, generator=rng) < 0.5
    mask[1] = False
    fit = fit_relu(problem, mask, memory=1)
    assert bool((fit[~mask] == 0).all())
    assert float(problem.gradient(fit)[mask].abs().max()) <= 1e-12
    assert torch.allclose(fit, fit_relu(problem, mask, torch.randn(problem.shape, generator=rng).double()), atol=1e-9)


@pytest.mark.parametrize("damping", [0.01, 0.1])
def test_cutting_planes_find_the_optimum_that_trying_every_support_finds(damping):
    problem = layer(8, op.PerRow(3), damping=damping)
    supports = torch.tensor(list(itertools.combinations(range(8), 3)))
    masks = torch.zeros(len(supports), 8, dtype=torch.bool).scatter_(1, supports, True)
    rows = torch.arange(3).repeat(len(masks))
    fits = fit_relu(problem, masks.repeat_interleave(3, 0), rows=rows).reshape(len(masks), 3, 8)
    best = torch.stack([problem.row_objective(fit) for fit in fits]).amin(0)
    answer = op.CuttingPlane().run(problem)
    assert answer.termination == (Termination.CONVERGED,)
    assert torch.allclose(problem.row_objective(answer.matrix), best, rtol=1e-9)
    assert answer.info["lower_bound"] == pytest.approx(float(best.sum()), rel=1e-4)


def test_a_limit_of_cuts_is_reported_and_its_bound_valid():
    problem = layer(9, op.PerRow(4))
    full, short = op.CuttingPlane().run(problem), op.CuttingPlane(max_cuts=2).run(problem)
    assert short.termination == (Termination.STEP_LIMIT,)
    assert short.steps == 2
    best = float(problem.objective(full.matrix))
    assert short.info["lower_bound"] <= best * (1 + 1e-6)
    assert float(problem.objective(short.matrix)) >= best * (1 - 1e-9)


@pytest.mark.parametrize("start", [None, op.ADMM()], ids=["own", "ADMM"])
def test_exchanges_end_near_the_optimum_and_never_above_their_start(start):
    problem = layer(10, op.PerRow(3))
    optimum = float(problem.objective(op.CuttingPlane().run(problem).matrix))
    first = float(problem.objective(op.ReLUSplicing(start, max_rounds=1).run(problem).matrix))
    answer = op.ReLUSplicing(start).run(problem)
    reached = float(problem.objective(answer.matrix))
    assert optimum * (1 - 1e-9) <= reached <= min(first, 1.05 * optimum)
    assert answer.termination == (Termination.CONVERGED,)


def test_a_fit_behind_the_relu_is_better_there_than_least_squares():
    weight, rows = data(11, 6, 20, 400)
    problem = L0ReLU.from_layer(weight, rows, op.PerRow(5))
    plain = op.Portfolio().run(op.L0LeastSquares.from_layer(weight, rows, op.PerRow(5), 0.01)).matrix
    found = op.solve(problem, op.ReLUSplicing(op.Portfolio()))
    assert found.certificate is not None
    assert found.certificate.objective < 0.97 * float(problem.objective(plain))
    assert 0.2 * found.certificate.objective < found.certificate.lower_bound < found.certificate.objective


def test_a_certificate_is_recomputed_and_a_forged_minorant_worth_nothing():
    problem = layer(12, op.PerRow(4))
    matrix = op.ReLUSplicing().run(problem).matrix
    certificate, evidence = certify(problem, matrix)
    assert certificate.lower_bound > 0
    assert recheck(problem, matrix, evidence) == certificate
    assert recheck(problem, matrix, {**evidence, "minorant": 1.1 * evidence["minorant"]}).lower_bound == 0


def test_a_network_is_pruned_layer_by_layer_and_a_layer_without_a_relu_refused():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    samples = torch.randn(64, 12)
    made = op.plan.uniform(model, density=0.5, skip=("4",))
    for mode in ("parallel", "cascade"):
        pruned, report = op.prune(model, [samples], made, op.ReLUSplicing(), mode=mode, damping=0.01)
        assert {record.certificate and record.certificate.theorem for record in report.layers} == {"T13"}
        assert int(pruned.state_dict()["0.weight"].count_nonzero()) == 48
    with pytest.raises(InvalidInputError, match=r"layer '4': no ReLU follows this layer"):
        op.prune(model, [samples], op.plan.uniform(model, density=0.5), op.ReLUSplicing(), damping=0.01)


@pytest.mark.parametrize("damping", [0.0, -1.0, float("inf")])
def test_damping_has_to_be_positive(damping):
    with pytest.raises(InvalidInputError, match=f"damping {damping} given"):
        layer(13, op.PerRow(4), damping=damping)


def test_shapes_that_do_not_fit_are_named(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    problem = layer(14, op.PerRow(4))
    with pytest.raises(InvalidInputError, match=r"targets of shape \(60, 3\)"):
        L0ReLU(problem.inputs, problem.targets[:, :2], problem.bias, problem.reference, op.PerRow(4))


@pytest.mark.parametrize("make", [lambda: op.CuttingPlane(max_cuts=0), lambda: op.ReLUSplicing(candidates=0)])
def test_impossible_settings_are_refused(make):
    with pytest.raises(InvalidInputError, match="=0"):
        make()
