"""Exact arithmetic against Python's fractions, denormals and wide ranges included."""

import math
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from optprune.errors import MissingDependencyError, NonFiniteError
from optprune.numerics.dyadic import BITS, Dyadic, Enclosure, round_down, round_up, total

finite = st.floats(allow_nan=False, allow_infinity=False)
matrices = arrays(np.float64, (3, 3), elements=finite)
rationals = st.fractions(min_value=0, max_value=10**12)


def values(matrix: torch.Tensor) -> list[Fraction]:
    return [Fraction(v) for v in matrix.flatten().tolist()]


@given(matrices)
def test_a_tensor_is_held_as_it_is(array):
    tensor = torch.from_numpy(array)
    assert Dyadic.of(tensor).fractions() == values(tensor)
    assert Dyadic.of(tensor.mT).mT.fractions() == values(tensor)


@settings(max_examples=30)
@given(matrices, matrices)
def test_sums_and_products_are_exact(a, b):
    x, y = torch.from_numpy(a), torch.from_numpy(b)
    p, q = Dyadic.of(x), Dyadic.of(y)
    fx, fy = values(x), values(y)
    assert (p + q).fractions() == [s + t for s, t in zip(fx, fy, strict=True)]
    assert (p - q).fractions() == [s - t for s, t in zip(fx, fy, strict=True)]
    assert (p * q).fractions() == [s * t for s, t in zip(fx, fy, strict=True)]
    assert (-p).abs().fractions() == [abs(s) for s in fx]
    assert p.clipped().fractions() == [max(s, Fraction(0)) for s in fx]
    assert p.sum().item() == sum(fx)
    assert p.sum(0).fractions() == [sum(fx[j::3]) for j in range(3)]
    assert p.max(1).fractions() == [max(fx[3 * i : 3 * i + 3]) for i in range(3)]
    assert Dyadic.stacked([p, q]).fractions() == fx + fy
    mask = x > 0
    assert p.where(mask).fractions() == [s if m else 0 for s, m in zip(fx, mask.flatten().tolist(), strict=True)]
    expected = [sum(fx[3 * i + k] * fy[3 * k + j] for k in range(3)) for i in range(3) for j in range(3)]
    assert (p @ q).fractions() == expected


def test_numbers_of_other_kinds():
    assert Dyadic.of(torch.tensor(0.1)).item() == Fraction(np.float32(0.1).item())
    assert Dyadic.of(torch.tensor([True, False])).fractions() == [1, 0]
    assert Dyadic.of(torch.zeros(0, 3)).shape == (0, 3)
    assert Dyadic.of(torch.tensor([5e-324, -1.7e308], dtype=torch.float64)).fractions() == [5e-324, Fraction(-1.7e308)]
    with pytest.raises(NonFiniteError, match="NaN or infinity"):
        Dyadic.of(torch.tensor([math.nan]))


@given(rationals)
def test_a_root_is_enclosed(value):
    root = Enclosure.point(value).root()
    assert root.low**2 <= value <= root.high**2
    assert root.high - root.low <= root.high / 2 ** (BITS - 2)
    whole = Fraction(value.numerator)
    assert Enclosure.point(whole**2).root() == Enclosure.point(whole)


@given(rationals, rationals, rationals)
def test_enclosures_hold_what_they_enclose(a, b, c):
    x, y = Enclosure(a, a + b), Enclosure(b, b + c)
    for s in (a, a + b):
        for t in (b, b + c):
            assert s + t in x + y
            assert s - t in x - y
            assert max(s - t, 0) in (x - y).clipped()
            assert s * c in x.times(c)
    assert total([x, y, x]) == x + y + x


@settings(max_examples=30)
@given(st.integers(-(10**200), 10**200), st.integers(1, 10**200))
def test_long_ends_are_shortened_outwards(numerator, denominator):
    value = Fraction(numerator, denominator)
    short = Enclosure.point(value).shortened()
    assert value in short
    assert short.high - short.low <= abs(value) / 2 ** (BITS - 2)
    assert Enclosure.point(numerator // 10**150).shortened() == Enclosure.point(numerator // 10**150)


@given(st.fractions() | st.integers(-(10**400), 10**400).map(Fraction))
def test_floats_are_the_nearest_on_their_side(value):
    low, high = round_down(value), round_up(value)
    assert low == -math.inf or low <= value
    assert high == math.inf or value <= high
    assert math.nextafter(low, math.inf) >= high
    assert math.copysign(1.0, round_up(Fraction(0))) == 1.0


def test_without_flint_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "flint", None)
    one = Dyadic.of(torch.ones(1, 1))
    with pytest.raises(MissingDependencyError, match=r"optprune\[proofs\]"):
        _ = one @ one
