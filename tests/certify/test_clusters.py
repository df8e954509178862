"""Which groups share a block: each once, those that are correlated together."""

import pytest
import torch

from optprune.certify._clusters import clustered, matched


def test_pairs_are_taken_strongest_first():
    strength = torch.tensor([[0, 9, 8, 1], [9, 0, 7, 6], [8, 7, 0, 2], [1, 6, 2, 0]], dtype=torch.float64)
    one, other = matched(strength)
    assert {tuple(pair) for pair in zip(one.tolist(), other.tolist(), strict=True)} == {(0, 1), (2, 3)}


@pytest.mark.parametrize("strength", [torch.zeros(6, 6), torch.ones(6, 6)], ids=["zeros", "ones"])
def test_ties_are_paired_too(strength):
    one, other = matched(strength)
    assert sorted([*one.tolist(), *other.tolist()]) == list(range(6))


def test_nothing_is_paired_with_nothing():
    one, other = matched(torch.zeros(0, 0))
    assert (one.numel(), other.numel()) == (0, 0)


def test_greedy_pairs_are_those_of_a_search_by_hand(rng):
    half = torch.rand(20, 20, generator=rng, dtype=torch.float64)
    strength = half + half.mT
    expected, free = set(), set(range(20))
    for index in strength.triu(1).flatten().argsort(descending=True).tolist():
        i, j = divmod(index, 20)
        if i < j and {i, j} <= free:
            expected.add((i, j))
            free -= {i, j}
    one, other = matched(strength)
    assert set(zip(one.tolist(), other.tolist(), strict=True)) == expected


@pytest.mark.parametrize("several", [1, 2, 4])
@pytest.mark.parametrize("dead", [[], [1], [0, 3, 5]])
def test_every_group_is_in_one_block_and_dead_ones_come_last(several, dead, rng):
    inputs = torch.randn(100, 28, generator=rng, dtype=torch.float64)
    live = torch.ones(7, dtype=torch.bool)
    live[dead] = False
    inputs[:, ~live.repeat_interleave(4)] = 0
    groups = clustered(inputs.mT @ inputs, live, 4, several)
    assert groups.shape[1] == several
    assert groups[groups >= 0].sort().values.tolist() == list(range(7))
    first = -(-int(live.sum()) // several)
    assert set(groups[:first].flatten().tolist()) - {-1} == set(live.nonzero().flatten().tolist())


def test_correlated_groups_come_together_whatever_their_scale(rng):
    base = torch.randn(400, 8, generator=rng, dtype=torch.float64)
    noise = 0.1 * torch.randn(400, 8, generator=rng, dtype=torch.float64)
    scale = torch.tensor([1e-6, 1e6]).double().repeat(8)
    inputs = torch.cat([base[:, :4], base[:, 4:], base[:, 4:] + noise[:, 4:], base[:, :4] + noise[:, :4]], 1) * scale
    groups = clustered(inputs.mT @ inputs, torch.ones(4, dtype=torch.bool), 4, 2)
    assert {tuple(sorted(block)) for block in groups.tolist()} == {(0, 3), (1, 2)}
    alone = torch.cat([base, noise[:, :4]], 1)
    three = clustered(alone.mT @ alone, torch.ones(3, dtype=torch.bool), 4, 2)
    assert sorted(three.flatten().tolist()) == [-1, 0, 1, 2]
