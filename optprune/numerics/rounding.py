r"""A-posteriori bounds on the rounding error of float64 sums, products and quadratic forms.

Model: $\mathrm{fl}(a \circ b) = (a \circ b)(1 + \delta)$ with $|\delta| \le u = 2^{-53}$ (Higham, Accuracy
and Stability of Numerical Algorithms, 2nd ed., eq. 2.4), in any order of evaluation, with or without fused
multiply-add. A product that underflows adds at most $\eta = 2^{-1074}$ each (Higham eq. 2.8); the bounds add
it, so that they hold for every finite input whose result does not overflow. Every bound is itself inflated
for the rounding of its own evaluation. T24 proves them.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from optprune.errors import InvalidInputError

UNIT = 2.0**-53
"""The unit roundoff $u$ of float64."""

SMALLEST = 2.0**-1074
"""The smallest positive float64, $\\eta$: what one underflow can lose."""


def gamma(n: int) -> float:
    r"""$\gamma_n = n u / (1 - n u)$, rounded up: $n$ roundings change a result by a factor within $1 \pm
    \gamma_n$.

    Raises:
        InvalidInputError: $n < 0$ or $n u \ge 1/2$, where the bound means nothing.

    References:
        Higham, Lemma 3.1.
    """
    if not 0 <= n < 2**52:
        raise InvalidInputError(f"gamma was given n = {n}; it accepts 0 <= n < 2**52 operations.")
    return n * UNIT / (1 - n * UNIT) * (1 + 4 * UNIT)


def sum_error(x: Float[Tensor, "..."], dim: int = -1) -> Float[Tensor, "..."]:
    r"""Bound of $|\mathrm{fl}(\sum_i x_i) - \sum_i x_i|$: $\gamma_{n-1} \sum_i |x_i|$.

    Sums lose nothing to underflow (Higham, Problem 2.19), so no absolute term is needed.

    References:
        Higham eq. (4.6), for every order of summation.
    """
    n = x.shape[dim]
    return gamma(max(n - 1, 0)) * _up(_wide(x).abs().sum(dim), n + 1)


def product_error(a: Float[Tensor, "*batch m k"], b: Float[Tensor, "*batch k n"]) -> Float[Tensor, "*batch m n"]:
    r"""Entrywise bound of $|\mathrm{fl}(AB) - AB|$ in float64: $\gamma_k |A||B| + k\eta$.

    References:
        Higham eq. (3.13).
    """
    return product_bound(_wide(a).abs() @ _wide(b).abs(), a.shape[-1])


def product_bound(size: Float[Tensor, "..."], k: int) -> Float[Tensor, "..."]:
    r"""$\gamma_k |A||B| + k\eta$, the bound of `product_error`, from `size` $= \mathrm{fl}(|A||B|)$.

    For products of $k$ terms that are summed in any order, in blocks too.
    """
    return gamma(k) * _up(size, k + 1) + 4 * (k + 1) * SMALLEST


def quadratic_error(d: Float[Tensor, "*batch m k"], gram: Float[Tensor, "*batch k k"]) -> Float[Tensor, "*batch m"]:
    r"""Bound, per row $d_i$, of the error of $d_i^\top G d_i$ evaluated in float64 as `((d @ gram) *
    d).sum(-1)`.

    $$\gamma_{2k}\,|d_i|^\top |G| |d_i| + \eta\,(k + 1)(\|d_i\|_1 + k)$$
    since an entry of $DG$ takes $k$ roundings, its product with $d$ one, the sum $k - 1$; the second term
    collects what the $k$ products of each entry, and the $k$ outer ones, lose to underflow.

    References:
        Higham eq. (3.4), (3.13) and Lemma 3.3.
    """
    k = d.shape[-1]
    size = _wide(d).abs()
    inner = size @ _wide(gram).abs() + (k + 1) * SMALLEST
    bound = gamma(2 * k) * _up((inner * size).sum(-1), 2 * k + 2)
    return bound + 4 * (k + 1) * SMALLEST * (_up(size.sum(-1), k) + k)


def norm_bound(x: Float[Tensor, "..."], dim: int = -1) -> Float[Tensor, "..."]:
    r"""An upper bound of $\lVert x \rVert_2$ along a dimension, at any scale: the squares are taken at unit scale.

    Entries so small that they vanish there, or whose squares do, weigh less than one rounding of the largest.
    """
    size = power_of_two_below(_wide(x).abs().amax(dim, keepdim=True))
    norm = _up((_wide(x) / size).square().sum(dim).sqrt(), x.shape[dim] + 2)
    return norm * size.squeeze(dim) + SMALLEST


def power_of_two_below(x: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """The power of two in (x / 2, x], from the bits (`torch.ldexp` goes through float32); 1 for zero."""
    exponent = torch.frexp(x).exponent.to(torch.int64).sub(1).clamp(-1022, 1023)
    return ((torch.where(x > 0, exponent, 0) + 1023) << 52).view(torch.float64)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.float64)


def _up(x: Tensor, roundings: int) -> Tensor:
    """An upper bound of what `roundings` operations on nonnegative numbers were meant to give."""
    return x * (1 + 2 * gamma(roundings + 2))
