"""The work of `optprune prune`: data, model, one pruning per method, one folder with a run each."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from optprune.cli import embedded
from optprune.cli.inputs import Data, read_data, read_model
from optprune.cli.progress import Bars
from optprune.cli.rules import Sharing, make_plan, rule
from optprune.cli.solvers import chosen
from optprune.errors import InvalidInputError
from optprune.network.calibration import device_of
from optprune.network.damping import HeldOut
from optprune.network.export import export, export_index, state_bytes
from optprune.network.files import new_folder
from optprune.network.held_out import Claims, held_out
from optprune.network.layer_record import encode
from optprune.network.plan import Radius
from optprune.network.prune import prune
from optprune.network.report import Report
from optprune.solvers import Solver

CALIBRATION_BATCH = 256
DELTA = 0.05
"""Probability that a claim about new rows is wrong, for all methods and claims of a job together."""


@dataclass(frozen=True)
class Job:
    """What `optprune prune` was asked for; the fields are its options."""

    data: str
    model: str
    weights: Path | None
    epochs: int
    methods: tuple[str, ...]
    target: str
    allocation: str
    budget: str
    mode: Literal["parallel", "cascade"]
    skip: tuple[str, ...]
    override: tuple[str, ...]
    options: tuple[str, ...]
    dtype: str
    device: str
    samples: int
    damping: float | Literal["held-out"]
    held_out: bool
    seed: int
    output: Path
    overwrite: bool


@dataclass(frozen=True)
class MethodOutcome:
    """One method's pruned network."""

    method: str
    report: Report
    accuracy: float | None
    claims: Claims | None
    sizes: dict[str, int]
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether every layer was solved."""
        return all(record.termination.ok for record in self.report.layers)

    def summary(self) -> dict[str, Any]:
        """The record of the list of runs."""
        return {
            "method": self.method,
            "ok": self.ok,
            "kept": self.report.kept,
            "weights": self.report.total,
            "accuracy": self.accuracy,
            "held_out": None if self.claims is None else encode(self.claims.to_json()),
            "bytes": self.sizes,
            "seconds": self.seconds,
        }


@dataclass(frozen=True)
class Outcome:
    """What a job gave."""

    job: Job
    rows: int
    dense_accuracy: float | None
    methods: list[MethodOutcome]

    @property
    def ok(self) -> bool:
        """Whether every layer of every method was solved."""
        return all(method.ok for method in self.methods)

    def summary(self) -> dict[str, Any]:
        """What was asked and what came out, JSON-ready, without the layers."""
        asked = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(self.job).items()}
        del asked["overwrite"], asked["output"]
        return {
            "asked": asked,
            "calibration_rows": self.rows,
            "dense_accuracy": self.dense_accuracy,
            "methods": [method.summary() for method in self.methods],
        }

    def to_json(self) -> dict[str, Any]:
        """The summary and every method's report."""
        document = self.summary()
        for record, method in zip(document["methods"], self.methods, strict=True):
            record["report"] = method.report.to_json()
        return document | {"output": str(self.job.output), "ok": self.ok}


def run(job: Job) -> Outcome:
    """Do the job and write its folder, which appears when all methods are done.

    Raises:
        OptPruneError: anything asked for does not exist or does not fit.
    """
    solvers = chosen(job.methods or _default_methods(job.target), job.options)
    with new_folder(job.output, overwrite=job.overwrite) as folder, Bars() as bars:
        model, data = _prepared(job, bars)
        measure = _accuracy(data)
        outcome = Outcome(job, len(data.inputs), measure(model), [])
        for name, solver in solvers.items():
            outcome.methods.append(_prune(job, name, solver, model, data, measure, folder / name, bars))
        export_index(folder, outcome.summary())
    return outcome


def _default_methods(target: str) -> tuple[str, ...]:
    base = rule(target)
    if isinstance(base, Radius):
        return ("net-trim",)
    return ("net-trim", "portfolio") if isinstance(base, float) else ("portfolio",)


def _prepared(job: Job, bars: Bars) -> tuple[nn.Module, Data]:
    """The model, trained if it is the built-in one, and the data, where and as they are wanted."""
    data = read_data(job.data, job.seed)
    if job.held_out and data.test_inputs is data.inputs:
        raise InvalidInputError(
            f"--held-out given with data '{job.data}', which has no rows of its own for it; give `test_inputs` that "
            "nothing was pruned on or chosen by"
        )
    model, untrained = read_model(job.model, job.weights, data, job.seed)
    if untrained and data.targets is not None:
        with bars.steps("training") as advance:
            embedded.train(model, data.inputs.float(), data.targets, epochs=job.epochs, seed=job.seed, progress=advance)
    device = device_of(model, job.device)
    dtype = getattr(torch, job.dtype)
    return model.to(device, dtype), data.to(dtype, device)


def _accuracy(data: Data) -> Callable[[nn.Module], float | None]:
    def measure(model: nn.Module) -> float | None:
        if data.test_targets is None:
            return None
        return embedded.accuracy(model, data.test_inputs, data.test_targets)

    return measure


def _prune(
    job: Job,
    name: str,
    solver: Solver,
    model: nn.Module,
    data: Data,
    measure: Callable[[nn.Module], float | None],
    folder: Path,
    bars: Bars,
) -> MethodOutcome:
    start = time.perf_counter()
    with bars.layers(name) as progress:
        batches = data.inputs.split(CALIBRATION_BATCH)
        sharing = Sharing(job.allocation, job.budget, batches, solver)
        plan = make_plan(model, job.target, job.skip, job.override, sharing)
        pruned, report = prune(
            model,
            batches,
            plan,
            solver,
            mode=job.mode,
            seed=job.seed,
            samples=job.samples,
            damping=HeldOut() if job.damping == "held-out" else job.damping,
            progress=progress,
        )
    seconds = time.perf_counter() - start
    claims = _claims(job, model, pruned, data) if job.held_out else None
    sizes = state_bytes(export(pruned, report, folder))
    return MethodOutcome(name, report, measure(pruned), claims, sizes, seconds)


def _claims(job: Job, model: nn.Module, pruned: nn.Module, data: Data) -> Claims:
    """What holds for the pruned network on new rows; delta is divided among the methods, one of which may be chosen."""
    delta = DELTA / len(job.methods or _default_methods(job.target))
    labels = None if data.test_targets is None else data.test_targets.split(CALIBRATION_BATCH)
    return held_out(model, pruned, data.test_inputs.split(CALIBRATION_BATCH), delta=delta, labels=labels)
