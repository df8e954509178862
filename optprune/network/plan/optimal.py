"""The allocation as an optimisation problem: error curves, and the knapsack over them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from optprune.errors import InvalidInputError
from optprune.network.allocation import filled, optimum
from optprune.network.calibration import Forward
from optprune.network.error_curve import ErrorCurve
from optprune.network.plan.budget import share
from optprune.network.plan.curves import Choices, Weighting, error_curves, on_grid
from optprune.network.targets import Plan, Rule
from optprune.numerics.knapsack import MAX_STATES
from optprune.solvers import Solver


def allocated(
    model: nn.Module,
    batches: Iterable[Any],
    density: float,
    solver: Solver,
    *,
    weighting: Weighting = "output",
    choices: Choices = on_grid,
    damping: float = 0.0,
    cost: Mapping[str, int] | None = None,
    skip: str | Iterable[str] = (),
    override: Mapping[str, Rule] | None = None,
    forward: Forward | None = None,
    device: str | torch.device | None = None,
    memory: int = 2**30,
) -> Plan:
    r"""The targets of the least total error within one budget.

    $$\min_o \sum_l e_l(o_l) \quad \text{s.t.} \quad \sum_l \kappa_l\, k_l(o_l) \le B$$

    over the targets that `choices` offers each layer. The errors $e_l$ are measured by pruning each layer by itself
    (`error_curves`, which says what the weightings mean); the choice is a multiple-choice knapsack, solved exactly,
    with its Lagrangian lower bound. What the grid leaves of the budget goes to the layers that gain most by it.

    Errors of the network's outputs are the default weighting because they are what the sum of errors is to predict: on
    digits networks 64-256-256-10, two seeds, densities 0.5 to 0.05, allocations by them had the smallest or within a
    tenth of the smallest error of the outputs on test images, layer errors and T04's bounds up to 1.7 times it, and
    equal densities up to 2.4 times (`tests/benchmarks/bench_allocation.py`).

    Args:
        model: its `Linear`, `Conv1d` and `Conv2d` layers are planned.
        batches: calibration data, as in `prune`.
        density: fraction kept of all weights that share the budget; with `cost`, of what they cost together.
        solver: of `L0LeastSquares`; measures the curves.
        weighting: the unit of the errors.
        choices: targets of a layer, by its shape; by default `PerLayer` at the densities of a grid.
        damping: of the l0 problem.
        cost: of one kept weight per layer (`macs`); 1 by default.
        skip: names or globs of layers to leave alone.
        override: name or glob -> a target of the layer's own, outside of the budget.
        forward: runs the model on a batch of another kind.
        device: where to compute; by default where the model is.
        memory: bytes for the statistics of one pass over the batches.

    Raises:
        InvalidInputError: as `erk` and `error_curves`; or the cheapest targets exceed the budget.
        NonFiniteError: as `error_curves`.
        UnsupportedError: as `erk` and `error_curves`.

    Guarantees:
        T09, of the curves.
    """
    shared = share(model, density, cost, skip, override)
    curves = error_curves(
        model,
        batches,
        list(shared.adapters),
        solver,
        weighting=weighting,
        choices=choices,
        damping=damping,
        forward=forward,
        device=device,
        memory=memory,
    )
    settings = {"weighting": weighting, "solver": repr(solver), "damping": damping}
    return from_curves(model, curves, density, cost=cost, skip=skip, override=override, settings=settings)


def from_curves(
    model: nn.Module,
    curves: Mapping[str, ErrorCurve],
    density: float,
    *,
    cost: Mapping[str, int] | None = None,
    skip: str | Iterable[str] = (),
    override: Mapping[str, Rule] | None = None,
    settings: Mapping[str, Any] | None = None,
    max_states: int = MAX_STATES,
) -> Plan:
    """As `allocated`, from curves that are already there: one measurement serves every density.

    Args:
        model: as in `allocated`.
        curves: one per layer that shares the budget, in one unit, whoever measured them.
        density: as in `allocated`.
        cost: as in `allocated`.
        skip: as in `allocated`.
        override: as in `allocated`.
        settings: what to record of how the curves came about, JSON-ready.
        max_states: of the dynamic programme, see `knapsack`.

    Raises:
        InvalidInputError: as `erk`; a layer has no curve; or the cheapest targets exceed the budget.
        UnsupportedError: as `erk`.
    """
    shared = share(model, density, cost, skip, override)
    missing = [name for name in shared.adapters if name not in curves]
    if missing:
        raise InvalidInputError(
            f"no error curve for layer '{missing[0]}' given; measure one (error_curves), skip the layer or override it"
        )
    own = {name: curves[name] for name in shared.adapters}
    chosen = optimum(own, shared.costs, shared.budget, max_states=max_states)
    targets = filled(chosen, shared.costs, shared.budget)
    return shared.plan("optimal", targets, {"density": density, **(settings or {})}, chosen)
