from fractions import Fraction

import pytest
import torch

from optprune.errors import InvalidInputError
from optprune.numerics.rounding import SMALLEST, UNIT, gamma, product_error, quadratic_error, sum_error

F64 = torch.float64


def rational(matrix):
    return [[Fraction(value) for value in row] for row in matrix.tolist()]


def exact_product(a, b):
    left, right = rational(a), rational(b.mT)
    return [[sum((x * y for x, y in zip(row, col, strict=True)), Fraction(0)) for col in right] for row in left]


def draw(kind, *shape, seed):
    """Random, ill-conditioned (huge cancelling entries), and tiny numbers whose products underflow."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=g, dtype=F64)
    if kind == "graded":
        x *= torch.logspace(-8, 8, shape[-1], dtype=F64)
    if kind == "cancelling":
        half = shape[-1] // 2
        x[..., half : 2 * half] = -x[..., :half] * (1 + 1e-15 * torch.rand(half, generator=g, dtype=F64))
        x *= 1e6
    if kind == "tiny":
        x *= 2.0**-539
    return x


KINDS = ["random", "graded", "cancelling", "tiny"]


def test_gamma_is_rounded_up():
    for n in (0, 1, 2, 10, 10**6, 2**40):
        exact = Fraction(n) * Fraction(UNIT) / (1 - Fraction(n) * Fraction(UNIT))
        assert exact <= Fraction(gamma(n)) <= exact * (1 + 8 * Fraction(UNIT))
    for n in (-1, 2**52):
        with pytest.raises(InvalidInputError, match=f"n = {n}"):
            gamma(n)
    assert torch.finfo(F64).eps / 2 == UNIT
    assert SMALLEST > 0
    assert SMALLEST / 2 == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_products(kind, seed):
    a = draw(kind, 5, 31, seed=seed)
    b = draw("tiny" if kind == "tiny" else "random", 31, 4, seed=seed + 100)
    if kind == "cancelling":
        b[15:30] = b[:15]
    computed, bound = a @ b, product_error(a, b)
    truth = exact_product(a, b)
    for i in range(5):
        for j in range(4):
            error = abs(Fraction(float(computed[i, j])) - truth[i][j])
            assert error <= Fraction(float(bound[i, j]))
    if kind != "tiny":
        assert (bound <= 40 * UNIT * (a.abs() @ b.abs())).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_quadratic_forms(kind, seed):
    d = draw("cancelling" if kind == "cancelling" else "random", 4, 12, seed=seed)
    x = draw(kind, 20, 12, seed=seed + 50)
    gram = x.mT @ x
    computed, bound = ((d @ gram) * d).sum(-1), quadratic_error(d, gram)
    for i in range(4):
        row = d[i : i + 1]
        truth = sum(
            (value * Fraction(w) for value, w in zip(exact_product(row, gram)[0], d[i].tolist(), strict=True)),
            Fraction(0),
        )
        assert abs(Fraction(float(computed[i])) - truth) <= Fraction(float(bound[i]))
    size = ((d.abs() @ gram.abs()) * d.abs()).sum(-1)
    assert (bound <= 30 * UNIT * size + 1e-300).all()


@pytest.mark.parametrize("kind", KINDS)
def test_sums(kind):
    x = draw(kind, 3, 1001, seed=5)
    computed, bound = x.sum(-1), sum_error(x)
    for i in range(3):
        truth = sum((Fraction(v) for v in x[i].tolist()), Fraction(0))
        assert abs(Fraction(float(computed[i])) - truth) <= Fraction(float(bound[i]))
    assert (bound <= 1100 * UNIT * x.abs().sum(-1)).all()
    assert sum_error(x, dim=0).shape == (1001,)
    assert sum_error(torch.zeros(2, 0, dtype=F64)).tolist() == [0.0, 0.0]
    assert float(sum_error(torch.ones(1, dtype=F64))) == 0.0


def test_batches_and_float32_inputs():
    a, b = draw("random", 2, 3, 4, seed=0), draw("random", 2, 4, 5, seed=1)
    assert product_error(a, b).shape == (2, 3, 5)
    assert torch.equal(product_error(a.float(), b.float()), product_error(a.float().double(), b.float().double()))
    assert quadratic_error(a, b[..., :4]).shape == (2, 3)
    assert product_error(torch.zeros(2, 0, dtype=F64), torch.zeros(0, 3, dtype=F64)).shape == (2, 3)


def test_the_bounds_are_attained():
    """One rounding, as bad as roundings get: a constant smaller by one part in a hundred would be wrong."""
    x = torch.tensor([1.0, UNIT], dtype=F64)
    error = abs(Fraction(float(x.sum())) - (1 + Fraction(UNIT)))
    assert error <= Fraction(float(sum_error(x))) <= error * Fraction(101, 100)
    # (1 + e)^2 = 1 + 2e + e^2, where e^2 is nearly half a unit in the last place of the rest.
    factor = torch.tensor([[1 + round(2**25.5) * 2.0**-52]], dtype=F64)
    error = abs(Fraction(float(factor @ factor)) - Fraction(float(factor)) ** 2)
    assert error <= Fraction(float(product_error(factor, factor))) <= error * Fraction(101, 100)
