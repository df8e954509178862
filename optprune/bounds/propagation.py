r"""How errors of single layers add up to an error of the network, as functions of numbers.

$D$ bounds $\lVert \hat a - a \rVert$ of one value of the network, stacked over all samples. Everything is a nonnegative
float64, and every operation rounds up, so that the result is an upper bound of what exact arithmetic gives.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from optprune.bounds._theorem import theorem
from optprune.errors import InvalidInputError


@theorem("T04")
def up(x: float) -> float:
    """The next float64 above a rounded nonnegative number; exact zeros stay (T04 (h))."""
    return x if x == 0.0 else math.nextafter(x, math.inf)


@theorem("T04")
def times(a: float, b: float) -> float:
    """An upper bound of the product of nonnegative numbers."""
    return 0.0 if a == 0.0 or b == 0.0 else math.nextafter(a * b, math.inf)


@theorem("T04")
def plus(*terms: float) -> float:
    """An upper bound of the sum of nonnegative numbers."""
    return up(math.fsum(terms))


@theorem("T04")
def affine(gain: float, incoming: float, local: float) -> float:
    r"""$D_v = \lVert L_{\hat W} \rVert\, D_u + e$: the discrepancy behind a layer.

    Args:
        gain: an upper bound of the operator norm of the pruned layer.
        incoming: $D_u$.
        local: $e$, what the pruned layer and the dense one differ on the dense inputs, biases included.

    Guarantees:
        T04 (a); with the dense layer's norm and the error on the pruned inputs, T04 (b).
    """
    _require(gain=gain, incoming=incoming, local=local)
    return plus(times(gain, incoming), local)


@theorem("T04")
def through(constant: float, incoming: float) -> float:
    r"""$D_v = K D_u$: the discrepancy behind a map that both networks share.

    Guarantees:
        T04 (d).
    """
    _require(constant=constant, incoming=incoming)
    return times(constant, incoming)


@theorem("T04")
def added(incoming: Sequence[float]) -> float:
    r"""$D_v = \sum_i D_{u_i}$: the discrepancy of a sum.

    Guarantees:
        T04 (e).
    """
    _require(**{f"incoming[{i}]": value for i, value in enumerate(incoming)})
    return plus(*incoming)


@theorem("T04")
def stacked(incoming: Sequence[float]) -> float:
    r"""$D_v = (\sum_i D_{u_i}^2)^{1/2}$: the discrepancy of a concatenation.

    Guarantees:
        T04 (e).
    """
    _require(**{f"incoming[{i}]": value for i, value in enumerate(incoming)})
    if len(incoming) == 1:
        return incoming[0]
    # hypot is within one unit in the last place: two steps up are above the exact value.
    return up(up(math.hypot(*incoming)))


@theorem("T04")
def chain(errors: Sequence[float], gains: Sequence[float], constants: Sequence[float] | None = None) -> float:
    r"""$\sum_l e_l K_l \prod_{k > l} \lVert L_{\hat W_k} \rVert K_k$: the discrepancy behind a chain of pruned layers.

    Args:
        errors: $e_l$, of each layer on its dense inputs.
        gains: operator norms of the pruned layers.
        constants: $K_l$ of the map behind each layer; 1 by default.

    Raises:
        InvalidInputError: lengths differ, or a number is negative or NaN.

    Guarantees:
        T04 (f).
    """
    constants = [1.0] * len(errors) if constants is None else constants
    if not len(errors) == len(gains) == len(constants):
        raise InvalidInputError(
            f"{len(errors)} errors, {len(gains)} gains and {len(constants)} constants given; one of each per layer"
        )
    discrepancy = 0.0
    for error, gain, constant in zip(errors, gains, constants, strict=True):
        discrepancy = through(constant, affine(gain, discrepancy, error))
    return discrepancy


@theorem("T04")
def convolution_gain(spectral: float, multiplicity: int) -> float:
    r"""$\sqrt\kappa\, \max_g \lVert W_g \rVert_2$: the operator norm of a layer on unfolded inputs.

    Args:
        spectral: an upper bound of the matrices' spectral norms.
        multiplicity: $\kappa$, in how many rows an input entry occurs at most.

    Guarantees:
        T04, constants.
    """
    _require(spectral=spectral, multiplicity=multiplicity)
    return times(up(math.sqrt(multiplicity)), spectral)


@theorem("T04")
def axis_multiplicity(kernel: int, stride: int, dilation: int = 1) -> int:
    r"""$\lceil k / (s / \gcd(s, r)) \rceil$: how many windows along one axis see the same entry, at most.

    Guarantees:
        T04, unfolding multiplicity.
    """
    if min(kernel, stride, dilation) < 1:
        raise InvalidInputError(f"kernel {kernel}, stride {stride}, dilation {dilation} given; all are at least 1")
    return -(-kernel // (stride // math.gcd(stride, dilation)))


@theorem("T04")
def average_gain(multiplicity: int, window: int) -> float:
    r"""$\sqrt{\kappa / q}$: the constant of means over windows of $q$ entries.

    Guarantees:
        T04, constants.
    """
    _require(multiplicity=multiplicity, window=window - 1)
    return up(math.sqrt(up(multiplicity / window)))


def _require(**values: float | int) -> None:
    for name, value in values.items():
        if not value >= 0:
            raise InvalidInputError(f"{name} = {value} given; a number >= 0 is needed")
