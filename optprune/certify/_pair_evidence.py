"""Pairs in the evidence: whether they are what they have to be, and whether the Hessian less them is semidefinite."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from optprune.bounds._theorem import theorem
from optprune.bounds.pair_minorant import Pairs
from optprune.numerics.linalg import binary_scale, is_positive_semidefinite_certified
from optprune.numerics.rounding import UNIT, gamma
from optprune.numerics.working_memory import working_memory

NAMES = {"pairs": torch.int64, "pair_weights": torch.float64, "pair_offsets": torch.float64}
"""What the evidence holds of pairs, and as what."""


def pairs_in(evidence: Mapping[str, Tensor], shape: tuple[int, int]) -> Pairs | None:
    """The pairs of evidence for a layer (out, in).

    None where something is missing, of another type or shape than it should be, not finite, or where the two places of
    a pair are equal or out of range; `minorant` and `point` must fit too.
    """
    if any(name not in evidence or evidence[name].dtype != dtype for name, dtype in NAMES.items()):
        return None
    places, weights, offsets = (evidence[name] for name in NAMES)
    count = places.shape[1] if places.dim() == 3 else -1
    if (places.shape, weights.shape, offsets.shape) != ((shape[0], count, 2), (shape[0], count, 2), (shape[0], count)):
        return None
    minorant, point = evidence["minorant"], evidence["point"]
    if point.shape != shape or minorant.shape not in (shape, shape[1:]):
        return None
    if not all(bool(x.isfinite().all()) for x in (weights, offsets, minorant, point)):
        return None
    apart = (places[..., 0] != places[..., 1]) & ((places >= 0) & (places < shape[1])).all(-1)
    return Pairs(places, weights, offsets) if bool(apart.all()) else None


@theorem("T25")
def proves_pairs(
    gram: Float[Tensor, "in in"], minorant: Float[Tensor, "*out in"], pairs: Pairs, memory: int | None = None
) -> bool:
    r"""Whether $H - \operatorname{diag}\delta_r - \sum_p a_p a_p^\top \succeq 0$ is proved in floating point for every
    row.

    Rows and columns are scaled by powers of two, which is exact, so that badly scaled inputs do not weaken the proof.
    Dead inputs (zero rows of $H$) must have $\delta_j = 0$ and no pair with a weight that is not 0, live ones
    $\delta_j > 0$.

    Args:
        gram: $H$.
        minorant: $\delta$, one for all rows or one per row.
        pairs: $a$; the offsets do not matter.
        memory: bytes for the matrices of a chunk of rows; see `working_memory`.
    """
    live = gram.diagonal() > 0
    delta = minorant.expand(len(pairs.places), -1)
    touched = (pairs.weights != 0) & ~live[pairs.places]
    if bool(
        (delta < 0).any()
        | (delta[:, ~live] > 0).any()
        | (delta[:, live] <= 0).any()
        | touched.any()
        | (gram[~live] != 0).any()
        | (gram != gram.mT).any()
        | ~delta.isfinite().all()
        | ~pairs.weights.isfinite().all()
    ):
        return False
    h = gram[live][:, live]
    size, scale = len(h), binary_scale(h.diagonal())
    if size == 0:  # an input that no sample has proves nothing worth while
        return False
    scaled, delta = h * scale[:, None] * scale[None, :], delta[:, live] * scale.square()
    places = (live.cumsum(0) - 1).clamp_min(0)[pairs.places]  # a pair that has lost an input has no weight there
    weights = pairs.weights * scale[places]
    most = int(pairs.spread((weights != 0).double(), len(gram)).amax())
    near = Pairs(places, weights, pairs.offsets)
    # Sums of products for the pairs, at most three subtractions from an entry of the Hessian: the errors of a row's
    # entries, added up, are less than what is taken from the diagonal, and so is what underflows.
    pushed = near.spread(weights.abs() * weights.abs().sum(-1, keepdim=True), size)
    shift = delta + 1.01 * (gamma(most + 4) * pushed + 4 * UNIT * (scaled.abs().sum(-1) + delta))
    squares = near.spread(weights.square(), size)
    cells = places.amax(-1) * size + places.amin(-1)
    rows = max(1, working_memory(memory, gram.device, 2**24) // (48 * size**2))
    for part in torch.arange(len(places), device=gram.device).split(rows):
        lower = scaled.new_zeros(len(part), size * size).scatter_add_(1, cells[part], weights[part].prod(-1))
        lower = lower.view(-1, size, size)
        rest = scaled - (lower + lower.mT)  # one of the two is 0, so that both triangles are the same
        rest.diagonal(dim1=-2, dim2=-1).sub_(squares[part]).sub_(shift[part])
        if not bool(is_positive_semidefinite_certified(rest).all()):
            return False
    return True
