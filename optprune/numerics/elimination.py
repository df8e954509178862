"""Backward elimination of units of weights, many rows at once, with blocked updates of the inverse."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from optprune.numerics.tiles import diagonal_blocks, divided, ratio, root
from optprune.numerics.working_memory import working_memory

BLOCK = 64
"""Eliminations between two updates of the inverses; in between they are kept as a product of that rank."""


@dataclass(frozen=True, eq=False)
class Trace:
    r"""The order in which each band lost its units, and what each loss cost.

    Attributes:
        order: units of a band, the first eliminated first.
        cost: increase of $\tfrac12 \langle \Delta, \Delta H \rangle$ by each elimination,
            with all that is left refitted.
    """

    order: Int[Tensor, "n bands steps"]
    cost: Float[Tensor, "n bands steps"]


def eliminate(
    inverse: Float[Tensor, "n d d"],
    weight: Float[Tensor, "n bands height d"],
    *,
    width: int = 1,
    group: int,
    spare: int,
    memory: int | None = None,
) -> Trace:
    r"""Take the cheapest unit out of every band, again and again, refitting what is left each time.

    A band is `height` rows that share a support, a unit `width` consecutive columns of it. With $M$ the inverse of the
    Hessian on the columns left and $W$ the weights fitted there, taking the unit $P$ out costs

    $$\tfrac12 \operatorname{tr} W_P (M_{PP})^{-1} W_P^\top, \quad W \leftarrow W - W_P (M_{PP})^{-1} M_{P:}, \quad
      M \leftarrow M - M_{:P} (M_{PP})^{-1} M_{P:}.$$

    Every band loses one unit in a step, so that all inverses have one size. Updates are kept as a product
    $V^\top V$ and applied to what is left once in `BLOCK` units, by one matrix product; of the inverse itself a step
    reads the rows of $P$ only.

    Args:
        inverse: $H^{-1}$ of each problem.
        weight: $W$ fitted to all columns, per problem and band.
        width: columns of a unit.
        group: consecutive units that share a budget.
        spare: units that each group loses.
        memory: bytes that the inverses of the bands under work may take (but one band at least is held); see
            `working_memory`.

    References:
        Hassibi & Stork 1993 (OBS), eq. (5); Frantar, Singh & Alistarh 2022 (OBC), Algorithm 1 and section 4.1. The
        blocked update is ours.
    """
    problems, bands, _, d = weight.shape
    steps = spare * (d // width // group)
    order = torch.empty(problems, bands, steps, dtype=torch.int64, device=weight.device)
    cost = weight.new_empty(problems, bands, steps)
    # One inverse before and one after compaction.
    chunk = max(1, working_memory(memory, weight.device) // (16 * d * d))
    for problem in range(problems):
        for start in range(0, bands, chunk):
            part = slice(start, min(start + chunk, bands))
            state = _Bands.of(inverse[problem], weight[problem, part], width, group, spare)
            for step, (unit, price) in enumerate(state.eliminations(steps)):
                order[problem, part, step], cost[problem, part, step] = unit, price
    return Trace(order, cost)


@dataclass(eq=False)
class _Bands:
    """Bands under work. Columns and units are those left after the last compaction, by their present place.

    Attributes:
        inverse: before the updates since the last compaction.
        weight: fitted to the columns left; zero in those eliminated.
        diagonal: the inverse's diagonal blocks, one per unit, up to date.
        unit: original number of each unit.
        gone: units eliminated since the last compaction.
        left: units that each group may still lose.
    """

    inverse: Float[Tensor, "b c c"]
    weight: Float[Tensor, "b height c"]
    diagonal: Float[Tensor, "b u width width"]
    unit: Int[Tensor, "b u"]
    gone: Bool[Tensor, "b u"]
    left: Int[Tensor, "b groups"]
    width: int
    group: int

    @staticmethod
    def of(inverse: Tensor, weight: Tensor, width: int, group: int, spare: int) -> _Bands:
        count, _, d = weight.shape
        units = torch.arange(d // width, device=weight.device).expand(count, -1)
        shared = inverse.expand(count, d, d)
        return _Bands(
            inverse=shared,
            weight=weight.clone(),
            diagonal=diagonal_blocks(inverse, width).expand(count, -1, -1, -1).clone(),
            unit=units,
            gone=torch.zeros_like(units, dtype=torch.bool),
            left=units.new_full((count, d // width // group), spare),
            width=width,
            group=group,
        )

    def eliminations(self, steps: int) -> Iterator[tuple[Int[Tensor, " b"], Float[Tensor, " b"]]]:
        """Original unit and cost of each step."""
        block = max(1, BLOCK // self.width)
        for start in range(0, steps, block):
            count = min(block, steps - start)
            updates = self.inverse.new_empty(len(self.unit), count * self.width, self.inverse.shape[-1])
            for step in range(count):
                yield self._eliminate(updates, step * self.width)
            if start + count < steps:
                self._compact(updates)

    def _eliminate(self, updates: Float[Tensor, "b k c"], used: int) -> tuple[Tensor, Tensor]:
        band = torch.arange(len(self.unit), device=self.unit.device)
        barred = self.gone | (self.left == 0).gather(-1, self.unit // self.group)
        price, place = self._costs().masked_fill_(barred, torch.inf).min(-1)
        original = self.unit[band, place]
        self.gone[band, place] = True
        self.left[band, original // self.group] -= 1

        columns = place.unsqueeze(-1) * self.width + torch.arange(self.width, device=place.device)
        earlier = updates[:, :used]
        at = earlier.gather(-1, columns.unsqueeze(1).expand(-1, used, -1))
        rows = torch.baddbmm(self.inverse[band.unsqueeze(-1), columns], at.mT, earlier, alpha=-1)
        factor = root(self.diagonal[band, place])
        rows = divided(factor, rows)
        updates[:, used : used + self.width] = rows
        tiles = rows.unflatten(-1, (-1, self.width))
        self.diagonal -= torch.einsum("bkup,bkuq->bupq", tiles, tiles)

        columns = columns.unsqueeze(1).expand(-1, self.weight.shape[1], -1)
        share = divided(factor, self.weight.gather(-1, columns).mT)
        self.weight.baddbmm_(share.mT, rows, alpha=-1)
        self.weight.scatter_(-1, columns, 0.0)
        return original, price

    def _costs(self) -> Float[Tensor, "b u"]:
        tiles = self.weight.unflatten(-1, (-1, self.width))
        return 0.5 * ratio(self.diagonal, torch.einsum("bhup,bhuq->bupq", tiles, tiles))

    def _compact(self, updates: Float[Tensor, "b k c"]) -> None:
        """Apply the updates to what is left, and forget the rest; every band has lost equally many units."""
        count = len(self.unit)
        place = (~self.gone).nonzero()[:, 1].reshape(count, -1)
        columns = place.unsqueeze(-1) * self.width + torch.arange(self.width, device=place.device)
        columns = columns.reshape(count, -1)
        band = torch.arange(count, device=place.device).unsqueeze(-1)
        updates = updates.gather(-1, columns.unsqueeze(1).expand(-1, updates.shape[1], -1))
        inverse = self.inverse[band.unsqueeze(-1), columns.unsqueeze(-1), columns.unsqueeze(-2)]
        self.inverse = inverse.baddbmm_(updates.mT, updates, alpha=-1)
        self.weight = self.weight.gather(-1, columns.unsqueeze(1).expand(-1, self.weight.shape[1], -1))
        self.unit = self.unit.gather(-1, place)
        self.gone = torch.zeros_like(self.unit, dtype=torch.bool)
        # Read off the inverse afresh: the running differences would drift.
        self.diagonal = diagonal_blocks(self.inverse, self.width)
