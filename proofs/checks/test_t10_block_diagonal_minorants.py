"""T10 against exhaustive search, against rational arithmetic, and where it is an equality."""

from dataclasses import replace
from fractions import Fraction
from itertools import combinations

import pytest
import torch

import optprune as op
from optprune.bounds.block_minorant import block_minorant_bound
from optprune.certify._block_evidence import blocked, choices_of, inputs_of, proves_blocks
from optprune.numerics.linalg import diagonal_blocks

SHAPE = (2, 8)
PATTERNS = [op.NOfM(2, 4), op.NOfM(1, 4), op.NOfM(3, 4), op.NOfM(1, 2), op.NOfM(4, 8)]


def normal(rng: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def layer(rng: torch.Generator, pattern: op.NOfM, damping: float = 0.0) -> op.L0LeastSquares:
    mix = normal(rng, SHAPE[1], SHAPE[1])
    return op.L0LeastSquares.from_layer(normal(rng, *SHAPE), normal(rng, 40, SHAPE[1]) @ mix, pattern, damping)


def optimum(problem: op.L0LeastSquares) -> float:
    """The best objective, by trying every support of every row with dense linear algebra."""
    rows, columns = problem.shape
    pattern = problem.pattern
    assert isinstance(pattern, op.NOfM)
    total = 0.0
    for row in range(rows):
        best = float("inf")
        for kept in combinations(range(columns), pattern.n * columns // pattern.m):
            mask = torch.zeros(rows, columns, dtype=torch.bool)
            mask[row, list(kept)] = True
            if pattern.admits(mask):
                weight = torch.zeros(columns, dtype=torch.float64)
                s = list(kept)
                weight[s] = torch.linalg.solve(problem.gram[s][:, s], problem.linear[row, s])
                full = problem.dense.clone()
                full[row] = weight
                best = min(best, float(problem.row_objective(full)[row]))
        total += best
    return total


def bound(problem: op.L0LeastSquares, blocks: torch.Tensor, point: torch.Tensor) -> float:
    s, pattern = problem.statistics, problem.pattern
    assert isinstance(pattern, op.NOfM)
    return block_minorant_bound(problem.gram, s.cross, s.energy, s.reference, blocks, point, choices_of(pattern))


def random_blocks(problem: op.L0LeastSquares, rng: torch.Generator, rows: int) -> torch.Tensor:
    """Random blocks, each row's scaled so that a little room stays below the Hessian."""
    assert isinstance(problem.pattern, op.NOfM)
    size = problem.pattern.m
    half = normal(rng, rows, SHAPE[1] // size, size, size + 1)
    blocks = half @ half.mT
    full = torch.zeros(rows, SHAPE[1], SHAPE[1], dtype=torch.float64)
    diagonal_blocks(full, size).copy_(blocks)
    root = torch.linalg.cholesky(full)
    inner = torch.linalg.solve_triangular(root, problem.gram.expand_as(full), upper=False)
    inner = torch.linalg.solve_triangular(root, inner.mT, upper=False)
    least = torch.linalg.eigvalsh((inner + inner.mT) / 2)[:, 0]
    blocks = blocks * (least * (1 - 1e-8))[:, None, None, None]
    return (blocks + blocks.mT) / 2


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("damping", [0.0, 0.1])
def test_no_point_exceeds_the_optimum(pattern, damping, rng):
    problem = layer(rng, pattern, damping)
    best = optimum(problem)
    tightest = -torch.inf
    for _ in range(20):
        blocks = random_blocks(problem, rng, SHAPE[0])
        assert proves_blocks(problem.gram, blocks)
        for spread in (0.0, 0.1, 1.0, 10.0):
            value = bound(problem, blocks, problem.dense + spread * normal(rng, *SHAPE))
            assert value <= best * (1 + 1e-12)
            tightest = max(tightest, value)
    assert tightest > 0, "the instance would not notice a wrong bound"


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_block_diagonal_hessian_is_an_equality_and_larger_blocks_break_it(pattern, rng):
    noisy = layer(rng, pattern)
    blocks = diagonal_blocks(noisy.gram, pattern.m).clone()
    gram = torch.zeros_like(noisy.gram)
    diagonal_blocks(gram, pattern.m).copy_(blocks)
    problem = op.L0LeastSquares(replace(noisy.statistics, gram=gram), pattern)
    best = optimum(problem)
    for _ in range(5):
        value = bound(problem, blocks, normal(rng, *SHAPE))
        assert value == pytest.approx(best, rel=1e-9)
        assert value <= best
    wrong = max(bound(problem, blocks * 1.001, problem.dense + 30 * normal(rng, *SHAPE)) for _ in range(20))
    assert wrong > best * 1.0005
    assert not proves_blocks(gram, blocks * 1.001)
    assert not proves_blocks(gram, blocks), "nothing is left to prove the semidefinite rest with"
    assert proves_blocks(gram, blocks * (1 - 1e-9))


APART = [(op.NOfM(1, 2), [[2, 0], [1, 3]]), (op.NOfM(1, 2), [[3, 0, 1], [-1, 2, -1]]), (op.NOfM(2, 4), [[1, 0]])]
"""Patterns, and groups that are in one block in another order than they have in a row, some of them with none."""


@pytest.mark.parametrize(("pattern", "groups"), APART, ids=str)
def test_the_same_with_several_groups_in_a_block_in_any_order(pattern, groups, rng):
    """No bound exceeds the optimum; it is an equality where what is in different blocks does not correlate."""
    several = torch.tensor(groups)
    width, size = several.numel() * pattern.m, several.shape[1] * pattern.m
    order = inputs_of(several, pattern.m)
    there = order >= 0
    problem = layer(rng, pattern)
    best = optimum(problem)

    def value(problem: op.L0LeastSquares, blocks: torch.Tensor, point: torch.Tensor, proved: bool = True) -> float:
        found = blocked(problem, {"blocks": blocks, "groups": several, "point": point})
        assert found is not None
        assert proves_blocks(found.gram, found.blocks) == proved
        return block_minorant_bound(*found)

    full = torch.zeros(width, width, dtype=torch.float64)
    full[there.nonzero(), there.nonzero().mT] = problem.gram[order[there]][:, order[there]]
    least = torch.linalg.eigvalsh(problem.gram)[0]
    tightest = -torch.inf
    for _ in range(20):
        half = normal(rng, len(groups), size, size)
        share = half @ half.mT / torch.linalg.matrix_norm(half, 2)[:, None, None] ** 2
        blocks = (0.99 * least * share + 1e-3 * least * torch.eye(size)) * there.view(-1, size, 1)
        blocks = blocks * there.view(-1, 1, size)
        blocks = (blocks + blocks.mT) / 2
        for spread in (0.0, 0.1, 1.0, 10.0):
            bound = value(problem, blocks, problem.dense + spread * normal(rng, *SHAPE))
            assert bound <= best * (1 + 1e-12)
            tightest = max(tightest, bound)
    assert tightest > 0, "the instance would not notice a wrong bound"

    inner = diagonal_blocks(full, size).clone()
    kept = torch.zeros_like(full)
    diagonal_blocks(kept, size).copy_(inner)
    gram = torch.zeros_like(problem.gram)
    gram[order[there][:, None], order[there]] = kept[there][:, there]
    equal = op.L0LeastSquares(replace(problem.statistics, gram=gram), pattern)
    best = optimum(equal)
    for _ in range(5):
        bound = value(equal, inner * (1 - 1e-9), normal(rng, *SHAPE))
        assert best * (1 - 1e-6) < bound <= best
    wrong = max(value(equal, inner * 1.001, equal.dense + 30 * normal(rng, *SHAPE), proved=False) for _ in range(20))
    assert wrong > best * 1.0005


def test_the_computed_bound_is_below_the_exact_one(rng):
    """The display of the theorem in rational arithmetic, 1:2."""
    for _ in range(10):
        problem = layer(rng, op.NOfM(1, 2))
        blocks, point = random_blocks(problem, rng, SHAPE[0]), problem.dense + normal(rng, *SHAPE)
        exact = exact_bound(problem, blocks, point)
        value = Fraction(bound(problem, blocks, point))
        assert value <= exact
        assert exact - value <= Fraction(1, 10**9) * (abs(exact) + 1)


def exact_bound(problem: op.L0LeastSquares, blocks: torch.Tensor, point: torch.Tensor) -> Fraction:
    s = problem.statistics
    h, c, r, q = (rational(m) for m in (problem.gram, s.cross, s.reference, point))
    columns = range(SHAPE[1])
    total = sum((Fraction(v) for v in s.energy.tolist()), Fraction(0))
    for m in range(SHAPE[0]):
        d = [[Fraction(0)] * SHAPE[1] for _ in columns]
        for k in range(SHAPE[1] // 2):
            for i in range(2):
                for j in range(2):
                    d[2 * k + i][2 * k + j] = Fraction(float(blocks[m, k, i, j]))
        p = [a - b for a, b in zip(q[m], r[m], strict=True)]
        pa = [sum((p[i] * (h[i][j] - d[i][j]) for i in columns), Fraction(0)) for j in columns]
        g = [c[j][m] - pa[j] for j in columns]
        total -= sum((p[j] * pa[j] for j in columns), Fraction(0))
        for k in range(0, SHAPE[1], 2):
            values = []
            for kept, out in ((k, k + 1), (k + 1, k)):
                push = g[kept] + r[m][out] * d[out][kept]
                values.append(d[out][out] * r[m][out] ** 2 + 2 * g[out] * r[m][out] - push**2 / d[kept][kept])
            total += min(values)
    return total / 2


def rational(matrix: torch.Tensor) -> list[list[Fraction]]:
    return [[Fraction(v) for v in row] for row in matrix.tolist()]


@pytest.mark.parametrize("scale", [1.0, 2.0**-30, 2.0**30])
def test_dead_and_badly_scaled_inputs_change_nothing(scale, rng):
    weight, inputs = normal(rng, *SHAPE), normal(rng, 40, SHAPE[1])
    inputs[:, 5] = 0
    scales = torch.ones(SHAPE[1], dtype=torch.float64)
    scales[::2] = scale
    plain = op.L0LeastSquares.from_layer(weight, inputs, op.NOfM(2, 4))
    other = op.L0LeastSquares.from_layer(weight / scales, inputs * scales, op.NOfM(2, 4))
    live = torch.arange(SHAPE[1]) != 5
    blocks = diagonal_blocks(0.1 * torch.diag(plain.gram.diagonal()) * live, 4).clone()
    cut = scales.view(2, 4)
    stretched = blocks * cut[:, :, None] * cut[:, None, :]
    assert proves_blocks(plain.gram, blocks)
    assert proves_blocks(other.gram, stretched)
    point = weight + 0.1 * normal(rng, *SHAPE)
    assert bound(other, stretched, point / scales) == pytest.approx(bound(plain, blocks, point), rel=1e-9)
    touched = blocks.clone()
    touched[1, 1, 1] = 1e-9
    assert not proves_blocks(plain.gram, touched)


def test_blocks_that_are_not_symmetric_or_not_definite_prove_nothing(rng):
    problem = layer(rng, op.NOfM(2, 4))
    blocks = random_blocks(problem, rng, SHAPE[0])
    crooked = blocks.clone()
    crooked[0, 0, 0, 1] *= 1.001
    assert not proves_blocks(problem.gram, crooked)
    assert not proves_blocks(problem.gram, blocks[:, :1])
    assert bound(problem, -blocks, problem.dense) == -torch.inf
