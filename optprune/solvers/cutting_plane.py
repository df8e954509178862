"""The proven optimum of small l0 problems behind a ReLU, by cutting planes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import Tensor

from optprune.bounds.growth import growth_scores
from optprune.certify._growth import relaxed_point, relu_minorant
from optprune.errors import InvalidInputError
from optprune.patterns import Fixed
from optprune.problems import L0ReLU, Problem, unstack
from optprune.solution import Answer, Termination
from optprune.solvers._base import Progress, Promise, Solver
from optprune.solvers._relu_fit import fit_relu

ROUNDING = 1e-13
"""What an objective may be off by, relative to that of the weight 0."""


@dataclass(frozen=True)
class CuttingPlane(Solver[L0ReLU]):
    r"""Outer approximation: a mixed-integer program over the supports, with one cut more after every fit.

    With $p$ and $s$ of `growth_scores` at the weight $V$ fitted on a support, every support $z$ costs at least

    $$\theta \ge F(V) + \sum p - \sum_u s_u z_u,$$

    with equality at the support of $V$. The program's optimum is a lower bound and its $z$ the support to fit next;
    no support comes twice, and the lowest fit is optimal once bound and fit meet. The first cut is made at the optimum
    of the convex relaxation. HiGHS solves the programs, one per row where rows are independent.

    The number of cuts grows with the exponent of the size: for tens of inputs per row, more where the damping is
    large or all samples are active.

    `info` holds the number of cuts, the lower bound, which rests on HiGHS where the certificate does not, and the
    number of programs that HiGHS could not solve.

    Attributes:
        max_cuts: most cuts per row (per layer, where rows share a budget); with the limit reached, or a program that
            HiGHS fails on, the best support found is returned with termination `STEP_LIMIT`.
        tolerance: of fit and bound, relative to the fit; HiGHS keeps its constraints to 1e-6.

    References:
        Phan, Nguyen, Nguyen & Kalagnanam 2020; the cuts of Duran & Grossmann 1986 and Bertsimas & Van Parys 2020, with
        the curvature of the active samples in place of the ridge alone.
    """

    max_cuts: int = 1000
    tolerance: float = 1e-5

    accepts: ClassVar[tuple[type[Problem], ...]] = (L0ReLU,)
    summary: ClassVar[str] = "cutting planes with HiGHS: the proven optimum of small l0 problems behind a ReLU"
    source: ClassVar[str] = "Phan, Nguyen, Nguyen & Kalagnanam 2020"

    def __post_init__(self) -> None:
        if not (self.max_cuts >= 1 and self.tolerance > 0):
            raise InvalidInputError(
                f"CuttingPlane with max_cuts={self.max_cuts}, tolerance={self.tolerance} given; both must be positive"
            )

    @property
    def promises(self) -> frozenset[Promise]:
        return frozenset({Promise.REFITTED, Promise.OPTIMAL})

    def run(self, problem: L0ReLU, progress: Progress | None = None) -> Answer:
        if problem.batch_shape:
            answers = [self.run(part) for part in unstack(problem)]
            terminations = tuple(t for answer in answers for t in answer.termination)
            return Answer(torch.stack([a.matrix for a in answers]), terminations, max(a.steps for a in answers))
        if isinstance(problem.pattern, Fixed):
            mask = problem.pattern.mask.to(problem.reference.device)
            return Answer(fit_relu(problem, mask), (Termination.CLOSED_FORM,), 0)
        search = _Search(problem)
        cuts = 0
        while cuts == 0 or (cuts < self.max_cuts and search.open_scopes(self.tolerance)):
            search.round(self.tolerance)
            cuts += 1
            if progress is not None:
                progress(cuts, self.max_cuts)
        done = not (search.open_scopes(self.tolerance) or search.stuck)
        info = {"cuts": float(cuts), "lower_bound": float(search.lower.sum()), "failed": float(len(search.stuck))}
        return Answer(search.best, (Termination.CONVERGED if done else Termination.STEP_LIMIT,), cuts, info=info)


class _Search:
    """Bounds, best fits and master programs of the independent parts of a layer: its rows, or the whole."""

    def __init__(self, problem: L0ReLU) -> None:
        self.problem = problem
        pattern, shape = problem.pattern, problem.shape
        budgets, units, _ = pattern.layout(shape)
        self.scopes = shape[0] if pattern.row_separable else 1
        self.minorant = relu_minorant(problem)
        kept = torch.as_tensor(pattern.kept(shape)).expand(budgets).reshape(self.scopes, -1)
        self.masters = [_Master(row.tolist(), units) for row in kept]
        self.best = torch.zeros_like(problem.reference)
        self.upper = self._per_scope(problem.row_objective(self.best)).sum(-1)
        self.rounding = ROUNDING * self.upper
        self.lower = torch.zeros_like(self.upper)
        self.stuck: set[int] = set()
        relaxed = relaxed_point(problem, self.minorant, self.best)
        self._cut(relaxed)
        self.support = pattern.support(relaxed.square() * self.minorant + 1e-9 * problem.reference.square())

    def open_scopes(self, tolerance: float) -> list[int]:
        """Where bound and fit have not met, and HiGHS has not failed."""
        apart = torch.nonzero(self.upper - self.lower > tolerance * self.upper + self.rounding).flatten().tolist()
        return [scope for scope in apart if scope not in self.stuck]

    def round(self, tolerance: float) -> None:
        """Fit the supports, add a cut for each, and solve the programs that are still open."""
        fitted = fit_relu(self.problem, self.support)
        value = self._per_scope(self.problem.row_objective(fitted)).sum(-1)
        better = value < self.upper
        self.upper = torch.where(better, value, self.upper)
        rows = better.expand(self.problem.shape[0]) if self.scopes == 1 else better
        self.best = torch.where(rows.unsqueeze(-1), fitted, self.best)
        self._cut(fitted)
        chosen = self._units(self.support).flatten(1).clone()
        for scope in self.open_scopes(tolerance):
            found = self.masters[scope].solve(float(self.upper[scope]), float(self.lower[scope]))
            if found is None:
                self.stuck.add(scope)
                continue
            self.lower[scope] = min(max(float(self.lower[scope]), found[0]), float(self.upper[scope]))
            chosen[scope] = found[1]
        self.support = self._masks(chosen)

    def _cut(self, point: Float[Tensor, "out d"]) -> None:
        pruned, spared = growth_scores(self.problem.gradient(point), self.minorant, point)
        values = self.problem.row_objective(point) + pruned.sum(-1)
        constant = self._per_scope(values).sum(-1)
        for master, value, scores in zip(self.masters, constant, self._totals(spared), strict=True):
            master.add(float(value), scores)

    def _per_scope(self, x: Float[Tensor, " out"]) -> Float[Tensor, "scopes rows"]:
        return x.reshape(self.scopes, -1)

    def _totals(self, x: Float[Tensor, "out d"]) -> Float[Tensor, "scopes units"]:
        return self.problem.pattern.units(x).sum(-1).reshape(self.scopes, -1)

    def _units(self, mask: Bool[Tensor, "out d"]) -> Bool[Tensor, "scopes units"]:
        return self.problem.pattern.units(mask).any(-1).reshape(self.scopes, -1)

    def _masks(self, chosen: Bool[Tensor, "scopes units"]) -> Bool[Tensor, "out d"]:
        pattern, shape = self.problem.pattern, self.problem.shape
        budgets, units, size = pattern.layout(shape)
        return pattern.from_units(chosen.reshape(budgets, units, 1).expand(budgets, units, size), shape)


class _Master:
    """min theta over supports within the budgets, above every cut."""

    def __init__(self, kept: list[int], units: int) -> None:
        self.size = len(kept) * units
        budgets = np.zeros((len(kept), self.size + 1))
        for index in range(len(kept)):
            budgets[index, index * units : (index + 1) * units] = 1.0
        # scipy's limits are arrays; their annotations, taken from the defaults, say numbers.
        self.most: Any = np.asarray(kept, dtype=float)
        self.ends: Any = np.append(np.ones(self.size), np.inf)
        self.budgets = LinearConstraint(budgets, -np.inf, self.most)
        self.constants: list[float] = []
        self.scores: list[np.ndarray] = []

    def add(self, constant: float, scores: Float[Tensor, " units"]) -> None:
        self.constants.append(constant)
        self.scores.append(scores.numpy(force=True))

    def solve(self, upper: float, lower: float) -> tuple[float, Bool[Tensor, " units"]] | None:
        """A lower bound of every support and the support of the least, by the cuts; None where HiGHS fails."""
        constants = np.asarray(self.constants)
        least: Any = constants / upper
        # A coefficient that takes its cut below a bound already known can be reduced to what takes it there.
        scores = np.minimum(np.stack(self.scores), np.maximum(constants - lower, 0.0)[:, None])
        cuts = LinearConstraint(np.hstack([scores / upper, np.ones((len(constants), 1))]), least, np.inf)
        found = milp(
            np.append(np.zeros(self.size), 1.0),
            constraints=[self.budgets, cuts],
            integrality=np.append(np.ones(self.size), 0.0),
            bounds=Bounds(0.0, self.ends),
            options={"mip_rel_gap": 1e-9},
        )
        if found.x is None:
            return None
        return float(found.mip_dual_bound) * upper, torch.from_numpy(found.x[:-1] > 0.5)
