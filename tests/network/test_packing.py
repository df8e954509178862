"""The packed form is lossless, as small as it says, and refuses what does not fit."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from optprune.errors import FileFormatError, InvalidInputError
from optprune.network.packing import Packed, pack, pack_bits, unpack_bits

SHAPES = st.lists(st.integers(0, 9), max_size=4).map(tuple)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@given(shape=SHAPES, seed=st.integers(0, 2**31), density=st.floats(0, 1))
def test_bits_round_trip_for_every_shape(shape, seed, density):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < density
    bits = pack_bits(mask)
    assert bits.numel() == -(-mask.numel() // 8)
    assert torch.equal(unpack_bits(bits, shape), mask)


def test_bit_order_is_least_significant_first():
    mask = torch.tensor([[True, False, False, True, False], [False, False, False, False, True]])
    assert pack_bits(mask).tolist() == [0b00001001, 0b00000010]


@pytest.mark.parametrize("dtype", DTYPES)
@given(shape=SHAPES, seed=st.integers(0, 2**31))
def test_tensors_round_trip_bit_for_bit(dtype, shape, seed):
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(shape, generator=generator).to(dtype) * (torch.rand(shape, generator=generator) < 0.3)
    dense = torch.where(dense == 0, torch.zeros((), dtype=dtype), dense)
    packed = pack(dense)
    back = packed.dense()
    assert back.dtype == dtype
    assert torch.equal(back.reshape(-1).view(torch.uint8), dense.reshape(-1).view(torch.uint8))
    assert packed.nbytes == -(-dense.numel() // 8) + int((dense != 0).sum()) * dtype.itemsize


def test_a_negative_zero_is_a_zero():
    packed = pack(torch.tensor([-0.0, 1.0]))
    assert packed.values.tolist() == [1.0]
    assert not packed.dense().signbit().any()


def test_what_does_not_fit_is_refused():
    bits = pack_bits(torch.ones(3, 3, dtype=torch.bool))
    with pytest.raises(FileFormatError, match="takes 4 bytes, and 2 are there"):
        unpack_bits(bits, (5, 5))
    with pytest.raises(FileFormatError, match="past its end"):
        unpack_bits(bits | 128, (3, 3))
    with pytest.raises(InvalidInputError, match="not negative"):
        unpack_bits(bits, (-1, 3))
    with pytest.raises(FileFormatError, match="mask of 9 weights and 8 values"):
        Packed(bits, torch.ones(8), (3, 3)).dense()
