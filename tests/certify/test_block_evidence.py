"""Groups of an n of m pattern in blocks: what evidence has to be, and that only the order of the inputs changes."""

import pytest
import torch

import optprune as op
from optprune.bounds.block_minorant import block_minorant_bound
from optprune.certify import certify, recheck
from optprune.certify._block_evidence import MOST, blocked, choices_of, proves_blocks
from optprune.numerics.linalg import diagonal_blocks
from optprune.problems import L0LeastSquares
from optprune.testing.instances import data

PATTERN = op.NOfM(2, 4)


def layer(inputs: int = 12) -> L0LeastSquares:
    return L0LeastSquares.from_layer(*data(11, inputs=inputs, samples=80), pattern=PATTERN)


def evidence_of(problem: L0LeastSquares, groups: list[list[int]]) -> dict[str, torch.Tensor]:
    """Half of the least eigenvalue in blocks of these groups, and a point beside the weight."""
    size = len(groups[0]) * PATTERN.m
    least = 0.5 * torch.linalg.eigvalsh(problem.gram)[0]
    blocks = least * torch.eye(size, dtype=torch.float64).repeat(len(groups), 1, 1)
    here = torch.tensor(groups).repeat_interleave(PATTERN.m, 1) >= 0
    return {"blocks": blocks * here[:, :, None], "groups": torch.tensor(groups), "point": 0.9 * problem.dense}


def test_the_supports_of_several_groups_are_all_that_each_may_have():
    choices = choices_of(PATTERN, 2)
    assert choices.shape == (36, 4)
    masks = torch.zeros(36, 8, dtype=torch.bool).scatter_(1, choices, True)
    assert len(masks.unique(dim=0)) == 36
    assert bool((masks.view(36, 2, 4).sum(-1) == 2).all())
    assert choices_of(op.NOfM(1, 2), 3).shape == (8, 3)


def test_inputs_come_in_the_order_of_the_blocks_and_those_of_no_group_are_dead():
    problem = layer()
    found = blocked(problem, evidence_of(problem, [[2, 0], [-1, 1]]))
    assert found is not None
    order = [8, 9, 10, 11, 0, 1, 2, 3, 4, 5, 6, 7]
    places = [*range(8), *range(12, 16)]
    torch.testing.assert_close(found.gram[places][:, places], problem.gram[order][:, order], rtol=0.0, atol=0.0)
    torch.testing.assert_close(found.reference[:, places], problem.dense[:, order], rtol=0.0, atol=0.0)
    torch.testing.assert_close(found.cross[places], problem.statistics.cross[order], rtol=0.0, atol=0.0)
    assert bool((found.gram[8:12] == 0).all() & (found.point[:, 8:12] == 0).all() & (found.cross[8:12] == 0).all())


def test_a_diagonal_minorant_is_worth_the_same_in_any_blocks():
    """Its value separates over weights, whatever the blocks are."""
    problem = layer()
    matrix = op.Magnitude().run(problem).matrix
    bounds = [
        recheck(problem, matrix, evidence_of(problem, groups)).lower_bound
        for groups in ([[0], [1], [2]], [[1], [2], [0]], [[0, 2], [1, -1]], [[-1, 1], [2, 0]], [[2, 0, 1]])
    ]
    alone = evidence_of(problem, [[0], [1], [2]])
    del alone["groups"]
    assert 0 < recheck(problem, matrix, alone).lower_bound == bounds[0]
    assert bounds == pytest.approx([bounds[0]] * len(bounds), rel=1e-10)


@pytest.mark.parametrize(
    "groups", [[[0], [1]], [[0, 1], [1, 2]], [[0, 1], [2, 3]], [[0, 1], [-2, 2]], [[-1, 1], [2, -1]]], ids=str
)
def test_groups_that_are_missing_there_twice_or_out_of_range_prove_nothing(groups):
    problem = layer()
    evidence = evidence_of(problem, groups)
    assert blocked(problem, evidence) is None
    assert recheck(problem, op.Magnitude().run(problem).matrix, evidence).lower_bound == 0.0


def test_other_shapes_types_and_patterns_prove_nothing():
    problem = layer()
    good = evidence_of(problem, [[0, 1], [2, -1]])
    assert blocked(problem, good) is not None
    for wrong in (
        {"groups": good["groups"].int()},
        {"groups": good["groups"].flatten()},
        {"blocks": good["blocks"][:, :4]},
        {"blocks": good["blocks"][:1]},
        {"blocks": good["blocks"].expand(3, -1, -1, -1)},
        {"point": good["point"][:, :8]},
    ):
        assert blocked(problem, good | wrong) is None
    unstructured = L0LeastSquares.from_layer(*data(11, inputs=12, samples=80), pattern=op.PerRow(6))
    assert blocked(unstructured, good) is None
    wide = layer(24)
    many = evidence_of(wide, [[0, 1, 2, 3, 4, 5]])
    assert MOST < 6**6
    assert blocked(wide, many) is None


def test_a_block_with_weight_where_there_is_no_group_is_refused():
    problem = layer()
    evidence = evidence_of(problem, [[0, 1], [2, -1]])
    found = blocked(problem, evidence)
    assert found is not None
    assert proves_blocks(found.gram, found.blocks)
    evidence["blocks"][1, 7, 7] = 1e-6
    forged = blocked(problem, evidence)
    assert forged is not None
    assert not proves_blocks(forged.gram, forged.blocks)


@pytest.mark.parametrize("pattern", [op.NOfM(1, 2), op.NOfM(2, 4), op.NOfM(1, 4), op.NOfM(3, 4)], ids=repr)
@pytest.mark.parametrize("inputs", [8, 12])
def test_the_bound_of_blocks_of_groups_is_below_the_optimum_and_above_that_of_single_groups(
    pattern, inputs, monkeypatch
):
    rng = torch.Generator().manual_seed(2)
    rows = torch.randn(60, inputs, generator=rng, dtype=torch.float64)
    rows = rows @ (torch.eye(inputs) + 0.6 * torch.randn(inputs, inputs, generator=rng)).double()
    problem = L0LeastSquares.from_layer(torch.randn(4, inputs, generator=rng, dtype=torch.float64), rows, pattern)
    best = op.Exhaustive().run(problem).matrix
    together, evidence = certify(problem, best)
    assert evidence["groups"].shape[1] > 1
    assert together.lower_bound <= float(problem.objective(best)) * (1 + 1e-12)
    monkeypatch.setattr("optprune.certify._by_blocks.MOST_CHOICES", 6)
    alone, evidence = certify(problem, best)
    assert alone.gap > 0
    assert together.gap < (1.0 if evidence["groups"].shape[1] > 1 else 0.95) * alone.gap


def test_one_block_of_all_groups_is_the_optimum():
    """T10 (b), up to the little that keeps the rest definite."""
    problem = layer()
    best = op.Exhaustive().run(problem).matrix
    gram = (1 - 1e-9) * problem.gram
    evidence = {"blocks": gram[None], "groups": torch.tensor([[0, 1, 2]]), "point": best}
    found = blocked(problem, evidence)
    assert found is not None
    assert proves_blocks(found.gram, found.blocks)
    assert diagonal_blocks(found.gram, 12).shape == (1, 12, 12)
    optimum = float(problem.objective(best))
    assert optimum * (1 - 1e-6) < block_minorant_bound(*found) <= optimum
