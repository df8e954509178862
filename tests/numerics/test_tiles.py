"""Arithmetic of small blocks: one number per block and several give what dense algebra gives."""

import pytest
import torch

from optprune.numerics.tiles import diagonal_blocks, divided, ratio, root, times


def definite(width, count=5, seed=0):
    rows = torch.randn(count, 3 * width, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return rows.mT @ rows


@pytest.mark.parametrize("width", [1, 3])
def test_blocks_are_what_dense_algebra_says(width):
    below, above = definite(width), definite(width, seed=1)
    factor = root(below)
    torch.testing.assert_close(factor @ factor.mT, below)
    torch.testing.assert_close(divided(factor, above), torch.linalg.solve(factor, above))
    torch.testing.assert_close(times(below, above), below @ above)
    torch.testing.assert_close(ratio(below, above), torch.linalg.solve(below, above).diagonal(dim1=1, dim2=2).sum(-1))


def test_diagonal_blocks_are_copied():
    matrix = definite(6)
    blocks = diagonal_blocks(matrix, 2)
    assert blocks.shape == (5, 3, 2, 2)
    torch.testing.assert_close(blocks[:, 1], matrix[:, 2:4, 2:4])
    blocks.zero_()
    assert bool((matrix != 0).all())


@pytest.mark.parametrize("width", [1, 2])
def test_a_block_that_is_not_definite_shows(width):
    assert bool(root(-definite(width)).isnan().any())
