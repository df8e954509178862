"""Cholesky by block columns: the library's factor, at every size and precision, and NaN where there is none."""

import pytest
import torch

from optprune.numerics.blocked import blocked_cholesky, solve


def gram(batch, size, dtype):
    rng = torch.Generator().manual_seed(size)
    rows = torch.randn(batch, 2 * size, size, generator=rng, dtype=dtype)
    return rows.mT @ rows / (2 * size)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1, 7, 32, 33, 100])
def test_it_is_the_cholesky_factor(size, dtype):
    matrix = gram(3, size, dtype)
    factor = blocked_cholesky(matrix)
    assert not factor.triu(1).any()
    torch.testing.assert_close(factor, torch.linalg.cholesky(matrix), rtol=0, atol=100 * torch.finfo(dtype).eps)
    rhs = matrix[:, 0] + 1
    solved = (matrix @ solve(factor, rhs).unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(solved, rhs, rtol=0, atol=1e4 * torch.finfo(dtype).eps)


def test_no_columns_no_factor():
    assert blocked_cholesky(torch.zeros(2, 0, 0)).shape == (2, 0, 0)


@pytest.mark.parametrize("bad", [0, 31, 32, 70])
def test_a_matrix_that_is_not_positive_definite_gives_nan_and_leaves_the_others_alone(bad):
    matrix = gram(3, 80, torch.float64)
    good = torch.linalg.cholesky(matrix)
    matrix[1, bad, bad] = -1.0
    factor = blocked_cholesky(matrix)
    assert factor[1].diagonal()[bad // 32 * 32 :].isnan().all()
    torch.testing.assert_close(factor[[0, 2]], good[[0, 2]])
    torch.testing.assert_close(
        factor[1, : bad // 32 * 32, : bad // 32 * 32], good[1, : bad // 32 * 32, : bad // 32 * 32]
    )
