"""What every problem is: a frozen mathematical statement about one matrix."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor

from optprune.patterns import Shape


class Problem(ABC):
    """A layer problem over a matrix `(*batch, out, d)`; algorithms live elsewhere.

    Subclasses are frozen dataclasses whose docstring is the formula. Leading batch dimensions hold independent
    problems of one shape, so that a solver treats a stack as it treats one.
    """

    @property
    @abstractmethod
    def shape(self) -> Shape:
        """(out, d) of the variable."""

    @property
    @abstractmethod
    def batch_shape(self) -> tuple[int, ...]:
        """Leading dimensions; () for a single problem."""

    @property
    def stackable(self) -> bool:
        """Whether it can be a member of a stack."""
        return True

    @abstractmethod
    def objective(self, matrix: Float[Tensor, "*batch out d"]) -> Float[Tensor, "*batch"]:
        """The value to be minimised, in float64."""

    @abstractmethod
    def violation(self, matrix: Float[Tensor, "*batch out d"]) -> Mapping[str, Tensor]:
        """How far each constraint is violated, relative to the data's scale; 0 where it holds."""

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""
        return next(iter(self.tensors().values())).device

    def to(self, device: str | torch.device) -> Self:
        """The same numbers on another device."""
        tensors = self.tensors()
        moved = {name: tensor.to(device) for name, tensor in tensors.items()}
        if all(moved[name] is tensor for name, tensor in tensors.items()):
            return self
        return self.restore(moved, self.settings())

    def split(self, matrix: Float[Tensor, "out d"]) -> tuple[Float[Tensor, "out in"], Float[Tensor, " out"] | None]:
        """The layer's weight and, where it is a variable, its bias; the matrix is the weight unless overridden."""
        return matrix, None

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """The tensors of the statement, by name; with `settings` a lossless description."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """The rest of the statement, JSON-ready."""

    @classmethod
    @abstractmethod
    def restore(cls, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Self:
        """Inverse of `tensors` and `settings`."""
