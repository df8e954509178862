import mpmath
import pytest
import torch

from optprune.errors import InvalidInputError, NonFiniteError, NotPositiveDefiniteError
from optprune.numerics.linalg import (
    cholesky,
    damped,
    factorize,
    is_positive_semidefinite_certified,
    spectral_norm,
)

F64 = torch.float64
U = 2.0**-53


def samples(*shape, seed=0, dtype=F64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def gram_of(x):
    return x.mT @ x / x.shape[-2]


def test_damped_adds_a_share_of_the_mean_diagonal():
    gram = gram_of(samples(3, 50, 4)) * torch.tensor([1e-6, 1.0, 1e6], dtype=F64).reshape(3, 1, 1)
    mean = gram.diagonal(dim1=-2, dim2=-1).mean(-1)
    before = gram.clone()
    added = damped(gram, 0.5) - gram
    torch.testing.assert_close(added, 0.5 * mean.reshape(3, 1, 1) * torch.eye(4, dtype=F64), rtol=1e-12, atol=0)
    per_element = damped(gram, torch.tensor([0.0, 0.1, 0.0], dtype=F64))
    assert torch.equal(per_element[::2], gram[::2])
    assert not torch.equal(per_element[1], gram[1])
    assert torch.equal(gram, before)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_cholesky_and_factor_solve(dtype, scale):
    gram = gram_of(samples(2, 3, 40, 8, dtype=dtype) * scale)
    factor = cholesky(gram)
    torch.testing.assert_close(factor @ factor.mT, gram, rtol=1e-5, atol=1e-6 * scale**2)
    held = factorize(gram)
    assert held.damping.shape == (2, 3)
    assert not held.damping.any()
    rhs = samples(2, 3, 8, 5, dtype=dtype) * scale**2
    torch.testing.assert_close(gram @ held.solve(rhs), rhs, rtol=1e-3, atol=1e-5 * scale**2)
    inverse = held.inverse()
    assert torch.equal(inverse, inverse.mT)
    eye = torch.eye(8, dtype=dtype).expand(2, 3, 8, 8)
    torch.testing.assert_close(gram @ inverse, eye, rtol=0, atol=1e-4)


def test_cholesky_names_the_element_and_the_minor():
    gram = torch.eye(4, dtype=F64).repeat(2, 3, 1, 1)
    gram[1, 2, 2, 2] = -1.0
    with pytest.raises(NotPositiveDefiniteError, match=r"weird Gram.*\(1, 2\).*1 of 6.*order 3"):
        cholesky(gram, what="weird Gram")
    gram[0, 1, 1, 1] = float("inf")
    with pytest.raises(NonFiniteError, match=r"1 NaN or infinite.*\(0, 1, 1, 1\)"):
        cholesky(gram)


def test_a_pivot_of_pure_rounding_is_refused():
    x = samples(100, 6)
    x[:, 5] = x[:, 2]
    with pytest.raises(NotPositiveDefiniteError):
        cholesky(gram_of(x))


def test_only_the_failing_elements_climb_the_ladder():
    x = samples(4, 60, 6)
    x[1, :, 5] = x[1, :, 0]
    x[2, :, 3] = 0
    gram = gram_of(x)
    held = factorize(gram)
    assert held.damping[0] == held.damping[3] == 0
    assert held.damping[1] in (1e-12, 1e-10)
    assert held.damping[2] == 1e-12
    torch.testing.assert_close(held.factor @ held.factor.mT, damped(gram, held.damping), rtol=1e-12, atol=1e-14)
    asked = factorize(gram, 1e-3)
    assert torch.equal(asked.damping, torch.full((4,), 1e-3, dtype=F64))
    # Alone or in the batch, an element gets the same answer.
    for i in range(4):
        assert factorize(gram[i]).damping == held.damping[i]


def test_the_ladder_ends():
    with pytest.raises(NotPositiveDefiniteError, match=r"even with damping 0\.0001"):
        factorize(torch.diag(torch.tensor([1.0, -0.1], dtype=F64)))
    with pytest.raises(NotPositiveDefiniteError):
        factorize(torch.zeros(3, 3, dtype=F64))
    with pytest.raises(NotPositiveDefiniteError, match=r"positive definite in torch.float64: the"):
        factorize(torch.diag(torch.tensor([1.0, 0.0], dtype=F64)), ladder=())
    for damping in (-1.0, float("nan"), float("inf")):
        with pytest.raises(InvalidInputError, match="damping"):
            factorize(torch.eye(2, dtype=F64), damping)
    with pytest.raises(NonFiniteError):
        factorize(torch.full((2, 2), float("nan"), dtype=F64))


def test_empty_batches_and_sizes():
    assert factorize(torch.zeros(0, 3, 3, dtype=F64)).factor.shape == (0, 3, 3)
    assert factorize(torch.zeros(2, 0, 0, dtype=F64)).solve(torch.zeros(2, 0, 1, dtype=F64)).shape == (
        2,
        0,
        1,
    )
    assert is_positive_semidefinite_certified(torch.zeros(2, 0, 0, dtype=F64)).tolist() == [True, True]
    assert spectral_norm(torch.zeros(3, 0, 4, dtype=F64)).tolist() == [0.0, 0.0, 0.0]


def spectrum_with(values, seed):
    q, _ = torch.linalg.qr(samples(len(values), len(values), seed=seed))
    matrix = (q * torch.as_tensor(values, dtype=F64)) @ q.mT
    return (matrix + matrix.mT) / 2


def smallest_eigenvalue(matrix):
    """In 60 digits: the matrix as stored, no rounding."""
    with mpmath.workdps(60):
        return mpmath.eigsy(mpmath.matrix(matrix.tolist()), eigvals_only=True)[0]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("scale", [2.0**-600, 1e-6, 1.0, 1e6])
def test_a_certified_matrix_is_semidefinite_in_exact_arithmetic(seed, scale):
    """Smallest eigenvalues on both sides of zero, down to the rounding level: True is never wrong."""
    size, proved = 7, 0
    for level in (-1e-3, -1e-14, -1e-15, -2e-16, 0.0, 1e-16, 1e-15, 1e-14, 4e-14, 1e-3):
        values = torch.linspace(1, 2, size, dtype=F64)
        values[0] = level
        matrix = spectrum_with(values, seed) * scale
        if bool(is_positive_semidefinite_certified(matrix)):
            proved += 1
            assert smallest_eigenvalue(matrix) >= 0
        else:
            trace = float(matrix.trace())
            assert smallest_eigenvalue(matrix) < 4.1 * (size + 3) * U * trace
    assert proved >= 2


def test_certified_margin_batch_and_graded_scales():
    grading = torch.logspace(-6, 6, 9, dtype=F64)
    good = spectrum_with(torch.linspace(1, 3, 9), 0)
    batch = torch.stack([good, -good, good * grading * grading.unsqueeze(-1), good])
    batch[3, 4, 4] = float("nan")
    assert is_positive_semidefinite_certified(batch).tolist() == [True, False, False, False]
    margins = torch.tensor([1 - 1e-12, 1.0, 1 + 1e-12], dtype=F64)
    assert is_positive_semidefinite_certified(good.expand(3, 9, 9), margins).tolist() == [True, False, False]
    assert bool(is_positive_semidefinite_certified(torch.zeros(3, 3, dtype=F64)))
    assert not bool(is_positive_semidefinite_certified(torch.zeros(3, 3, dtype=F64), 1e-300))
    assert bool(is_positive_semidefinite_certified(-good, -4.0))
    assert not bool(is_positive_semidefinite_certified(-good, -2.9))


def test_the_proof_trusts_no_factor(monkeypatch):
    """A factorisation that claims success with a factor a little off is found out by the residual."""
    matrix = spectrum_with(torch.linspace(1, 2, 6), 0)
    assert bool(is_positive_semidefinite_certified(matrix))
    inner = torch.linalg.cholesky_ex

    def liar(a):
        factor, info = inner(a)
        return factor * (1 + 1e-13), info

    monkeypatch.setattr(torch.linalg, "cholesky_ex", liar)
    assert not bool(is_positive_semidefinite_certified(matrix))


def test_a_hollow_matrix_is_not_certified():
    assert not bool(is_positive_semidefinite_certified(torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=F64)))
    assert not bool(is_positive_semidefinite_certified(torch.tensor([[1.0, 2.0], [2.0, 1.0]], dtype=F64)))


@pytest.mark.parametrize("shape", [(1, 1), (5, 1), (1, 5), (6, 9), (30, 8)])
@pytest.mark.parametrize("scale", [2.0**-500, 1e-6, 1.0, 1e6, 2.0**500])
def test_spectral_norm_is_a_tight_upper_bound(shape, scale):
    matrix = samples(*shape, seed=shape[0]) * scale
    with mpmath.workdps(50):
        exact = max(mpmath.svd_r(mpmath.matrix(matrix.tolist()), compute_uv=False))
    bound = float(spectral_norm(matrix))
    assert bound >= exact
    assert bound <= exact * (1 + 1e-12)


def test_spectral_norm_of_low_rank_zero_batch_and_float32():
    rank_one = samples(40, 1) @ samples(1, 30, seed=1)
    expected = torch.linalg.svdvals(rank_one)[0]
    bound = spectral_norm(torch.stack([rank_one, torch.zeros_like(rank_one), rank_one * 3]))
    torch.testing.assert_close(bound, expected * torch.tensor([1, 0, 3], dtype=F64), rtol=1e-11, atol=0)
    assert (bound >= expected * torch.tensor([1, 0, 3], dtype=F64)).all()
    assert spectral_norm(samples(4, 3, dtype=torch.float32)).dtype == F64
    with pytest.raises(NonFiniteError):
        spectral_norm(torch.tensor([[float("nan")]], dtype=F64))
