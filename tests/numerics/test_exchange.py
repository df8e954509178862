"""Fits on supports: every cost and gain equals the difference of two solves, before and after units come and go."""

import pytest
import torch

from optprune.numerics.exchange import Fit

CASES = [
    # bands, height, columns, width, groups, slots
    pytest.param(3, 1, 12, 1, 1, 5, id="rows"),
    pytest.param(3, 1, 12, 1, 3, 2, id="2 of 4"),
    pytest.param(2, 3, 12, 1, 1, 4, id="columns"),
    pytest.param(2, 2, 12, 2, 1, 3, id="tiles"),
    pytest.param(2, 1, 12, 3, 2, 1, id="grouped tiles"),
    pytest.param(2, 1, 12, 12, 1, 1, id="whole rows"),
]


class Example:
    """Random bands, two problems, and the value of any support by a dense solve."""

    def __init__(self, bands, height, columns, width, groups, slots, seed=0):
        rng = torch.Generator().manual_seed(seed)
        rows = torch.randn(2, 30, columns, generator=rng, dtype=torch.float64)
        self.gram, self.owner, self.width = rows.mT @ rows / 30, torch.arange(bands) % 2, width
        self.linear = torch.randn(bands, height, columns, generator=rng, dtype=torch.float64)
        self.units, self.size = columns // width, columns // width // groups
        kept = torch.zeros(bands, groups, self.size, dtype=torch.bool)
        for band in range(bands):
            for group in range(groups):
                # The first band leaves a slot free where there are several.
                count = slots if band or slots == 1 else slots - 1
                kept[band, group, torch.randperm(self.size, generator=rng)[:count]] = True
        self.fit = Fit.of(self.gram, self.owner, self.linear, kept, slots)

    def value(self, band, kept):
        columns = kept.repeat_interleave(self.width).nonzero().squeeze(-1)
        linear = self.linear[band][:, columns]
        block = self.gram[self.owner[band]][columns][:, columns]
        return -0.5 * float((linear * torch.linalg.solve(block, linear.mT).mT).sum())

    def without(self, band, unit):
        kept = self.fit.kept[band].clone()
        kept[unit] = False
        return kept

    def with_unit(self, kept, unit):
        kept = kept.clone()
        kept[unit] = True
        return kept

    def check(self):
        """Every removal, entry and best exchange against dense solves."""
        fit = self.fit
        cost, gain = fit.removal_costs().flatten(1), fit.entry_gains()
        exchange, enters = (x.flatten(1) for x in fit.exchange_gains())
        for band, kept in enumerate(fit.kept):
            now = self.value(band, kept)
            for unit in range(self.units):
                expected = 0.0 if kept[unit] else now - self.value(band, self.with_unit(kept, unit))
                assert float(gain[band, unit]) == pytest.approx(expected, abs=1e-12)
            for slot, unit in enumerate(fit.unit[band].flatten().tolist()):
                if not fit.taken.flatten(1)[band, slot]:
                    assert cost[band, slot] == torch.inf
                    assert exchange[band, slot] == -torch.inf
                    continue
                left = self.without(band, unit)
                assert float(cost[band, slot]) == pytest.approx(self.value(band, left) - now, abs=1e-12)
                group = range(unit // self.size * self.size, (unit // self.size + 1) * self.size)
                gains = {j: now - self.value(band, self.with_unit(left, j)) for j in group if not kept[j]}
                if gains:
                    assert float(exchange[band, slot]) == pytest.approx(max(gains.values()), abs=1e-12)
                    assert gains[int(enters[band, slot])] == pytest.approx(max(gains.values()), abs=1e-12)


@pytest.mark.parametrize(("bands", "height", "columns", "width", "groups", "slots"), CASES)
def test_costs_and_gains_are_differences_of_solves(bands, height, columns, width, groups, slots):
    example = Example(bands, height, columns, width, groups, slots)
    example.check()
    for turn in range(3):
        fit = example.fit
        slot = torch.tensor([int(taken.flatten().nonzero()[turn % taken.sum()]) for taken in fit.taken])
        unit = fit.unit.flatten(1).gather(1, slot.unsqueeze(1)).squeeze(1)
        fit.remove(slot)
        example.check()
        group = unit // example.size * example.size
        free = [
            [j for j in range(g, g + example.size) if not k[j]] for g, k in zip(group.tolist(), fit.kept, strict=True)
        ]
        fit.enter(slot, torch.tensor([f[turn % len(f)] for f in free]))
        example.check()


def test_many_updates_do_not_drift():
    example = Example(4, 1, 40, 1, 1, 12, seed=1)
    rng = torch.Generator().manual_seed(2)
    for _ in range(300):
        slot = torch.randint(12, (4,), generator=rng)
        slot = torch.where(example.fit.taken.flatten(1).gather(1, slot.unsqueeze(1)).squeeze(1), slot, 0)
        example.fit.remove(slot)
        free = (~example.fit.kept).to(torch.float64).multinomial(1, generator=rng).squeeze(1)
        example.fit.enter(slot, free)
    fresh = Fit.of(example.gram, example.owner, example.linear, example.fit.kept.unsqueeze(1), 12)
    torch.testing.assert_close(example.fit.residual, fresh.residual, rtol=0, atol=1e-10)
    torch.testing.assert_close(example.fit.pivot, fresh.pivot, rtol=0, atol=1e-10)


def test_bands_can_be_singled_out():
    example = Example(3, 1, 12, 1, 1, 5)
    part = example.fit.of_bands(torch.tensor([2]))
    torch.testing.assert_close(part.entry_gains(), example.fit.entry_gains()[2:])
    part.remove(torch.tensor([0]))
    example.check()
