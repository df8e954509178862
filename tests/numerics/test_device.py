"""The same numbers on a device as on the CPU."""

import pytest
import torch

from optprune.numerics.linalg import factorize, is_positive_semidefinite_certified, spectral_norm
from optprune.numerics.masked import masked_least_squares
from optprune.numerics.sampling import Reservoir, choose, generator
from optprune.numerics.selection import top_k
from optprune.numerics.spectrum import Spectrum

F64 = torch.float64


@pytest.fixture
def gram():
    x = torch.randn(2, 300, 64, generator=torch.Generator().manual_seed(0), dtype=F64)
    return x.mT @ x / 300


def test_selection_is_the_same(gram, device):
    for scores in (gram, gram.mul(4).round(), gram.float()):
        k = torch.arange(64).expand(2, 64)
        assert torch.equal(top_k(scores.to(device), 9).cpu(), top_k(scores, 9))
        assert torch.equal(top_k(scores.to(device), k).cpu(), top_k(scores, k))


def test_solves_agree(gram, device):
    rhs = torch.randn(2, 20, 64, generator=torch.Generator().manual_seed(1), dtype=F64)
    for density in (0.2, 0.9):
        mask = torch.rand(2, 20, 64, generator=torch.Generator().manual_seed(2)) < density
        here = masked_least_squares(gram, rhs, mask).weight
        there = masked_least_squares(gram.to(device), rhs.to(device), mask.to(device)).weight
        torch.testing.assert_close(there.cpu(), here, rtol=1e-10, atol=1e-10)
    columns = rhs.mT.contiguous()
    factor = factorize(gram.to(device))
    torch.testing.assert_close(factor.solve(columns.to(device)).cpu(), factorize(gram).solve(columns))
    shifted = Spectrum.of(gram.to(device)).solve(rhs.to(device), 0.1)
    torch.testing.assert_close(shifted.cpu(), Spectrum.of(gram).solve(rhs, 0.1))


def test_proofs_hold(gram, device):
    assert is_positive_semidefinite_certified(gram.to(device)).all()
    assert not is_positive_semidefinite_certified(-gram.to(device)).any()
    bound, exact = spectral_norm(gram.to(device)).cpu(), torch.linalg.svdvals(gram)[:, 0]
    assert (bound >= exact * (1 - 1e-14)).all()
    torch.testing.assert_close(bound, exact, rtol=1e-10, atol=0)


def test_rows_on_the_device_with_a_generator_on_the_cpu(device):
    x = torch.arange(100.0, device=device).unsqueeze(-1)
    reservoir = Reservoir(10, generator(0))
    for part in x.split(7):
        reservoir.add(part)
    (rows,) = reservoir.finish()
    assert rows.device.type == device
    assert len(rows) == 10
    assert choose(100, 5, generator(0, device)).device.type == device
