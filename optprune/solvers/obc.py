"""Greedy backward elimination with exact refits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from optprune.errors import InvalidInputError
from optprune.numerics.elimination import Trace, eliminate
from optprune.numerics.selection import top_k
from optprune.patterns import Fixed
from optprune.problems import L0LeastSquares, Problem
from optprune.solution import Answer, Termination
from optprune.solvers._bands import Bands
from optprune.solvers._base import Progress, Promise, Solver
from optprune.solvers._refit import refit


@dataclass(frozen=True)
class OBC(Solver[L0LeastSquares]):
    r"""Take out the weight whose loss costs least after refitting the others, until the budget is met.

    $$p = \arg\min_p \frac{w_p^2}{2 [H_{SS}^{-1}]_{pp}}, \qquad
      w_S \leftarrow w_S - \frac{w_p}{[H_{SS}^{-1}]_{pp}} [H_{SS}^{-1}]_{p,:}, \qquad S \leftarrow S \setminus p$$

    in every row at once; for a pattern of tiles, $p$ is a tile and the quotient a quadratic form. With a budget of the
    whole layer each row is followed to its end, and the rows share the budget by their increments, in ascending order
    (an increment below an earlier one of its row counts as that one).

    Attributes:
        memory: bytes for the inverses of the rows under work; one row takes $16 \, \mathrm{in}^2$ at least.
            None: 64 MiB on a CPU, 1 GiB elsewhere.

    References:
        Frantar, Singh & Alistarh 2022 (OBC), Algorithm 1, equations (3) and (4), and section 4.2 for the share-out.
    """

    memory: int | None = None

    accepts: ClassVar[tuple[type[Problem], ...]] = (L0LeastSquares,)
    summary: ClassVar[str] = "greedy elimination with exact refits in every row, one pass for all budgets"
    source: ClassVar[str] = "Frantar, Singh & Alistarh 2022 (OBC), Algorithm 1"

    def __post_init__(self) -> None:
        if self.memory is not None and self.memory < 1:
            raise InvalidInputError(f"OBC with memory={self.memory} given; at least 1 is needed")

    @property
    def promises(self) -> frozenset[Promise]:
        return frozenset({Promise.REFITTED})

    def run(self, problem: L0LeastSquares, progress: Progress | None = None) -> Answer:
        mask, info = self.support(problem)
        matrix, fit = refit(problem, mask)
        count = problem.dense[..., 0, 0].numel()
        return Answer(matrix, (Termination.CLOSED_FORM,) * count, steps=0, info=info | fit)

    def support(self, problem: L0LeastSquares) -> tuple[Bool[Tensor, "*batch out in"], dict[str, float]]:
        """The support that elimination leaves, and the damping under which it was found."""
        if isinstance(problem.pattern, Fixed):
            return problem.pattern.support(problem.dense.square()), {}
        bands = Bands.of(problem)
        size = bands.units // bands.groups
        trace = self._trace(bands, size if bands.slots is None else size - bands.slots)
        gone = torch.ones_like(trace.cost, dtype=torch.bool)
        if bands.slots is None:
            gone = top_k(-_ranks(trace), gone[0].numel() - bands.budget).reshape(gone.shape)
        kept = torch.ones(len(bands.linear), bands.units, dtype=torch.bool, device=gone.device)
        kept.scatter_(-1, trace.order.flatten(0, 1), ~gone.flatten(0, 1))
        return bands.mask(kept, problem), {"search_damping": bands.damping}

    def curve(self, problem: L0LeastSquares) -> Float[Tensor, "*batch counts"]:
        """The objective at every budget of the whole layer, 0 to all units kept, from one elimination.

        What `run` reaches with `PerLayer(k)` (or `Blocks` of k tiles) is entry k, up to the search damping of 1e-10.

        Raises:
            InvalidInputError: the pattern's budgets do not span the layer.
        """
        if isinstance(problem.pattern, Fixed) or (bands := Bands.of(problem)).slots is not None:
            raise InvalidInputError(
                f"{problem.pattern} given; a curve is over budgets of the whole layer, as PerLayer has"
            )
        trace = self._trace(bands, bands.units)
        order = _ranks(trace).sort(dim=-1, stable=True).indices
        spent = trace.cost.flatten(1).gather(-1, order).cumsum(-1)
        nothing = problem.objective(torch.zeros_like(problem.dense)).reshape(-1, 1)
        left = nothing - spent[:, -1:] + torch.cat([torch.zeros_like(nothing), spent], dim=-1)
        return left.flip(-1).reshape(*problem.batch_shape, -1)

    def _trace(self, bands: Bands, spare: int) -> Trace:
        weight = bands.linear.unflatten(0, (len(bands.gram), -1)) @ bands.inverse.unsqueeze(1)
        size = bands.units // bands.groups
        return eliminate(bands.inverse, weight, width=bands.width, group=size, spare=spare, memory=self.memory)


def _ranks(trace: Trace) -> Float[Tensor, "n units"]:
    """What orders the eliminations of all bands: the increment, or an earlier one of its band if that was larger."""
    return trace.cost.cummax(-1).values.flatten(1)
