"""The step sizes of surrogate Lagrangian relaxation: when they meet the conditions of its convergence theorem."""

from __future__ import annotations

import math

import numpy as np

from optprune.bounds._theorem import theorem
from optprune.errors import InvalidInputError


@theorem("T22")
def step_factor(k: int, M: float, r: float) -> float:
    r"""$\alpha_k = 1 - \frac{1}{M k^{p_k}}$ with $p_k = 1 - k^{-r}$: what the $k$-th accepted step shrinks by.

    Args:
        k: counts from 1.
        M: more than 1; $\alpha_1 = 1 - 1/M$.
        r: between 0 and 1.

    Raises:
        InvalidInputError: an argument outside of its range.

    Guarantees:
        T22 (a): $0 < \alpha_k < 1$.
    """
    _require(k, M, r)
    return 1.0 - float(k) ** (float(k) ** -r - 1.0) / M


@theorem("T22")
def step_product(n: int, M: float, r: float) -> float:
    r"""$\prod_{k \le n} \alpha_k$, the product that must tend to 0, as the exponential of one sum of logarithms.

    With the step rule $s_k \lVert h_k \rVert = \alpha_k s_{k-1} \lVert h_{k-1} \rVert$ it is what is left of the length
    of the first move of the multipliers.

    Raises:
        InvalidInputError: an argument outside of its range.
    """
    _require(n, M, r)
    return math.exp(math.fsum(np.log1p(-_terms(n, r) / M)))


@theorem("T22")
def step_product_bounds(n: int, M: float, r: float) -> tuple[float, float]:
    r"""What $\prod_{k \le n} \alpha_k$ lies between, without the product:

    $$\exp\Bigl(-\frac1M \sum_{k \le n} k^{-p_k} - \frac{1}{2M(M-1)} \sum_{k \le n} k^{-2p_k}\Bigr)
      \le \prod_{k \le n} \alpha_k \le (n + 1)^{-1/M}.$$

    The first sum exceeds $\ln n$ by a constant of $r$ at most, the second converges: the product is of the order of
    $n^{-1/M}$, but for $r = 0.1$ that constant is near 900 and the sums need astronomically many terms to show it.

    Raises:
        InvalidInputError: an argument outside of its range.

    Guarantees:
        T22 (b), (c).
    """
    _require(n, M, r)
    terms = _terms(n, r)
    first, second = math.fsum(terms), math.fsum(terms**2)
    return math.exp(-first / M - second / (2 * M * (M - 1))), (n + 1) ** (-1 / M)


@theorem("T22")
def step_ratio(n: int, M: float, r: float) -> float:
    r"""$(1 - \alpha_n) / \prod_{k \le n} \alpha_k$, which must tend to 0 and does because $M > 1$.

    Divided by the length $s_0 \lVert h_0 \rVert$ of the first move and multiplied with a bound of $\lVert h_n \rVert$
    it bounds $(1 - \alpha_n) / s_n$. It grows for a long time before it falls where $M$ is small.

    Raises:
        InvalidInputError: an argument outside of its range.

    Guarantees:
        T22 (d).
    """
    return (1.0 - step_factor(n, M, r)) / step_product(n, M, r)


def _terms(n: int, r: float) -> np.ndarray:
    """$k^{-p_k}$ for k up to n."""
    k = np.arange(1, n + 1, dtype=np.float64)
    return k ** (k**-r - 1)


def _require(k: int, M: float, r: float) -> None:
    if not (k >= 1 and 1 < M < math.inf and 0 < r < 1):
        raise InvalidInputError(
            f"k={k}, M={M}, r={r} given; the step sizes are defined for k >= 1, finite M > 1 and 0 < r < 1"
        )
