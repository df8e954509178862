"""What a layer is pruned to, from text: densities, patterns and radii as `--pattern` and `--override` take them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import nn

from optprune.errors import InvalidInputError
from optprune.network import plan
from optprune.network.plan import Plan, Radius, Rule
from optprune.patterns import Blocks, Columns, NOfM, Pattern, PerLayer, PerRow, Rows, Shape

SYNTAX = (
    "a density (0.2), N:M kept of M (2:4), per-layer:K, per-row:K, rows:K, columns:K or blocks:RxC:K "
    "(K a count, or a fraction with a point), radius:E (relative) or dense"
)

_BUDGETS: Mapping[str, type[PerLayer] | type[PerRow] | type[Rows] | type[Columns]] = {
    "per-layer": PerLayer,
    "per-row": PerRow,
    "rows": Rows,
    "columns": Columns,
}


def rule(text: str) -> Rule:
    """The rule that a text stands for.

    Raises:
        InvalidInputError: it stands for none.
    """
    head, colon, tail = text.partition(":")
    try:
        if text == "dense":
            return None
        if not colon:
            return float(text)
        if head == "radius":
            return Radius(float(tail))
        if head == "blocks":
            size, _, count = tail.partition(":")
            rows, _, columns = size.partition("x")
            return _blocks(int(rows), int(columns), count)
        if head in _BUDGETS:
            return _budget(_BUDGETS[head], tail)
        return NOfM(int(head), int(tail))
    except ValueError as error:
        if isinstance(error, InvalidInputError):
            raise
        raise InvalidInputError(f"'{text}' given as a target; accepted are {SYNTAX}") from error


def _budget(
    kind: type[PerLayer] | type[PerRow] | type[Rows] | type[Columns], count: str
) -> Pattern | Callable[[Shape], Pattern]:
    if "." not in count:
        return kind(int(count))
    density = float(count)
    return lambda shape: kind.at_density(density, shape)


def _blocks(rows: int, columns: int, count: str) -> Pattern | Callable[[Shape], Pattern]:
    if "." not in count:
        return Blocks(rows, columns, int(count))
    density = float(count)
    return lambda shape: Blocks.at_density(density, shape, rows, columns)


def make_plan(model: nn.Module, target: str, skip: Sequence[str], overrides: Sequence[str]) -> Plan:
    """A plan with one target for all layers, but for those skipped and overridden (`glob=target`).

    Raises:
        InvalidInputError: a text that is no target, or a name that matches no layer.
    """
    override: dict[str, Rule] = {}
    for text in overrides:
        glob, equals, own = text.partition("=")
        if not equals:
            raise InvalidInputError(f"override '{text}' given; write layer=target, with target one of {SYNTAX}")
        override[glob] = rule(own)
    base = rule(target)
    if base is None:
        raise InvalidInputError("'dense' given for all layers; there would be nothing to prune")
    if isinstance(base, Radius):
        return plan.radius(model, base.relative, skip=skip, override=override)
    if isinstance(base, float | int):
        return plan.uniform(model, base, skip=skip, override=override)
    return plan.uniform(model, pattern=base, skip=skip, override=override)
