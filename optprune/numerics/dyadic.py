"""Exact arithmetic: float64 tensors as integers times a power of two, and rational enclosures of what is irrational."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optprune.errors import MissingDependencyError, NonFiniteError

BITS = 256
"""Significant bits kept where a result has no finite expansion, or a needlessly long one."""


@dataclass(frozen=True, eq=False)
class Dyadic:
    r"""An array of rational numbers $d_i 2^e$ with integers $d_i$ of any length; sums and products are exact.

    Attributes:
        digits: $d$, a numpy array of Python's integers (an integer alone is one without dimensions).
        exponent: $e$, one for all entries.
    """

    digits: Any
    exponent: int

    def __post_init__(self) -> None:
        # numpy hands out a bare integer where an array of objects has no dimensions left.
        object.__setattr__(self, "digits", np.asarray(self.digits, dtype=object))

    @classmethod
    def of(cls, tensor: Tensor) -> Dyadic:
        """The numbers that a tensor of floats or Booleans holds.

        Raises:
            NonFiniteError: NaN or infinity is no number.
        """
        wide = tensor.detach().to("cpu", torch.float64)
        if not bool(wide.isfinite().all()):
            raise NonFiniteError("a tensor that holds NaN or infinity was given; exact arithmetic needs finite numbers")
        if wide.numel() == 0:
            return cls(np.zeros(tuple(wide.shape), dtype=object), 0)
        mantissa, exponent = torch.frexp(wide)
        whole = (mantissa * 2.0**53).to(torch.int64)
        # Trailing zeros are moved to the exponent: float32 data, and small integers, keep short integers.
        zeros = torch.frexp((whole & -whole).double()).exponent - 1
        power = exponent.to(torch.int64) - 53 + zeros
        odd = whole >> zeros.clamp(min=0)
        lowest = int(power[whole != 0].min()) if bool((whole != 0).any()) else 0
        shift = torch.where(whole != 0, power - lowest, 0).numpy().astype(object)
        return cls(odd.numpy().astype(object) << shift, lowest)

    @classmethod
    def stacked(cls, parts: Sequence[Dyadic]) -> Dyadic:
        """One below the other."""
        low = min(part.exponent for part in parts)
        return cls(np.concatenate([part.digits << (part.exponent - low) for part in parts]), low)

    @property
    def shape(self) -> tuple[int, ...]:
        """As of an array."""
        return self.digits.shape

    @property
    def mT(self) -> Dyadic:
        """The transpose."""
        return Dyadic(self.digits.T, self.exponent)

    def __getitem__(self, index: Any) -> Dyadic:
        return Dyadic(self.digits[index], self.exponent)

    def _aligned(self, other: Dyadic) -> tuple[Any, Any, int]:
        low = min(self.exponent, other.exponent)
        return self.digits << (self.exponent - low), other.digits << (other.exponent - low), low

    def __add__(self, other: Dyadic) -> Dyadic:
        a, b, low = self._aligned(other)
        return Dyadic(a + b, low)

    def __sub__(self, other: Dyadic) -> Dyadic:
        a, b, low = self._aligned(other)
        return Dyadic(a - b, low)

    def __neg__(self) -> Dyadic:
        return Dyadic(-self.digits, self.exponent)

    def __mul__(self, other: Dyadic) -> Dyadic:
        """Entry by entry, with numpy's broadcasting."""
        return Dyadic(self.digits * other.digits, self.exponent + other.exponent)

    def __matmul__(self, other: Dyadic) -> Dyadic:
        """The matrix product, by python-flint.

        Raises:
            MissingDependencyError: python-flint is not installed.
        """
        fmpz_mat = require_flint().fmpz_mat
        (m, k), (_, n) = self.shape, other.shape
        product = fmpz_mat(m, k, self.digits.ravel().tolist()) * fmpz_mat(k, n, other.digits.ravel().tolist())
        digits = np.empty(m * n, dtype=object)
        digits[:] = [int(entry) for entry in product.entries()]
        return Dyadic(digits.reshape(m, n), self.exponent + other.exponent)

    def abs(self) -> Dyadic:
        """Absolute values."""
        return Dyadic(np.abs(self.digits), self.exponent)

    def where(self, mask: Tensor) -> Dyadic:
        """The entries where the mask is True, 0 elsewhere."""
        return Dyadic(np.where(mask.cpu().numpy(), self.digits, 0), self.exponent)

    def clipped(self) -> Dyadic:
        """Negative entries as 0."""
        return Dyadic(np.maximum(self.digits, 0), self.exponent)

    def sum(self, axis: int | None = None) -> Dyadic:
        """Sums along an axis, or of everything."""
        return Dyadic(self.digits.sum(axis), self.exponent)

    def max(self, axis: int | None = None) -> Dyadic:
        """The largest entries along an axis, or of all."""
        return Dyadic(self.digits.max(axis), self.exponent)

    def fractions(self) -> list[Fraction]:
        """The entries as fractions, in row-major order."""
        return [_fraction(int(digit), self.exponent) for digit in self.digits.ravel()]

    def item(self) -> Fraction:
        """The only entry."""
        (value,) = self.fractions()
        return value


@dataclass(frozen=True)
class Enclosure:
    r"""An unknown real number between two rational ones.

    Attributes:
        low: no larger than the number.
        high: no smaller.
    """

    low: Fraction
    high: Fraction

    @classmethod
    def point(cls, value: Fraction | int) -> Enclosure:
        """A number that is known."""
        return cls(Fraction(value), Fraction(value))

    @property
    def width(self) -> float:
        """`high` minus `low`, rounded up."""
        return round_up(self.high - self.low)

    def __add__(self, other: Enclosure) -> Enclosure:
        return Enclosure(self.low + other.low, self.high + other.high)

    def __sub__(self, other: Enclosure) -> Enclosure:
        return Enclosure(self.low - other.high, self.high - other.low)

    def times(self, factor: Fraction | int) -> Enclosure:
        """The product with a number >= 0 that is known."""
        return Enclosure(self.low * factor, self.high * factor).shortened()

    def clipped(self) -> Enclosure:
        """The larger of the number and 0."""
        return Enclosure(max(self.low, Fraction(0)), max(self.high, Fraction(0)))

    def root(self) -> Enclosure:
        """The square root of a number >= 0."""
        return Enclosure(_root(max(self.low, Fraction(0)))[0], _root(self.high)[1])

    def shortened(self) -> Enclosure:
        """Both ends on a grid of `BITS` significant bits, rounded outwards."""
        return Enclosure(_on_grid(self.low, math.floor), _on_grid(self.high, math.ceil))

    def to_json(self) -> dict[str, float]:
        """Both ends as float64, rounded outwards, and the width."""
        return {"low": round_down(self.low), "high": round_up(self.high), "width": self.width}

    def __contains__(self, value: Fraction | float) -> bool:
        return self.low <= Fraction(value) <= self.high


def total(parts: Sequence[Enclosure]) -> Enclosure:
    """The sum of many."""
    return Enclosure(sum((p.low for p in parts), Fraction(0)), sum((p.high for p in parts), Fraction(0)))


def round_down(value: Fraction) -> float:
    """The largest float64 that is not above a rational number."""
    near = _nearest(value)
    return math.nextafter(near, -math.inf) if near > value else near


def round_up(value: Fraction) -> float:
    """The smallest float64 that is not below a rational number."""
    return 0.0 - round_down(-value)


def _nearest(value: Fraction) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _fraction(digits: int, exponent: int) -> Fraction:
    return Fraction(digits << exponent) if exponent >= 0 else Fraction(digits, 1 << -exponent)


def _on_grid(value: Fraction, rounding: Any) -> Fraction:
    if value == 0 or value.numerator.bit_length() + value.denominator.bit_length() <= 2 * BITS:
        return value
    step = value.numerator.bit_length() - value.denominator.bit_length() - BITS
    return _fraction(rounding(value * _fraction(1, -step)), step)


def _root(value: Fraction) -> tuple[Fraction, Fraction]:
    """Bounds of the square root, equal or one step of `BITS` significant bits apart."""
    if value == 0:
        return Fraction(0), Fraction(0)
    step = (value.numerator.bit_length() - value.denominator.bit_length()) // 2 - BITS
    scaled = value * _fraction(1, -2 * step)
    low = math.isqrt(math.floor(scaled))
    return _fraction(low, step), _fraction(low if low * low == scaled else low + 1, step)


def require_flint() -> Any:
    """The module python-flint.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        import flint
    except ImportError as error:
        raise MissingDependencyError(
            "exact arithmetic needs python-flint, which is not installed; pip install 'optprune[proofs]' brings it"
        ) from error
    return flint
