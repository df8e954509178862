"""The choice of a damping per layer, by the error on held-out rows."""

from __future__ import annotations

import math
from collections.abc import Mapping

from optprune.errors import NonFiniteError, layer_context
from optprune.network.capture import Captured
from optprune.network.damping import DampingChoice, HeldOut
from optprune.network.layers import Adapter
from optprune.network.statements import group_statistics, least_squares
from optprune.patterns import Pattern
from optprune.solution import Solution
from optprune.solvers import Solver, solve_all
from optprune.statistics import Statistics


def choose_dampings(
    captured: Mapping[str, Captured],
    targets: Mapping[str, Pattern],
    adapters: Mapping[str, Adapter],
    solver: Solver,
    setting: HeldOut,
) -> dict[str, DampingChoice]:
    """Solve every layer on its fitted rows at every damping, and compare on the held-out ones.

    Args:
        captured: layers whose rows were divided.
        targets: their patterns.
        adapters: theirs.
        solver: of `L0LeastSquares`.
        setting: the dampings to choose from.

    Raises:
        NonFiniteError: no damping gives a finite solution; names the layer.
    """
    dampings = tuple(sorted(set(setting.dampings)))
    fitted = {name: _divided(layer)[0] for name, layer in captured.items()}
    problems = [
        least_squares(Captured(fitted[name]), targets[name], adapter, damping)
        for name, adapter in adapters.items()
        for damping in dampings
    ]
    answers = iter(solve_all([own for parts in problems for own in parts], solver, certified=False))
    found: dict[str, DampingChoice] = {}
    for name, adapter in adapters.items():
        solutions = [[next(answers) for _ in range(adapter.groups)] for _ in dampings]
        errors = [tuple(_relative(half, adapter, parts) for parts in solutions) for half in _divided(captured[name])]
        least = min(errors[1])
        if not math.isfinite(least):
            with layer_context(name):
                raise NonFiniteError(
                    f"{solver} gave NaN or infinity at every damping of {dampings}; try another solver"
                )
        found[name] = DampingChoice(dampings, errors[0], errors[1], dampings[errors[1].index(least)])
    return found


def _divided(captured: Captured) -> tuple[Statistics, Statistics]:
    assert captured.halves is not None
    return captured.halves


def _relative(rows: Statistics, adapter: Adapter, solutions: list[Solution]) -> float:
    """Relative error over all groups; infinite where a solution is not finite."""
    parts = group_statistics(rows, adapter.shape[1])
    if not all(bool(solution.weight.isfinite().all()) for solution in solutions):
        return math.inf
    missed = sum(2 * float(part.error(own.weight).sum()) for part, own in zip(parts, solutions, strict=True))
    energy = sum(float(part.target_energy.sum()) for part in parts)
    return math.sqrt(missed / energy) if energy else (math.inf if missed else 0.0)
