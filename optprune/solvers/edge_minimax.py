"""The proven optimum of a tiny `EdgeSampling` problem: a linear program for every support."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import linprog
from torch import Tensor

from optprune.errors import InvalidInputError
from optprune.patterns import Pattern, PerLayer
from optprune.problems import EdgeSampling, Problem, unstack
from optprune.solution import Answer, Termination
from optprune.solvers._base import Progress, Promise, Solver


@dataclass(frozen=True)
class EdgeMinimax(Solver[EdgeSampling]):
    r"""Solves $\min_{u, t} t$ s.t. $|\sum_j (u_j - w_j) x_j| \le t \sum_j |w_j x_j|$ for every support of every neuron.

    A budget of the layer is then divided among the neurons by dynamic programming. The reference for tiny problems.

    Attributes:
        limit: most linear programs; more is refused.

    Raises:
        InvalidInputError: the problem has more supports than `limit`.
    """

    limit: int = 20_000

    accepts: ClassVar[tuple[type[Problem], ...]] = (EdgeSampling,)
    summary: ClassVar[str] = "tries every support of a tiny edge-sampling problem by linear programs: the optimum"
    source: ClassVar[str] = "enumeration; the programs are those of Chebyshev approximation"

    @property
    def promises(self) -> frozenset[Promise]:
        return frozenset({Promise.OPTIMAL})

    def run(self, problem: EdgeSampling, progress: Progress | None = None) -> Answer:
        if problem.batch_shape:
            answers = [self.run(part) for part in unstack(problem)]
            return Answer(
                torch.stack([answer.matrix for answer in answers]),
                (Termination.CLOSED_FORM,) * len(answers),
                steps=max(answer.steps for answer in answers),
            )
        out, d = problem.shape
        supports = list(_supports(problem.pattern, out, d))
        if out * len(supports) > self.limit:
            raise InvalidInputError(
                f"EdgeMinimax given a problem with {out * len(supports)} linear programs; it accepts {self.limit}. "
                "Use another solver"
            )
        rows = torch.cat(list(problem.blocks()))
        best: list[dict[int, tuple[float, Tensor]]] = []
        for weight in problem.weight:
            found = {}
            for support in supports:
                answer = _fit(weight, rows, support)
                if len(support) not in found or answer[0] < found[len(support)][0]:
                    found[len(support)] = answer
            best.append(found)
        matrix = _divided(best, problem.pattern.k) if isinstance(problem.pattern, PerLayer) else _each(best)
        return Answer(matrix.to(problem.weight), (Termination.CLOSED_FORM,), steps=out * len(supports))


def _supports(pattern: Pattern, out: int, d: int) -> Iterator[tuple[int, ...]]:
    """The supports of one row that matter: all of them for a budget of the layer, the maximal ones of a row's."""
    if isinstance(pattern, PerLayer):
        for k in range(min(d, pattern.k) + 1):
            yield from itertools.combinations(range(d), k)
        return
    budgets, units, size = pattern.layout((1, d))
    if size != 1 or not pattern.row_separable:
        raise InvalidInputError(f"{pattern} given to EdgeMinimax; PerLayer, PerRow and NOfM are accepted")
    choices = list(itertools.combinations(range(units), int(pattern.kept((1, d)))))
    for parts in itertools.product(choices, repeat=budgets):
        yield tuple(b * units + j for b, part in enumerate(parts) for j in part)


def _fit(weight: Float[Tensor, " in"], rows: Float[Tensor, "n in"], support: tuple[int, ...]) -> tuple[float, Tensor]:
    """The least worst relative error on a support, and the weights that have it."""
    kept = [j for j in support if float(weight[j]) != 0.0]
    terms = rows * weight
    through = terms.abs().sum(-1)
    live = through > 0
    # Relative to what flows, every point has scale 1; v_j = u_j / w_j has scale 1, too.
    share = (terms[live] / through[live, None]).cpu().numpy()
    factors = np.zeros(len(weight))
    target = share.sum(-1)
    if kept and len(share):
        basis = share[:, kept]
        size = np.abs(basis).max(0)
        size[size == 0] = 1.0
        ones = np.ones((len(share), 1))
        a = np.block([[basis / size, -ones], [-basis / size, -ones]])
        solution = linprog(
            np.r_[np.zeros(len(kept)), 1.0],
            A_ub=a,
            b_ub=np.r_[target, -target],
            bounds=[(None, None)] * len(kept) + [(0, None)],
            method="highs",
            options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
        )
        factors[kept] = solution.x[:-1] / size
    worst = float(np.abs(share @ factors - target).max()) if len(share) else 0.0
    return worst, torch.from_numpy(factors).to(weight) * weight


def _each(best: list[dict[int, tuple[float, Tensor]]]) -> Tensor:
    """Row by row: a pattern of rows has supports of one size."""
    return torch.stack([next(iter(found.values()))[1] for found in best])


def _divided(best: list[dict[int, tuple[float, Tensor]]], budget: int) -> Tensor:
    """The division of a layer's budget with the least sum of squares."""
    totals: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}
    for found in best:
        reached: dict[int, tuple[float, tuple[int, ...]]] = {}
        for (used, (value, sizes)), (k, (worst, _)) in itertools.product(totals.items(), found.items()):
            total = value + worst**2
            if used + k <= budget and total < reached.get(used + k, (np.inf, ()))[0]:
                reached[used + k] = (total, (*sizes, k))
        totals = reached
    _, sizes = min(totals.values())
    return torch.stack([found[k][1] for found, k in zip(best, sizes, strict=True)])
