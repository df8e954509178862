"""Exact l0 certificates against the definition in fractions, and against the certificate in float64."""

from dataclasses import replace
from fractions import Fraction
from itertools import product

import pytest
import torch

import optprune as op
from optprune.certify import LeastSquaresChecker, certify, certify_exact
from optprune.certify._exact_least_squares import exact_minorant_bound, proves_minorant_exactly
from optprune.certify._perspective import scaled_minorant
from optprune.certify.least_squares import proves_minorant
from tests.certify.test_least_squares import PATTERNS, layer


def normal(rng, *shape):
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def small(pattern, rng, samples=30):
    """A layer of 2 x 4, few enough weights for every support to be tried."""
    weight = normal(rng, 2, 4)
    inputs = normal(rng, samples, 4) @ (torch.eye(4, dtype=torch.float64) + 0.2 * normal(rng, 4, 4))
    targets = inputs @ weight.mT + 0.2 * normal(rng, samples, 2)
    return op.L0LeastSquares(op.Statistics.from_samples(inputs, targets, weight), pattern)


def fractions(matrix):
    return [[Fraction(v) for v in row] for row in matrix.tolist()]


def value(problem, minorant, point):
    """The display of T03 in fractions, the maximum over all admissible supports one by one."""
    s, (rows, columns) = problem.statistics, problem.shape
    h, c, r = fractions(problem.gram), fractions(s.cross), fractions(s.reference)
    p, delta = fractions(point - s.reference), fractions(minorant.expand(problem.shape))
    total = sum((Fraction(v) for v in s.energy.tolist()), Fraction(0))
    scores = [[Fraction(0)] * columns for _ in range(rows)]
    for m, j in product(range(rows), range(columns)):
        pa = sum(p[m][i] * h[i][j] for i in range(columns)) - p[m][j] * delta[m][j]
        g = c[j][m] - pa
        total += delta[m][j] * r[m][j] ** 2 + 2 * g * r[m][j] - p[m][j] * pa
        scores[m][j] = (g + delta[m][j] * r[m][j]) ** 2 / delta[m][j]
    flat, best = [score for row in scores for score in row], Fraction(0)
    for bits in product((False, True), repeat=rows * columns):
        if problem.pattern.admits(torch.tensor(bits).reshape(rows, columns)):
            best = max(best, sum((score for score, kept in zip(flat, bits, strict=True) if kept), Fraction(0)))
    return max(Fraction(0), (total - best) / 2)


SMALL = [
    op.PerLayer(3),
    op.PerLayer(0),
    op.PerRow(2),
    op.NOfM(1, 2),
    op.Blocks(1, 2, 2),
    op.Blocks(2, 2, 1),
    op.Rows(1),
    op.Columns(2),
    op.Fixed(torch.tensor([[True, False, True, False], [False, False, True, True]])),
]


@pytest.mark.parametrize("pattern", SMALL, ids=str)
@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
def test_the_bound_is_the_theorems(pattern, own, rng):
    told = 0
    for spread in (0.0, 0.01, 0.3):
        problem = small(pattern, rng)
        smaller = 1 - 0.1 * torch.rand((2, 4)[1 - own :], generator=rng, dtype=torch.float64)
        minorant = scaled_minorant(problem.gram) * smaller
        good = certify(problem, problem.pattern.project(problem.dense))[1]["point"]
        point = good + spread * normal(rng, 2, 4)
        found, expected = exact_minorant_bound(problem, minorant, point), value(problem, minorant, point)
        assert found.low <= expected <= found.high
        assert found.high - found.low <= Fraction(1, 10**60) * (found.high + 1)
        told += found.low > 0
    assert told, "a bound of 0 would not notice a wrong formula"


@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
def test_the_certificate_in_float64_is_outside_of_the_exact_one(pattern):
    for seed in range(2):
        problem = op.L0LeastSquares.from_layer(*layer(seed), pattern, damping=0.01)
        solution = op.solve(problem, op.Magnitude())
        exact = certify_exact(problem, solution.matrix, solution.evidence)
        rounded = solution.certificate
        assert rounded is not None
        assert 0 < rounded.lower_bound <= exact.lower_bound.low
        assert exact.lower_bound.low - Fraction(rounded.lower_bound) <= Fraction(1, 10**10) * exact.objective.high
        assert exact.lower_bound.high <= exact.objective.low
        assert exact.admissible
        assert (exact.theorem, exact.rigor) == (rounded.theorem, op.Rigor.EXACT)


def test_the_objective_is_its_definition(rng):
    problem = small(op.PerLayer(3), rng)
    matrix = problem.pattern.project(normal(rng, 2, 4))
    s = problem.statistics
    d = [
        [a - b for a, b in zip(u, r, strict=True)]
        for u, r in zip(fractions(matrix), fractions(s.reference), strict=True)
    ]
    h, c = fractions(problem.gram), fractions(s.cross)
    expected = sum((Fraction(v) for v in s.energy.tolist()), Fraction(0))
    for m, i in product(range(2), range(4)):
        expected += d[m][i] * (sum(d[m][j] * h[j][i] for j in range(4)) - 2 * c[i][m])
    evidence = {"minorant": scaled_minorant(problem.gram), "point": matrix}
    exact = certify_exact(problem, matrix, evidence)
    assert exact.objective.low == exact.objective.high == expected / 2
    assert not certify_exact(problem, matrix + 1.0, evidence).admissible


def test_semidefiniteness_is_decided_near_the_boundary():
    """[[1, c], [c, 1]] less its minorant is semidefinite exactly when the minorant is at most 1 - |c|."""
    c = 0.75
    gram = torch.tensor([[1, c], [c, 1]], dtype=torch.float64)
    for margin, holds in ((2.0**-40, True), (2.0**-45, True), (-(2.0**-52), False), (-(2.0**-40), False)):
        minorant = torch.full((2,), 1 - c - margin, dtype=torch.float64)
        assert proves_minorant_exactly(gram, minorant) is holds
    assert not proves_minorant_exactly(gram, torch.tensor([[0.2, 0.2], [0.4, 0.4]], dtype=torch.float64))
    skew = gram.clone()
    skew[0, 1] += 2.0**-40
    small = torch.full((2,), 0.1, dtype=torch.float64)
    assert proves_minorant_exactly(gram, small)
    assert not proves_minorant_exactly(skew, small)
    assert not proves_minorant_exactly(gram, -small)


def test_dead_inputs_and_bad_scales(rng):
    weight, inputs = layer(5)
    inputs[:, 3] = 0
    scales = torch.logspace(-60, 60, 8, dtype=torch.float64)
    problem = op.L0LeastSquares.from_layer(weight / scales, inputs * scales, op.PerRow(3))
    minorant = scaled_minorant(problem.gram)
    point = problem.dense
    assert proves_minorant_exactly(problem.gram, minorant)
    assert minorant[3] == 0
    exact = exact_minorant_bound(problem, minorant, point)
    assert exact.low > 0
    assert not proves_minorant_exactly(problem.gram, 1.5 * minorant)
    dead = minorant.clone()
    dead[3] = 1e-300
    assert not proves_minorant_exactly(problem.gram, dead)
    s = problem.statistics
    cross = s.cross.clone()
    cross[3, 0] = 1e-200  # no data have this: the weight of a dead input would lower the objective without end
    unbounded = op.L0LeastSquares(replace(s, cross=cross), problem.pattern)
    assert exact_minorant_bound(unbounded, minorant, point).high == 0


def test_where_float64_proves_a_minorant_so_does_exact_arithmetic():
    for seed in range(20):
        problem = op.L0LeastSquares.from_layer(*layer(seed, rows=3, inputs=12), op.PerRow(4))
        rng = torch.Generator().manual_seed(seed)
        minorant = scaled_minorant(problem.gram) * (1 - torch.rand(3, 12, generator=rng).double() / 10)
        assert proves_minorant(problem.gram, minorant)
        assert proves_minorant_exactly(problem.gram, minorant)
        smallest = torch.linalg.eigvalsh(problem.gram)[0]
        above = torch.full((12,), float(smallest) * (1 + 1e-9), dtype=torch.float64)
        assert not proves_minorant_exactly(problem.gram, above)


def test_a_minorant_larger_by_a_thousandth_would_exceed_the_optimum(rng):
    gram = torch.diag(torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=torch.float64))
    base = small(op.PerLayer(3), rng)
    problem = op.L0LeastSquares(replace(base.statistics, gram=gram, cross=0 * base.statistics.cross), base.pattern)
    optimum = problem.objective(op.Exhaustive().run(problem).matrix)
    point = problem.dense + normal(rng, 2, 4)
    assert exact_minorant_bound(problem, gram.diagonal(), point).low == pytest.approx(float(optimum), rel=1e-14)
    assert value(problem, gram.diagonal() * 1.001, problem.dense + 30 * normal(rng, 2, 4)) > 1.0005 * float(optimum)
    assert exact_minorant_bound(problem, gram.diagonal() * 1.001, point).high == 0


@pytest.mark.slow
@pytest.mark.parametrize("pattern", [op.PerLayer(256 * 256 // 3), op.NOfM(2, 4)], ids=str)
def test_a_real_layer(data_dir, unchecked, pattern):
    import numpy as np

    arrays = np.load(data_dir / "layers/digits256.npz")
    problem = op.L0LeastSquares.from_layer(torch.from_numpy(arrays["W"]), torch.from_numpy(arrays["X"]), pattern, 0.01)
    solution = op.solve(problem, op.SparseGPT(), certified=False)
    rounded, evidence = certify(problem, solution.matrix, checker=LeastSquaresChecker(effort=1e10))
    exact = certify_exact(problem, solution.matrix, evidence)
    assert 0 < rounded.lower_bound <= exact.lower_bound.low
    assert exact.lower_bound.low <= Fraction(rounded.lower_bound) * (1 + Fraction(1, 10**6))
    assert exact.width <= 1e-60
