"""The main job: capture, solve layer by layer, write, certify what was written, report."""

from __future__ import annotations

import copy
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from optprune.errors import InvalidInputError, layer_context
from optprune.network.bound import network_bound
from optprune.network.calibration import (
    Calibration,
    Forward,
    Survey,
    calibration,
    device_of,
    evaluating,
    require_finite_weights,
    survey,
)
from optprune.network.capture import (
    Captured,
    call_counts,
    capture_cascade,
    capture_parallel,
    passes,
    require_called_once,
    require_untied,
)
from optprune.network.choose_damping import choose_dampings
from optprune.network.damping import DampingChoice, HeldOut
from optprune.network.graph import followed_by_relu
from optprune.network.layers import Adapter, named_adapters
from optprune.network.plan import Plan, Radius
from optprune.network.provenance import provenance
from optprune.network.report import LayerRecord, Report
from optprune.network.ship import Solved, ship
from optprune.network.statements import (
    edge_sampling,
    l0_relu,
    least_squares,
    net_trim,
    problem_type,
    solve_to_count,
)
from optprune.patterns import Pattern, PerLayer
from optprune.problems import EdgeSampling, L0LeastSquares, L0ReLU, Problem
from optprune.problems.net_trim import NetTrim
from optprune.solution import Solution
from optprune.solvers import Portfolio, Solver, solve_all

DEFAULT_SOLVER = Portfolio()
M = TypeVar("M", bound=nn.Module)
Mode = Literal["parallel", "cascade"]
Progress = Callable[[str, int, int], None]
"""Called with (layer, layers finished, layers in all) when work on a layer begins and, with the last, at the end."""


@dataclass(frozen=True)
class _Run:
    """What all layers share."""

    solver: Solver
    damping: float | HeldOut
    samples: Mapping[str, int]
    relu: Mapping[str, bool]
    memory: int
    seed: int
    certified: bool
    evidence: bool

    @property
    def held_out(self) -> float:
        """Share of the samples that the damping is chosen on."""
        return self.damping.share if isinstance(self.damping, HeldOut) else 0.0


def prune(
    model: M,
    batches: Iterable[Any],
    plan: Plan,
    solver: Solver = DEFAULT_SOLVER,
    *,
    mode: Mode = "parallel",
    inplace: bool = False,
    seed: int = 0,
    device: str | torch.device | None = None,
    samples: int = 2000,
    memory: int = 2**30,
    damping: float | HeldOut = 0.0,
    relu: Mapping[str, bool] | None = None,
    forward: Forward | None = None,
    certified: bool = True,
    bound: bool = True,
    evidence: bool = True,
    progress: Progress | None = None,
) -> tuple[M, Report]:
    """Prune a network layer by layer and certify every layer as it ships.

    Args:
        model: any module; untouched unless `inplace`, and then only once everything has succeeded.
        batches: calibration data, read several times: tensors, tuples that begin with the input, or mappings of keyword
            arguments. One tensor is one batch.
        plan: what each layer is pruned to, from a planner of `optprune.plan`.
        solver: of `L0LeastSquares`, `NetTrim`, `EdgeSampling` or `L0ReLU`; the default is for plans of patterns.
        mode: "parallel": every layer sees the dense network's activations. "cascade": inputs come from the pruned
            prefix, targets from the dense network, layer after layer.
        inplace: write into `model` and return it, instead of a copy.
        seed: of the subsample of rows that Net-Trim and edge sampling work on.
        device: where to compute; by default where the model is. The result stays where the model is.
        samples: rows per layer kept for Net-Trim and edge sampling.
        memory: bytes for the statistics of one pass over the batches, and for a one-shot iterator.
        damping: of the l0 problem, relative to the mean diagonal of the Gram matrix; `HeldOut()` chooses it per layer
            by the error on samples held out.
        relu: layer name -> whether a ReLU follows, for Net-Trim, where the graph does not tell.
        forward: runs a model on a batch, for batches of another kind.
        certified: find and check a lower bound per layer; False leaves the certificates out.
        bound: propagate the layers' errors through the network and measure the whole network's.
        evidence: keep the problems and dual points in the report (`LayerRecord.parts`), which files need.
        progress: called with (layer, layers finished, layers in all).

    Returns:
        The pruned model and the report.

    Raises:
        InvalidInputError: no data, a layer that is never reached, a plan that does not fit; names the layer.
        NonFiniteError: NaN or infinity in weights, activations or a solution; names the layer.
        UnsupportedError: tied weights, a layer that is called twice (cascade), a target that the solver does not take.
    """
    started = time.perf_counter()
    _require_options(mode, samples, memory)
    place = device_of(model, device)
    run = _Run(solver, damping, *_per_layer(model, plan, solver, samples, relu), memory, seed, certified, evidence)
    result = copy.deepcopy(model)
    dense = model if _is_on(model, place) else copy.deepcopy(model).to(place)
    data = calibration(model, batches, forward, place, memory)
    with evaluating(dense, result):
        found = survey(data)
        counts = call_counts(dense, named_adapters(dense, plan), data)
        through = _parallel if mode == "parallel" else _cascade
        records = through(dense, result, counts, plan, data, run, progress)
        network = network_bound(dense, result, data, list(counts), cascade=mode == "cascade") if bound else None
    if inplace:
        _copy_parameters(result, model, plan)
        result = model
    facts = _facts(plan, run, mode, samples, found, place, time.perf_counter() - started)
    return result, Report(records, network, facts)


def _require_options(mode: str, samples: int, memory: int) -> None:
    if mode not in ("parallel", "cascade"):
        raise InvalidInputError(f"mode={mode!r} given; it is 'parallel' or 'cascade'")
    if samples < 1 or memory < 1:
        raise InvalidInputError(f"samples={samples}, memory={memory} given; both are at least 1")


def _is_on(model: nn.Module, device: torch.device) -> bool:
    return {parameter.device for parameter in model.parameters()} <= {device}


def _per_layer(
    model: nn.Module, plan: Plan, solver: Solver, samples: int, relu: Mapping[str, bool] | None
) -> tuple[dict[str, int], dict[str, bool]]:
    """Check plan, model and solver against each other; rows to keep and whether a ReLU follows, per layer."""
    if not plan:
        raise InvalidInputError("an empty plan given; plan at least one layer")
    plan.validate(model)
    require_untied(model, plan)
    require_finite_weights(model, plan)
    unknown = [name for name in relu or {} if name not in plan]
    if unknown:
        raise InvalidInputError(f"relu names '{unknown[0]}', which is not planned; the plan holds {', '.join(plan)}")
    kinds = {}
    for name, target in plan.items():
        with layer_context(name):
            kinds[name] = problem_type(solver, target)
    follows = followed_by_relu(model, plan) if {NetTrim, L0ReLU} & set(kinds.values()) else {}
    rows = {name: 0 if kind is L0LeastSquares else samples for name, kind in kinds.items()}
    return rows, {**follows, **(relu or {})}


def _parallel(
    dense: nn.Module,
    result: nn.Module,
    counts: Mapping[str, int],
    plan: Plan,
    data: Calibration,
    run: _Run,
    progress: Progress | None,
) -> list[LayerRecord]:
    """Layers of one shape are solved as one batch; passes over the data as few as memory allows."""
    adapters = named_adapters(dense, counts)
    records: dict[str, LayerRecord] = {}
    for piece in passes(adapters, run.samples, run.memory, divided=run.held_out > 0):
        _tell(progress, next(iter(piece)), len(records), len(plan))
        captured = capture_parallel(dense, piece, data, run.samples, run.seed, held_out=run.held_out)
        alike: dict[Any, list[str]] = defaultdict(list)
        for name, adapter in piece.items():
            alike[adapter.shape, adapter.groups, problem_type(run.solver, plan[name])].append(name)
        for names in alike.values():
            _tell(progress, names[0], len(records), len(plan))
            with layer_context(", ".join(names)):
                solved = _solve({n: captured[n] for n in names}, {n: adapters[n] for n in names}, plan, run)
            for name in names:
                records[name] = ship(
                    name, [result], solved[name], captured.pop(name), plan[name], run.solver, run.evidence
                )
    _tell(progress, "", len(records), len(plan))
    return [records[name] for name in adapters]


def _cascade(
    dense: nn.Module,
    result: nn.Module,
    counts: Mapping[str, int],
    plan: Plan,
    data: Calibration,
    run: _Run,
    progress: Progress | None,
) -> list[LayerRecord]:
    """Layer after layer in the order of execution, each behind the layers that are already pruned."""
    require_called_once(counts)
    records: list[LayerRecord] = []
    running = result if _is_on(result, data.device) else copy.deepcopy(dense)
    for name, adapter in named_adapters(dense, counts).items():
        _tell(progress, name, len(records), len(plan))
        captured = capture_cascade(dense, running, name, data, run.samples[name], run.seed, held_out=run.held_out)
        with layer_context(name):
            solved = _solve({name: captured}, {name: adapter}, plan, run)[name]
        written = [result] if running is result else [result, running]
        records.append(ship(name, written, solved, captured, plan[name], run.solver, run.evidence))
    _tell(progress, "", len(records), len(plan))
    return records


def _solve(
    captured: Mapping[str, Captured], adapters: Mapping[str, Adapter], plan: Plan, run: _Run
) -> dict[str, Solved]:
    """State and solve some layers; all groups of all of them in one call, so that equal shapes are batched."""
    start = time.perf_counter()
    problems: dict[str, list[Problem]] = {}
    counted: dict[str, list[Solution]] = {}
    choices = _dampings(captured, adapters, plan, run)
    for name, adapter in adapters.items():
        target = plan[name]
        kind = problem_type(run.solver, target)
        if kind is not NetTrim:
            assert not isinstance(target, Radius)
            if kind is EdgeSampling:
                problems[name] = edge_sampling(captured[name], target, adapter)
                continue
            damping = choices[name].chosen if isinstance(run.damping, HeldOut) else run.damping
            if kind is L0ReLU:
                problems[name] = l0_relu(captured[name], target, adapter, damping, run.relu[name])
            else:
                problems[name] = least_squares(captured[name], target, adapter, damping)
            continue
        at = target if isinstance(target, Radius) else Radius(0.0)
        trims = net_trim(captured[name], at, adapter, run.relu[name])
        if isinstance(target, PerLayer):
            trims, counted[name] = solve_to_count(trims, target, adapter, run.solver, certified=run.certified)
        problems[name] = list(trims)
    together = [problem for name in problems if name not in counted for problem in problems[name]]
    answers: Iterator[Solution] = iter(solve_all(together, run.solver, certified=run.certified))
    seconds = (time.perf_counter() - start) / len(adapters)
    return {
        name: Solved(own, counted.get(name) or [next(answers) for _ in own], seconds, choices.get(name))
        for name, own in problems.items()
    }


def _dampings(
    captured: Mapping[str, Captured], adapters: Mapping[str, Adapter], plan: Plan, run: _Run
) -> dict[str, DampingChoice]:
    """The choice for every layer with an l0 problem, where it is to be made on held-out samples."""
    if not isinstance(run.damping, HeldOut):
        return {}
    patterns = {
        name: target
        for name in adapters
        if isinstance(target := plan[name], Pattern) and problem_type(run.solver, target) is L0LeastSquares
    }
    return choose_dampings(
        {name: captured[name] for name in patterns},
        patterns,
        {name: adapters[name] for name in patterns},
        run.solver,
        run.damping,
    )


def _copy_parameters(source: nn.Module, target: nn.Module, names: Iterable[str]) -> None:
    with torch.no_grad():
        for name in names:
            own = dict(target.get_submodule(name).named_parameters(recurse=False))
            for kind, parameter in source.get_submodule(name).named_parameters(recurse=False):
                own[kind].copy_(parameter)


def _facts(
    plan: Plan, run: _Run, mode: str, samples: int, found: Survey, device: torch.device, seconds: float
) -> dict[str, Any]:
    return provenance() | {
        "mode": mode,
        "solver": repr(run.solver),
        "plan": {name: repr(target) for name, target in plan.items()},
        "allocation": None if plan.allocation is None else plan.allocation.to_json(),
        "relu": dict(run.relu),
        "seed": run.seed,
        "samples": samples,
        "damping": asdict(run.damping) if isinstance(run.damping, HeldOut) else run.damping,
        "memory": run.memory,
        "device": str(device),
        "data": {"batches": found.batches, "samples": found.samples, "sha256": found.sha256},
        "seconds": seconds,
    }


def _tell(progress: Progress | None, name: str, done: int, total: int) -> None:
    if progress is not None:
        progress(name, done, total)
