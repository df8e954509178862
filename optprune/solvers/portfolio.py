"""The default for the l0 problem: several starts, each polished, the best kept."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch

from optprune.errors import InvalidInputError
from optprune.patterns import Fixed
from optprune.problems import L0LeastSquares, Problem
from optprune.solution import Answer, Termination
from optprune.solvers._base import Progress, Promise, Solver
from optprune.solvers.admm import ADMM
from optprune.solvers.obc import OBC
from optprune.solvers.swap_search import SwapSearch

SHORT = ADMM(rho=0.07, growth=1.07, patience=2, settling=1e-3, refit_tolerance=1e-3, check_every=1)
"""Some 30 steps. On layers of condition 10 to 1e9 (spectra 1/j^p, a real layer with and without damping) its error is
0.66 to 0.999 of that of ALPS; a first penalty of 0.1 is above ALPS by up to 2 % where the condition is near 1e4. The
rough refit cost at most 3.4e-6 of the objective (384 and 512 inputs, 1/j^0.5 and 1/j); harder layers are factorised.
"""


@dataclass(frozen=True)
class Portfolio(Solver[L0LeastSquares]):
    """Start from several supports, refit each exactly, polish each by exchanges, keep the best.

    With `effort="default"` the starts are `ADMM` and `OBC`, polished by `SwapSearch`; where every row has budgets of
    its own, the best is taken row by row. `effort="fast"` is `ADMM` alone with a short schedule. Work beyond
    `most_work` is not begun: elimination and polishing grow with the cube of the inputs, and on layers where that is
    too much the answer is that of `ADMM`; `info` counts the starts made and those polished.

    Attributes:
        effort: how much is tried.
        most_work: floating-point operations that one elimination or one polishing may be estimated at; a core makes
            about 1e10 of them in a second.
    """

    effort: Literal["fast", "default"] = "default"
    most_work: float = 1e12

    accepts: ClassVar[tuple[type[Problem], ...]] = (L0LeastSquares,)
    summary: ClassVar[str] = "ADMM and greedy elimination, each polished by exchanges, the best kept; the default"
    source: ClassVar[str] = "Meng et al. 2024 (ALPS), Frantar et al. 2022 (OBC), Beck & Eldar 2013; combination ours"

    def __post_init__(self) -> None:
        if self.effort not in ("fast", "default") or not self.most_work >= 0:
            raise InvalidInputError(
                f"Portfolio with effort={self.effort!r}, most_work={self.most_work} given; "
                "effort is 'fast' or 'default', and most_work is at least 0"
            )

    @property
    def promises(self) -> frozenset[Promise]:
        return frozenset({Promise.REFITTED})

    def run(self, problem: L0LeastSquares, progress: Progress | None = None) -> Answer:
        if self.effort == "fast":
            return SHORT.run(problem, progress)
        eliminates, polishes = (work <= self.most_work for work in _work(problem))
        starts: list[Solver] = [ADMM(), OBC()] if eliminates else [ADMM()]
        answers = []
        for number, start in enumerate(starts):
            answer = start.run(problem)
            if polishes and not isinstance(problem.pattern, Fixed):
                polished = SwapSearch().improve(problem, problem.pattern.support((answer.matrix != 0).double()))
                answer = replace(polished, termination=_both(answer.termination, polished.termination))
            answers.append(answer)
            if progress is not None:
                progress(number + 1, len(starts))
        info = {"starts": float(len(starts)), "polished": float(polishes * len(starts))}
        return _best(problem, answers, info)


def _work(problem: L0LeastSquares) -> tuple[float, float]:
    """Estimated operations of an elimination and of a polishing."""
    out, d = problem.shape
    height, _ = problem.pattern.tile((out, d))
    bands = problem.dense[..., 0, 0].numel() * (out // height)
    kept = problem.pattern.density((out, d)) * d
    return bands * d**3, bands * (2 * d * kept**2 + 300 * d * kept)


def _best(problem: L0LeastSquares, answers: list[Answer], info: dict[str, float]) -> Answer:
    matrices = torch.stack([answer.matrix for answer in answers])
    values = torch.stack([problem.row_objective(answer.matrix) for answer in answers])
    if not problem.pattern.row_separable:
        values = values.sum(-1, keepdim=True).expand_as(values)
    chosen = values.argmin(0)
    index = chosen.unsqueeze(0).unsqueeze(-1).expand(1, *matrices.shape[1:])
    # What a refit reports is a count or a residual: the worst of the answers that the rows were taken from.
    reported = {key for answer in answers for key in answer.info} & {"rank_deficient_rows", "refit_residual"}
    worst = {key: max(answer.info.get(key, 0.0) for answer in answers) for key in sorted(reported)}
    termination = answers[0].termination
    for answer in answers[1:]:
        termination = _both(termination, answer.termination)
    return Answer(
        matrices.gather(0, index).squeeze(0),
        termination,
        steps=sum(answer.steps for answer in answers),
        info=info | worst,
    )


def _both(one: tuple[Termination, ...], other: tuple[Termination, ...]) -> tuple[Termination, ...]:
    """Converged where both have come to their end."""
    return tuple(b if a.ok else a for a, b in zip(one, other, strict=True))
