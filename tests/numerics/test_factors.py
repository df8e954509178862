"""Cholesky factors of many matrices: they solve, and are NaN where there is none."""

import pytest
import torch

from optprune.numerics.factors import cholesky_factors, solve


def gram(batch, size, dtype):
    rng = torch.Generator().manual_seed(size)
    rows = torch.randn(batch, 2 * size, size, generator=rng, dtype=dtype)
    return rows.mT @ rows / (2 * size)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1, 7, 100])
def test_they_solve(size, dtype):
    matrix = gram(3, size, dtype)
    rhs = matrix[:, 0] + 1
    solved = (matrix @ solve(cholesky_factors(matrix), rhs).unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(solved, rhs, rtol=0, atol=1e4 * torch.finfo(dtype).eps)


def test_no_columns_no_factor():
    assert cholesky_factors(torch.zeros(2, 0, 0)).shape == (2, 0, 0)


@pytest.mark.parametrize("bad", [0, 31, 79])
def test_a_matrix_that_is_not_positive_definite_gives_nan_and_leaves_the_others_alone(bad):
    matrix = gram(3, 80, torch.float64)
    good = torch.linalg.cholesky(matrix)
    matrix[1, bad, bad] = -1.0
    factor = cholesky_factors(matrix)
    assert factor[1].isnan().all()
    assert solve(factor, matrix[:, 0])[1].isnan().all()
    torch.testing.assert_close(factor[[0, 2]], good[[0, 2]])
