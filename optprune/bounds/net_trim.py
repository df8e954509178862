r"""Net-Trim's network theorems in original units, with every operator norm that they hold for side by side.

For a chain of layers $y_l = \sigma_l(W_l y_{l-1} + b_l)$, each $\sigma_l$ a ReLU or nothing, on the samples of the
programs. All values are rounded up. `optprune.bounds.propagation` bounds networks of any shape; this is what the
method's papers state, in a form that can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from optprune.bounds._theorem import theorem
from optprune.bounds.propagation import affine, plus, times, up
from optprune.errors import InvalidInputError
from optprune.numerics.linalg import spectral_norm
from optprune.numerics.rounding import gamma


@dataclass(frozen=True)
class ParallelBounds:
    r"""Bounds of $\lVert \hat Y_L - Y_L \rVert_F$, equal but for the norm that stands for a layer's gain.

    Attributes:
        printed: with $\lVert W_k \rVert_1$ of the dense layers, the theorem as printed; None where a pruned layer has
            the larger l1 norm, so that it does not apply.
        l1: with $\lVert \hat W_k \rVert_1$.
        frobenius: with $\lVert \hat W_k \rVert_F$.
        spectral: with $\lVert \hat W_k \rVert_2$, the least of the four.
        size: $\lVert Y_L \rVert_F$.
    """

    printed: float | None
    l1: float
    frobenius: float
    spectral: float
    size: float

    def relative(self, name: str) -> float | None:
        """One of the bounds over the size of the output."""
        value = getattr(self, name)
        return None if value is None else math.inf if self.size == 0 else value / self.size

    def vacuous(self, name: str) -> bool:
        """Whether a bound says no more than that the pruned network could be worse than the zero function."""
        share = self.relative(name)
        return share is None or not share < 1


@theorem("T07")
def parallel_bounds(
    errors: Sequence[float],
    dense: Sequence[Tensor],
    pruned: Sequence[Tensor],
    size: float,
) -> ParallelBounds:
    r"""$\lVert \hat Y_L - Y_L \rVert_F \le \sum_l e_l \prod_{k > l} G_k$ for layers pruned on dense inputs.

    Args:
        errors: $e_l$, the error of each pruned layer behind its ReLU on the dense network's inputs, or its radius.
        dense: $W_l$ `(out, in)`, in order, without biases.
        pruned: $\hat W_l$.
        size: $\lVert Y_L \rVert_F$.

    Guarantees:
        T07 (a) for every norm; norms and sums rounded up.

    Raises:
        InvalidInputError: lists of different lengths, or none.

    References:
        Aghasi et al. 2017, Theorem 1, there with every $\lVert W_l \rVert_1 = 1$.
    """
    if not errors or not len(errors) == len(dense) == len(pruned):
        raise InvalidInputError(
            f"{len(errors)} errors, {len(dense)} dense and {len(pruned)} pruned layers given; give one of each per "
            "layer"
        )
    shrunk = all(_l1_norm(after) <= _l1_norm(before) for before, after in zip(dense, pruned, strict=True))
    return ParallelBounds(
        printed=_summed(errors, [_l1_norm(w) for w in dense]) if shrunk else None,
        l1=_summed(errors, [_l1_norm(w) for w in pruned]),
        frobenius=_summed(errors, [_frobenius_norm(w) for w in pruned]),
        spectral=_summed(errors, [float(spectral_norm(w.double())) for w in pruned]),
        size=size,
    )


@theorem("T07")
def cascade_bound(first: float, gammas: Sequence[float], dense: Sequence[Tensor]) -> float:
    r"""$\lVert \hat Y_L - Y_L \rVert_F \le e_1 \prod_{l \ge 2} \sqrt{\gamma_l}\, \lVert W_l \rVert_2$, known before a
    layer behind the first is pruned.

    Args:
        first: $e_1$, the error of the first pruned layer, or its radius.
        gammas: $\gamma_l$ of the second layer and those behind it.
        dense: $W_l$ `(out, in)` of the same.

    Guarantees:
        T07 (b), for radii $\sqrt{\gamma_l}$ times what the dense weight leaves, no gain and no risk coefficient.

    Raises:
        InvalidInputError: lists of different lengths, or a factor below 1.

    References:
        Aghasi et al. 2017, Theorem 2, there with every $\lVert W_l \rVert_1 = 1$.
    """
    if len(gammas) != len(dense) or not all(g >= 1 for g in gammas):
        raise InvalidInputError(
            f"factors {list(gammas)} and {len(dense)} layers given; give one factor >= 1 for every layer "
            "behind the first"
        )
    bound = first
    for factor, weight in zip(gammas, dense, strict=True):
        bound = times(bound, times(up(math.sqrt(factor)), float(spectral_norm(weight.double()))))
    return bound


@theorem("T07")
def cascade_step(radius: float, overshoot: float) -> float:
    r"""$d_l = \sqrt{\varepsilon_l^2 + b_l^2}$, the discrepancy behind a layer of a cascade with any radius.

    Args:
        radius: $\varepsilon_l$ of the program, whatever rule gave it.
        overshoot: $b_l = \lVert (W_l \hat Y_{l-1} + b_l)_+ \rVert_F$ off $\Omega$, 0 for a linear layer.

    Guarantees:
        T07 (c).
    """
    return up(math.sqrt(plus(times(radius, radius), times(overshoot, overshoot))))


def _l1_norm(weight: Float[Tensor, "out in"]) -> float:
    r"""$\sum |W_{mj}|$, an upper bound in float64."""
    return times(float(weight.double().abs().sum()), 1 + 2 * gamma(weight.numel() + 1))


def _frobenius_norm(weight: Float[Tensor, "out in"]) -> float:
    r"""$\lVert W \rVert_F$, an upper bound in float64."""
    total = float(weight.double().square().sum())
    return up(math.sqrt(times(total, 1 + 2 * gamma(weight.numel() + 2))))


def _summed(errors: Sequence[float], gains: Sequence[float]) -> float:
    bound = 0.0
    for error, gain in zip(errors, gains, strict=True):
        bound = affine(gain, bound, error)
    return bound
