"""What a layer is pruned to, from text: densities, patterns and radii as `--pattern` and `--override` take them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from optprune.errors import InvalidInputError
from optprune.network import plan
from optprune.network.plan import Plan, Radius, Rule
from optprune.network.prune import DEFAULT_SOLVER
from optprune.patterns import Blocks, Columns, NOfM, Pattern, PerLayer, PerRow, Rows, Shape
from optprune.problems import L0LeastSquares
from optprune.solvers import Solver

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

SENSITIVITIES: Mapping[str, Literal["threshold", "bounds"]] = {"sensitivity": "threshold", "bounds": "bounds"}
"""Allocations by the sensitivities of edges, and which of the two rules each is."""


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


@dataclass(frozen=True)
class Sharing:
    """How one density of the whole network becomes a density per layer.

    Attributes:
        allocation: name of the planner, as `optprune prune --allocation` takes it.
        budget: what the density is a fraction of, "weights" or "macs".
        batches: calibration data, for the planners that look at it.
        solver: of the method; it measures the error curves if it solves the l0 problem, else the default solver does.
    """

    allocation: str
    budget: str
    batches: Sequence[Tensor]
    solver: Solver

    def plan(self, model: nn.Module, density: float, skip: Sequence[str], override: Mapping[str, Rule]) -> Plan:
        """The planner's plan."""
        if self.allocation == "uniform":
            return plan.uniform(model, density, skip=skip, override=override)
        cost = plan.macs(model, self.batches) if self.budget == "macs" else None
        if self.allocation == "erk":
            return plan.erk(model, density, cost=cost, skip=skip, override=override)
        if self.allocation == "magnitude":
            return plan.global_magnitude(model, density, cost=cost, skip=skip, override=override)
        if self.allocation == "owl":
            return plan.owl(model, self.batches, density, cost=cost, skip=skip, override=override)
        if self.allocation in SENSITIVITIES:
            by = SENSITIVITIES[self.allocation]
            return plan.sensitivity(model, self.batches, density, by=by, cost=cost, skip=skip, override=override)
        solver = self.solver if L0LeastSquares in self.solver.accepts else DEFAULT_SOLVER
        return plan.allocated(model, self.batches, density, solver, cost=cost, skip=skip, override=override)


def make_plan(model: nn.Module, target: str, skip: Sequence[str], overrides: Sequence[str], sharing: Sharing) -> Plan:
    """A plan with one target for all layers, but for those skipped and overridden (`glob=target`).

    A density is shared among the layers as `sharing` says; any other target is each layer's own.

    Raises:
        InvalidInputError: a text that is no target, a name that matches no layer, or a target that cannot be shared.
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
    if isinstance(base, float | int):
        return sharing.plan(model, float(base), skip, override)
    if sharing.allocation != "uniform":
        raise InvalidInputError(
            f"allocation '{sharing.allocation}' with target '{target}' given; what is shared among layers is a density"
        )
    if isinstance(base, Radius):
        return plan.radius(model, base.relative, skip=skip, override=override)
    return plan.uniform(model, pattern=base, skip=skip, override=override)
