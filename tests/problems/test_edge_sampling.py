"""The edge-sampling problem: its objective by loops, its invariances, convolutions, and what it refuses."""

import math

import jaxtyping
import pytest
import torch

import optprune as op
from optprune.errors import InvalidInputError, NonFiniteError, OptPruneError
from optprune.numerics.linear import DenseMap
from optprune.problems import edge_sampling


@pytest.fixture
def layer(rng):
    weight = torch.randn(4, 7, generator=rng, dtype=torch.float64)
    return weight, torch.randn(11, 7, generator=rng, dtype=torch.float64)


def test_objective_is_the_formula(layer, rng):
    weight, inputs = layer
    weight[2, 1] = 0.0
    inputs[5] = 0.0
    problem = op.EdgeSampling(weight, inputs, op.PerLayer(9))
    changed = weight * torch.rand(4, 7, generator=rng, dtype=torch.float64)
    total = 0.0
    for i in range(4):
        worst = 0.0
        for x in inputs:
            flow = float((weight[i] * x).abs().sum())
            missed = abs(float((changed[i] - weight[i]) @ x))
            worst = max(worst, missed / flow if flow else 0.0)
        total += worst**2
    assert float(problem.objective(changed)) == pytest.approx(total / 8, rel=1e-12)
    assert float(problem.objective(weight)) == 0.0
    assert float(problem.objective(0 * weight)) == pytest.approx(
        0.5 * float((problem.relative_errors(0 * weight) ** 2).mean())
    )
    assert float(problem.objective(0 * weight)) <= 0.5


def test_nothing_changes_with_the_scale(layer):
    weight, inputs = layer
    problem = op.EdgeSampling(weight, inputs, op.PerLayer(9))
    factors = torch.tensor([1e-9, 3.0, 1e7, 0.1], dtype=torch.float64)[:, None]
    other = op.EdgeSampling(factors * weight, 1e5 * inputs, op.PerLayer(9))
    changed = weight * (torch.arange(7) % 2)
    assert torch.allclose(problem.relative_errors(changed), other.relative_errors(factors * changed), rtol=1e-12)
    assert torch.allclose(problem.sensitivity, other.sensitivity, rtol=1e-12)


def test_sensitivities_add_up_to_one_at_a_point(layer):
    weight, inputs = layer
    one = op.EdgeSampling(weight.abs(), inputs[:1].abs(), op.PerLayer(9)).sensitivity
    assert torch.allclose(one.sum(-1), torch.ones(4, dtype=torch.float64))
    many = op.EdgeSampling(weight.abs(), inputs.abs(), op.PerLayer(9)).sensitivity.sum(-1)
    assert bool(((many >= 1) & (many <= 7)).all())


def test_violations(layer):
    weight, inputs = layer
    weight[0, 0] = 0.0
    problem = op.EdgeSampling(weight, inputs, op.PerRow(3))
    assert all(float(v) == 0 for v in problem.violation(op.PerRow(3).project(weight)).values())
    assert float(problem.violation(weight)["support"]) > 0.1
    new = torch.zeros_like(weight)
    new[0, 0] = 2.0
    assert {name: float(v) for name, v in problem.violation(new).items()} == {"support": 0.0, "edges": 1.0}


def test_a_convolution_is_its_patches(rng):
    images = torch.randn(2, 3, 6, 6, generator=rng, dtype=torch.float64)
    kernel = torch.randn(5, 3, 3, 3, generator=rng, dtype=torch.float64)
    problem = op.EdgeSampling.from_conv2d(kernel, images, op.PerLayer(40), stride=2, padding=1)
    patches = torch.nn.functional.unfold(images, 3, stride=2, padding=1).mT.reshape(-1, 27)
    plain = op.EdgeSampling(kernel.flatten(1), patches, op.PerLayer(40))
    changed = kernel.flatten(1) * (torch.arange(27) % 3 != 0)
    assert torch.allclose(problem.relative_errors(changed), plain.relative_errors(changed), rtol=1e-12)
    assert torch.allclose(problem.flow, plain.flow, rtol=1e-12)
    again = op.EdgeSampling.restore(problem.tensors(), problem.settings())
    assert not again.stackable
    assert torch.equal(again.sensitivity, problem.sensitivity)


def test_blocks_and_stacks_change_nothing(layer, monkeypatch):
    weight, inputs = layer
    whole = op.EdgeSampling(weight, inputs, op.PerLayer(9))
    changed = 0.5 * weight
    stacked = op.stack([whole, whole])
    monkeypatch.setattr(edge_sampling, "ROWS", 8)
    small = op.EdgeSampling(weight, DenseMap(inputs), op.PerLayer(9))
    assert torch.allclose(small.relative_errors(changed), whole.relative_errors(changed), rtol=1e-12)
    assert torch.allclose(small.flow, whole.flow, rtol=1e-12)
    assert torch.equal(stacked.sensitivity[1], whole.sensitivity)
    assert torch.allclose(stacked.objective(changed.expand(2, -1, -1)), whole.objective(changed))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"inputs": torch.zeros(3, 6)}, InvalidInputError),
        ({"inputs": torch.zeros(0, 7)}, InvalidInputError),
        ({"weight": torch.full((4, 7), math.nan)}, NonFiniteError),
        ({"inputs": torch.full((3, 7), math.inf)}, NonFiniteError),
        ({"pattern": 9}, InvalidInputError),
        ({"pattern": op.PerLayer(29)}, InvalidInputError),
    ],
)
def test_misuse_is_refused(layer, change, error, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    given = {"weight": layer[0], "inputs": layer[1], "pattern": op.PerLayer(9)} | change
    with pytest.raises(error) as caught:
        op.EdgeSampling(**given)
    assert isinstance(caught.value, OptPruneError)
