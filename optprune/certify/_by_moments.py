"""Evidence from moments, where they are the better search."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from optprune.certify._moment_minorants import Settled, evidence_of, settle
from optprune.certify._moments import RANK, Moments, descend, guess
from optprune.certify._perspective import Perspective
from optprune.certify._priced_pairs import violated
from optprune.certify._tighten import outputs, search_precision
from optprune.patterns import PerLayer, PerRow
from optprune.problems.least_squares import L0LeastSquares

CONDITION = 2000.0
"""Largest condition of the Gram matrix, scaled to a unit diagonal. Sweeps do well at 800, where they were tried; at
4,000 and more the minorants they end with are far from feasible; Newton's steps are for those.
"""

WARM, PRICED, REST = 40, 36, 90
"""Sweeps without pairs, with pairs whose prices move, and with pairs whose prices stay."""

LAG = 3
"""Sweeps for which pairs are measured once, until minorants lose too much; then they are measured before each."""

LOST = 6
"""The last sweeps are repeated while minorants lose more of what moments promise than so many times the tolerance."""

PAIRS = 2
"""Pairs in a row, per input."""

WIDE = 0.03
"""Gap without pairs from which on they are used."""

FAIR = 0.9
"""Least share of what moments promise that minorants have to reach."""


def by_moments(
    problem: L0LeastSquares,
    minorant: Float[Tensor, " in"],
    start: Float[Tensor, "out in"],
    effort: float,
    tolerance: float = 0.005,
    max_rounds: int = 12,
    memory: int | None = None,
) -> dict[str, Tensor] | None:
    """Minorants of the rows' own, with pairs where these are worth while, and a point; None where `strengthen` is
    better: other patterns than one budget for the layer or for each row, an ill-conditioned Gram matrix, few inputs, or
    more than the effort allows.

    Args:
        problem: the problem.
        minorant: as `scaled_minorant` gives it.
        start: a good weight.
        effort: floating-point operations that may be spent.
        tolerance: as a share of the objective at `start`, a sixth of what minorants may lose of the moments' value.
        max_rounds: four for every repetition of the last sweeps.
        memory: bytes for the temporaries of a chunk of rows; see `working_memory`.
    """
    objective = 2 * float(problem.objective(start))
    if not isinstance(problem.pattern, PerLayer | PerRow) or not bool((minorant > 0).any()) or not objective > 0:
        return None
    exact = Perspective.of(problem, minorant)
    rows, live = exact.b.shape
    size, share = outputs(exact.energy, objective)
    dtype, time = search_precision(exact.root.square(), share)
    one, proof = time * 2 * (RANK + 1) * rows * live**2, rows * live**3
    left = effort - (WARM + PRICED + REST) * one - proof
    if dtype != torch.float32 or left < 0 or not _well_conditioned(exact.gram):
        return None
    exact, objective = exact.per(size), objective / size**2
    rough = exact.to(dtype)
    found = plain = descend(rough, guess(rough, (exact.enter(start) / size).to(dtype)), WARM)
    promised = plain.value(rough)
    if promised < (1 - WIDE) * objective:
        found = replace(plain, pairs=violated(plain.vectors, plain.price(rough), PAIRS * live, memory))
        found = descend(rough, found, PRICED + REST, PRICED, lag=LAG)
    best = _better(None, exact, found, memory)
    for _ in range(int(min(max_rounds // 4, left / (REST * one + proof)))):
        if best is None or best.value >= found.value(rough) - LOST * tolerance * objective:
            break
        found = descend(rough, found, REST)
        best = _better(best, exact, found, memory)
    if found is not plain and (best is None or best.value < promised):
        best = _better(best, exact, plain, memory)
    return evidence_of(exact, best, size) if best is not None and best.value >= FAIR * promised > 0 else None


def _better(best: Settled | None, relaxation: Perspective, found: Moments, memory: int | None) -> Settled | None:
    """The better bound of the two; sweeps may have come to numbers without end."""
    if not bool(found.vectors.isfinite().all()):
        return best
    settled = settle(relaxation, found, memory)
    return settled if best is None or settled.value > best.value else best


def _well_conditioned(gram: Float[Tensor, "live live"]) -> bool:
    values = torch.linalg.eigvalsh(gram)
    return bool(values[-1] <= CONDITION * values[0])
