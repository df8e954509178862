import pytest
import torch

from optprune.errors import InvalidInputError
from optprune.numerics.sampling import Reservoir, choose, generator


def test_choose_is_sorted_distinct_and_reproducible():
    first = choose(1000, 100, generator(7))
    assert torch.equal(first, first.unique())
    assert len(first) == 100
    assert torch.equal(first, choose(1000, 100, generator(7)))
    assert not torch.equal(first, choose(1000, 100, generator(8)))
    assert choose(5, 5, generator(0)).tolist() == [0, 1, 2, 3, 4]
    assert choose(5, 0, generator(0)).tolist() == []
    for k in (-1, 6):
        with pytest.raises(InvalidInputError, match="of 5 rows"):
            choose(5, k, generator(0))


def test_choose_is_uniform():
    g = generator(0)
    counts = torch.cat([choose(10, 3, g) for _ in range(4000)]).bincount(minlength=10)
    # Each of 4000 draws contains a number with probability 0.3: five standard deviations are 145.
    assert (counts - 1200).abs().max() < 145


def stream(rows, *, cut, capacity, seed=0):
    x = torch.arange(rows)
    reservoir = Reservoir(capacity, generator(seed))
    for part in x.split(cut):
        reservoir.add(part, part.double().unsqueeze(-1) * 2)
    return reservoir


@pytest.mark.parametrize("cut", [1, 7, 100, 1000])
def test_reservoir_does_not_depend_on_the_cut(cut):
    reservoir = stream(1000, cut=cut, capacity=50)
    index, double = reservoir.finish()
    assert torch.equal(index, stream(1000, cut=13, capacity=50).finish()[0])
    assert torch.equal(double.squeeze(-1), index * 2.0)
    assert torch.equal(index, index.unique())
    assert (len(reservoir), reservoir.seen) == (50, 1000)


def test_reservoir_keeps_everything_below_its_capacity():
    assert stream(20, cut=6, capacity=50).finish()[0].tolist() == list(range(20))


def test_reservoir_is_uniform():
    counts = torch.zeros(20)
    for seed in range(2000):
        counts[stream(20, cut=6, capacity=5, seed=seed).finish()[0]] += 1
    # Probability 1/4 each over 2000 runs: five standard deviations are 97.
    assert (counts - 500).abs().max() < 97


def test_reservoir_rows_are_copies():
    x = torch.zeros(3, 2)
    reservoir = Reservoir(5, generator(0))
    reservoir.add(x)
    x += 1
    assert not reservoir.finish()[0].any()


def test_reservoir_misuse():
    with pytest.raises(InvalidInputError, match="0 rows"):
        Reservoir(0, generator(0))
    reservoir = Reservoir(3, generator(0))
    with pytest.raises(InvalidInputError, match="never given"):
        reservoir.finish()
    with pytest.raises(InvalidInputError, match=r"\[2, 3\] rows"):
        reservoir.add(torch.zeros(2), torch.zeros(3))
    with pytest.raises(InvalidInputError):
        reservoir.add()
    reservoir.add(torch.zeros(0, 4))
    with pytest.raises(InvalidInputError, match="rows of shapes"):
        reservoir.add(torch.zeros(2, 5))


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    choose(10, 3, generator(0))
    stream(20, cut=6, capacity=5)
    assert torch.equal(torch.get_rng_state(), before)
