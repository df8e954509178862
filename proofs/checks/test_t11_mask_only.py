"""T11 against all masks for every pattern, and where it is an equality."""

from dataclasses import replace
from fractions import Fraction
from itertools import product

import pytest
import torch

import optprune as op
from optprune.bounds.mask_only import mask_only_bound
from optprune.bounds.minorant import minorant_bound
from optprune.certify import certify, recheck

SHAPE = (2, 4)
PATTERNS = [
    op.PerLayer(3),
    op.PerRow(2),
    op.NOfM(1, 2),
    op.Blocks(1, 2, 2),
    op.Rows(1),
    op.Columns(2),
    op.Fixed(torch.tensor([[True, False, True, False], [False, False, True, True]])),
    op.PerLayer(0),
]


def normal(rng: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def layer(rng: torch.Generator, pattern: op.Pattern) -> op.L0LeastSquares:
    """Targets are not the dense outputs, so that pruning a weight may lower the error."""
    mix = torch.eye(SHAPE[1], dtype=torch.float64) + 0.2 * normal(rng, SHAPE[1], SHAPE[1])
    weight, inputs = normal(rng, *SHAPE), normal(rng, 30, SHAPE[1]) @ mix
    targets = inputs @ weight.mT + 0.3 * normal(rng, 30, SHAPE[0])
    return op.L0LeastSquares(op.Statistics.from_samples(inputs, targets, weight), pattern)


def optimum(problem: op.L0LeastSquares) -> float:
    masks = (torch.tensor(bits).reshape(SHAPE) for bits in product((False, True), repeat=SHAPE[0] * SHAPE[1]))
    return min(float(problem.objective(problem.dense * mask)) for mask in masks if problem.pattern.admits(mask))


def bound(problem: op.L0LeastSquares, minorant: torch.Tensor, point: torch.Tensor, function=mask_only_bound) -> float:
    s = problem.statistics
    return function(problem.gram, s.cross, s.energy, s.reference, minorant, point, problem.pattern.support)


def random_minorant(problem: op.L0LeastSquares, rng: torch.Generator) -> torch.Tensor:
    delta = torch.rand(SHAPE[1], generator=rng, dtype=torch.float64) + 0.05
    root = delta.sqrt()
    return delta * torch.linalg.eigvalsh(problem.gram / (root[:, None] * root))[0] * (1 - 1e-9)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_no_mask_undercuts_it_and_it_is_never_below_the_bound_of_refitted_weights(pattern, rng):
    problem = layer(rng, pattern)
    best, tightest = optimum(problem), -torch.inf
    for _ in range(40):
        minorant = random_minorant(problem, rng)
        q = torch.rand(SHAPE, generator=rng, dtype=torch.float64)
        for point in (q * problem.dense, problem.dense, problem.dense + normal(rng, *SHAPE)):
            value = bound(problem, minorant, point)
            assert value <= best * (1 + 1e-12)
            assert value >= bound(problem, minorant, point, minorant_bound) - 1e-9 * (1 + abs(value))
            tightest = max(tightest, value)
    assert tightest > 0, "the instance would not notice a wrong bound"


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_diagonal_hessian_is_an_equality_and_a_larger_minorant_breaks_it(pattern, rng):
    noisy = layer(rng, pattern)
    diagonal = noisy.gram.diagonal().clone()
    problem = op.L0LeastSquares(replace(noisy.statistics, gram=torch.diag(diagonal)), pattern)
    best = optimum(problem)
    for _ in range(5):
        value = bound(problem, diagonal, normal(rng, *SHAPE))
        assert value == pytest.approx(best, rel=1e-12, abs=1e-13)
        assert value <= best
    wrong = max(bound(problem, diagonal * 1.001, problem.dense + 30 * normal(rng, *SHAPE)) for _ in range(20))
    assert wrong > best * 1.0005


def test_the_computed_bound_is_below_the_exact_one(rng):
    for _ in range(10):
        problem = layer(rng, op.PerLayer(3))
        minorant, point = random_minorant(problem, rng), problem.dense * torch.rand(SHAPE, generator=rng).double()
        s = problem.statistics
        h, c, r, q = ([[Fraction(v) for v in row] for row in m.tolist()] for m in (s.gram, s.cross, s.reference, point))
        delta = [Fraction(v) for v in minorant.tolist()]
        total, terms = sum((Fraction(v) for v in s.energy.tolist()), Fraction(0)), []
        for m in range(SHAPE[0]):
            p = [a - b for a, b in zip(q[m], r[m], strict=True)]
            for j in range(SHAPE[1]):
                pa = sum((p[i] * h[i][j] for i in range(SHAPE[1])), Fraction(0)) - p[j] * delta[j]
                terms.append(delta[j] * r[m][j] ** 2 + 2 * (c[j][m] - pa) * r[m][j])
                total -= p[j] * pa
        exact = (total + sum(terms) - sum(sorted(max(t, Fraction(0)) for t in terms)[-3:])) / 2
        value = Fraction(bound(problem, minorant, point))
        assert value <= exact
        assert exact - value <= Fraction(1, 10**10) * (abs(exact) + 1)


@pytest.mark.parametrize("pattern", [op.PerRow(2), op.PerLayer(3), op.Columns(2)], ids=str)
def test_the_certificate_of_a_mask_says_what_masks_can_reach(pattern, rng):
    problem = op.L0LeastSquares.from_layer(normal(rng, *SHAPE), normal(rng, 40, SHAPE[1]), pattern)
    matrix = pattern.project(problem.dense)
    certificate, evidence = certify(problem, matrix)
    found, best = certificate.details["mask_only_lower_bound"], optimum(problem)
    assert certificate.lower_bound <= found <= best
    assert found >= 0.7 * best
    refitted = op.ADMM().run(problem).matrix
    assert "mask_only_lower_bound" not in certify(problem, refitted)[0].details
    plain = {name: value for name, value in evidence.items() if name != "mask_point"}
    assert recheck(problem, matrix, plain).lower_bound == certificate.lower_bound
