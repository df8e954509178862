"""A matrix of samples in a file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from copy import copy
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from optprune.errors import InvalidInputError, NonFiniteError
from optprune.numerics.linear._base import BLOCK, LinearMap


class DiskMap(LinearMap):
    """The rows of a `.npy` file of float32 or float64, read in blocks whenever a product is taken.

    Nothing of the file stays in memory. It is read once here, to see that it is finite and to know it again by
    its digest; a file that is changed afterwards makes every result wrong.

    Args:
        path: the file, an array `(n, d)` in C order.

    Raises:
        InvalidInputError: no such array.
        NonFiniteError: NaN or infinity in the file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._dtype = torch.float64
        array = self._open()
        if array.ndim != 2 or 0 in array.shape or array.dtype not in (np.float32, np.float64):
            raise InvalidInputError(
                f"{self.path} holds an array of shape {array.shape} and dtype {array.dtype}; float32 or float64 of two "
                "dimensions with at least one row and one column is needed"
            )
        if not array.flags.c_contiguous:
            raise InvalidInputError(f"{self.path} holds columns one after the other; save a C-ordered array")
        self._shape = (int(array.shape[0]), int(array.shape[1]))
        seen = hashlib.sha256()
        for start, part in self._parts():
            if not np.isfinite(part).all():
                first = start + int(np.flatnonzero(~np.isfinite(part).all(1))[0])
                raise NonFiniteError(f"{self.path} holds NaN or infinity, first in row {first}; leave those rows out")
            seen.update(part.data)
        self.digest = seen.hexdigest()

    def _open(self) -> np.ndarray:
        try:
            return np.load(self.path, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise InvalidInputError(f"{self.path} is no .npy file that can be read: {error}") from error

    def _parts(self) -> Iterator[tuple[int, np.ndarray]]:
        """Blocks of rows. The map is opened anew for each: pages of a closed one do not count as ours."""
        n, d = self._shape
        step = max(1, BLOCK // d)
        for start in range(0, n, step):
            yield start, np.array(self._open()[start : start + step])

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def rows(self) -> Iterator[tuple[slice, Float[Tensor, "block d"]]]:
        for start, part in self._parts():
            yield slice(start, start + len(part)), torch.from_numpy(part).to(self._dtype)

    def gather(self, order: Int[Tensor, "part width"]) -> Float[Tensor, "part width n"]:
        # Columns wanted by several neurons are read once.
        wanted, place = order.unique(return_inverse=True)
        found = torch.empty(len(wanted), self._shape[0], dtype=self._dtype)
        for part, block in self.rows():
            found[:, part] = block[:, wanted].mT
        return found[place]

    def gather_at(
        self, order: Int[Tensor, "part width"], samples: Int[Tensor, "part depth"]
    ) -> Float[Tensor, "part width depth"]:
        entries = self._open()[samples[:, None, :].numpy(), order[:, :, None].numpy()]
        return torch.from_numpy(np.ascontiguousarray(entries)).to(self._dtype)

    def to(self, dtype: torch.dtype) -> DiskMap:
        other = copy(self)
        other._dtype = dtype
        return other

    def tensors(self) -> dict[str, Tensor]:
        return {}

    def settings(self) -> dict[str, Any]:
        return {"path": str(self.path), "sha256": self.digest}

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Self:
        """Inverse of `tensors` and `settings`.

        Raises:
            InvalidInputError: the file is no longer the one that was described.
        """
        found = cls(settings["path"])
        if found.digest != settings["sha256"]:
            raise InvalidInputError(f"{found.path} has changed since this description was written; restore the file")
        return found
