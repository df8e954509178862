"""The proven optimum of a tiny l0 problem, by enumeration."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool
from torch import Tensor

from optprune.errors import InvalidInputError
from optprune.numerics.masked import masked_least_squares
from optprune.patterns import Fixed, Pattern, Shape
from optprune.problems import L0LeastSquares, Problem, unstack
from optprune.solution import Answer, Termination
from optprune.solvers._base import Progress, Promise, Solver


@dataclass(frozen=True)
class Exhaustive(Solver[L0LeastSquares]):
    """Refits every maximal admissible support exactly and returns the best: the reference for tiny problems.

    Row-separable patterns are enumerated row by row, others over the whole layer.

    Attributes:
        limit: most supports to try; more is refused.
        chunk: supports refitted at a time.

    Raises:
        InvalidInputError: the problem has more than `limit` supports.
    """

    limit: int = 2_000_000
    chunk: int = 20_000

    accepts: ClassVar[tuple[type[Problem], ...]] = (L0LeastSquares,)
    summary: ClassVar[str] = "tries every support of a tiny l0 problem: the proven optimum"
    source: ClassVar[str] = "enumeration"

    @property
    def promises(self) -> frozenset[Promise]:
        return frozenset({Promise.REFITTED, Promise.OPTIMAL})

    def run(self, problem: L0LeastSquares, progress: Progress | None = None) -> Answer:
        if problem.batch_shape:
            answers = [self.run(part) for part in unstack(problem)]
            terminations = tuple(t for answer in answers for t in answer.termination)
            return Answer(torch.stack([a.matrix for a in answers]), terminations, max(a.steps for a in answers))
        total = _number_of_supports(problem.pattern, problem.shape)
        if total > self.limit:
            raise InvalidInputError(
                f"Exhaustive given a problem with {total:.3g} supports; it accepts at most {self.limit}. "
                "Use another solver, its certificate bounds the distance to the optimum"
            )
        rows, columns = problem.shape
        best = torch.full((rows,), torch.inf, dtype=torch.float64, device=problem.dense.device)
        matrix = torch.zeros_like(problem.dense)
        for masks in _chunks(problem.pattern, problem.shape, self.chunk):
            masks = masks.to(best.device).expand(-1, rows, -1)
            rhs = problem.linear.expand(masks.shape).reshape(-1, columns)
            fit = masked_least_squares(problem.gram, rhs, masks.reshape(-1, columns)).weight.reshape(masks.shape)
            values = problem.row_objective(fit)
            if not problem.pattern.row_separable:
                values = values.sum(-1, keepdim=True).expand(masks.shape[:2])
            lowest, which = values.min(0)
            better = lowest < best
            chosen = fit[which, torch.arange(rows, device=best.device)]
            best, matrix = torch.where(better, lowest, best), torch.where(better[:, None], chosen, matrix)
        return Answer(matrix, (Termination.CLOSED_FORM,), steps=total)


def _scope(pattern: Pattern, shape: Shape) -> Shape:
    """What is enumerated together: one row where rows are independent, else the whole matrix."""
    return (1, shape[1]) if pattern.row_separable else shape


def _number_of_supports(pattern: Pattern, shape: Shape) -> int:
    if isinstance(pattern, Fixed):
        return 1
    scope = _scope(pattern, shape)
    budgets, units, _ = pattern.layout(scope)
    return math.comb(units, int(pattern.kept(scope))) ** budgets


def _chunks(pattern: Pattern, shape: Shape, size: int) -> Iterator[Bool[Tensor, "supports rows in"]]:
    """All maximal supports, `size` at a time; one row stands for every row where rows are independent."""
    if isinstance(pattern, Fixed):
        yield pattern.mask[None]
        return
    scope = _scope(pattern, shape)
    budgets, units, weights = pattern.layout(scope)
    choices = itertools.combinations(range(units), int(pattern.kept(scope)))
    supports = itertools.product(list(choices) if budgets > 1 else choices, repeat=budgets)
    while part := list(itertools.islice(supports, size)):
        index = torch.tensor(part, dtype=torch.long).reshape(len(part), budgets, -1)
        chosen = torch.zeros(len(part), budgets, units, dtype=torch.bool).scatter_(-1, index, True)
        yield pattern.from_units(chosen[..., None].expand(*chosen.shape, weights), scope)
