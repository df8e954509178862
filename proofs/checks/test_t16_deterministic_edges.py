"""T16 on random layers, against loops and the optimum by enumeration, and where it is an equality."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import optprune as op
from optprune.bounds.sipp import deterministic_errors
from optprune.certify.edge_sampling import relaxed
from optprune.problems import EdgeSampling
from optprune.testing import edge_instances


def layer(rng: torch.Generator, signed: bool, points: int = 30) -> tuple[Tensor, Tensor]:
    weight = torch.randn(5, 12, generator=rng, dtype=torch.float64)
    inputs = torch.randn(points, 12, generator=rng, dtype=torch.float64)
    return weight, inputs if signed else inputs.clamp(min=0)


def by_loops(weight: Tensor, inputs: Tensor) -> Tensor:
    """Sensitivities by the definition."""
    found = torch.zeros_like(weight)
    for i in range(weight.shape[0]):
        for j in range(weight.shape[1]):
            for x in inputs:
                for part in (x.clamp(min=0), (-x).clamp(min=0)):
                    half = weight[i].abs() * part * (weight[i] * weight[i, j] > 0)
                    if float(half.sum()) > 0:
                        found[i, j] = max(float(found[i, j]), float(half[j] / half.sum()))
    return found


@pytest.mark.parametrize("signed", [False, True])
def test_sensitivities_are_the_definition(signed, rng):
    weight, inputs = layer(rng, signed, points=8)
    weight[1, 3], inputs[:, 5] = 0.0, 0.0
    found = EdgeSampling(weight, inputs, op.PerLayer(3)).sensitivity
    assert torch.allclose(found, by_loops(weight, inputs), rtol=1e-13, atol=0)
    scaled = EdgeSampling(3.7 * weight, 1e-9 * inputs, op.PerLayer(3)).sensitivity
    assert torch.allclose(found, scaled, rtol=1e-12, atol=0)


def test_every_patch_is_a_point(rng):
    images = torch.rand(3, 2, 6, 5, generator=rng, dtype=torch.float64)
    kernel = torch.randn(4, 2, 3, 3, generator=rng, dtype=torch.float64)
    found = EdgeSampling.from_conv2d(kernel, images, op.PerLayer(9), padding=1).sensitivity
    patches = F.unfold(images, 3, padding=1).mT.reshape(-1, 18)
    plain = EdgeSampling(kernel.flatten(1), patches, op.PerLayer(9)).sensitivity
    assert torch.allclose(found, plain, rtol=1e-12, atol=0)
    assert not torch.allclose(found, by_loops(kernel.flatten(1), F.unfold(images, 3).mT.mean(1)))


@pytest.mark.parametrize("signed", [False, True])
def test_changed_edges_move_a_neuron_by_their_sensitivities(signed, rng):
    for _ in range(20):
        weight, inputs = layer(rng, signed)
        problem = EdgeSampling(weight, inputs, op.PerLayer(60))
        keep = torch.rand(weight.shape, generator=rng) < 0.6
        changed = weight * keep * (1 + 0.5 * torch.randn(weight.shape, generator=rng, dtype=torch.float64))
        bound = deterministic_errors(weight, changed, problem.sensitivity).amax(-1)
        assert bool((problem.relative_errors(changed) <= bound * (1 + 1e-12)).all())


@pytest.mark.parametrize("factor", [1.0, 0.999])
def test_at_one_point_it_is_an_equality(factor, rng):
    weight, inputs = layer(rng, False, points=1)
    weight = weight.abs()
    problem = EdgeSampling(weight, inputs + 0.1, op.PerLayer(60))
    changed = weight * (torch.arange(12) % 3 != 0)
    bound = factor * deterministic_errors(weight, changed, problem.sensitivity).amax(-1)
    assert bool((problem.relative_errors(changed) <= bound * (1 + 1e-12)).all()) == (factor == 1.0)


@pytest.mark.parametrize("golden", [g for g in edge_instances() if g.regular], ids=lambda g: g.name)
def test_the_relaxed_problem_is_below(golden, rng):
    problem = golden.problem
    scaled, scale = relaxed(problem)
    for _ in range(5):
        changed = problem.weight * torch.randn(problem.shape, generator=rng, dtype=torch.float64)
        below = float(scaled.objective(scale * changed)) / problem.shape[0]
        assert below <= float(problem.objective(changed)) * (1 + 1e-12)
    found = op.solve(problem, op.EdgeMinimax()).certificate
    assert found is not None
    assert found.lower_bound <= golden.optimum * (1 + 1e-9) + 1e-12


@pytest.mark.parametrize("factor", [1.0, 1.001])
def test_the_relaxed_problem_of_one_point_is_exact(factor, rng):
    weight, inputs = layer(rng, True, points=1)
    problem = EdgeSampling(weight, inputs, op.PerLayer(60))
    scaled, scale = relaxed(problem)
    changed = weight * torch.rand(weight.shape, generator=rng, dtype=torch.float64)
    below = factor * float(scaled.objective(scale * changed)) / 5
    assert (below <= float(problem.objective(changed))) == (factor == 1.0)
    if factor == 1.0:
        assert below == pytest.approx(float(problem.objective(changed)), rel=1e-8)


def test_the_middle_factor_is_the_best_one(rng):
    weight, inputs = layer(rng, False)
    weight = weight.abs()
    problem = EdgeSampling(weight, inputs, op.PerRow(6))
    plain = op.SiPPDet().run(problem).matrix
    best = problem.relative_errors(op.SiPPDet("minimax").run(problem).matrix)
    mean = problem.relative_errors(op.SiPPDet("mean").run(problem).matrix)
    searched = torch.stack([problem.relative_errors(c * plain) for c in torch.linspace(0.5, 6, 2001).tolist()]).amin(0)
    assert bool((best <= searched * (1 + 1e-12)).all())
    assert bool((best <= mean * (1 + 1e-12)).all())
    assert torch.allclose(best, searched, atol=4e-3)
    without = problem.relative_errors(plain)
    assert bool((best <= without / (2 - without) * (1 + 1e-12)).all())
