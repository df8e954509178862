"""Local search over supports: exchanges within rows and moves between rows, each after exact refits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool
from torch import Tensor

from optprune.errors import InvalidInputError
from optprune.numerics.working_memory import working_memory
from optprune.patterns import Fixed
from optprune.problems import L0LeastSquares, Problem
from optprune.solution import Answer, Termination
from optprune.solvers._bands import Bands
from optprune.solvers._base import Progress, Promise, Solver
from optprune.solvers._exchange import Descent
from optprune.solvers._refit import refit


@dataclass(frozen=True)
class SwapSearch(Solver[L0LeastSquares]):
    r"""Exchange a kept weight for a pruned one, always the best pair of the row, until no exchange helps.

    All pairs of a row are compared with every weight refitted, by one formula (`Fit.exchange_gains`), and all rows
    exchange at once; with a pattern of tiles, tiles are exchanged. Where a budget spans rows, rounds of exchanges
    alternate with moves: the rows with the cheapest removals give to those that gain most from one weight more. The
    objective falls with every step, and the end is no worse than the start.

    Attributes:
        start: the solver whose support is improved; None starts from the weights with the largest
            $w_j^2 / [H^{-1}]_{jj}$, the first step of elimination.
        max_exchanges: most exchanges of a row in a round.
        max_rounds: most rounds of exchanges and moves.
        tolerance: least decrease that counts, relative to the row's excess over the dense optimum.
        memory: bytes for the fits of the rows under work (one row is held at least). None: 64 MiB on a CPU, 1 GiB
            elsewhere.

    References:
        Beck & Eldar 2013, section 3.3, call the end a coordinate-wise minimum; Hazimeh & Mazumder 2020 (L0Learn),
        section 2.2, a swap inescapable one. The formula for all pairs follows from the bordered inverse.
    """

    start: Solver | None = None
    max_exchanges: int = 1000
    max_rounds: int = 50
    tolerance: float = 1e-6
    memory: int | None = None

    accepts: ClassVar[tuple[type[Problem], ...]] = (L0LeastSquares,)
    summary: ClassVar[str] = "exchanges within rows and moves between rows until none helps, all pairs refitted"
    source: ClassVar[str] = "Beck & Eldar 2013, section 3.3; Hazimeh & Mazumder 2020 (L0Learn), section 2.2"

    def __post_init__(self) -> None:
        counts = (self.max_exchanges, self.max_rounds, 1 if self.memory is None else self.memory)
        if not (min(counts) > 0 and self.tolerance > 0):
            raise InvalidInputError(
                f"SwapSearch with max_exchanges={self.max_exchanges}, max_rounds={self.max_rounds}, "
                f"tolerance={self.tolerance}, memory={self.memory} given; all must be positive"
            )

    @property
    def promises(self) -> frozenset[Promise]:
        return frozenset({Promise.REFITTED})

    def run(self, problem: L0LeastSquares, progress: Progress | None = None) -> Answer:
        if isinstance(problem.pattern, Fixed):
            matrix, info = refit(problem, problem.pattern.support(problem.dense.square()))
            return Answer(matrix, (Termination.CLOSED_FORM,) * problem.dense[..., 0, 0].numel(), steps=0, info=info)
        if self.start is not None:
            mask = problem.pattern.support((self.start.run(problem, progress).matrix != 0).to(torch.float64))
        else:
            mask = _obs_support(problem)
        return self.improve(problem, mask, progress)

    def improve(
        self, problem: L0LeastSquares, mask: Bool[Tensor, "*batch out in"], progress: Progress | None = None
    ) -> Answer:
        """The answer that the search reaches from an admissible support of full size; the pattern is not `Fixed`."""
        first, _ = refit(problem, mask)
        bands = Bands.of(problem)
        memory = working_memory(self.memory, mask.device)
        descent = Descent(bands, bands.kept(mask), self.tolerance, self.max_exchanges, memory)
        chosen = torch.arange(len(bands.linear), device=mask.device)
        rounds = 0
        while len(chosen) and rounds < self.max_rounds:
            descent.settle(chosen)
            rounds += 1
            if progress is not None:
                progress(rounds, self.max_rounds)
            chosen = descent.move() if bands.slots is None else chosen[:0]
        ended = ~descent.stalled
        ended[chosen] = False
        last, fit = refit(problem, bands.mask(descent.kept, problem))
        # The search compares supports on a damped Hessian; on the one stated the start may be better still.
        worse = problem.objective(last) > problem.objective(first)
        ended = ended.unflatten(0, (len(bands.gram), -1)).all(-1)
        info = {
            "exchanges": float(descent.exchanges),
            "moves": float(descent.moves),
            "search_damping": bands.damping,
        }
        return Answer(
            torch.where(worse[..., None, None], first, last),
            tuple(Termination.CONVERGED if done else Termination.STEP_LIMIT for done in ended.tolist()),
            steps=rounds,
            info=info | fit,
        )


def _obs_support(problem: L0LeastSquares) -> Bool[Tensor, "*batch out in"]:
    r"""The admissible support with the largest total of $w_j^2 / [H^{-1}]_{jj}$ of the dense optimum."""
    bands = Bands.of(problem)
    weight = bands.linear.unflatten(0, (len(bands.gram), -1)).flatten(1, 2) @ bands.inverse
    score = weight.square() / bands.inverse.diagonal(dim1=-2, dim2=-1).unsqueeze(-2)
    return problem.pattern.support(score.reshape(problem.dense.shape))
