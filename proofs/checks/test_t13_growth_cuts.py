"""T13 against the fits of every support, and where the bound is an equality."""

import itertools

import pytest
import torch

from optprune.bounds.growth import growth_bound, growth_scores
from optprune.certify._growth import relu_minorant
from optprune.certify.l0_relu import proves_growth
from optprune.patterns import NOfM, PerLayer, PerRow
from optprune.problems import L0ReLU
from optprune.solvers._relu_fit import fit_relu


def layer(seed, pattern, out=2, d=6, n=30, damping=0.05):
    rng = torch.Generator().manual_seed(seed)
    weight = torch.randn(out, d, generator=rng, dtype=torch.float64)
    inputs = torch.randn(n, d, generator=rng, dtype=torch.float64)
    return L0ReLU.from_layer(weight, inputs, pattern, damping, weight[:, 0])


def every_support(problem, pattern):
    """All maximal admissible masks of the layer, one after the other along the first dimension."""
    size = problem.reference.numel()
    chosen = torch.tensor(list(itertools.combinations(range(size), pattern.count(problem.shape))))
    masks = torch.zeros(len(chosen), size, dtype=torch.bool).scatter_(1, chosen, True).reshape(-1, *problem.shape)
    return masks[torch.tensor([bool(pattern.admits(mask)) for mask in masks])]


@pytest.mark.parametrize("pattern", [PerLayer(3), PerRow(2), NOfM(1, 3)], ids=str)
def test_cut_and_bound_stay_below_every_fit(pattern, rng):
    problem = layer(1, pattern)
    minorant = relu_minorant(problem)
    assert proves_growth(problem, minorant)
    masks = every_support(problem, pattern)
    assert len(masks) >= 81
    rows = torch.arange(problem.shape[0]).repeat(len(masks))
    fits = fit_relu(problem, masks.flatten(0, 1), rows=rows).reshape(masks.shape)
    values = torch.stack([problem.objective(fit) for fit in fits])
    points = [torch.randn(problem.shape, generator=rng, dtype=torch.float64) for _ in range(20)] + list(fits[:20])
    for point in points:
        share = torch.rand((), generator=rng, dtype=torch.float64)
        for delta in (minorant, share * minorant):
            gradient = problem.gradient(point)
            pruned, spared = growth_scores(gradient, delta, point)
            cuts = problem.objective(point) + pruned.sum() - torch.where(masks, spared, 0.0).sum((-2, -1))
            assert bool((cuts <= values + 1e-12).all())
            bound = growth_bound(problem.objective(point), gradient, delta, point, pattern.support)
            assert bound == pytest.approx(float(cuts.min()), rel=1e-12, abs=1e-12)
    for mask, fit, value in zip(masks, fits, values, strict=True):
        pruned, spared = growth_scores(problem.gradient(fit), minorant, fit)
        cut = float(problem.objective(fit) + pruned.sum() - spared[mask].sum())
        assert cut == pytest.approx(float(value), rel=1e-12)


@pytest.mark.parametrize("factor", [1.0, 1.001])
def test_a_separable_quadratic_is_an_equality_and_refutes_a_larger_minorant(factor, rng):
    pattern = PerRow(2)
    curvature = 0.5 + torch.rand(2, 5, generator=rng, dtype=torch.float64)
    centre = torch.randn(2, 5, generator=rng, dtype=torch.float64)
    lost = 0.5 * curvature * centre.square()
    optimum = float(torch.where(pattern.support(lost), 0.0, lost).sum())
    above = 0
    for _ in range(10):
        point = torch.randn(2, 5, generator=rng, dtype=torch.float64)
        value = 0.5 * (curvature * (point - centre).square()).sum()
        bound = growth_bound(value, curvature * (point - centre), factor * curvature, point, pattern.support)
        if factor == 1:
            assert bound == pytest.approx(optimum, rel=1e-12)
        above += bound > optimum * (1 + 1e-9)
    assert above == (0 if factor == 1 else 10)


def test_too_large_a_minorant_is_not_proved():
    problem = layer(2, PerRow(2))
    minorant = relu_minorant(problem)
    assert proves_growth(problem, minorant)
    assert not proves_growth(problem, 1.001 * minorant)
    assert not proves_growth(problem, -minorant)


def test_a_direction_without_growth_gives_no_bound():
    point, zero = torch.ones(1, 2, dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64)
    assert growth_bound(1.0, zero, zero, point, PerRow(1).support) == 1.0
    assert growth_bound(1.0, point, zero, point, PerRow(1).support) == -float("inf")


def test_reduced_coefficients_keep_a_cut_below(rng):
    for _ in range(200):
        scores = torch.rand(6, generator=rng, dtype=torch.float64)
        constant = float(torch.rand((), generator=rng, dtype=torch.float64) * 2)
        values = {
            chosen: constant - float(scores[list(chosen)].sum()) + float(torch.rand((), generator=rng))
            for size in range(7)
            for chosen in itertools.combinations(range(6), size)
        }
        least = min(values.values())
        reduced = scores.clamp_max(max(constant - least, 0.0))
        for chosen, value in values.items():
            assert max(constant - float(reduced[list(chosen)].sum()), least) <= value + 1e-12
