"""The recursion as numbers: against matrices, against the closed form, and rounding up."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from optprune.bounds._theorem import THEOREMS, theorem_of
from optprune.bounds.propagation import (
    added,
    affine,
    average_gain,
    axis_multiplicity,
    chain,
    convolution_gain,
    plus,
    stacked,
    through,
    times,
)
from optprune.errors import InvalidInputError

sizes = st.floats(min_value=0, max_value=1e100)


@given(sizes, sizes)
def test_products_and_sums_round_up(a, b):
    assert Fraction(times(a, b)) >= Fraction(a) * Fraction(b)
    assert Fraction(plus(a, b)) >= Fraction(a) + Fraction(b)
    assert times(a, b) <= a * b * (1 + 2**-50) + 5e-324
    assert plus(a, b) <= (a + b) * (1 + 2**-50) + 5e-324


@given(st.lists(sizes, max_size=6))
def test_stacking_rounds_up(values):
    assert Fraction(stacked(values)) ** 2 >= sum(Fraction(value) ** 2 for value in values)
    assert stacked(values) <= math.hypot(*values) * (1 + 2**-50) + 2e-323


@given(st.lists(st.tuples(sizes, st.floats(0, 10), st.floats(0, 2)), max_size=5))
def test_the_chain_is_the_sum_of_the_theorem(layers):
    errors, gains, constants = ([layer[i] for layer in layers] for i in range(3))
    exact = Fraction(0)
    for l, (error, _, constant) in enumerate(layers):
        term = Fraction(error) * Fraction(constant)
        for _, gain, behind in layers[l + 1 :]:
            term *= Fraction(gain) * Fraction(behind)
        exact += term
    found = chain(errors, gains, constants)
    assert Fraction(found) >= exact
    assert found <= float(exact) * (1 + 1e-12) + 1e-300


def test_zero_stays_zero():
    assert affine(3.0, 0.0, 0.0) == through(2.0, 0.0) == added([]) == stacked([0.0, 0.0]) == 0.0


def test_an_affine_step_bounds_matrices_and_is_attained():
    rng = torch.Generator().manual_seed(0)
    for _ in range(50):
        dense, pruned = (torch.randn(4, 6, generator=rng, dtype=torch.float64) for _ in range(2))
        x, step = (torch.randn(6, 9, generator=rng, dtype=torch.float64) for _ in range(2))
        measured = float((pruned @ (x + step) - dense @ x).norm())
        spectral = float(torch.linalg.matrix_norm(pruned, 2)) * (1 + 1e-14)
        local = float(((pruned - dense) @ x).norm()) * (1 + 1e-14)
        assert measured <= affine(spectral, float(step.norm()) * (1 + 1e-14), local)
    assert affine(2.0, 3.0, 4.0) == pytest.approx(10.0, rel=1e-14)


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation", "count"),
    [(3, 1, 1, 3), (3, 2, 1, 2), (3, 3, 1, 1), (3, 2, 2, 3), (2, 4, 6, 1), (5, 4, 2, 3), (1, 1, 1, 1)],
)
def test_multiplicity_along_an_axis(kernel, stride, dilation, count):
    assert axis_multiplicity(kernel, stride, dilation) == count


def test_gains_of_convolutions_and_means():
    assert convolution_gain(2.0, 9) == pytest.approx(6.0, rel=1e-14)
    assert average_gain(4, 9) == pytest.approx(2 / 3, rel=1e-14)
    assert Fraction(average_gain(1, 3)) ** 2 >= Fraction(1, 3)
    assert Fraction(convolution_gain(1.0, 2)) ** 2 >= 2


@pytest.mark.parametrize(
    "call",
    [
        lambda: affine(-1.0, 0.0, 0.0),
        lambda: affine(1.0, math.nan, 0.0),
        lambda: through(math.nan, 1.0),
        lambda: added([1.0, -1.0]),
        lambda: stacked([math.nan]),
        lambda: chain([1.0], [1.0, 2.0]),
        lambda: axis_multiplicity(0, 1, 1),
        lambda: average_gain(1, 0),
        lambda: convolution_gain(-1.0, 1),
    ],
)
def test_what_is_no_size_is_refused(call):
    with pytest.raises(InvalidInputError):
        call()


def test_every_step_names_its_theorem():
    functions = (affine, through, added, stacked, chain, convolution_gain, axis_multiplicity, average_gain)
    assert {theorem_of(function) for function in functions} == {"T04"}
    assert {f"optprune.bounds.propagation.{function.__name__}" for function in functions} <= set(THEOREMS["T04"])
