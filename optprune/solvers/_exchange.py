"""Descent over supports by exchanges within bands and moves between them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from optprune.numerics.exchange import Fit
from optprune.solvers._bands import FLOOR, Bands

NOISE = 0.1 * FLOOR
"""Decreases below this part of a band's energy are the work of the damping and of rounding, and can go in circles."""


@dataclass(eq=False)
class Border:
    """What one unit more or less would change in each band.

    Attributes:
        cost: of the cheapest removal, `leaves` its unit; infinite in an empty band.
        gain: of the best entry, `enters` its unit; 0 in a full band.
    """

    cost: Float[Tensor, " b"]
    leaves: Int[Tensor, " b"]
    gain: Float[Tensor, " b"]
    enters: Int[Tensor, " b"]


@dataclass(eq=False)
class Descent:
    """Supports on their way down.

    Attributes:
        bands: the problem.
        kept: units on the support.
        tolerance: least decrease that counts, relative to a band's excess over the dense optimum.
        max_exchanges: most exchanges of a band in a round.
        memory: bytes for the fits under work.
        exchanges: made so far.
        moves: made so far.
        stalled: bands that ran into `max_exchanges` in their last round.
    """

    bands: Bands
    kept: Bool[Tensor, "b groups units"]
    tolerance: float
    max_exchanges: int
    memory: int

    def __post_init__(self) -> None:
        bands = self.bands
        count = len(bands.linear)
        dense = bands.linear.unflatten(0, (len(bands.gram), -1)) @ bands.inverse.unsqueeze(1)
        self.energy = (dense.flatten(0, 1) * bands.linear).sum((-2, -1))
        self.excess = torch.zeros_like(self.energy)
        zeros = torch.zeros_like(self.energy)
        places = torch.zeros(count, dtype=torch.int64, device=zeros.device)
        self.border = Border(zeros.clone(), places.clone(), zeros.clone(), places.clone())
        self.stalled = torch.zeros(count, dtype=torch.bool, device=zeros.device)
        self.exchanges = self.moves = 0

    def settle(self, chosen: Int[Tensor, " c"]) -> None:
        """Exchange units in these bands until no exchange helps."""
        counts = self.kept[chosen].sum(-1).amax(-1)
        order = counts.argsort(stable=True)
        chosen, counts = chosen[order], counts[order].tolist()
        stop = len(chosen)
        while stop > 0:
            slots = max(1, counts[stop - 1])
            start = max(0, stop - self._at_once(slots))
            self._settle_chunk(chosen[start:stop], slots)
            stop = start

    def _at_once(self, slots: int) -> int:
        d = self.bands.linear.shape[-1]
        columns = slots * self.kept.shape[1] * self.bands.width
        # Fit.reach, its copy when bands drop out and the temporaries of the comparison; Fit.inverse twice.
        return max(1, self.memory // (8 * columns * (8 * d + 2 * columns)))

    def _settle_chunk(self, band: Int[Tensor, " c"], slots: int) -> None:
        bands = self.bands
        fit = Fit.of(bands.gram, bands.owner[band], bands.linear[band], self.kept[band], slots)
        energy = self.energy[band]
        excess = 0.5 * (energy - fit.explained(bands.linear[band]))
        for made in range(self.max_exchanges + 1):
            gain, unit = (x.flatten(1) for x in fit.exchange_gains())
            best, slot = gain.max(-1)
            helps = best > self.tolerance * excess + NOISE * energy
            going = helps & (made < self.max_exchanges)
            if not bool(going.all()):
                self.excess[band], self.stalled[band] = excess, helps
                self._record(fit.of_bands(~going), band[~going])
                if not bool(going.any()):
                    return
                fit, band, energy, excess = fit.of_bands(going), band[going], energy[going], excess[going]
                best, slot, unit = best[going], slot[going], unit[going]
            fit.remove(slot)
            fit.enter(slot, unit.gather(1, slot.unsqueeze(1)).squeeze(1))
            excess = excess - best
            self.exchanges += len(band)

    def _record(self, fit: Fit, band: Int[Tensor, " c"]) -> None:
        self.kept[band] = fit.kept.unflatten(-1, self.kept.shape[1:])
        cost, slot = fit.removal_costs().flatten(1).min(-1)
        gain, enters = fit.entry_gains().max(-1)
        self.border.cost[band], self.border.gain[band], self.border.enters[band] = cost, gain, enters
        self.border.leaves[band] = fit.unit.flatten(1).gather(1, slot.unsqueeze(1)).squeeze(1)

    def move(self) -> Int[Tensor, " c"]:
        r"""Let bands with cheap removals give a unit to bands with large gains; the bands that changed.

        A band gives one, takes one, or neither, with givers and takers equal in number and
        $\sum \text{gain} - \sum \text{cost}$ largest: at the price $\lambda$ of a unit it does what pays more of
        $\text{gain} - \lambda$ and $\lambda - \text{cost}$, and the $\lambda$ that balances is found by bisection.
        """
        border = self.border
        gain, cost, excess, energy = (
            x.unflatten(0, (len(self.bands.gram), -1)) for x in (border.gain, border.cost, self.excess, self.energy)
        )
        least = (self.tolerance * excess + NOISE * energy).mean(-1, keepdim=True)
        low, high = torch.zeros_like(least), gain.amax(-1, keepdim=True) + least
        for _ in range(60):
            price = 0.5 * (low + high)
            takes, gives = gain - price, price - cost
            takers, givers = takes > gives.clamp(min=0), gives > takes.clamp(min=0)
            scarce = takers.sum(-1, keepdim=True) > givers.sum(-1, keepdim=True)
            low, high = torch.where(scarce, price, low), torch.where(scarce, high, price)
        takes, gives = gain - high, high - cost
        takes = takes.masked_fill(takes <= gives.clamp(min=0), -torch.inf)
        gives = gives.masked_fill(gives <= takes.clamp(min=0), -torch.inf)
        takes, taker = takes.sort(dim=-1, descending=True)
        gives, giver = gives.sort(dim=-1, descending=True)
        pays = (takes + gives > least).cumprod(-1).bool()
        offset = torch.arange(len(gain), device=gain.device).unsqueeze(-1) * gain.shape[-1]
        taker, giver = (taker + offset)[pays], (giver + offset)[pays]
        kept = self.kept.flatten(1)
        kept[taker, border.enters[taker]] = True
        kept[giver, border.leaves[giver]] = False
        self.moves += len(taker)
        return torch.cat([taker, giver])
