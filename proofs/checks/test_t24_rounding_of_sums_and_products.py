"""T24 in rational arithmetic: orders of summation, fused operations, subnormal numbers, and the case of equality."""

import random
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from optprune.numerics.rounding import SMALLEST, UNIT, gamma, product_error, quadratic_error, sum_error

SCALES = {"ordinary": 1.0, "subnormal": 2.0**-1060, "products underflow": 2.0**-537}


def numbers(count: int, scale: float, rng: torch.Generator) -> Tensor:
    """Half of them nearly cancel the others."""
    x = torch.randn(count, generator=rng, dtype=torch.float64) * 10 ** torch.randint(-3, 4, (count,), generator=rng)
    x[count // 2 :] = -x[: count - count // 2] * (1 + 1e-14)
    return x * scale


def in_some_order(terms: list[float], order: random.Random) -> float:
    """Add two parts, chosen by chance, until one is left."""
    parts = list(terms)
    while len(parts) > 1:
        order.shuffle(parts)
        parts.append(parts.pop() + parts.pop())
    return parts[0]


def fused(x: list[float], y: list[float]) -> float:
    """One rounding for each product and addition: a Fraction turns into the nearest float."""
    total = 0.0
    for a, b in zip(x, y, strict=True):
        total = float(Fraction(a) * Fraction(b) + Fraction(total))
    return total


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES.keys())
@pytest.mark.parametrize("count", [1, 2, 7, 64])
def test_sums_in_any_order(scale, count, rng):
    x = numbers(count, scale, rng)
    exact, bound = sum(map(Fraction, x.tolist())), Fraction(float(sum_error(x)))
    stated = Fraction(count - 1) * Fraction(UNIT) * sum(abs(Fraction(v)) for v in x.tolist())
    assert bound >= stated // Fraction(SMALLEST) * Fraction(SMALLEST)
    for seed in range(20):
        assert abs(Fraction(in_some_order(x.tolist(), random.Random(seed))) - exact) <= bound


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES.keys())
@pytest.mark.parametrize("count", [1, 3, 40])
def test_inner_products_in_any_order_and_fused(scale, count, rng):
    x, y = numbers(count, scale, rng), torch.randn(count, generator=rng, dtype=torch.float64) * scale
    pairs = list(zip(x.tolist(), y.tolist(), strict=True))
    exact = sum(Fraction(a) * Fraction(b) for a, b in pairs)
    size = sum(abs(Fraction(a) * Fraction(b)) for a, b in pairs)
    factor = Fraction(count) * Fraction(UNIT) / (1 - count * Fraction(UNIT))
    stated = factor * size + (1 + factor) * count * Fraction(SMALLEST) / 2
    assert Fraction(float(product_error(x[None], y[:, None]))) >= stated
    for seed in range(20):
        terms = [a * b for a, b in pairs]
        assert abs(Fraction(in_some_order(terms, random.Random(seed))) - exact) <= stated
    assert abs(Fraction(fused(x.tolist(), y.tolist())) - exact) <= stated


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES.keys())
def test_quadratic_forms(scale, rng):
    d, root = numbers(9, scale, rng), torch.randn(9, 9, generator=rng, dtype=torch.float64)
    gram = root.mT @ root
    g = [[Fraction(v) for v in row] for row in gram.tolist()]
    e = [Fraction(v) for v in d.tolist()]
    exact = sum(e[i] * g[i][j] * e[j] for i in range(9) for j in range(9))
    size = sum(abs(e[i] * g[i][j] * e[j]) for i in range(9) for j in range(9))
    factor = 18 * Fraction(UNIT) / (1 - 18 * Fraction(UNIT))
    stated = factor * size + 18 * Fraction(SMALLEST) * (sum(map(abs, e)) + 1)
    assert Fraction(float(quadratic_error(d[None], gram))) >= stated
    order = random.Random(0)
    for _ in range(5):
        inner = [
            in_some_order([a * b for a, b in zip(d.tolist(), column, strict=True)], order)
            for column in gram.mT.tolist()
        ]
        outer = in_some_order([z * a for z, a in zip(inner, d.tolist(), strict=True)], order)
        assert abs(Fraction(outer) - exact) <= stated


@pytest.mark.parametrize("wrong", [Fraction(1), Fraction(999, 1000)])
def test_one_rounding_attains_gamma(wrong):
    x = [1.0, UNIT]
    error = abs(Fraction(sum(x)) - sum(map(Fraction, x)))
    assert (error <= wrong * Fraction(gamma(1)) * sum(map(Fraction, x))) == (wrong == 1)


def test_gammas_of_two_computations_add():
    u = Fraction(UNIT)
    exact = {n: n * u / (1 - n * u) for n in (1, 2, 3, 50, 53, 10**6, 10**6 + 3)}
    for n, m in ((1, 2), (3, 50), (3, 10**6)):
        assert exact[n] + exact[m] + exact[n] * exact[m] <= exact[n + m]
    assert all((1 + u) ** n - 1 <= exact[n] for n in (1, 2, 3, 50, 53))
