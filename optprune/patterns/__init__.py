"""Patterns: the sets of supports among which a layer's weights may be kept.

Every pattern here is one mechanism: the weight matrix is cut into *budgets*, each budget into *units*, each unit into
a fixed number of weights, and in every budget at most `kept` units may be nonzero. `units` brings a matrix into the
shape `(*batch, budgets, units, size)`, and projection, counting, validation and the relaxations of the lower bounds
follow from it.

| pattern | budgets | units in a budget | weights in a unit |
|---|---|---|---|
| `PerLayer(k)` | the layer | every weight | 1 |
| `PerRow(k)` | each row (output neuron) | its weights | 1 |
| `NOfM(n, m)` | each group of m consecutive inputs of a row | its weights | 1 |
| `Blocks(r, c, k)` | the layer | r x c tiles | r c |
| `Rows(k)` | the layer | rows (neurons, filters) | in |
| `Columns(k)` | the layer | columns (inputs, channels) | out |
| `Fixed(mask)` | each weight | itself | 1 |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optprune.errors import InvalidInputError
from optprune.patterns._base import Pattern, Shape, count_at
from optprune.patterns.structured import Blocks, Columns, Rows
from optprune.patterns.unstructured import Fixed, NOfM, PerLayer, PerRow

__all__ = [
    "Blocks",
    "Columns",
    "Fixed",
    "NOfM",
    "Pattern",
    "PerLayer",
    "PerRow",
    "Rows",
    "Shape",
    "count_at",
    "pattern_from_json",
]

_TYPES: dict[str, type[Pattern]] = {c.__name__: c for c in (PerLayer, PerRow, NOfM, Blocks, Rows, Columns, Fixed)}


def pattern_from_json(record: Mapping[str, Any]) -> Pattern:
    """Read a pattern written by `Pattern.to_json`.

    Raises:
        InvalidInputError: unknown type or wrong fields.
    """
    arguments = {key: value for key, value in record.items() if key != "type"}
    try:
        return _TYPES[record["type"]].from_json(arguments)
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInputError(
            f"not a pattern record: {dict(record)} ({error}); write it with Pattern.to_json"
        ) from error
