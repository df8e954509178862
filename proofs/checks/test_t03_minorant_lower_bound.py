"""T03 against exhaustive search for every pattern, against rational arithmetic, and where it is an equality."""

from dataclasses import replace
from fractions import Fraction
from itertools import product

import pytest
import torch

import optprune as op
from optprune.bounds.minorant import minorant_bound
from optprune.certify.least_squares import proves_minorant
from proofs.checks.tiny import PATTERNS, SHAPE, normal


def layer(rng: torch.Generator, pattern: op.Pattern, damping: float = 0.0) -> op.L0LeastSquares:
    mix = normal(rng, SHAPE[1], SHAPE[1])
    return op.L0LeastSquares.from_layer(normal(rng, *SHAPE), normal(rng, 30, SHAPE[1]) @ mix, pattern, damping)


def optimum(problem: op.L0LeastSquares) -> float:
    """The best objective over all admissible supports, each fitted by dense linear algebra."""
    best = torch.inf
    rows, columns = problem.shape
    for bits in product((False, True), repeat=rows * columns):
        mask = torch.tensor(bits).reshape(rows, columns)
        if problem.pattern.admits(mask):
            weight = torch.zeros(rows, columns, dtype=torch.float64)
            for row in range(rows):
                kept = mask[row]
                weight[row, kept] = torch.linalg.solve(problem.gram[kept][:, kept], problem.linear[row, kept])
            best = min(best, float(problem.objective(weight)))
    return best


def bound(problem: op.L0LeastSquares, minorant: torch.Tensor, point: torch.Tensor) -> float:
    s = problem.statistics
    return minorant_bound(problem.gram, s.cross, s.energy, s.reference, minorant, point, problem.pattern.support)


def random_minorant(problem: op.L0LeastSquares, rng: torch.Generator) -> torch.Tensor:
    """A random diagonal, scaled so that a little room stays below the Hessian."""
    delta = torch.rand(SHAPE[1], generator=rng, dtype=torch.float64) + 0.05
    root = delta.sqrt()
    return delta * torch.linalg.eigvalsh(problem.gram / (root[:, None] * root))[0] * (1 - 1e-9)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("damping", [0.0, 0.1])
def test_no_point_exceeds_the_optimum(pattern, damping, rng):
    problem = layer(rng, pattern, damping)
    best = optimum(problem)
    tightest = -torch.inf
    for _ in range(20):
        minorant = random_minorant(problem, rng)
        assert proves_minorant(problem.gram, minorant)
        for spread in (0.0, 0.1, 1.0, 10.0):
            value = bound(problem, minorant, problem.dense + spread * normal(rng, *SHAPE))
            assert value <= best * (1 + 1e-12)
            tightest = max(tightest, value)
    assert tightest > 0 or best < 1e-12, "the instance would not notice a wrong bound"


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_diagonal_hessian_is_an_equality_and_a_larger_minorant_breaks_it(pattern, rng):
    inputs = torch.linalg.qr(normal(rng, 12, SHAPE[1])).Q * torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    exact = op.L0LeastSquares.from_layer(normal(rng, *SHAPE), inputs, pattern)
    s = exact.statistics
    gram = torch.diag(s.gram.diagonal())
    clean = op.L0LeastSquares(replace(s, gram=gram), pattern)
    best, diagonal = optimum(clean), gram.diagonal()
    for _ in range(5):
        point = normal(rng, *SHAPE)
        assert bound(clean, diagonal, point) == pytest.approx(best, rel=1e-12, abs=1e-13)
        assert bound(clean, diagonal, point) <= best
    if best > 1e-12:
        wrong = max(bound(clean, diagonal * 1.001, clean.dense + 30 * normal(rng, *SHAPE)) for _ in range(20))
        assert wrong > best * 1.0005
        assert not proves_minorant(gram, diagonal * 1.001)


def test_the_computed_bound_is_below_the_exact_one(rng):
    """The display of the theorem in rational arithmetic, per-layer budget."""
    for _ in range(20):
        problem = layer(rng, op.PerLayer(3))
        minorant, point = random_minorant(problem, rng), problem.dense + normal(rng, *SHAPE)
        exact = exact_bound(problem, minorant, point, kept=3)
        value = Fraction(bound(problem, minorant, point))
        assert value <= exact
        assert exact - value <= Fraction(1, 10**10) * (abs(exact) + 1)


def exact_bound(problem: op.L0LeastSquares, minorant: torch.Tensor, point: torch.Tensor, kept: int) -> Fraction:
    s = problem.statistics
    h, c = rational(problem.gram), rational(s.cross)
    r, q, delta = rational(s.reference), rational(point), [Fraction(v) for v in minorant.tolist()]
    total, scores = sum((Fraction(v) for v in s.energy.tolist()), Fraction(0)), []
    for m in range(SHAPE[0]):
        p = [a - b for a, b in zip(q[m], r[m], strict=True)]
        for j in range(SHAPE[1]):
            pa = sum((p[i] * h[i][j] for i in range(SHAPE[1])), Fraction(0)) - p[j] * delta[j]
            g = c[j][m] - pa
            total += delta[j] * r[m][j] ** 2 + 2 * g * r[m][j] - p[j] * pa
            scores.append((g + delta[j] * r[m][j]) ** 2 / delta[j])
    return (total - sum(sorted(scores)[-kept:], Fraction(0))) / 2


def rational(matrix: torch.Tensor) -> list[list[Fraction]]:
    return [[Fraction(v) for v in row] for row in matrix.tolist()]


def test_the_form_around_any_point_is_the_same_number(rng):
    problem = layer(rng, op.PerLayer(3))
    minorant, point = random_minorant(problem, rng), normal(rng, *SHAPE)
    slope = problem.gradient(point)
    scores = (minorant * point - slope).square() / minorant
    other = 2 * problem.objective(point) + (minorant * point.square() - 2 * slope * point).sum()
    other = other - scores.reshape(-1).topk(3).values.sum()
    assert bound(problem, minorant, point) == pytest.approx(float(other) / 2, rel=1e-9)


def test_a_dead_input_adds_nothing(rng):
    weight, inputs = normal(rng, *SHAPE), normal(rng, 30, SHAPE[1])
    inputs[:, 1] = 0
    dead = op.L0LeastSquares.from_layer(weight, inputs, op.PerLayer(3))
    live = torch.tensor([0, 2, 3])
    alive = op.L0LeastSquares.from_layer(weight[:, live], inputs[:, live], op.PerLayer(3))
    minorant = torch.zeros(SHAPE[1], dtype=torch.float64)
    minorant[live] = 0.5 * torch.linalg.eigvalsh(alive.gram)[0]
    assert proves_minorant(dead.gram, minorant)
    point = normal(rng, *SHAPE)
    assert bound(dead, minorant, point) == pytest.approx(bound(alive, minorant[live], point[:, live]), rel=1e-12)
