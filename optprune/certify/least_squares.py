"""Checker of the l0 least-squares problem: the minorant-split lower bound, with its rounding error."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from optprune.bounds._theorem import theorem
from optprune.bounds.block_minorant import block_minorant_bound
from optprune.bounds.mask_only import mask_only_bound
from optprune.bounds.minorant import minorant_parts
from optprune.bounds.pair_minorant import pair_minorant_parts
from optprune.bounds.screening import screened
from optprune.certify._accelerate import accelerate
from optprune.certify._base import Checker
from optprune.certify._block_evidence import blocked, proves_blocks
from optprune.certify._by_blocks import enumerable, strengthen_groups
from optprune.certify._by_moments import by_moments
from optprune.certify._by_newton import by_newton
from optprune.certify._exact_blocks import exact_block_bound
from optprune.certify._exact_least_squares import exact_minorant_bound, exact_objective
from optprune.certify._exact_pairs import exact_pair_bound
from optprune.certify._mask_only import keeps_the_dense_weights, relax_mask
from optprune.certify._pair_evidence import pairs_in, proves_pairs
from optprune.certify._perspective import Perspective, scaled_minorant
from optprune.certify._tighten import LEAST_SHARE, outputs, search_precision, tighten
from optprune.errors import InvalidInputError
from optprune.numerics.dyadic import Enclosure
from optprune.numerics.linalg import binary_scale, is_positive_semidefinite_certified
from optprune.numerics.rounding import SMALLEST, UNIT, gamma
from optprune.numerics.working_memory import working_memory
from optprune.problems._base import Problem
from optprune.problems.least_squares import L0LeastSquares
from optprune.solution import Certificate, Rigor


@dataclass(frozen=True)
class LeastSquaresChecker(Checker[L0LeastSquares]):
    r"""Certificates for `L0LeastSquares`.

    The evidence is a `minorant` $\delta$, `(in,)` for all rows or `(out, in)` with one for each, such that $H -
    \operatorname{diag}\delta_r \succeq 0$, and a `point` $V$ `(out, in)`, where the convex part of the objective is
    linearised. With it may come `pairs`: squares $(a_p \cdot u)^2$ of two weights each that are split off too, by their
    places `(out, pairs, 2)`, `pair_weights` $a_p$ and `pair_offsets`. Where the pattern is n of m and a group has few
    supports, `blocks` take the place of the minorant: the diagonal blocks `(out, blocks, size, size)` of a
    block-diagonal $D_r$, and with them `groups` `(blocks, several)`, the groups that lie in each block. All such
    evidence gives a valid bound; `check` proves in floating point itself that what is split off leaves the Hessian
    positive semidefinite, and subtracts the rounding error of the evaluation.

    Where the Gram matrix is singular beyond its dead inputs (more weights than samples, duplicated columns) the only
    diagonal minorant this proof can use is 0, and the bound is the vacuous 0. Damping the problem makes it
    informative again, for the damped objective.

    The gap that `tests/benchmarks/bench_l0_bounds.py` measures is below 1 % on isotropic inputs (256 x 256). On 512
    inputs with eigenvalues 1/j it is 11 % at half the weights and 14 at four to two tenths, 15 at one. On real layers
    it is the larger, the worse their condition. With 1 % damping it is 2 % at half the weights to 10 % at a tenth on
    one of the digits (256 x 256); on LeNet-300-100's first layer 5, 12, 18 and 31 % at .5, .7, .8 and .9, on its second
    10, 14, 18 and 26, and on its third 6, 13, 17 and 29. Undamped it is 38 to 72 % on that of the digits, and 18 to 38
    and 12 to 43 % on LeNet-300-100's second and third, where the best diagonal minorant that all rows share leaves 31
    to 51 and 26 to 59. With 2:4 it is 1.5 % on isotropic inputs, 13 % on the 512, 4 % on the digits and 17, 14 and 10 %
    on LeNet-300-100 with damping; without, 38 % on the digits, and 22 and 19 on the second and third of the others.

    What limits it is the family of minorants, the conditioning and the time. On the 512 inputs the best minorants that
    are diagonal leave 11.6, 13.1, 14.4, 15.3 and 16.1 % at 0.5 to 0.1 of the weights; a thousand pairs for each row
    promise 10 to 14 %, of which the search loses one to three points in its share of the time. The objective is within
    half a percent of what thirty restarts of the exchange search find, no weight is proved zero or kept, and branching
    on single weights gains less than a point with 32 leaves for each row. More pairs would help: by conic programs on
    24 inputs with eigenvalues 1/j, all of them take the bound from 93 to 98 % (2 kept) and from 94 to 97 % (12 kept) of
    the best objective. With 2:4, blocks of single groups leave 20 % on three rows of the first layer of LeNet-300-100
    however long they are sought, blocks of two 16 and of three less than 15; 1,200 pairs across groups would take the
    former to 16. On ill-conditioned layers pairs are worth more: on the third layer of LeNet-300-100 the best
    diagonal minorants leave 9, 21 and 36 % at .5, .75 and .9, two pairs for every input 6.5, 17 and 30, four 6, 16 and
    28; on twelve rows of the undamped digits they leave 41 % at .5 and 75 at .9, and blocks that are sought three
    times as long as by default 33 with 2:4.

    The details count the weights that the same evidence proves zero, and in use, in every optimal solution:
    `proved_pruned` and `proved_kept`, where the weight is admissible and the evidence is a minorant. Where the weight
    is a mask times the dense one, `mask_only_lower_bound` is below every such weight: what a better mask could reach.

    Attributes:
        effort: floating-point operations that may go into the evidence, in float64; on layers of 600 inputs and more,
            which use them up, the default takes a core one to two minutes. Well-conditioned layers are searched in
            float32, where they count less. A bound of less effort is as valid, and weaker. On very large layers 400
            products with the Gram matrix are made all the same.
        tolerance: the search ends when two rounds raise the bound by less than twice this fraction of the objective, or
            one by less than three quarters of it where the evidence is blocks; sweeps are repeated while minorants
            lose more than six times as much. Newton's steps are not counted by it.
        max_rounds: most rounds, and Newton steps with pairs; of these there are the more. The default costs at most
            about five times what the default solver does.

    Guarantees:
        T03, T10, T25: `lower_bound` is at most the objective of every weight with an admissible support.
        T11: `mask_only_lower_bound`. T12: what the counts say.

    References:
        Derived here; for a scalar minorant it is the perspective (Boolean) relaxation of Pilanci, Wainwright & El
        Ghaoui 2015.
    """

    effort: float = 3e12
    tolerance: float = 0.005
    max_rounds: int = 12

    problem: ClassVar[type[Problem]] = L0LeastSquares
    theorem: ClassVar[str] = "T03"

    def __post_init__(self) -> None:
        if not (self.effort >= 0 and self.tolerance >= 0 and self.max_rounds >= 1):
            raise InvalidInputError(f"{self} given; effort and tolerance are at least 0, max_rounds is at least 1")

    def evidence(self, problem: L0LeastSquares, matrix: Tensor, hint: Mapping[str, Tensor]) -> dict[str, Tensor]:
        minorant = scaled_minorant(problem.gram)
        if bool((minorant > 0).any()) and enumerable(problem.pattern):
            found = strengthen_groups(problem, minorant, matrix, self.effort, self.tolerance, self.max_rounds)
            if found is not None:
                return found
        moments = partial(by_moments, tolerance=self.tolerance)
        rows, inputs = problem.shape
        searches = (by_newton, moments) if rows * inputs**2 <= SMALL else (moments, by_newton)
        found = (search(problem, minorant, matrix, self.effort, max_rounds=self.max_rounds) for search in searches)
        evidence = next((evidence for evidence in found if evidence is not None), None)
        if evidence is None:
            minorant, point = strengthen(problem, minorant, matrix, self.effort, self.tolerance, self.max_rounds)
            evidence = {"minorant": minorant, "point": point}
        if keeps_the_dense_weights(problem, matrix):
            evidence["mask_point"] = relax_mask(problem, evidence["minorant"], matrix)
        return evidence

    def check(self, problem: L0LeastSquares, matrix: Tensor, evidence: Mapping[str, Tensor]) -> Certificate:
        point = evidence["point"].double()
        s = problem.statistics
        data = (problem.gram, s.cross, s.energy, s.reference)
        bound, theorem, details = 0.0, self.theorem, _errors(problem, matrix)
        objective, error = float(problem.objective(matrix)), objective_error(problem, matrix)
        if "blocks" in evidence:
            theorem, found = "T10", blocked(problem, evidence)
            if found is not None and proves_blocks(found.gram, found.blocks):
                bound = block_minorant_bound(*found)
        else:
            minorant, gains = evidence["minorant"].double(), None
            if "pairs" in evidence:
                theorem, pairs = "T25", pairs_in(evidence, problem.shape)
                if pairs is not None and proves_pairs(problem.gram, minorant, pairs):
                    bound, gains = pair_minorant_parts(*data, minorant, pairs, point, problem.pattern.support)
            elif bool((minorant > 0).any()) and proves_minorant(problem.gram, minorant):
                bound, gains = minorant_parts(*data, minorant, point, problem.pattern.support)
            if gains is not None:
                if problem.pattern.admits(matrix != 0):
                    zero, needed = screened(bound, math.nextafter(objective + error, math.inf), gains, problem.pattern)
                    details |= {"proved_pruned": float(zero.sum()), "proved_kept": float(needed.sum())}
                if "mask_point" in evidence:
                    masks = mask_only_bound(*data, minorant, evidence["mask_point"].double(), problem.pattern.support)
                    details["mask_only_lower_bound"] = max(0.0, bound, masks)
        return Certificate(
            objective=objective,
            lower_bound=max(0.0, bound),
            primal_residual=float(problem.violation(matrix)["support"]),
            dual_residual=0.0,
            rigor=Rigor.ROUNDED,
            theorem=theorem,
            details=details,
            objective_error=error,
        )

    def exact(
        self, problem: L0LeastSquares, matrix: Tensor, evidence: Mapping[str, Tensor]
    ) -> tuple[Enclosure, Enclosure, Mapping[str, Enclosure], str]:
        point = evidence["point"].double()
        if "blocks" in evidence:
            theorem, bound, found = "T10", Enclosure.point(0), blocked(problem, evidence)
            if found is not None:
                bound = exact_block_bound(*found)
        elif "pairs" in evidence:
            theorem, bound, pairs = "T25", Enclosure.point(0), pairs_in(evidence, problem.shape)
            if pairs is not None:
                bound = exact_pair_bound(problem, evidence["minorant"].double(), pairs, point)
        else:
            theorem, bound = self.theorem, exact_minorant_bound(problem, evidence["minorant"].double(), point)
        outside = int((matrix != problem.pattern.project(matrix)).sum())
        return exact_objective(problem, matrix), bound, {"support": Enclosure.point(outside)}, theorem


SMALL = 2**23
"""Product of rows and squared inputs up to which Newton's steps come before sweeps: a sweep goes from input to input,
and its time hardly depends on the rows while there are few. At 10 x 512 sweeps take seven times as long and end within
1.5 points of the gap; at 64 x 512 and 256 x 256 the two take about as long, and sweeps, with more pairs, end lower.
"""

FEWEST_OWN, FEWEST_SHARED = 5, 8
"""Rounds; with fewer, minorants of the rows' own, or one that is chosen for the layer, are not worth while."""

LEAST_STEPS = 400
"""Gradient steps that are made whatever the effort: the bound rises from far below zero. With 4096 inputs of spectrum
1/j it is below zero after 100 steps, and the gap is 49, 44, 41 and 39 % after 300, 400, 600 and 800.
"""


def strengthen(
    problem: L0LeastSquares,
    minorant: Float[Tensor, " in"],
    start: Float[Tensor, "out in"],
    effort: float,
    tolerance: float = 0.005,
    max_rounds: int = 12,
) -> tuple[Float[Tensor, "*out in"], Float[Tensor, "out in"]]:
    r"""Minorants and a point of linearisation whose bound is near the best.

    As far as the effort allows: each row gets a minorant of its own; or all share one that is chosen for the layer; or
    the given one stays and only the point is sought, by accelerated proximal gradient. That takes about
    $10 \sqrt{\lambda}$ steps of $2 \cdot out \cdot in^2$ operations, $\lambda$ the largest eigenvalue of the
    relaxation's quadratic form (counted on real layers).

    Args:
        problem: the problem.
        minorant: as `scaled_minorant` gives it; where it is 0 throughout there is nothing to improve.
        start: a good weight; the closer to the optimum, the fewer steps. One no better than 0 is replaced by 0.
        effort: floating-point operations that may be spent; `LEAST_STEPS` gradient steps in any case.
        tolerance: stop when two rounds raise the bound by less than twice this fraction of the objective at `start`;
            the gradient method when five looks at its bound raise it by less than a tenth of that.
        max_rounds: most rounds with a minorant for each row; three times as many with one for all, which are cheaper.
    """
    if not bool((minorant > 0).any()):
        return minorant, start
    zero = torch.zeros_like(start)
    if not float(problem.objective(start)) < float(problem.objective(zero)):
        start = zero  # also where the objective overflows
    objective = 2 * float(problem.objective(start))
    if objective <= 0 and problem.pattern.admits(start != 0):
        return minorant, start  # the optimum is 0, and so is the bound that needs no proof
    exact = Perspective.of(problem, minorant)
    size, share = outputs(exact.energy, objective)
    relaxation, x, growth = exact.per(size), exact.enter(start) / size, tolerance * objective / size**2
    rows, columns = relaxation.b.shape
    dtype, time = search_precision(relaxation.root.square(), share)
    for least, own, cost in ((FEWEST_OWN, True, 3.0), (FEWEST_SHARED, False, 1.0)):
        most = max_rounds if own else 3 * max_rounds
        rounds = int(min(most, effort / (time * cost * rows * columns**3)))
        if rounds >= min(least, most):
            found, x = tighten(relaxation.to(dtype), x.to(dtype), growth, rounds=rounds, own=own)
            found = exact.moved(found.root.double().square())
            return found.minorant, found.leave(x.double() * size)
    # Products with one large matrix are several times as fast as factorisations of many, and bear float32 better.
    rough = float(relaxation.root.square().amin()) >= 1e-3 and share >= LEAST_SHARE
    dtype, time = (torch.float32, 0.25) if rough else (torch.float64, 0.5)
    steps = max(LEAST_STEPS, int(effort / (time * 2 * rows * columns**2)))
    x = accelerate(relaxation.to(dtype), x.to(dtype), 0.1 * growth, max_steps=steps)
    return minorant, exact.leave(x.double() * size)


@theorem("T03")
def objective_error(problem: L0LeastSquares, matrix: Float[Tensor, "out in"]) -> float:
    r"""Bound of the rounding error of `L0LeastSquares.objective`, $d$ inputs and $o$ outputs:

    $$\gamma_{2d + o + 12} \bigl(\tfrac12 \langle |\Delta|, |\Delta| |H| \rangle + \langle |\Delta|, |C^\top| \rangle
      + \tfrac12 \textstyle\sum_m |E_m|\bigr),$$

    since a term takes a rounding of $\Delta$ twice, $d$ in an entry of $\Delta H$, one in its product with $\Delta$,
    $d - 1$ and $o - 1$ in the sums and two between them; and $\eta$ for each product that underflows, times the factor
    that it meets.
    """
    rows, columns = problem.shape
    step, s = (matrix.to(torch.float64) - problem.dense).abs(), problem.statistics
    size = (
        0.5 * (step * (step @ problem.gram.abs())).sum() + (step * s.cross.mT.abs()).sum() + 0.5 * s.energy.abs().sum()
    )
    lost = 4 * SMALLEST * (columns + 2) * (step.sum() + rows * columns)
    return float(gamma(2 * columns + rows + 12) * size * (1 + 2 * gamma(rows * columns + columns + 16)) + lost)


def _errors(problem: L0LeastSquares, matrix: Tensor) -> dict[str, float]:
    """The objective without damping, and the layer's relative output error, whatever the damping."""
    statistics = problem.statistics
    return {
        "undamped_objective": float(statistics.error(matrix).sum()),
        "relative_error": float(statistics.relative_error(matrix)),
        "kept": float((matrix != 0).sum()),
    }


@theorem("T03")
def proves_minorant(
    gram: Float[Tensor, "in in"], minorant: Float[Tensor, "*out in"], memory: int | None = None
) -> bool:
    r"""Whether $H - \operatorname{diag}\delta_r \succeq 0$ is proved in floating point for every row of `minorant`.

    Rows and columns are scaled by powers of two, which is exact, so that badly scaled inputs do not weaken the proof.
    Dead inputs (zero rows of $H$) must have $\delta_j = 0$, live ones $\delta_j > 0$.

    Args:
        gram: $H$.
        minorant: $\delta$, one or several.
        memory: bytes for the matrices of a chunk of rows; see `working_memory`.
    """
    live = gram.diagonal() > 0
    several = minorant.reshape(-1, minorant.shape[-1]).unique(dim=0)
    if bool(
        (several < 0).any()
        | (several[:, ~live] > 0).any()
        | (several[:, live] <= 0).any()
        | (gram[~live] != 0).any()
        | (gram != gram.mT).any()
        | ~several.isfinite().all()
    ):
        return False
    h, delta = gram[live][:, live], several[:, live]
    scale = binary_scale(h.diagonal())
    scaled = h * scale[:, None] * scale[None, :]
    # Adding up the shift and subtracting it round once each, together by less than 2 UNIT * diagonal.
    shift = delta * scale.square() + 2 * UNIT * scaled.diagonal()
    rows = max(1, working_memory(memory, gram.device, 2**24) // (40 * max(1, len(h)) ** 2))
    for part in shift.split(rows):
        rest = scaled.expand(len(part), *scaled.shape).clone()
        rest.diagonal(dim1=-2, dim2=-1).sub_(part)
        if not bool(is_positive_semidefinite_certified(rest).all()):
            return False
    return True
