"""Bounds with blocks in rational arithmetic, against float64 at every scale and against forged evidence."""

import math
from dataclasses import replace

import pytest
import torch

import optprune as op
from optprune.bounds.block_minorant import block_minorant_bound
from optprune.certify import LeastSquaresChecker
from optprune.certify._block_evidence import blocked
from optprune.certify._exact_blocks import exact_block_bound
from tests.certify.test_least_squares import layer


def l0(pattern, gram, weight):
    s = op.L0LeastSquares.from_layer(*layer(1), pattern).statistics
    return op.L0LeastSquares(replace(s, gram=s.gram * gram, reference=s.reference * weight), pattern, 0.01)


@pytest.mark.parametrize("pattern", [op.NOfM(2, 4), op.NOfM(1, 2)], ids=repr)
def test_the_bound_of_blocks_is_below_the_exact_one_at_every_scale(pattern, rng):
    base = l0(pattern, 1.0, 1.0)
    evidence = LeastSquaresChecker(effort=1e7).evidence(base, pattern.project(base.dense), {})
    told = 0
    for gram in (2.0**k for k in (-1000, -600, -40, 0, 40, 600, 1000)):
        for weight in (2.0**k for k in (-500, -60, 0, 60, 300, 500)):
            problem = l0(pattern, gram, weight)
            noise = 1e-3 * torch.randn(2, 8, generator=rng, dtype=torch.float64)
            scaled = {"blocks": evidence["blocks"] * gram, "point": (evidence["point"] + noise) * weight}
            arguments = blocked(problem, evidence | scaled)
            assert arguments is not None
            value = block_minorant_bound(*arguments)
            assert value < math.inf
            assert max(0.0, value) <= exact_block_bound(*arguments).low
            told += value > 0
    assert told >= 6


def test_forged_blocks_prove_nothing(rng):
    problem = l0(op.NOfM(2, 4), 1.0, 1.0)
    evidence = LeastSquaresChecker(effort=1e7).evidence(problem, problem.pattern.project(problem.dense), {})
    arguments = blocked(problem, evidence)
    assert arguments is not None
    assert exact_block_bound(*arguments).low > 0
    blocks = arguments.blocks
    crooked = blocks.clone()
    crooked[0, 0, 0, 1] *= 1 + 1e-12
    for forged in (crooked, 2 * blocks, -blocks, blocks[..., :4, :4], torch.zeros_like(blocks)):
        assert exact_block_bound(*arguments._replace(blocks=forged)).high == 0
