"""The default for the l0 problem: several starts, each polished, their rows recombined, and shaken."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from optprune.errors import InvalidInputError
from optprune.patterns import Fixed
from optprune.problems import L0LeastSquares, Problem
from optprune.solution import Answer, Termination
from optprune.solvers._base import Progress, Promise, Solver
from optprune.solvers._recombine import recombined
from optprune.solvers.admm import ADMM
from optprune.solvers.obc import OBC
from optprune.solvers.swap_search import SwapSearch

SHORT = ADMM(rho=0.07, growth=1.07, patience=2, settling=1e-3, refit_tolerance=1e-3, check_every=1)
"""Some 30 steps. On layers of condition 10 to 1e9 (spectra 1/j^p, a real layer with and without damping) its error is
0.66 to 0.999 of that of ALPS; a first penalty of 0.1 is above ALPS by up to 2 % where the condition is near 1e4. The
rough refit cost at most 3.4e-6 of the objective (384 and 512 inputs, 1/j^0.5 and 1/j); harder layers are factorised.
"""


SHAKEN = 0.1
"""Share of the units whose score is drawn anew. On LeNet-300-100's second layer, a quarter kept, six shakes with 0.01,
0.03 and 0.1 lower the objective by 0.6, 0.8 and 1.3 %, and take 3, 6 and 11 seconds of a core.
"""


@dataclass(frozen=True)
class Portfolio(Solver[L0LeastSquares]):
    """Start from several supports, refit each exactly, polish each by exchanges, recombine their rows.

    With `effort="default"` the starts are `ADMM` and `OBC`, polished by `SwapSearch`. Of two answers the better rows
    are taken, also where the rows share a budget. Then the best support is shaken, a tenth of its units scored at
    random, polished again, and recombined, a few times. `effort="fast"` is `ADMM` alone with a short schedule. Work
    beyond `most_work` is not begun: elimination and polishing grow with the cube of the inputs, and on layers where
    that is too much the answer is that of `ADMM`; `info` counts the starts made, those polished, and the shakes.

    Attributes:
        effort: how much is tried.
        most_work: floating-point operations that one elimination or one polishing, or all shakes together, may be
            estimated at; a core makes about 1e10 of them in a second.
        shakes: most shakes; each takes about as long as polishing a start. On two layers of LeNet-300-100 three lower
            the objective by 0.1 to 1 %, and find nothing better in two cases of eight.
    """

    effort: Literal["fast", "default"] = "default"
    most_work: float = 1e12
    shakes: int = 3

    accepts: ClassVar[tuple[type[Problem], ...]] = (L0LeastSquares,)
    summary: ClassVar[str] = "ADMM and greedy elimination, polished by exchanges, shaken and recombined; the default"
    source: ClassVar[str] = (
        "Meng et al. 2024 (ALPS), Frantar et al. 2022 (OBC), Beck & Eldar 2013, Lourenço et al. 2003 (iterated local "
        "search); combination ours"
    )

    def __post_init__(self) -> None:
        if self.effort not in ("fast", "default") or not self.most_work >= 0 or not self.shakes >= 0:
            raise InvalidInputError(
                f"Portfolio with effort={self.effort!r}, most_work={self.most_work}, shakes={self.shakes} given; "
                "effort is 'fast' or 'default', and most_work and shakes are at least 0"
            )

    @property
    def promises(self) -> frozenset[Promise]:
        return frozenset({Promise.REFITTED})

    def run(self, problem: L0LeastSquares, progress: Progress | None = None) -> Answer:
        if self.effort == "fast":
            return SHORT.run(problem, progress)
        elimination, polish = _work(problem)
        starts: list[Solver] = [ADMM(), OBC()] if elimination <= self.most_work else [ADMM()]
        polishes = polish <= self.most_work and not isinstance(problem.pattern, Fixed)
        shakes = min(self.shakes, int(self.most_work / max(polish, 1.0))) if polishes else 0
        search, answers = SwapSearch(), list[Answer]()
        for start in starts:
            answer = start.run(problem)
            if polishes:
                polished = search.improve(problem, problem.pattern.support((answer.matrix != 0).double()))
                answer = replace(polished, termination=_both(answer.termination, polished.termination))
            answers.append(answer)
            if progress is not None:
                progress(len(answers), len(starts) + shakes)
        best = reduce(partial(recombined, problem), (answer.matrix for answer in answers))
        for number in range(shakes):
            answers.append(search.improve(problem, _shaken(problem, best, number)))
            best = recombined(problem, best, answers[-1].matrix)
            if progress is not None:
                progress(len(answers), len(starts) + shakes)
        if shakes and not problem.pattern.row_separable:
            # The budget may have room, and rows may give weights to others.
            answers.append(search.improve(problem, problem.pattern.support((best != 0).double())))
            best = recombined(problem, best, answers[-1].matrix)
        # What a refit reports is a count or a residual: the worst of the answers that the rows were taken from.
        reported = {key for answer in answers for key in answer.info} & {"rank_deficient_rows", "refit_residual"}
        info = {"starts": len(starts), "polished": polishes * len(starts), "shakes": shakes}
        info |= {key: max(answer.info.get(key, 0.0) for answer in answers) for key in sorted(reported)}
        return Answer(
            best,
            reduce(_both, (answer.termination for answer in answers)),
            steps=sum(answer.steps for answer in answers),
            info={key: float(value) for key, value in info.items()},
        )


def _shaken(
    problem: L0LeastSquares, matrix: Float[Tensor, "*batch out in"], seed: int
) -> Bool[Tensor, "*batch out in"]:
    r"""The support of the largest $|w_j| H_{jj}^{1/2}$, summed over units, of which some are replaced by random numbers
    between 0 and twice the median of those kept; the same numbers for every member of a stack.
    """
    pattern, shape = problem.pattern, problem.shape
    scale = problem.gram.diagonal(dim1=-2, dim2=-1).sqrt().unsqueeze(-2)
    units = pattern.units(matrix.abs() * scale)
    size, score = units.shape[-1], units.sum(-1)
    kept = torch.where(score > 0, score, torch.nan).flatten(-2).nanmedian(-1).values.nan_to_num(1.0)
    rng = torch.Generator().manual_seed(seed)
    which, drawn = torch.rand(2, *score.shape[-2:], generator=rng, dtype=torch.float64).to(score.device)
    score = torch.where(which < SHAKEN, 2 * kept[..., None, None] * drawn, score)
    return pattern.support(pattern.from_units(score.unsqueeze(-1).expand(*score.shape, size), shape))


def _work(problem: L0LeastSquares) -> tuple[float, float]:
    """Estimated operations of an elimination and of a polishing."""
    out, d = problem.shape
    height, _ = problem.pattern.tile((out, d))
    bands = problem.dense[..., 0, 0].numel() * (out // height)
    kept = problem.pattern.density((out, d)) * d
    return bands * d**3, bands * (2 * d * kept**2 + 300 * d * kept)


def _both(one: tuple[Termination, ...], other: tuple[Termination, ...]) -> tuple[Termination, ...]:
    """Converged where both have come to their end."""
    return tuple(b if a.ok else a for a, b in zip(one, other, strict=True))
