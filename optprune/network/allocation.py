"""One budget of the network shared among its layers, as numbers: the choice, and its lower bound."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from optprune.bounds.knapsack import lagrangian_bound
from optprune.errors import InvalidInputError, layer_context
from optprune.network.error_curve import ErrorCurve
from optprune.numerics.knapsack import MAX_STATES, knapsack
from optprune.patterns import Pattern, PerLayer


@dataclass(frozen=True)
class Optimum:
    r"""The choice of one target per layer of the least total error within the budget, and a bound on any other.

    $$\min_o \sum_l e_l(o_l) \quad \text{s.t.} \quad \sum_l \kappa_l\, k_l(o_l) \le B$$

    with counts $k_l$, costs $\kappa_l$ of a weight and budget $B$. It speaks of the curves as they are given: a solver
    that does better than the one that measured them, or errors that do not add up, are outside of it.

    Attributes:
        curves: $k_l$ and $e_l$.
        chosen: $o_l$.
        objective: total error of the choice.
        lower_bound: what no choice within the budget can undercut.
        multiplier: $\mu$ behind the bound: what one more unit of budget is worth.
        exact: whether the program was solved to the end, so that the gap left is that of the bound.
    """

    curves: Mapping[str, ErrorCurve]
    chosen: Mapping[str, int]
    objective: float
    lower_bound: float
    multiplier: float
    exact: bool

    @property
    def gap(self) -> float:
        """(objective - lower bound) / objective; 0 where both are 0."""
        return 0.0 if self.objective == 0 else (self.objective - self.lower_bound) / self.objective

    def targets(self) -> dict[str, Pattern]:
        """The chosen targets."""
        return {name: curve.targets[self.chosen[name]] for name, curve in self.curves.items()}

    def recomputed(self, costs: Mapping[str, int], budget: int) -> tuple[float, float, int]:
        """Objective, lower bound and cost of the choice, from curves, choice and multiplier alone."""
        tables = [_table(curve, costs[name]) for name, curve in self.curves.items()]
        places = [(curve, self.chosen[name], costs[name]) for name, curve in self.curves.items()]
        bound = lagrangian_bound([cost for cost, _ in tables], [error for _, error in tables], budget, self.multiplier)
        objective = math.fsum(curve.errors[place] for curve, place, _ in places)
        return objective, bound, sum(cost * curve.counts[place] for curve, place, cost in places)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready record, read back by `from_json`."""
        return {
            "objective": self.objective,
            "lower_bound": self.lower_bound,
            "gap": self.gap,
            "multiplier": self.multiplier,
            "exact": self.exact,
            "chosen": dict(self.chosen),
            "curves": {name: curve.to_json() for name, curve in self.curves.items()},
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Optimum:
        """Inverse of `to_json`."""
        curves = {name: ErrorCurve.from_json(curve) for name, curve in record["curves"].items()}
        objective, bound, multiplier = (float(record[name]) for name in ("objective", "lower_bound", "multiplier"))
        return cls(curves, dict(record["chosen"]), objective, bound, multiplier, bool(record["exact"]))


@dataclass(frozen=True)
class Allocation:
    """How one budget became a target per layer.

    Attributes:
        method: name of the planner.
        budget: what all layers together may cost.
        spent: what they cost.
        costs: cost of one kept weight, per layer: 1 where the budget counts weights.
        settings: of the planner, JSON-ready.
        optimum: the optimisation problem behind it; None for a planner that follows a rule.
    """

    method: str
    budget: int
    spent: int
    costs: Mapping[str, int]
    settings: Mapping[str, Any] = field(default_factory=dict)
    optimum: Optimum | None = None

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready record, read back by `from_json`."""
        return {
            "method": self.method,
            "budget": self.budget,
            "spent": self.spent,
            "costs": dict(self.costs),
            "settings": dict(self.settings),
            "optimum": None if self.optimum is None else self.optimum.to_json(),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Allocation:
        """Read a record written by `to_json`.

        Raises:
            InvalidInputError: a field is missing or malformed.
        """
        try:
            optimum = None if record["optimum"] is None else Optimum.from_json(record["optimum"])
            return cls(**{**record, "optimum": optimum})
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InvalidInputError(f"not an allocation: {error!r}; write it with Allocation.to_json") from error

    def __str__(self) -> str:
        unit = "weights" if set(self.costs.values()) <= {1} else "multiplications"
        head = f"allocation '{self.method}': {self.spent} of {self.budget} {unit}"
        if self.optimum is None:
            return head
        o = self.optimum
        end = "solved exactly" if o.exact else "not solved to the end"
        numbers = f"objective {o.objective:.4g} >= bound {o.lower_bound:.4g} (gap {100 * o.gap:.3g} %)"
        return f"{head}; {numbers}, {end}"


def optimum(
    curves: Mapping[str, ErrorCurve], costs: Mapping[str, int], budget: int, *, max_states: int = MAX_STATES
) -> Optimum:
    """Choose one target per layer: the multiple-choice knapsack over the curves, and its Lagrangian bound.

    Args:
        curves: per layer.
        costs: of one kept weight, per layer.
        budget: for the total cost.
        max_states: of the dynamic programme, see `knapsack`.

    Raises:
        InvalidInputError: the cheapest targets exceed the budget.

    Guarantees:
        T09.
    """
    tables = [_table(curve, costs[name]) for name, curve in curves.items()]
    cost, error = [cost for cost, _ in tables], [error for _, error in tables]
    found = knapsack(cost, error, budget, max_states=max_states)
    bound = lagrangian_bound(cost, error, budget, found.multiplier)
    chosen = dict(zip(curves, found.options, strict=True))
    return Optimum(dict(curves), chosen, found.error, bound, found.multiplier, found.exact)


def filled(chosen: Optimum, costs: Mapping[str, int], budget: int) -> dict[str, Pattern]:
    """The chosen targets, with what they leave of the budget given out along the curves' steepest chords.

    What still is left, where no curve gains by it, goes to the layers in their order: a weight more never harms. Only
    a `PerLayer` target can keep single weights more. A curve's grid leaves less than one of its steps over; a solver
    that does not get worse with a larger budget keeps the total error at or below the optimum's objective.
    """
    targets, left = chosen.targets(), budget
    ahead: list[tuple[float, str, int]] = []
    for name, curve in chosen.curves.items():
        count, error = curve.counts[chosen.chosen[name]], curve.errors[chosen.chosen[name]]
        left -= costs[name] * count
        gains = [
            ((error - later) / (costs[name] * (more - count)), name, more)
            for more, later in zip(curve.counts, curve.errors, strict=True)
            if more > count and later < error
        ]
        ahead += [max(gains)] if gains else []
    ends = [(0.0, name, max(curve.counts)) for name, curve in chosen.curves.items()]
    for _, name, end in [*sorted(ahead, reverse=True), *ends]:
        target = targets[name]
        if isinstance(target, PerLayer):
            extra = min(end - target.k, left // costs[name])
            targets[name] = PerLayer(target.k + extra)
            left -= costs[name] * extra
    return targets


def _table(curve: ErrorCurve, cost: int) -> tuple[Tensor, Tensor]:
    counts = torch.tensor(curve.counts, dtype=torch.int64)
    return counts * cost, torch.tensor(curve.errors, dtype=torch.float64)


def require_costs(costs: Mapping[str, int], names: Sequence[str]) -> dict[str, int]:
    """The costs of these layers, whole numbers of at least 1.

    Raises:
        InvalidInputError: one is missing or no such number; names the layer.
    """
    for name in names:
        cost = costs.get(name)
        if isinstance(cost, bool) or not isinstance(cost, int) or cost < 1:
            with layer_context(name):
                raise InvalidInputError(
                    f"cost {cost!r} given for one of its weights; a whole number >= 1 is needed (plan.macs gives them)"
                )
    return {name: costs[name] for name in names}
