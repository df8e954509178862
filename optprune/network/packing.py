r"""Sparse tensors on disk: one bit per weight for the mask, then the kept weights in row-major order.

A tensor of $n$ weights of $b$ bytes each, $k$ of them kept, takes $\lceil n/8 \rceil + k b$ bytes instead
of $n b$. Bit $j$ of byte $i$ (least significant first) belongs to weight $8i + j$. The form is lossless for
any dtype and needs no index per weight: it is smaller than the dense form below a density of $1 - 1/(8b)$,
and smaller than a list of 32-bit coordinates above a density of 1/32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Shaped, UInt8
from torch import Tensor

from optprune.errors import FileFormatError, InvalidInputError


@dataclass(frozen=True)
class Packed:
    """A tensor as mask bits and kept values; `dense` is its inverse.

    Attributes:
        bits: the mask, eight weights to a byte.
        values: the kept weights in row-major order, in the tensor's dtype.
        shape: the tensor's shape.
    """

    bits: UInt8[Tensor, "bytes"]
    values: Shaped[Tensor, "kept"]
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the mask and the values together."""
        return self.bits.nbytes + self.values.nbytes

    def mask(self) -> Bool[Tensor, "*shape"]:
        """True where a weight is kept."""
        return unpack_bits(self.bits, self.shape)

    def dense(self) -> Shaped[Tensor, "*shape"]:
        """The tensor, with zeros outside the mask.

        Raises:
            FileFormatError: the mask keeps another number of weights than there are values.
        """
        mask = self.mask()
        kept = int(mask.sum())
        if kept != self.values.numel():
            raise FileFormatError(
                f"a packed tensor of shape {self.shape} has a mask of {kept} weights and "
                f"{self.values.numel()} values; they must be as many. The file was altered: export again."
            )
        dense = torch.zeros(self.shape, dtype=self.values.dtype, device=self.values.device)
        dense[mask] = self.values
        return dense


def pack(tensor: Shaped[Tensor, "*shape"]) -> Packed:
    """Pack a tensor: what is nonzero is kept (a negative zero is not, and comes back as a positive one)."""
    mask = tensor != 0
    return Packed(pack_bits(mask), tensor[mask], tuple(tensor.shape))


def pack_bits(mask: Bool[Tensor, "*shape"]) -> UInt8[Tensor, "bytes"]:
    """Eight booleans to a byte, least significant bit first, row-major; the last byte is zero-filled."""
    flat = mask.reshape(-1).to(torch.uint8)
    flat = torch.nn.functional.pad(flat, (0, -flat.numel() % 8)).reshape(-1, 8)
    return (flat << _places(flat.device)).sum(-1, dtype=torch.uint8)


def unpack_bits(bits: UInt8[Tensor, "bytes"], shape: tuple[int, ...]) -> Bool[Tensor, "..."]:
    """Inverse of `pack_bits`.

    Raises:
        InvalidInputError: a dimension of the shape is negative.
        FileFormatError: the number of bytes does not fit the shape, or a filling bit is set.
    """
    if any(size < 0 for size in shape):
        raise InvalidInputError(f"a mask of shape {shape} was asked for; sizes are not negative")
    size = math.prod(shape)
    if bits.numel() != -(-size // 8):
        raise FileFormatError(
            f"a mask of shape {shape} takes {-(-size // 8)} bytes, and {bits.numel()} are there. "
            "The file was altered: export the run again."
        )
    flat = ((bits.unsqueeze(-1) >> _places(bits.device)) & 1).reshape(-1).to(torch.bool)
    if bool(flat[size:].any()):
        raise FileFormatError(
            f"a mask of shape {shape} has bits set past its end. The file was altered: export the run again."
        )
    return flat[:size].reshape(shape)


def _places(device: torch.device) -> UInt8[Tensor, "8"]:
    return torch.arange(8, dtype=torch.uint8, device=device)
