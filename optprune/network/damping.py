"""Damping of the l0 problem chosen on held-out rows: the setting, and what is reported of the choice."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optprune.errors import InvalidInputError


@dataclass(frozen=True)
class HeldOut:
    r"""Choose every layer's damping by what it does on calibration samples that were held out.

    A share of the samples is set aside at random. Each damping's solution is found on the others, and the damping of
    the least error on those set aside is taken; with it the layer is then solved on all samples.

    Attributes:
        dampings: to choose from, relative to the mean diagonal of the Gram matrix; 0 is one of them, so that errors
            with and without damping stand side by side.
        share: of the samples that is set aside.

    Raises:
        InvalidInputError: 0 is not among the dampings, one is negative or not finite, or the share is not in (0, 1).
    """

    dampings: tuple[float, ...] = (0.0, 1e-4, 1e-3, 1e-2, 1e-1)
    share: float = 0.5

    def __post_init__(self) -> None:
        if 0.0 not in self.dampings or not all(0 <= damping < math.inf for damping in self.dampings):
            raise InvalidInputError(
                f"HeldOut(dampings={self.dampings}) given; finite numbers >= 0, with 0 among them, are needed"
            )
        if not 0 < self.share < 1:
            raise InvalidInputError(f"HeldOut(share={self.share}) given; a fraction inside (0, 1) is needed")


@dataclass(frozen=True)
class DampingChoice:
    r"""Relative errors $\lVert X (U - W)^\top \rVert_F / \lVert X W^\top \rVert_F$, by damping.

    Attributes:
        dampings: those tried, ascending.
        fitted: error of each on the samples that its solution was found on.
        held_out: error of each on those set aside.
        chosen: the damping of the least held-out error, the smallest of equals.
    """

    dampings: tuple[float, ...]
    fitted: tuple[float, ...]
    held_out: tuple[float, ...]
    chosen: float

    def errors(self, damping: float) -> tuple[float, float]:
        """(on the fitted, on the held-out samples) at one of the dampings."""
        place = self.dampings.index(damping)
        return self.fitted[place], self.held_out[place]

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready record but for infinities; inverse of `from_json`."""
        return vars(self) | {name: list(getattr(self, name)) for name in ("dampings", "fitted", "held_out")}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> DampingChoice:
        """Inverse of `to_json`."""
        dampings, fitted, held_out = (tuple(map(float, record[name])) for name in ("dampings", "fitted", "held_out"))
        return cls(dampings, fitted, held_out, float(record["chosen"]))

    def __str__(self) -> str:
        (fitted, held_out), (plain, plain_held_out) = self.errors(self.chosen), self.errors(0.0)
        return (
            f"damping {self.chosen:g}: error {held_out:.4g} on held-out samples ({plain_held_out:.4g} without), "
            f"{fitted:.4g} on the fitted ({plain:.4g} without)"
        )
