"""Enumeration, against an enumeration written again here, without the library's patterns."""

from __future__ import annotations

import itertools

import pytest
import torch

import optprune as op
from optprune.errors import InvalidInputError
from optprune.problems import L0LeastSquares, stack
from optprune.testing.instances import data

OUT, IN = 2, 4


def least(problem, mask):
    """The smallest error on a support, by torch's least squares on each row."""
    total = 0.0
    gram, linear = problem.gram, problem.linear
    for row in range(OUT):
        kept = mask[row].nonzero().flatten()
        weight = torch.zeros(IN, dtype=torch.float64)
        if len(kept):
            weight[kept] = torch.linalg.solve(gram[kept][:, kept], linear[row, kept])
        total += float(0.5 * weight @ gram @ weight - linear[row] @ weight + 0.5 * problem.energy[row])
    return total


def allowed(name, mask):
    """Whether a mask lies in the pattern, in words of its own."""
    rows, columns = mask.any(1).sum(), mask.any(0).sum()
    return bool(
        {
            "PerLayer(k=3)": mask.sum() <= 3,
            "PerRow(k=1)": (mask.sum(1) <= 1).all(),
            "NOfM(n=1, m=2)": (mask.reshape(OUT, 2, 2).sum(-1) <= 1).all(),
            "Rows(k=1)": rows <= 1,
            "Columns(k=2)": columns <= 2,
            "Blocks(rows=2, columns=2, k=1)": mask[:, :2].any().int() + mask[:, 2:].any().int() <= 1,
        }[name]
    )


PATTERNS = [op.PerLayer(3), op.PerRow(1), op.NOfM(1, 2), op.Rows(1), op.Columns(2), op.Blocks(2, 2, 1)]


@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
@pytest.mark.parametrize("chunk", [5, 20_000])
def test_it_finds_the_best_of_all_masks(pattern, chunk):
    problem = L0LeastSquares.from_layer(*data(0, OUT, IN), pattern=pattern)
    masks = (torch.tensor(bits).reshape(OUT, IN) for bits in itertools.product([False, True], repeat=OUT * IN))
    best = min(least(problem, mask) for mask in masks if allowed(repr(pattern), mask))
    matrix = op.Exhaustive(chunk=chunk).run(problem).matrix
    assert pattern.admits(matrix != 0)
    assert float(problem.objective(matrix)) == pytest.approx(best, rel=1e-10)


def test_fixed_has_one_support():
    mask = torch.tensor([[True, False, True, False], [False, False, False, True]])
    problem = L0LeastSquares.from_layer(*data(1, OUT, IN), pattern=op.Fixed(mask))
    answer = op.Exhaustive().run(problem)
    assert answer.steps == 1
    assert torch.equal(answer.matrix != 0, mask)
    assert float(problem.objective(answer.matrix)) == pytest.approx(least(problem, mask), rel=1e-10)


def test_a_stack_is_its_members():
    problems = [L0LeastSquares.from_layer(*data(seed, OUT, IN), pattern=op.PerLayer(3)) for seed in (2, 3)]
    answer = op.Exhaustive().run(stack(problems))
    for problem, matrix in zip(problems, answer.matrix, strict=True):
        assert torch.equal(matrix, op.Exhaustive().run(problem).matrix)


def test_too_many_supports_are_refused():
    problem = L0LeastSquares.from_layer(*data(4, OUT, IN), pattern=op.PerLayer(4))
    assert op.Exhaustive(limit=70).run(problem).steps == 70  # 8 choose 4
    with pytest.raises(InvalidInputError, match="70 supports; it accepts at most 69"):
        op.Exhaustive(limit=69).run(problem)
