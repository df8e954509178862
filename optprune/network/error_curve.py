"""What a layer costs the network at several budgets: data that a planner chooses from."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optprune.errors import InvalidInputError
from optprune.patterns import Pattern, PerLayer, pattern_from_json


@dataclass(frozen=True)
class ErrorCurve:
    """What one layer costs the network at several budgets. Data: it does not matter who measured it.

    Attributes:
        targets: patterns that the layer may be given.
        counts: weights that each keeps.
        errors: error at each; finite, nonnegative, in one unit for all layers of a network.

    Raises:
        InvalidInputError: no target, lengths that differ, a count that is negative, an error that is negative or not
            finite.
    """

    targets: tuple[Pattern, ...]
    counts: tuple[int, ...]
    errors: tuple[float, ...]

    def __post_init__(self) -> None:
        lengths = (len(self.targets), len(self.counts), len(self.errors))
        if len(set(lengths)) > 1 or not self.targets:
            raise InvalidInputError(f"{lengths} targets, counts and errors given; one of each per budget, one at least")
        if min(self.counts) < 0 or not all(0 <= error < math.inf for error in self.errors):
            raise InvalidInputError(
                f"an error curve with counts from {min(self.counts)} and errors {min(self.errors)} to "
                f"{max(self.errors)} given; counts >= 0 and finite errors >= 0 are needed"
            )

    @classmethod
    def from_counts(cls, counts: Sequence[int], errors: Sequence[float]) -> ErrorCurve:
        """A curve over `PerLayer` budgets, for instance the loss trace of a greedy elimination."""
        whole = tuple(int(count) for count in counts)
        return cls(tuple(PerLayer(count) for count in whole), whole, tuple(float(error) for error in errors))

    def mapped(self, change: Callable[[float], float]) -> ErrorCurve:
        """The same targets with every error changed: weighted, squared, or put into another unit."""
        return ErrorCurve(self.targets, self.counts, tuple(change(error) for error in self.errors))

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready record, read back by `from_json`; `PerLayer` targets are told by their counts."""
        told = all(isinstance(target, PerLayer) for target in self.targets)
        return {
            "targets": None if told else [target.to_json() for target in self.targets],
            "counts": list(self.counts),
            "errors": list(self.errors),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> ErrorCurve:
        """Inverse of `to_json`."""
        if record["targets"] is None:
            return cls.from_counts(record["counts"], record["errors"])
        targets = tuple(pattern_from_json(target) for target in record["targets"])
        return cls(targets, tuple(record["counts"]), tuple(record["errors"]))
