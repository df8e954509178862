"""Forward selection: the weight that helps most enters, everything is refitted, again and again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from optprune.errors import InvalidInputError
from optprune.numerics.exchange import Fit
from optprune.numerics.working_memory import working_memory
from optprune.patterns import Fixed
from optprune.problems import L0LeastSquares, Problem
from optprune.solution import Answer, Termination
from optprune.solvers._bands import Bands
from optprune.solvers._base import Progress, Promise, Solver
from optprune.solvers._refit import refit


@dataclass(frozen=True)
class ForwardSelection(Solver[L0LeastSquares]):
    r"""From nothing, the unit enters whose entry lowers the objective most once every weight is refitted:

    $$\max_j \tfrac12 \, r_j^2 \,/\, \bigl( H_{jj} - H_{jS} H_{SS}^{-1} H_{Sj} \bigr), \qquad r = b - w_S H_{S:},$$

    all rows at once, a unit of each row at a time. Orthogonal matching pursuit divides by $H_{jj}$ alone. Where a
    budget spans rows, each row's path is followed to its end and the budget buys the largest gains, a later gain
    counting at most as much as an earlier one. At densities above a half `OBC` takes fewer steps and errs less; forward
    selection is for supports of a few weights per row.

    Attributes:
        memory: bytes for the fits of the rows under work (one row is held at least). None: 64 MiB on a CPU, 1 GiB
            elsewhere.

    References:
        Chen, Billings & Luo 1989 (orthogonal least squares); Pati, Rezaiifar & Krishnaprasad 1993 (orthogonal matching
        pursuit).
    """

    memory: int | None = None

    accepts: ClassVar[tuple[type[Problem], ...]] = (L0LeastSquares,)
    summary: ClassVar[str] = "weights enter one by one, the best with all others refitted (orthogonal least squares)"
    source: ClassVar[str] = "Chen, Billings & Luo 1989; Pati, Rezaiifar & Krishnaprasad 1993"

    def __post_init__(self) -> None:
        if self.memory is not None and self.memory < 1:
            raise InvalidInputError(f"ForwardSelection with memory={self.memory} given; at least 1 is needed")

    @property
    def promises(self) -> frozenset[Promise]:
        return frozenset({Promise.REFITTED})

    def run(self, problem: L0LeastSquares, progress: Progress | None = None) -> Answer:
        if isinstance(problem.pattern, Fixed):
            matrix, info = refit(problem, problem.pattern.support(problem.dense.square()))
        else:
            bands = Bands.of(problem)
            matrix, info = refit(problem, bands.mask(self._kept(bands, progress), problem))
        return Answer(matrix, (Termination.CLOSED_FORM,) * max(1, problem.dense[..., 0, 0].numel()), 0, info=info)

    def _kept(self, bands: Bands, progress: Progress | None) -> Bool[Tensor, "b groups units"]:
        size = bands.units // bands.groups
        slots = size if bands.slots is None else bands.slots
        d, columns = bands.linear.shape[-1], max(1, slots) * bands.groups * bands.width
        at_once = max(1, working_memory(self.memory, bands.linear.device) // (8 * columns * (4 * d + 2 * columns)))
        parts = torch.arange(len(bands.linear), device=bands.linear.device).split(at_once)
        paths = []
        for number, part in enumerate(parts):
            paths.append(_path(bands, part, slots))
            if progress is not None:
                progress(number + 1, len(parts))
        order, gain = (torch.cat([path[i] for path in paths]) for i in (0, 1))
        if bands.slots is None:
            worth = gain.cummin(-1).values.unflatten(0, (len(bands.gram), -1))
            bought = torch.zeros_like(worth, dtype=torch.bool).flatten(1)
            best = worth.flatten(1).topk(bands.budget, dim=-1, sorted=False).indices
            # Equal worths may be bought out of order: only how many a row gets is read off.
            count = bought.scatter_(1, best, True).reshape(len(order), -1).sum(-1, keepdim=True)
            taken = torch.arange(order.shape[1], device=order.device) < count
        else:
            taken = torch.ones_like(order, dtype=torch.bool)
        kept = torch.zeros(len(order), bands.units, dtype=torch.bool, device=order.device)
        return kept.scatter(1, order, taken).unflatten(-1, (bands.groups, size))


def _path(bands: Bands, part: Int[Tensor, " c"], slots: int) -> tuple[Int[Tensor, "c steps"], Float[Tensor, "c steps"]]:
    """The units of some bands in the order of their entry, and what each gained."""
    size = bands.units // bands.groups
    none = torch.zeros(len(part), bands.groups, size, dtype=torch.bool, device=part.device)
    fit = Fit.of(bands.gram, bands.owner[part], bands.linear[part], none, slots)
    used = torch.zeros(len(part), bands.groups, dtype=torch.int64, device=part.device)
    order, gains = [], []
    for _ in range(slots * bands.groups):
        full = (used >= slots).repeat_interleave(size, dim=-1)
        gain, unit = torch.where(full | fit.kept, -torch.inf, fit.entry_gains()).max(-1)
        group = (unit // size).unsqueeze(-1)
        fit.enter((group * slots + used.gather(1, group)).squeeze(-1), unit)
        used.scatter_add_(1, group, torch.ones_like(group))
        order.append(unit)
        gains.append(gain)
    empty = torch.zeros(len(part), 0, dtype=torch.int64, device=part.device)
    if not order:
        return empty, empty.to(bands.linear.dtype)
    return torch.stack(order, -1), torch.stack(gains, -1)
