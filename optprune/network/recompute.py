"""What a run states, recomputed: counts, certificates, layer errors, and the recursion of the network's bound."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

import optprune.problems
from optprune.bounds.net_trim import parallel_bounds
from optprune.certify import certify_exact, recheck
from optprune.errors import FileFormatError, UnsupportedError
from optprune.network import files
from optprune.network.examination import Examination
from optprune.network.layer_record import certificate_from
from optprune.network.report import LayerRecord, Report
from optprune.network.runs import WEIGHTS, matrices, read_dense
from optprune.network.total import total
from optprune.problems import L0LeastSquares, Problem
from optprune.solution import Certificate, Rigor

TOLERANCE = 1e-9
"""Relative difference allowed between a recorded and a recomputed number: another machine sums in another order."""

NOISE = 1e-13
"""Absolute difference allowed where a number is relative already (residuals and the like)."""


def check_layers(run: Examination) -> None:
    """Every layer: what it counts, what its parts certify, what they sum to."""
    report = Report.from_json(run.document["report"])
    state = read_dense(run.folder / WEIGHTS)
    names = [record.name for record in report.layers]
    for name in sorted(run.layers.keys() ^ set(names)):
        run.add(name, files.REPORT, "has a record in one place and none in the other")
    for record in report.layers:
        if record.name in run.layers:
            run.guard(lambda run, record=record: _check_layer(run, record, state), record.name)


def _check_layer(run: Examination, record: LayerRecord, state: Mapping[str, Tensor]) -> None:
    layer = run.layers[record.name]
    weight = state[layer["weight"]]
    kept = int((weight != 0).sum())
    stated = {"kept": (record.kept, kept), "density": (record.density, kept / weight.numel())}
    for name, (recorded, found) in stated.items():
        if not _close(float(recorded), float(found)):
            run.add(record.name, files.REPORT, f"{name} {recorded:.17g} recorded, {found:.17g} in {WEIGHTS}")
    if tuple(weight.shape) != record.shape:
        run.add(record.name, files.REPORT, f"shape {record.shape} recorded, {tuple(weight.shape)} in {WEIGHTS}")
    if not layer["parts"]:
        run.notes.append(f"{run.place}layer '{record.name}': written without evidence, nothing to recompute")
        return
    bias = None if layer["bias"] is None else state[layer["bias"]]
    shipped = matrices(weight, bias, len(layer["parts"]))
    problems, certificates = [], []
    for index, (problem, evidence) in enumerate(_parts(run, layer)):
        certificate = recheck(problem, shipped[index], evidence)
        recorded = certificate_from(layer["parts"][index]["certificate"])
        where = f"certificate of part {index}: " if len(shipped) > 1 else ""
        for difference in differences(recorded, certificate):
            run.add(record.name, files.REPORT, where + difference)
        run.certificates += 1
        problems.append(problem)
        certificates.append(certificate)
        if run.exact:
            _check_exactly(run, record.name, problem, shipped[index], evidence, recorded)
    exact = len(run.exactly.get(run.place + record.name, ())) == len(problems)
    run.arithmetic[run.place + record.name] = Rigor.EXACT if exact else total(certificates).rigor
    _check_record(run, record, problems, certificates)


def _check_exactly(
    run: Examination,
    name: str,
    problem: Problem,
    matrix: Tensor,
    evidence: Mapping[str, Tensor],
    recorded: Certificate,
) -> None:
    """The certificate in rational arithmetic; what is recorded must be consistent with it, without any tolerance."""
    try:
        exact = certify_exact(problem, matrix, evidence)
    except UnsupportedError as error:
        run.notes.append(f"{run.place}layer '{name}': {error}")
        return
    run.exactly.setdefault(run.place + name, []).append(exact)
    for text, stated, limit, wrong in (
        ("lower_bound", recorded.lower_bound, exact.lower_bound.high, recorded.lower_bound > exact.lower_bound.high),
        ("objective at most", recorded.upper_bound, exact.objective.low, recorded.upper_bound < exact.objective.low),
    ):
        if wrong:
            run.add(name, files.REPORT, f"{text} {stated:.17g} recorded, {float(limit):.17g} in exact arithmetic")


def _parts(run: Examination, layer: Mapping[str, Any]) -> Iterator[tuple[Problem, dict[str, Tensor]]]:
    """The problem and the evidence of each part, from the files."""
    tensors, _ = files.read_tensors(run.folder / layer["evidence"])
    for index, part in enumerate(layer["parts"]):
        kind = vars(optprune.problems).get(part["problem"])
        if not (isinstance(kind, type) and issubclass(kind, Problem)):
            raise FileFormatError(f"a problem '{part['problem']}' is recorded, which this release does not know")
        own = {
            group: {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
            for group in ("problem", "evidence")
            for prefix in (f"{index}.{group}.",)
        }
        yield kind.restore(own["problem"], part["settings"]), own["evidence"]


def differences(recorded: Certificate, found: Certificate) -> Iterator[str]:
    """In which numbers two certificates differ by more than rounding."""
    scale = max(abs(found.objective), abs(found.lower_bound))
    for name in ("objective", "lower_bound"):
        yield from _difference(name, getattr(recorded, name), getattr(found, name), TOLERANCE * scale)
    for name in ("primal_residual", "dual_residual"):
        yield from _difference(name, getattr(recorded, name), getattr(found, name), NOISE)
    stated, bound = (math.nan if c.objective_error is None else c.objective_error for c in (recorded, found))
    yield from _difference("objective_error", stated, bound, 0.0)
    for name in sorted(recorded.details.keys() | found.details.keys()):
        missing = math.nan
        yield from _difference(name, recorded.details.get(name, missing), found.details.get(name, missing), NOISE)
    if (recorded.rigor, recorded.theorem) != (found.rigor, found.theorem):
        yield f"{recorded.rigor.value} by {recorded.theorem} recorded, {found.rigor.value} by {found.theorem} found"


def _difference(name: str, recorded: float, found: float, slack: float) -> Iterator[str]:
    if not _close(recorded, found, slack):
        yield f"{name} {recorded:.17g} recorded, {found:.17g} recomputed"


def _close(recorded: float, found: float, slack: float = 0.0) -> bool:
    if math.isfinite(recorded) and math.isfinite(found):
        return abs(recorded - found) <= max(slack, TOLERANCE * max(abs(recorded), abs(found)))
    return recorded == found or (math.isnan(recorded) and math.isnan(found))


def _check_record(
    run: Examination, record: LayerRecord, problems: list[Problem], certificates: list[Certificate]
) -> None:
    """The layer's own numbers, which sum those of its parts."""
    if record.certificate is None:
        run.add(record.name, files.REPORT, "no certificate recorded, and evidence for one is there")
        return
    for difference in differences(record.certificate, total(certificates)):
        run.add(record.name, files.REPORT, f"certificate of the layer: {difference}")
    if record.problem != type(problems[0]).__name__:
        run.add(record.name, files.REPORT, f"problem {record.problem} recorded, {type(problems[0]).__name__} found")
    damping = problems[0].damping if isinstance(problems[0], L0LeastSquares) else 0.0
    if record.damping != damping:
        run.add(record.name, files.REPORT, f"damping {record.damping:.17g} recorded, {damping:.17g} in its problem")
    squared = [
        2 * problem.statistics.count * certificate.details["undamped_objective"]
        for problem, certificate in zip(problems, certificates, strict=True)
        if isinstance(problem, L0LeastSquares) and problem.statistics.count == record.rows
    ]
    if len(squared) == len(problems):
        found = math.sqrt(max(0.0, math.fsum(squared)))
        if not _close(record.discrepancy, found, math.sqrt(NOISE) * found):
            run.add(
                record.name, files.REPORT, f"discrepancy {record.discrepancy:.17g} recorded, {found:.17g} recomputed"
            )


def check_allocation(run: Examination) -> None:
    """What sharing one budget cost, and the bound on any other way, from the recorded curves and multiplier alone."""
    allocation = Report.from_json(run.document["report"]).allocation
    if allocation is None:
        return
    if not allocation.spent <= allocation.budget:
        run.add(None, files.REPORT, f"allocation: {allocation.spent} spent of a budget of {allocation.budget}")
    if allocation.optimum is None:
        return
    objective, bound, cost = allocation.optimum.recomputed(allocation.costs, allocation.budget)
    if not cost <= allocation.budget:
        run.add(None, files.REPORT, f"allocation: the chosen targets cost {cost} of a budget of {allocation.budget}")
    recorded = {"objective": allocation.optimum.objective, "lower_bound": allocation.optimum.lower_bound}
    for name, found in (("objective", objective), ("lower_bound", bound)):
        for difference in _difference(name, recorded[name], found, TOLERANCE * objective):
            run.add(None, files.REPORT, f"allocation: {difference}")
    run.certificates += 1


def check_network(run: Examination) -> None:
    """The network's bound against the norms of the shipped layers and the measured error.

    What was measured on the calibration data is not measured again: that data is no part of a run.
    """
    report = Report.from_json(run.document["report"])
    network = report.network
    if network is None or network.bound is None:
        return
    if network.measured is not None and not network.measured <= network.bound:
        run.add(None, files.REPORT, f"network: error {network.measured:.17g} exceeds its bound {network.bound:.17g}")
    state = read_dense(run.folder / WEIGHTS)
    for name, term in network.terms.items():
        layer = run.layers[name]
        groups = len(layer["parts"]) or 1
        norm = float(torch.linalg.matrix_norm(matrices(state[layer["weight"]], None, groups), ord=2).max())
        if term["gain"] != 0.0 and term["gain"] < norm * (1 - TOLERANCE):  # 0: its output was measured instead
            run.add(name, files.REPORT, f"gain {term['gain']:.17g} recorded, the norm is {norm:.17g} at least")
        if term["bound"] < term["local"]:
            run.add(name, files.REPORT, f"bound {term['bound']:.17g} recorded, below the layer's own error")
    if network.chain is not None:
        weights = [state[run.layers[name]["weight"]].double().flatten(1) for name in network.terms]
        found = parallel_bounds([t["behind"] for t in network.terms.values()], weights, weights, network.chain.size)
        for name in ("spectral", "frobenius", "l1"):  # the printed one needs the dense weights, which are not in a run
            for difference in _difference(name, getattr(network.chain, name), getattr(found, name), 0.0):
                run.add(None, files.REPORT, f"closed form of the network's bound: {difference}")
        if network.chain.printed is not None and network.chain.printed < network.chain.l1:
            run.add(None, files.REPORT, "closed form of the network's bound: printed recorded, below that of l1")
