"""The patches of a convolution as a matrix of samples that is never formed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from optprune.errors import InvalidInputError
from optprune.numerics.checks import require_finite
from optprune.numerics.linear._base import BLOCK, LinearMap

Pair = int | tuple[int, int]


class PatchMap(LinearMap):
    r"""$X$ with one row per image and output position of a convolution and one column per entry of its kernel, in
    the order of `torch.nn.functional.unfold`: $X M^\top$ is the convolution with the kernels $M$.

    The transpose of the matrix is a strided view of the padded images, so that a column is a window of one
    channel. Products copy the patches of a few images at a time.

    Args:
        images: what the convolution sees `(N, C, H, W)`, of one group.
        kernel_size: height and width of the kernel.
        stride: step between output positions.
        padding: zeros at each side, or "same" or "valid", as in torch.
        dilation: step between the kernel's entries.
        padding_mode: as in `torch.nn.Conv2d`.

    Raises:
        InvalidInputError: not images, or a kernel that does not fit into them, or settings below their range.
        NonFiniteError: NaN or infinity in the images.
    """

    def __init__(
        self,
        images: Float[Tensor, "N C H W"],
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair | str = 0,
        dilation: Pair = 1,
        padding_mode: str = "zeros",
    ) -> None:
        if images.dim() != 4 or not images.is_floating_point() or 0 in images.shape:
            raise InvalidInputError(
                f"images of shape {tuple(images.shape)} and dtype {images.dtype} given; floating (N, C, H, W) is needed"
            )
        require_finite("images", images, "Find where they arise, or leave those images out.")
        self.images, self.padding_mode = images.detach(), padding_mode
        self.kernel, self.stride, self.dilation = _pair(kernel_size), _pair(stride), _pair(dilation)
        spans = [step * (size - 1) + 1 for step, size in zip(self.dilation, self.kernel, strict=True)]
        self.padding = padding if isinstance(padding, str) else _pair(padding, least=0)
        left, right, top, bottom = _sides(self.padding, spans)
        if self.padding == "same" and self.stride != (1, 1):
            raise InvalidInputError(f"padding 'same' with stride {self.stride} given; it needs stride 1, as in torch")
        mode = "constant" if padding_mode == "zeros" else padding_mode
        if mode not in ("constant", "reflect", "replicate", "circular"):
            raise InvalidInputError(f"padding_mode {padding_mode!r} given; zeros, reflect, replicate, circular fit")
        sides = (left, right, top, bottom)
        self._padded = F.pad(self.images, sides, mode=mode) if any(sides) else self.images.contiguous()
        free = [size - span for size, span in zip(self._padded.shape[2:], spans, strict=True)]
        if min(free) < 0:
            raise InvalidInputError(
                f"a kernel that spans {tuple(spans)} given for padded images of {tuple(self._padded.shape[2:])}; "
                "it must fit into them"
            )
        self.positions = (free[0] // self.stride[0] + 1, free[1] // self.stride[1] + 1)
        self._columns = self._view(self._padded)

    def _view(self, padded: Tensor) -> Float[Tensor, "C kh kw N oh ow"]:
        image, channel, row, column = padded.stride()
        size = (padded.shape[1], *self.kernel, padded.shape[0], *self.positions)
        (down, right), (apart, beside) = self.stride, self.dilation
        return padded.as_strided(
            size, (channel, row * apart, column * beside, image, row * down, column * right), padded.storage_offset()
        )

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.images) * math.prod(self.positions), self.images.shape[1] * math.prod(self.kernel))

    @property
    def dtype(self) -> torch.dtype:
        return self.images.dtype

    @property
    def device(self) -> torch.device:
        return self.images.device

    def rows(self) -> Iterator[tuple[slice, Float[Tensor, "block d"]]]:
        each, d = math.prod(self.positions), self.shape[1]
        step = max(1, BLOCK // (each * d))
        for start in range(0, len(self.images), step):
            block = self._columns[:, :, :, start : start + step].reshape(d, -1)
            yield slice(start * each, start * each + block.shape[1]), block.mT

    def _place(self, order: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Channel, row and column in the kernel."""
        height, width = self.kernel
        return order // (height * width), order // width % height, order % width

    def gather(self, order: Int[Tensor, "part width"]) -> Float[Tensor, "part width n"]:
        return self._columns[self._place(order)].flatten(2)

    def gather_at(
        self, order: Int[Tensor, "part width"], samples: Int[Tensor, "part depth"]
    ) -> Float[Tensor, "part width depth"]:
        rows, columns = self.positions
        column = [index[:, :, None] for index in self._place(order)]
        sample = (samples // (rows * columns), samples // columns % rows, samples % columns)
        return self._columns[(*column, *(index[:, None, :] for index in sample))]

    def to(self, dtype: torch.dtype) -> PatchMap:
        return self if dtype == self.dtype else self.restore({"images": self.images.to(dtype)}, self.settings())

    def tensors(self) -> dict[str, Tensor]:
        return {"images": self.images}

    def settings(self) -> dict[str, Any]:
        return {
            "kernel_size": list(self.kernel),
            "stride": list(self.stride),
            "padding": self.padding if isinstance(self.padding, str) else list(self.padding),
            "dilation": list(self.dilation),
            "padding_mode": self.padding_mode,
        }

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Self:
        padding = settings["padding"]
        return cls(
            tensors["images"],
            tuple(settings["kernel_size"]),
            tuple(settings["stride"]),
            padding if isinstance(padding, str) else tuple(padding),
            tuple(settings["dilation"]),
            settings["padding_mode"],
        )


def _pair(value: Pair, least: int = 1) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or min(pair) < least:
        raise InvalidInputError(f"{value} given for a size of a convolution; one or two integers >= {least} are needed")
    return (int(pair[0]), int(pair[1]))


def _sides(padding: tuple[int, int] | str, spans: list[int]) -> tuple[int, int, int, int]:
    """(left, right, top, bottom), as torch pads: with "same", an odd one goes right and to the bottom."""
    if padding == "valid":
        return (0, 0, 0, 0)
    if padding == "same":
        height, width = (span - 1 for span in spans)
        return (width // 2, width - width // 2, height // 2, height - height // 2)
    if isinstance(padding, str):
        raise InvalidInputError(f"padding {padding!r} given; 'same', 'valid' or numbers are accepted")
    return (padding[1], padding[1], padding[0], padding[0])
