"""From solutions to shipped weights: cast, write, certify again, measure on all calibration rows."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from optprune.certify import recheck
from optprune.errors import NonFiniteError, layer_context
from optprune.network.capture import Captured
from optprune.network.damping import DampingChoice
from optprune.network.layers import Adapter, named_adapters
from optprune.network.report import LayerRecord, Part
from optprune.network.statements import group_statistics, shipped
from optprune.network.targets import Target
from optprune.network.total import total
from optprune.problems import L0LeastSquares, Problem
from optprune.problems.net_trim import NetTrim
from optprune.solution import Solution, Termination

_FAVOUR = (
    Termination.CLOSED_FORM,
    Termination.CONVERGED,
    Termination.STEP_LIMIT,
    Termination.INFEASIBLE,
    Termination.NON_FINITE,
)


@dataclass(frozen=True, eq=False)
class Solved:
    """A layer's problems and their solutions, one per group; how its damping was chosen, if it was."""

    problems: list[Problem]
    solutions: list[Solution]
    seconds: float
    held_out: DampingChoice | None = None


def ship(
    name: str,
    models: Sequence[nn.Module],
    solved: Solved,
    captured: Captured,
    target: Target,
    solver: object,
    evidence: bool,
) -> LayerRecord:
    """Write a layer into the models, then certify and measure what was written.

    Args:
        name: of the layer, in every model.
        models: where to write; the record is about the last one's parameters.
        solved: problems and solutions, one per group.
        captured: what the layer saw, for the error over all rows.
        target: what the plan asked for.
        solver: what solved it; its `repr` is recorded.
        evidence: keep problems and dual points in the record.

    Raises:
        NonFiniteError: a solution is not finite, or leaves the range of the layer's dtype.
    """
    start = time.perf_counter()
    with layer_context(name):
        for model in models:
            adapter = _write(name, model, solved)
        weight = adapter.matrix(adapter.module.weight.detach()).to("cpu")
        bias = adapter.module.bias
        biases = None if bias is None else bias.detach().to("cpu").reshape(adapter.groups, -1)
        parts = [
            _part(problem, solution, weight[g], None if biases is None else biases[g])
            for g, (problem, solution) in enumerate(zip(solved.problems, solved.solutions, strict=True))
            if solution.certificate is not None
        ]
    discrepancy, scale = _errors(captured, weight, biases)
    kept = int((weight != 0).sum())
    first = solved.problems[0]
    return LayerRecord(
        name=name,
        kind=adapter.kind,
        shape=tuple(adapter.module.weight.shape),
        target=repr(target),
        pattern="" if isinstance(first, NetTrim) else repr(target),
        problem=type(first).__name__,
        solver=repr(solver),
        kept=kept,
        density=kept / weight.numel(),
        error=discrepancy / scale if scale else (math.inf if discrepancy else 0.0),
        relu_error=_relu_error(solved.problems, weight, biases),
        discrepancy=discrepancy,
        rows=captured.statistics.count,
        certificate=total([part.certificate for part in parts]) if parts else None,
        termination=max((s.termination for s in solved.solutions), key=_FAVOUR.index),
        steps=max(s.steps for s in solved.solutions),
        seconds=solved.seconds + time.perf_counter() - start,
        dead_inputs=int(captured.statistics.dead.sum()),
        damping=first.damping if isinstance(first, L0LeastSquares) else 0.0,
        held_out=solved.held_out,
        parts=tuple(parts) if evidence else (),
    )


def _write(name: str, model: nn.Module, solved: Solved) -> Adapter:
    """Cast the solutions to the layer's dtype and write them.

    Raises:
        NonFiniteError: a solution is not finite, or leaves the range of the dtype.
    """
    adapter = named_adapters(model, [name])[name]
    module = adapter.module
    weight = adapter.weight_from(torch.stack([s.weight for s in solved.solutions]))
    biases = [s.bias for s in solved.solutions if s.bias is not None]
    bias = torch.cat(biases) if biases else None
    for kind, value, place in (("weight", weight, module.weight), ("bias", bias, module.bias)):
        if value is not None and place is not None:
            cast = value.to(place)
            if not bool(cast.isfinite().all()):
                states = ", ".join(sorted({s.termination.value for s in solved.solutions}))
                raise NonFiniteError(
                    f"the pruned {kind} holds NaN or infinity in {place.dtype} (solver: {states}, largest magnitude "
                    f"{float(value.abs().max()):.3g}); nothing is written. Use another solver, damping or dtype"
                )
            place.copy_(cast)
    return adapter


def _part(problem: Problem, solution: Solution, weight: Tensor, bias: Tensor | None) -> Part:
    """The certificate of the written weights, from the evidence found for the solver's."""
    problem = problem.to("cpu")
    evidence = {name: tensor.to("cpu") for name, tensor in solution.evidence.items()}
    matrix = shipped(problem, weight, bias)
    return Part(problem, matrix, evidence, recheck(problem, matrix, evidence))


def _relu_error(problems: Sequence[Problem], weight: Tensor, bias: Tensor | None) -> float | None:
    """Relative error behind the ReLU, on the rows of the Net-Trim problems; None where there is none."""
    trims = [problem for problem in problems if isinstance(problem, NetTrim) and not bool(problem.active.all())]
    if len(trims) < len(problems):
        return None
    missed = scale = 0.0
    for g, problem in enumerate(trims):
        matrix = shipped(problem, weight[g], None if bias is None else bias[g]).to(problem.targets.device)
        outputs = problem.linear.outputs(matrix).clamp(min=0)
        missed += float((outputs - problem.targets).square().sum())
        scale += float(problem.targets.square().sum())
    return math.sqrt(missed / scale) if scale else (math.inf if missed else 0.0)


def _errors(captured: Captured, weight: Tensor, bias: Tensor | None) -> tuple[float, float]:
    """Norm of what the written layer misses of the dense pre-activations, and of those without their bias."""
    statistics = captured.statistics
    full = weight.double()
    if bias is not None:
        full = torch.cat([full, bias.double().unsqueeze(-1)], -1)
    missed = 2 * statistics.count * statistics.error(full.to(statistics.reference.device)).sum()
    plain = group_statistics(statistics, weight.shape[-1])
    energy = statistics.count * sum(float(part.target_energy.sum()) for part in plain)
    return math.sqrt(float(missed)), math.sqrt(energy)
