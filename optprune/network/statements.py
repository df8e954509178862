"""From what a layer saw to the problem that a solver accepts, one per group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from optprune.errors import InvalidInputError, UnsupportedError
from optprune.network.capture import Captured
from optprune.network.layers import Adapter
from optprune.network.targets import Radius, Target
from optprune.patterns import Pattern, PerLayer
from optprune.problems import EdgeSampling, L0LeastSquares, L0ReLU, Problem
from optprune.problems.net_trim import NetTrim
from optprune.solution import Solution
from optprune.solvers import Solver, solve
from optprune.solvers.net_trim_admm import NetTrimADMM
from optprune.solvers.net_trim_count import solve_for_count
from optprune.statistics import Statistics


def problem_type(solver: Solver, target: Target) -> type[Problem]:
    """What a target becomes for a solver.

    `L0LeastSquares`, `EdgeSampling` or `L0ReLU` for a pattern, `NetTrim` for a radius or a count.

    Raises:
        UnsupportedError: the solver accepts no problem that the target can become.
    """
    if isinstance(target, Pattern) and L0LeastSquares in solver.accepts:
        return L0LeastSquares
    if NetTrim in solver.accepts and isinstance(target, Radius | PerLayer):
        return NetTrim
    patterned = [kind for kind in (EdgeSampling, L0ReLU) if kind in solver.accepts]
    if isinstance(target, Pattern) and patterned:
        return patterned[0]
    name = type(solver).__name__
    if NetTrim in solver.accepts:
        raise UnsupportedError(
            f"{target!r} given with {name}, which solves Net-Trim; accepted are a density, PerLayer(k) and Radius"
        )
    if L0LeastSquares in solver.accepts or patterned:
        raise UnsupportedError(
            f"{target!r} given with {name}, which needs a pattern; use plan.uniform, or a Net-Trim solver"
        )
    accepted = ", ".join(kind.__name__ for kind in solver.accepts)
    raise UnsupportedError(
        f"{name} accepts {accepted}; pruning a network needs a solver of L0LeastSquares, NetTrim, EdgeSampling or "
        "L0ReLU"
    )


def group_statistics(statistics: Statistics, inputs: int) -> list[Statistics]:
    """The statistics of each group's first `inputs` columns: those of the weight alone, without the bias.

    What the dense layer leaves over is the same with or without the bias, so that the rest is a slice.
    """
    return [
        Statistics(
            gram=statistics.gram[g, :inputs, :inputs].contiguous(),
            cross=statistics.cross[g, :inputs].contiguous(),
            energy=statistics.energy[g],
            count=statistics.count,
            reference=statistics.reference[g, :, :inputs].contiguous(),
        )
        for g in range(statistics.gram.shape[0])
    ]


def least_squares(captured: Captured, pattern: Pattern, adapter: Adapter, damping: float) -> list[Problem]:
    """One l0 problem per group, the bias staying as it is; a budget of the layer is divided exactly."""
    parts = group_statistics(captured.statistics, adapter.shape[1])
    patterns = pattern.split(adapter.groups, adapter.shape)
    return [L0LeastSquares(part, own, damping) for part, own in zip(parts, patterns, strict=True)]


def net_trim(captured: Captured, target: Radius, adapter: Adapter, relu: bool) -> list[NetTrim]:
    r"""One Net-Trim problem per group, on the sampled rows, the bias a free column.

    With dense inputs the radius is `relative` times $\lVert Y_\Omega \rVert_F$; with a pruned prefix it is at least
    what the dense weight leaves there.
    """
    if captured.inputs is None:
        raise UnsupportedError("Net-Trim needs rows, not statistics alone; give samples >= 1")
    weight, bias = _dense(captured.statistics, adapter)
    problems: list[NetTrim] = []
    for g in range(adapter.groups):
        own = None if bias is None else bias[g]
        rows = captured.inputs[g].double()
        if captured.targets is None:
            problem = NetTrim.from_layer(weight[g], rows, 0.0, own, relu=relu)
            problem = replace(problem, radius=target.relative * problem.size)
        else:
            problem = NetTrim.cascade(
                weight[g], rows, captured.targets[g].double(), target.gamma, target.relative, own, relu=relu
            )
        problems.append(problem)
    return problems


def edge_sampling(captured: Captured, pattern: Pattern, adapter: Adapter) -> list[Problem]:
    """One edge-sampling problem per group, on the sampled rows, which are the points; the bias stays as it is.

    Behind a pruned prefix the points are what the layer sees there, and the error is that of its own edges.
    """
    if captured.inputs is None:
        raise UnsupportedError("edge sampling needs rows, not statistics alone; give samples >= 1")
    weight, _ = _dense(captured.statistics, adapter)
    patterns = pattern.split(adapter.groups, adapter.shape)
    return [EdgeSampling(weight[g], captured.inputs[g].double(), own) for g, own in enumerate(patterns)]


def l0_relu(captured: Captured, pattern: Pattern, adapter: Adapter, damping: float, relu: bool) -> list[Problem]:
    """One l0 problem behind the ReLU per group, on the sampled rows; the bias stays as it is."""
    if not relu:
        raise InvalidInputError("no ReLU follows this layer, so that L0ReLU does not describe it; leave it out")
    if captured.inputs is None:
        raise UnsupportedError("the problem behind a ReLU needs rows, not statistics alone; give samples >= 1")
    weight, bias = _dense(captured.statistics, adapter)
    shift = torch.zeros_like(weight[..., 0]) if bias is None else bias
    problems: list[Problem] = []
    for g, own in enumerate(pattern.split(adapter.groups, adapter.shape)):
        rows = captured.inputs[g].double()
        dense = rows @ weight[g].mT + shift[g] if captured.targets is None else captured.targets[g].double()
        problems.append(L0ReLU(rows, dense, shift[g], weight[g], own, damping))
    return problems


def solve_to_count(
    problems: Sequence[NetTrim], target: PerLayer, adapter: Adapter, solver: Solver, *, certified: bool
) -> tuple[list[NetTrim], list[Solution]]:
    """Net-Trim at the radius that keeps at most the pattern's count, group by group.

    Behind a pruned prefix the radius is at least what the dense weight leaves there.
    """
    found: list[NetTrim] = []
    solutions: list[Solution] = []
    for problem, part in zip(problems, target.split(adapter.groups, adapter.shape), strict=True):
        count = part.count((adapter.shape[0] // adapter.groups, adapter.shape[1]))
        at_radius, solution = _for_count(problem, count, solver, certified)
        found.append(at_radius)
        solutions.append(solution)
    return found, solutions


def _for_count(problem: NetTrim, count: int, solver: Solver, certified: bool) -> tuple[NetTrim, Solution]:
    """The search by its own solver; another one only solves what that found."""
    if isinstance(solver, NetTrimADMM):
        return solve_for_count(problem, count, solver, certified=certified)
    at_radius, _ = solve_for_count(problem, count, certified=False)
    return at_radius, solve(at_radius, solver, certified=certified)


def _dense(statistics: Statistics, adapter: Adapter) -> tuple[Tensor, Tensor | None]:
    """The dense weight and bias, from the reference of the statistics."""
    inputs = adapter.shape[1]
    bias = statistics.reference[..., inputs] if statistics.reference.shape[-1] > inputs else None
    return statistics.reference[..., :inputs], bias


def shipped(problem: Problem, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The variable of a problem that stands for written parameters, in float64."""
    parts = [weight.double()] if bias is None else [weight.double(), bias.double().unsqueeze(-1)]
    matrix = torch.cat(parts, -1)
    return matrix[..., : problem.shape[1]]
