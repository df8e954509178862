"""Checker of the l0 least-squares problem: the minorant-split lower bound, with its rounding error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from optprune.bounds._theorem import theorem
from optprune.bounds.minorant import minorant_bound
from optprune.certify._accelerate import accelerate
from optprune.certify._base import Checker
from optprune.certify._exact_least_squares import exact_minorant_bound, exact_objective
from optprune.certify._perspective import Perspective, scaled_minorant
from optprune.certify._tighten import tighten
from optprune.numerics.dyadic import Enclosure
from optprune.numerics.linalg import is_positive_semidefinite_certified
from optprune.numerics.rounding import SMALLEST, UNIT, gamma
from optprune.problems._base import Problem
from optprune.problems.least_squares import L0LeastSquares
from optprune.solution import Certificate, Rigor


@dataclass(frozen=True)
class LeastSquaresChecker(Checker[L0LeastSquares]):
    r"""Certificates for `L0LeastSquares`.

    The evidence is a `minorant` $\delta$, `(in,)` for all rows or `(out, in)` with one for each, such that $H -
    \operatorname{diag}\delta_r \succeq 0$, and a `point` $V$ `(out, in)`, where the convex part of the objective is
    linearised. Every such pair gives a valid bound; `check` proves $H - \operatorname{diag}\delta_r \succeq 0$ in
    floating point itself and subtracts the rounding error of the evaluation.

    Where the Gram matrix is singular beyond its dead inputs (more weights than samples, duplicated columns) the only
    diagonal minorant this proof can use is 0, and the bound is the vacuous 0. Damping the problem makes it
    informative again, for the damped objective.

    Attributes:
        effort: floating-point operations that may go into the evidence; a core makes 5e9 to 1e10 of them in a second.
            A bound of less effort is as valid, and weaker.

    Guarantees:
        T03: `lower_bound` is at most the objective of every weight with an admissible support.

    References:
        Derived here; for a scalar minorant it is the perspective (Boolean) relaxation of Pilanci, Wainwright & El
        Ghaoui 2015.
    """

    effort: float = 3e12

    problem: ClassVar[type[Problem]] = L0LeastSquares
    theorem: ClassVar[str] = "T03"

    def evidence(self, problem: L0LeastSquares, matrix: Tensor, hint: Mapping[str, Tensor]) -> dict[str, Tensor]:
        minorant, point = strengthen(problem, scaled_minorant(problem.gram), matrix, self.effort)
        return {"minorant": minorant, "point": point}

    def check(self, problem: L0LeastSquares, matrix: Tensor, evidence: Mapping[str, Tensor]) -> Certificate:
        minorant, point = evidence["minorant"].double(), evidence["point"].double()
        bound = 0.0
        if bool((minorant > 0).any()) and proves_minorant(problem.gram, minorant):
            s = problem.statistics
            bound = max(
                0.0,
                minorant_bound(problem.gram, s.cross, s.energy, s.reference, minorant, point, problem.pattern.support),
            )
        objective = float(problem.objective(matrix))
        return Certificate(
            objective=objective,
            lower_bound=bound,
            primal_residual=float(problem.violation(matrix)["support"]),
            dual_residual=0.0,
            rigor=Rigor.ROUNDED,
            theorem=self.theorem,
            details=_errors(problem, matrix),
            objective_error=objective_error(problem, matrix),
        )

    def exact(
        self, problem: L0LeastSquares, matrix: Tensor, evidence: Mapping[str, Tensor]
    ) -> tuple[Enclosure, Enclosure, Mapping[str, Enclosure]]:
        minorant, point = evidence["minorant"].double(), evidence["point"].double()
        outside = int((matrix != problem.pattern.project(matrix)).sum())
        return (
            exact_objective(problem, matrix),
            exact_minorant_bound(problem, minorant, point),
            {"support": Enclosure.point(outside)},
        )


OWN_ROUNDS = (6, 10)
SHARED_ROUNDS = (8, 20)
"""Fewer rounds than the first are not worth while, more than the second gain little."""


def strengthen(
    problem: L0LeastSquares,
    minorant: Float[Tensor, " in"],
    start: Float[Tensor, "out in"],
    effort: float,
    tolerance: float = 1e-3,
) -> tuple[Float[Tensor, "*out in"], Float[Tensor, "out in"]]:
    r"""Minorants and a point of linearisation whose bound is near the best.

    As far as the effort allows: each row gets a minorant of its own; or all share one, chosen for the layer; or the
    given one stays and only the point is sought, by accelerated proximal gradient, which takes about $10
    \sqrt{\lambda}$ steps of $2 \cdot out \cdot in^2$ operations, $\lambda$ the largest eigenvalue of the relaxation's
    quadratic form (counted on real layers).

    Args:
        problem: the problem.
        minorant: as `scaled_minorant` gives it; where it is 0 throughout there is nothing to improve.
        start: a good weight; the closer to the optimum, the fewer steps. One no better than 0 is replaced by 0.
        effort: floating-point operations that may be spent.
        tolerance: stop when the bound grows by less than this fraction of the objective at `start`.
    """
    if not bool((minorant > 0).any()):
        return minorant, start
    zero = torch.zeros_like(start)
    if not float(problem.objective(start)) < float(problem.objective(zero)):
        start = zero  # also where the objective overflows
    growth = 2 * tolerance * float(problem.objective(start))
    if growth <= 0 and problem.pattern.admits(start != 0):
        return minorant, start  # the optimum is 0, and so is the bound that needs no proof
    relaxation = Perspective.of(problem, minorant)
    rows, columns = relaxation.b.shape
    x = relaxation.enter(start)
    for (least, most), own, cost in ((OWN_ROUNDS, True, 3.0), (SHARED_ROUNDS, False, 1.0)):
        rounds = int(min(most, effort / (cost * rows * columns**3)))
        if rounds >= least:
            relaxation, x = tighten(relaxation, x, growth, rounds=rounds, own=own)
            return relaxation.minorant, relaxation.leave(x)
    steps = int(min(2000, max(50, effort / (2 * rows * columns**2))))
    return minorant, relaxation.leave(accelerate(relaxation, x, growth, max_steps=steps))


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
def proves_minorant(gram: Float[Tensor, "in in"], minorant: Float[Tensor, "*out in"], memory: int = 2**24) -> bool:
    r"""Whether $H - \operatorname{diag}\delta_r \succeq 0$ is proved in floating point for every row of `minorant`.

    Rows and columns are scaled by powers of two, which is exact, so that badly scaled inputs do not weaken the proof.
    Dead inputs (zero rows of $H$) must have $\delta_j = 0$, live ones $\delta_j > 0$.

    Args:
        gram: $H$.
        minorant: $\delta$, one or several.
        memory: bytes for the matrices of a chunk of rows.
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
    scale = torch.exp2(-torch.log2(h.diagonal()).div(2).round())
    if bool((torch.frexp(scale).mantissa != 0.5).any()):  # exp2 of an integer that is not a power of two proves nothing
        return False
    scaled = h * scale[:, None] * scale[None, :]
    # Adding up the shift and subtracting it round once each, together by less than 2 UNIT * diagonal.
    shift = delta * scale.square() + 2 * UNIT * scaled.diagonal()
    rows = max(1, memory // (40 * max(1, len(h)) ** 2))
    for part in shift.split(rows):
        rest = scaled.expand(len(part), *scaled.shape).clone()
        rest.diagonal(dim1=-2, dim2=-1).sub_(part)
        if not bool(is_positive_semidefinite_certified(rest).all()):
            return False
    return True
