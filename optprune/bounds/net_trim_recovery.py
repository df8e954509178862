r"""How many samples Net-Trim needs to find a sparse neuron exactly: a probability over standard normal inputs.

A neuron $w$ with $s$ of $d$ weights, its outputs $y = (X w)_+$ on $n$ samples, radius 0. Its program finds $w$ when
basis pursuit does from the active samples alone, and those are as good as fresh ones: half of the samples, at random,
are measurements in the sense of compressed sensing (T08 (a)).

The formulas are evaluated in float64 and raised by a margin for the rounding of the special functions in them, which
is compared with arithmetic of many digits and not proved.
"""

from __future__ import annotations

import math
import sys

import torch

from optprune.bounds._theorem import theorem
from optprune.errors import InvalidInputError

_MARGIN = 1e-12
"""Relative, for the error function, the logarithm of the factorial and the sums."""


@theorem("T08")
def cone_dimension(inputs: int, nonzeros: int) -> float:
    r"""$\omega^2 = \min_{\tau \ge 0}\; s (1 + \tau^2) + (d - s)\, \mathbb E (|g| - \tau)_+^2$, $g$ standard normal.

    An upper bound of the statistical dimension of the directions in which the l1 norm does not grow. Twice it is about
    the number of samples at which every other neuron is found.

    Args:
        inputs: $d$.
        nonzeros: $s$, from 1 to $d$.

    Guarantees:
        T08 (b): an upper bound, whatever $\tau$ the search ends at.

    Raises:
        InvalidInputError: counts that no neuron has.

    References:
        Chandrasekaran, Recht, Parrilo, Willsky 2012, Proposition 3.10, which bounds it by $2 s \log(d/s) + 5s/4$.
    """
    if not 1 <= nonzeros <= inputs:
        raise InvalidInputError(f"{nonzeros} nonzeros of {inputs} inputs given; give 1 <= nonzeros <= inputs")
    low, high = 0.0, 40.0  # the slope is positive at 40, where no normal number of a float64 lies beyond
    for _ in range(60):
        middle = (low + high) / 2
        rising = nonzeros * middle > (inputs - nonzeros) * (_density(middle) - middle * _tail(middle))
        low, high = (low, middle) if rising else (middle, high)
    beyond = (1 + high * high) * _tail(high) - high * _density(high)
    return (nonzeros * (1 + high * high) + (inputs - nonzeros) * beyond) * (1 + _MARGIN)


@theorem("T08")
def recovery_failure(inputs: int, nonzeros: int, samples: int, neurons: int = 1) -> float:
    r"""$o\, 2^{-n} \sum_{k=0}^n \binom nk \exp\bigl(-\tfrac12 (\sqrt{k - 1/2} - \omega)_+^2\bigr)$, at most 1.

    Args:
        inputs: $d$.
        nonzeros: $s \ge 1$, the most of any neuron.
        samples: $n$.
        neurons: $o$, on the same inputs.

    Returns:
        An upper bound of the probability that Net-Trim with radius 0 does not return all neurons exactly.

    Guarantees:
        T08 (b), (c): for inputs with independent normal entries of one variance, no bias, neurons chosen before.

    Raises:
        InvalidInputError: counts that no layer has.

    References:
        Aghasi et al. 2017, Theorem 3, which asks for several times as many samples at the same probability.
    """
    if samples < 0 or neurons < 1:
        raise InvalidInputError(f"{samples} samples, {neurons} neurons given; give samples >= 0 and neurons >= 1")
    width = math.sqrt(cone_dimension(inputs, nonzeros)) * (1 + _MARGIN)
    active = torch.arange(samples + 1, dtype=torch.float64)
    ways = math.lgamma(samples + 1) - torch.lgamma(active + 1) - torch.lgamma(samples - active + 1)
    excess = ((active - 0.5).clamp(min=0).sqrt() - width).clamp(min=0)
    exponent = float(torch.logsumexp(ways - excess.square() / 2, 0)) - samples * math.log(2) + math.log(neurons)
    exponent += _MARGIN * (1 + math.lgamma(samples + 1))
    # Below the smallest normal number the exponential would round to a failure probability of zero.
    return min(1.0, max(math.exp(min(exponent, 0.0)), sys.float_info.min))


@theorem("T08")
def recovery_samples(inputs: int, nonzeros: int, failure: float, neurons: int = 1) -> int:
    r"""The $n$ from which on `recovery_failure` is at most `failure`.

    Args:
        inputs: $d$.
        nonzeros: $s \ge 1$, the most of any neuron.
        failure: the admitted probability, strictly between 0 and 1.
        neurons: $o$, on the same inputs.

    Guarantees:
        T08 (b), (c): the bound at the returned number was evaluated; the number below it does not satisfy it.

    Raises:
        InvalidInputError: counts that no layer has, or no probability.
    """
    if not sys.float_info.min < failure < 1:
        raise InvalidInputError(f"failure probability {failure} given; give one strictly between 0 and 1")
    enough = 1
    while recovery_failure(inputs, nonzeros, enough, neurons) > failure:
        enough *= 2
    short = enough // 2
    while enough - short > 1:
        middle = (short + enough) // 2
        if recovery_failure(inputs, nonzeros, middle, neurons) > failure:
            short = middle
        else:
            enough = middle
    return enough


def _tail(x: float) -> float:
    r"""$\Pr\{|g| > x\}$."""
    return math.erfc(x / math.sqrt(2))


def _density(x: float) -> float:
    """That of the absolute value."""
    return math.sqrt(2 / math.pi) * math.exp(-x * x / 2)
