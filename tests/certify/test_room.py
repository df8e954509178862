"""The step length to the boundary of the positive definite matrices."""

import torch

from optprune.certify._room import room


def test_the_length_is_that_of_the_generalised_eigenvalue():
    rng = torch.Generator().manual_seed(0)
    samples = torch.randn(3, 90, 40, generator=rng, dtype=torch.float64)
    matrix = samples.mT @ samples / 90
    change = torch.randn(3, 40, generator=rng, dtype=torch.float64)
    factor = torch.linalg.cholesky(matrix)
    half = torch.linalg.solve_triangular(factor, torch.diag_embed(change), upper=False)
    exact = 1 / torch.linalg.eigvalsh(torch.linalg.solve_triangular(factor, half.mT, upper=False))[:, -1]
    found = room(factor, lambda x: change * x)
    assert bool((found >= exact * (1 - 1e-12)).all())  # Lanczos' eigenvalue is never too large
    assert bool((found <= 1.05 * exact).all())


def test_a_change_that_only_adds_has_no_end_and_a_failed_factor_no_length():
    factor = torch.eye(5, dtype=torch.float64).expand(2, 5, 5).clone()
    factor[1, 3] = torch.nan
    found = room(factor, lambda x: -x)
    assert found[0] == torch.inf
    assert found[1].isnan()
    short = room(torch.eye(2, dtype=torch.float64)[None], lambda x: 2 * x)  # fewer inputs than steps
    torch.testing.assert_close(short, torch.tensor([0.5], dtype=torch.float64))
