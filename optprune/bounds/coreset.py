r"""Sampling neurons of a hidden layer independently of any data, for all inputs of bounded norm.

Neuron $q$ with incoming weights $p_q$ (its bias a coordinate, the input's being 1) contributes $w_i(q)
\phi(\langle p_q, x \rangle)$ to output $i$, by Cauchy-Schwarz at most $|w_i(q)| \phi(\beta \lVert p_q
\rVert)$ for $\lVert x \rVert \le \beta$ and a nonnegative, nondecreasing $\phi$.
"""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor

from optprune.bounds._theorem import theorem
from optprune.errors import InvalidInputError


@theorem("T20")
def largest_contributions(
    incoming: Float[Tensor, "neurons d"], outgoing: Float[Tensor, "outputs neurons"], radius: float
) -> Float[Tensor, " neurons"]:
    r"""$c_q = \max_i |w_i(q)| \, \beta \lVert p_q \rVert$, for a ReLU.

    Args:
        incoming: $p_q$, with the bias as a last coordinate where there is one.
        outgoing: $w_i(q)$, the next layer's weight.
        radius: $\beta$, of the inputs, the 1 that meets the bias included.

    Guarantees:
        T20 (a): no neuron contributes more to an output on the ball.

    Raises:
        InvalidInputError: the radius is not positive and finite.
    """
    if not 0 < radius < math.inf:
        raise InvalidInputError(f"radius {radius} given; a positive, finite bound of the inputs' norm is needed")
    return outgoing.abs().amax(0) * radius * incoming.norm(dim=-1)


@theorem("T20")
def coreset_error(total: float, draws: float, delta: float, outputs: int = 1, *, signed: bool = True) -> float:
    r"""$\varepsilon = R \sqrt{\ln(2 k / \delta) / (2 m)}$, with $R = 2 t$, or $t$ where no outgoing weight is negative.

    Args:
        total: $t = \sum_q c_q$, where neurons are drawn with probabilities $c_q / t$.
        draws: $m$.
        delta: probability that one of the outputs misses by more, at one input.
        outputs: $k$.
        signed: whether outgoing weights have both signs.

    Guarantees:
        T20 (b), for each input of the ball by itself.

    Raises:
        InvalidInputError: delta is not in (0, 1), or there are no draws or outputs.
    """
    _require(delta, outputs)
    if not draws > 0:
        raise InvalidInputError(f"{draws} draws given; at least one is needed")
    return (1 + signed) * total * math.sqrt(math.log(2 * outputs / delta) / (2 * draws))


@theorem("T20")
def coreset_draws(total: float, error: float, delta: float, outputs: int = 1, *, signed: bool = True) -> float:
    r"""$m = R^2 \ln(2 k / \delta) / (2 \varepsilon^2)$: the inverse of `coreset_error`.

    It grows with $t^2$: weights that are $\lambda$ times as large need $\lambda^2$ times as many draws for one additive
    error. The printed statement has $t$ in its place, and holds, up to a constant, for $t \le 1$ only.

    Guarantees:
        T20 (b).

    Raises:
        InvalidInputError: delta is not in (0, 1), or an error or a number of outputs that is not positive.

    References:
        Mussay et al. 2020, with another power of t.
    """
    _require(delta, outputs)
    if not error > 0:
        raise InvalidInputError(f"error {error} given; a positive number is needed")
    return ((1 + signed) * total / error) ** 2 * math.log(2 * outputs / delta) / 2


def _require(delta: float, outputs: int) -> None:
    if not 0 < delta < 1 or outputs < 1:
        raise InvalidInputError(f"delta={delta}, outputs={outputs} given; a probability in (0, 1) and at least 1")
