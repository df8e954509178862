"""The lower bound with pairs in the minorant in rational arithmetic."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from optprune.bounds._theorem import theorem
from optprune.bounds.pair_minorant import Pairs
from optprune.certify._exact_least_squares import exactly_separated, witness, witnessed
from optprune.numerics.dyadic import Dyadic, Enclosure
from optprune.numerics.linalg import binary_scale
from optprune.problems.least_squares import L0LeastSquares


@theorem("T25")
def exact_pair_bound(
    problem: L0LeastSquares, minorant: Float[Tensor, "*out in"], pairs: Pairs, point: Float[Tensor, "out in"]
) -> Enclosure:
    r"""The lower bound of `pair_minorant_parts`, without rounding, with its hypothesis proved exactly; 0 if it is not.

    Args:
        problem: a single problem; $H$ is its `gram` as stored.
        minorant: $\delta$, one for all rows or one per row.
        pairs: $a$ and $t$.
        point: $V$, any matrix.

    Guarantees:
        T25.
    """
    if not proves_pairs_exactly(problem.gram, minorant, pairs):
        return Enclosure.point(0)
    s, delta = problem.statistics, Dyadic.of(minorant.expand(problem.shape))
    step, a, t = Dyadic.of(point - s.reference), Dyadic.of(pairs.weights), Dyadic.of(pairs.offsets)
    places = pairs.places.numpy()
    e = (a * _at(Dyadic.of(s.reference), places)).sum(-1) - t
    along = (a * _at(step, places)).sum(-1)
    columns = problem.shape[1]
    pa = step @ Dyadic.of(problem.gram) - step * delta - _spread(a * along[..., None], places, columns)
    g = Dyadic.of(s.cross).mT + _spread(a * e[..., None], places, columns) - pa
    charge = _spread((t * t)[..., None] * Dyadic.of(pairs.weights != 0), places, columns)
    return exactly_separated(problem, delta, step, pa, g, charge, (t * t - e * e).sum())


@theorem("T25")
def proves_pairs_exactly(gram: Float[Tensor, "in in"], minorant: Float[Tensor, "*out in"], pairs: Pairs) -> bool:
    r"""Whether $H - \operatorname{diag}\delta_r - \sum_p a_p a_p^\top \succeq 0$ is proved in rational arithmetic for
    every row, as `proves_minorant_exactly` does, and with the hypotheses of `proves_pairs`.
    """
    live = gram.diagonal() > 0
    several = minorant.expand(len(pairs.places), -1)
    wrong = (several < 0).any() | (several[:, ~live] > 0).any() | (several[:, live] <= 0).any() | ~live.any()
    touched = ((pairs.weights != 0) & ~live[pairs.places]).any()
    if bool(wrong | touched | (gram[~live] != 0).any() | (gram != gram.mT).any()):
        return False
    scale, alive = binary_scale(gram.diagonal()), live.nonzero().squeeze(-1).numpy()
    exact_scale, eye = Dyadic.of(scale), Dyadic(np.eye(len(gram), dtype=int).astype(object), 0)
    exact = Dyadic.of(gram) * exact_scale[:, None] * exact_scale[None, :]
    exact_delta = Dyadic.of(several) * exact_scale * exact_scale
    for row, places in enumerate(pairs.places):
        a, near_a = Dyadic.of(pairs.weights[row]) * exact_scale[places.numpy()], pairs.weights[row] * scale[places]
        # Where the four products of each pair belong.
        cells = (places[:, :, None] * len(gram) + places[:, None, :]).flatten()
        taken = np.zeros(gram.numel(), dtype=object)
        np.add.at(taken, cells.numpy(), (a[:, :, None] * a[:, None, :]).digits.ravel())
        left = exact - Dyadic(taken.reshape(gram.shape), 2 * a.exponent) - eye * exact_delta[row]
        near = gram * scale[:, None] * scale - torch.diag(several[row] * scale * scale)
        near = near.flatten().index_add(0, cells, -(near_a[:, :, None] * near_a[:, None, :]).flatten())
        shift, factor = witness(near.view_as(gram)[live][:, live][None])
        if not witnessed(left[alive][:, alive], shift[0], factor[0]):
            return False
    return True


def _at(x: Dyadic, places: np.ndarray) -> Dyadic:
    """The entries of each row that its pairs meet."""
    return Dyadic(np.take_along_axis(x.digits, places.reshape(len(places), -1), 1).reshape(places.shape), x.exponent)


def _spread(x: Dyadic, places: np.ndarray, columns: int) -> Dyadic:
    """What the pairs of each weight have for it, added up."""
    out = np.zeros((len(places), columns), dtype=object)
    np.add.at(out, (np.arange(len(places))[:, None, None], places), x.digits)
    return Dyadic(out, x.exponent)
