"""Conjugate gradients on supports: the same answers as factorisation, an honest residual, hostile blocks."""

import pytest
import torch

from optprune.errors import InvalidInputError, NonFiniteError
from optprune.numerics.conjugate import masked_conjugate_gradients
from optprune.numerics.masked import masked_least_squares


def problem(d_out=7, d_in=20, samples=80, batch=(), seed=0):
    rng = torch.Generator().manual_seed(seed)
    rows = torch.randn(*batch, samples, d_in, generator=rng, dtype=torch.float64)
    weight = torch.randn(*batch, d_out, d_in, generator=rng, dtype=torch.float64)
    gram = rows.mT @ rows / samples
    return gram, weight @ gram, torch.rand(*batch, d_out, d_in, generator=rng) < 0.5


@pytest.mark.parametrize("batch", [(), (3,), (2, 2)])
def test_it_finds_what_factorisation_finds(batch):
    gram, rhs, mask = problem(batch=batch)
    found = masked_conjugate_gradients(gram, rhs, mask)
    torch.testing.assert_close(found.weight, masked_least_squares(gram, rhs, mask).weight, rtol=1e-8, atol=1e-9)
    assert float(found.residual.max()) <= 1e-10
    assert bool((found.weight[~mask] == 0).all())


def test_units_of_the_inputs_do_not_matter():
    gram, rhs, mask = problem()
    units = torch.logspace(-6, 6, 20, dtype=torch.float64)
    plain = masked_conjugate_gradients(gram, rhs, mask)
    scaled = masked_conjugate_gradients(gram * units * units.unsqueeze(-1), rhs * units, mask)
    torch.testing.assert_close(scaled.weight * units, plain.weight, rtol=1e-8, atol=1e-9)
    assert scaled.steps == plain.steps


def test_the_residual_is_that_of_the_weight():
    gram, rhs, mask = problem(d_in=60, samples=70)
    found = masked_conjugate_gradients(gram, rhs, mask, max_steps=7)
    assert found.steps == 7
    scale = gram.diagonal().rsqrt()
    missed = ((rhs - found.weight @ gram) * scale * mask).norm(dim=-1) / (rhs * scale * mask).norm(dim=-1)
    torch.testing.assert_close(found.residual, missed)
    assert float(found.residual.max()) > 1e-10


def test_dead_inputs_empty_rows_and_singular_blocks():
    gram, rhs, mask = problem(samples=8)
    gram[3] = gram[:, 3] = rhs[:, 3] = 0
    mask[0] = False
    found = masked_conjugate_gradients(gram, rhs, mask)
    assert bool((found.weight[:, 3] == 0).all())
    assert bool((found.weight[0] == 0).all())
    assert float(found.residual.max()) <= 1e-10


@pytest.mark.parametrize("setting", [{"tolerance": 0.0}, {"max_steps": 0}])
def test_impossible_settings_are_refused(setting):
    with pytest.raises(InvalidInputError, match=next(iter(setting))):
        masked_conjugate_gradients(*problem(), **setting)


def test_nan_is_refused():
    gram, rhs, mask = problem()
    with pytest.raises(NonFiniteError):
        masked_conjugate_gradients(gram, rhs * torch.nan, mask)
