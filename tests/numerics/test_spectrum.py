import pytest
import torch

from optprune.errors import InvalidInputError, NonFiniteError, NotPositiveDefiniteError
from optprune.numerics.spectrum import Spectrum

F64 = torch.float64


def gram_of(*shape, seed=0, dtype=F64):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return x.mT @ x / shape[-2]


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("samples", [3, 40])
def test_shifted_solves(scale, samples):
    gram = gram_of(2, samples, 6) * scale
    spectrum = Spectrum.of(gram)
    rhs = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(1), dtype=F64) * scale
    for shift in (1e-3 * scale, scale, 1e3 * scale):
        x = spectrum.solve(rhs, shift)
        torch.testing.assert_close(x @ gram + shift * x, rhs, rtol=1e-9, atol=1e-11 * scale)


def test_many_shifts_and_one_per_element():
    gram = gram_of(2, 40, 6)
    spectrum = Spectrum.of(gram)
    rhs = torch.ones(2, 1, 6, dtype=F64)
    shifts = torch.tensor([[0.1, 0.2], [1.0, 2.0], [0.0, 5.0]], dtype=F64)
    many = spectrum.solve(rhs, shifts)
    assert many.shape == (3, 2, 1, 6)
    for i in range(3):
        for b in range(2):
            one = Spectrum.of(gram[b]).solve(rhs[b], float(shifts[i, b]))
            torch.testing.assert_close(many[i, b], one, rtol=1e-12, atol=1e-13)


def test_rounding_below_zero_is_clamped_and_counted():
    gram = gram_of(3, 8)  # rank 3
    gram = torch.stack([gram - 1e-14 * torch.eye(8, dtype=F64), torch.eye(8, dtype=F64)])
    spectrum = Spectrum.of(gram)
    assert (spectrum.values >= 0).all()
    assert int(spectrum.clamped[0]) >= 4
    assert int(spectrum.clamped[1]) == 0
    recomposed = (spectrum.vectors * spectrum.values.unsqueeze(-2)) @ spectrum.vectors.mT
    torch.testing.assert_close(recomposed, gram, rtol=0, atol=1e-13)


def test_float32_rounding_needs_its_tolerance():
    gram = gram_of(20, 64, dtype=torch.float32)
    with pytest.raises(NotPositiveDefiniteError):
        Spectrum.of(gram)
    assert int(Spectrum.of(gram, tolerance=1e-5).clamped) > 0


def test_refusals():
    with pytest.raises(NotPositiveDefiniteError, match=r"element \(1,\).*-1"):
        Spectrum.of(torch.stack([torch.eye(2, dtype=F64), torch.diag(torch.tensor([1.0, -1.0], dtype=F64))]))
    with pytest.raises(NonFiniteError, match="1 NaN"):
        Spectrum.of(torch.tensor([[1.0, 0.0], [0.0, float("nan")]], dtype=F64))
    spectrum = Spectrum.of(torch.diag(torch.tensor([1.0, 0.0], dtype=F64)))
    rhs = torch.ones(1, 2, dtype=F64)
    with pytest.raises(NotPositiveDefiniteError, match="1 zero eigenvalue"):
        spectrum.solve(rhs, 0.0)
    for shift in (-1.0, float("nan")):
        with pytest.raises(InvalidInputError, match="shift"):
            spectrum.solve(rhs, shift)
    assert Spectrum.of(torch.zeros(2, 0, 0, dtype=F64)).values.shape == (2, 0)
