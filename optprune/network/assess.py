"""A report on a network that was pruned by other means: the same records, certificates and bound as `prune` gives."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from optprune.certify import certify
from optprune.errors import InvalidInputError, layer_context
from optprune.network.bound import network_bound
from optprune.network.calibration import (
    Calibration,
    Forward,
    calibration,
    device_of,
    evaluating,
    require_finite_weights,
    survey,
)
from optprune.network.capture import Captured, call_counts, capture_parallel, passes, require_untied
from optprune.network.layers import Adapter, named_adapters
from optprune.network.plan import Plan, Radius
from optprune.network.provenance import provenance
from optprune.network.report import LayerRecord, NetworkBound, Report
from optprune.network.ship import Solved, ship
from optprune.network.statements import least_squares
from optprune.problems import Problem
from optprune.solution import Solution, Termination
from optprune.statistics import Statistics


def assess(
    dense: nn.Module,
    pruned: nn.Module,
    batches: Iterable[Any],
    plan: Plan,
    *,
    by: object,
    steps: int = 0,
    seconds: float = 0.0,
    memory: int = 2**30,
    damping: float = 0.0,
    forward: Forward | None = None,
    certified: bool = True,
    bound: bool = True,
    evidence: bool = True,
) -> Report:
    """Compare a pruned network with the dense one it came from, layer by layer, on calibration data.

    Each layer is held against the l0 problem of its pattern on the dense network's inputs, its bias given: of all
    admissible weights with the bias that ships, which comes closest to the dense pre-activations. `error` is what the
    layer misses of them, the gap of the certificate says how much closer another weight might be. A network that was
    trained further need not be close to the dense one in order to be good: the numbers say how far it went.

    Args:
        dense: the network before.
        pruned: the same module with other parameters; untouched.
        batches: calibration data as for `prune`.
        plan: the pruned layers and their patterns.
        by: what pruned it; its `repr` is recorded as the solver.
        steps: how many steps that took.
        seconds: how long that took.
        memory: bytes for the statistics of one pass over the batches.
        damping: of the l0 problem, relative to the mean diagonal of the Gram matrix.
        forward: runs a model on a batch, for batches of another kind.
        certified: find and check a lower bound per layer.
        bound: propagate the layers' errors through the network; left out, with the reason in the report, where
            something outside of the planned layers changed. The error of the whole network is measured all the same.
        evidence: keep the problems and dual points in the report.

    Raises:
        InvalidInputError: a plan that does not fit, a target that is no pattern, a layer whose zeros are not its
            pattern's, no data; names the layer.
        NonFiniteError: NaN or infinity in weights or activations; names the layer.
        UnsupportedError: tied weights, a layer without adapter.
    """
    started = time.perf_counter()
    _require_admissible(pruned, plan)
    require_finite_weights(pruned, plan)
    require_untied(pruned, plan)
    place = device_of(dense, None)
    # `ship` writes what it is given; the caller's model is not its to write to.
    written = copy.deepcopy(pruned)
    data = calibration(dense, batches, forward, place, memory)
    with evaluating(dense, written):
        found = survey(data)
        adapters = named_adapters(dense, call_counts(dense, named_adapters(dense, plan), data))
        records: dict[str, LayerRecord] = {}
        for piece in passes(adapters, dict.fromkeys(adapters, 0), memory):
            captured = capture_parallel(dense, piece, data, dict.fromkeys(piece, 0), 0)
            for name, adapter in piece.items():
                with layer_context(name):
                    solved = _solved(captured[name], plan, name, adapter, written, damping, certified, steps)
                records[name] = ship(name, [written], solved, captured.pop(name), plan[name], by, evidence)
        network = _network(dense, written, data, list(adapters)) if bound else None
    facts = provenance() | {
        "mode": "parallel",
        "solver": repr(by),
        "plan": {name: repr(target) for name, target in plan.items()},
        "damping": damping,
        "memory": memory,
        "device": str(place),
        "data": {"batches": found.batches, "samples": found.samples, "sha256": found.sha256},
        "steps": steps,
        "seconds": seconds + time.perf_counter() - started,
    }
    return Report([records[name] for name in adapters], network, facts)


def _require_admissible(pruned: nn.Module, plan: Plan) -> None:
    plan.validate(pruned)
    for name, adapter in named_adapters(pruned, plan).items():
        target = plan[name]
        with layer_context(name):
            if isinstance(target, Radius):
                raise InvalidInputError(f"{target} given; the network is held against patterns: use plan.uniform")
            masks = adapter.matrix(adapter.module.weight.detach()) != 0
            parts = target.split(adapter.groups, adapter.shape)
            if not all(part.admits(mask) for part, mask in zip(parts, masks, strict=True)):
                raise InvalidInputError(
                    f"its {int(masks.sum())} nonzero weights are not within {target}; prune it to the pattern first"
                )


def _solved(
    captured: Captured,
    plan: Plan,
    name: str,
    adapter: Adapter,
    pruned: nn.Module,
    damping: float,
    certified: bool,
    steps: int,
) -> Solved:
    """The layer's problems, with its present weights as their answers."""
    start = time.perf_counter()
    target, module = plan[name], named_adapters(pruned, [name])[name].module
    assert not isinstance(target, Radius)
    if module.bias is not None and adapter.module.bias is not None:
        moved = (module.bias.detach().double() - adapter.module.bias.detach().double()).reshape(adapter.groups, -1)
        captured = replace(captured, statistics=_with_bias_moved(captured.statistics, moved))
    problems = least_squares(captured, target, adapter, damping)
    weights = adapter.matrix(module.weight.detach()).double()
    answers = [_answer(problem, weight, certified, steps) for problem, weight in zip(problems, weights, strict=True)]
    return Solved(problems, answers, time.perf_counter() - start)


def _with_bias_moved(statistics: Statistics, moved: Float[Tensor, "groups outg"]) -> Statistics:
    r"""Statistics of the same rows, which end in a one, with the targets lowered by a move $\delta$ of the bias.

    $C' = C - G e \delta^\top$ and $E' = E - 2 \delta \, C_e + G_{ee} \delta^2$ with $e$ the column of ones, so that the
    rest of the problem is about the weight alone.
    """
    ones = statistics.gram[..., -1:]
    return replace(
        statistics,
        cross=statistics.cross - ones * moved.unsqueeze(-2),
        energy=statistics.energy + moved * (statistics.gram[..., -1:, -1] * moved - 2 * statistics.cross[..., -1, :]),
    )


def _answer(problem: Problem, weight: Tensor, certified: bool, steps: int) -> Solution:
    certificate, evidence = certify(problem, weight) if certified else (None, {})
    return Solution(weight, None, weight, Termination.STEP_LIMIT, certificate, evidence, "", steps, 0.0, {})


def _network(dense: nn.Module, pruned: nn.Module, data: Calibration, names: list[str]) -> NetworkBound:
    found = network_bound(dense, pruned, data, names, cascade=False)
    other = _changed_elsewhere(dense.state_dict(), pruned.state_dict(), names)
    if not other:
        return found
    reason = f"'{other}' changed too and is no pruned layer's; the recursion follows the errors of pruned layers alone"
    return replace(found, bound=None, terms={}, chain=None, reason=reason)


def _changed_elsewhere(before: Mapping[str, Tensor], after: Mapping[str, Tensor], names: Iterable[str]) -> str | None:
    """The first tensor outside of the named layers that is not what it was."""
    inside = {f"{name}.{kind}".lstrip(".") for name in names for kind in ("weight", "bias")}
    for key in before:
        if key not in inside and not torch.equal(before[key], after[key]):
            return key
    return None
