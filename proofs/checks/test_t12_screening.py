"""T12 against exhaustive search for every pattern, and where the exchange is exact."""

from dataclasses import replace
from itertools import product

import pytest
import torch

import optprune as op
from optprune.bounds.minorant import minorant_parts
from optprune.bounds.screening import screened
from optprune.certify import certify, least_squares
from proofs.checks.tiny import PATTERNS, SHAPE, normal


def layer(rng: torch.Generator, pattern: op.Pattern) -> op.L0LeastSquares:
    mix = torch.eye(SHAPE[1], dtype=torch.float64) + 0.2 * normal(rng, SHAPE[1], SHAPE[1])
    return op.L0LeastSquares.from_layer(normal(rng, *SHAPE), normal(rng, 60, SHAPE[1]) @ mix, pattern)


def values(problem: op.L0LeastSquares) -> list[tuple[float, torch.Tensor]]:
    """Objective and support of the best weight of every admissible support."""
    rows, columns = problem.shape
    found = []
    for bits in product((False, True), repeat=rows * columns):
        mask = torch.tensor(bits).reshape(rows, columns)
        if problem.pattern.admits(mask):
            weight = torch.zeros(rows, columns, dtype=torch.float64)
            for row in range(rows):
                kept = mask[row]
                weight[row, kept] = torch.linalg.solve(problem.gram[kept][:, kept], problem.linear[row, kept])
            found.append((float(problem.objective(weight)), mask))
    return found


def screen(problem: op.L0LeastSquares, minorant: torch.Tensor, point: torch.Tensor, upper: float):
    s = problem.statistics
    bound, gains = minorant_parts(
        problem.gram, s.cross, s.energy, s.reference, minorant, point, problem.pattern.support
    )
    return screened(bound, upper, gains, problem.pattern)


def largest(problem: op.L0LeastSquares, mask: torch.Tensor) -> torch.Tensor:
    """Every weight of the units that a support touches."""
    units = problem.pattern.units(mask)
    return problem.pattern.from_units(units.any(-1, keepdim=True).expand_as(units), SHAPE)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_what_is_settled_agrees_with_every_optimal_support(pattern, rng):
    settled = 0
    for _ in range(6):
        problem = layer(rng, pattern)
        table = values(problem)
        best = min(value for value, _ in table)
        optimal = [largest(problem, mask) for value, mask in table if value <= best + 1e-12]
        delta = torch.full((SHAPE[1],), 0.999 * float(torch.linalg.eigvalsh(problem.gram)[0]), dtype=torch.float64)
        for upper in (1.0, 1.01, 1.05):
            for near in (1.0, 0.5):
                start = problem.pattern.project(problem.dense)
                evidence = certify(problem, start)[1]
                minorant = evidence.get("minorant", delta)
                point = problem.dense + near * (evidence["point"] - problem.dense)
                zero, needed = screen(problem, minorant, point, best * upper + 1e-13)
                assert not bool((zero & needed).any())
                for mask in optimal:
                    assert not bool((zero & mask).any())
                    assert bool((mask | ~needed).all())
                settled += int(zero.sum() + needed.sum())
    assert settled > 0, "the instances would not notice a wrong rule"


def test_of_a_diagonal_hessian_the_threshold_is_exact(rng):
    """Equal inputs: the bound is the optimum, and an exchange costs half the difference of two gains exactly."""
    weight = torch.tensor([[4.0, 3.0, 2.0, 1.0]], dtype=torch.float64)
    inputs = torch.eye(4, dtype=torch.float64) * 2.0
    plain = op.L0LeastSquares.from_layer(weight, inputs, op.PerRow(2))
    problem = op.L0LeastSquares(replace(plain.statistics, gram=torch.eye(4, dtype=torch.float64)), op.PerRow(2))
    ones, point = torch.ones(4, dtype=torch.float64), normal(rng, 1, 4)
    best = 0.5 * (4.0 + 1.0)
    exchanged = best + 0.5 * (9.0 - 4.0)
    zero, needed = screen(problem, ones, point, best * (1 + 1e-9))
    assert zero.tolist() == [[False, False, True, True]]
    assert needed.tolist() == [[True, True, False, False]]
    zero, needed = screen(problem, ones, point, exchanged * 0.999)
    assert needed[0, 1]
    assert zero[0, 2]
    zero, needed = screen(problem, ones, point, exchanged * 1.001)
    assert not needed[0, 1], "what does without it is as good as the upper bound"
    assert not zero[0, 2], "what uses it is as good as the upper bound"
    assert needed[0, 0]
    assert zero[0, 3]


def test_the_certificate_counts_what_is_settled(rng, monkeypatch):
    monkeypatch.setattr(least_squares, "by_newton", lambda *_, **__: None)  # a minorant without pairs
    problem = layer(rng, op.PerRow(2))
    best = op.Exhaustive().run(problem).matrix
    certificate, evidence = certify(problem, best)
    zero, needed = screen(problem, evidence["minorant"], evidence["point"], certificate.upper_bound)
    assert certificate.details["proved_pruned"] == float(zero.sum())
    assert certificate.details["proved_kept"] == float(needed.sum())
    assert zero.sum() + needed.sum() > 0
    dense, _ = certify(problem, problem.dense)
    assert "proved_kept" not in dense.details, "an inadmissible weight bounds nothing from above"
