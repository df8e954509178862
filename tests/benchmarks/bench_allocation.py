"""One budget shared among layers, by every planner: accuracy and error of the logits without retraining.

    python tests/benchmarks/bench_allocation.py [--out FILE] [--networks digits saved lenet300] [--solver ADMM]
                                                [--levels 0.5 ... 0.95] [--modes parallel cascade] [--seeds 0 1]

`digits` is a network 64-256-256-10 that is trained here on scikit-learn's digits, once per seed; `lenet300` needs the
folder of OPTPRUNE_DATA, and so does `saved`, the digits network on which others' codes were measured. Each layer keeps
what the plan gives it and is pruned by the solver, which also measures the error curves of the allocations; their three
weightings are those of `plan.error_curves`, and one allocation has its curves from magnitude pruning with refit, which
is cheaper. The error is the Frobenius norm of the logits' change on the test set, relative to that of the dense logits.

Exits with 1 unless the default allocation's logits err no more than those of equal densities, in every cell.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from bench_networks import network
from torch import Tensor, nn

import optprune as op
from optprune.cli.embedded import accuracy, digits, mlp, train

LEVELS = (0.5, 0.7, 0.8, 0.9, 0.95)
"""Shares of all weights that are pruned."""
DEFAULT, CHEAP = "output", "output, curves by Magnitude"
WEIGHTINGS: dict[str, op.plan.Weighting] = {
    DEFAULT: "output",
    "layer": "layer",
    "propagated": "propagated",
    CHEAP: "output",
}
BATCH = 256
Split = tuple[Tensor, Tensor]


def networks(names: list[str], seeds: list[int]) -> Iterator[tuple[str, nn.Module, Tensor, Split]]:
    for seed in seeds if "digits" in names else ():
        data = digits(seed)
        model = mlp([64, 256, 256, 10], seed)
        train(model, data.train_inputs, data.train_targets, seed=seed)
        yield f"digits {seed}", model, data.train_inputs, (data.test_inputs, data.test_targets)
    for name in ("saved", "lenet300"):
        if name in names:
            yield name, *network("digits" if name == "saved" else name)


def plans(model: nn.Module, batches: list[Tensor], solver: op.Solver, levels: list[float]) -> Iterator[Any]:
    """(level, planner, plan, CPU seconds); curves are measured once for all levels."""
    curves, seconds = {}, {}
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for name, weighting in WEIGHTINGS.items():
        start = time.process_time()
        measuring = op.Magnitude() if name == CHEAP else solver
        curves[name] = op.plan.error_curves(model, batches, layers, measuring, weighting=weighting)
        seconds[name] = time.process_time() - start
    for level in levels:
        density = 1 - level
        for planner, make in {
            "uniform": lambda density=density: op.plan.uniform(model, density),
            "erk": lambda density=density: op.plan.erk(model, density),
            "magnitude": lambda density=density: op.plan.global_magnitude(model, density),
            "owl": lambda density=density: op.plan.owl(model, batches, density),
        }.items():
            start = time.process_time()
            made = make()
            yield level, planner, made, time.process_time() - start
        for name in WEIGHTINGS:
            start = time.process_time()
            made = op.plan.from_curves(model, curves[name], density)
            yield level, f"allocated ({name})", made, seconds[name] + time.process_time() - start


@torch.no_grad()
def measure(model: nn.Module, pruned: nn.Module, test: Split) -> dict[str, float]:
    dense, logits = model(test[0]).double(), pruned(test[0]).double()
    return {"accuracy": accuracy(pruned, *test), "error": float((logits - dense).norm() / dense.norm())}


def run(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    solver = getattr(op, arguments.solver)()
    for name, model, inputs, test in networks(arguments.networks, arguments.seeds):
        batches = list(inputs.split(BATCH))
        print(f"{name}: dense accuracy {accuracy(model, *test):.4f}, {arguments.solver}", flush=True)
        for level, planner, plan, seconds in plans(model, batches, solver, arguments.levels):
            optimum = None if plan.allocation is None else plan.allocation.optimum
            row = {
                "network": name,
                "level": level,
                "planner": planner,
                "plan_seconds": seconds,
                "kept": plan.count(),
                "densities": {name: plan.count(name) / (shape[0] * shape[1]) for name, shape in plan.shapes.items()},
                "objective": None if optimum is None else optimum.objective,
                "lower_bound": None if optimum is None else optimum.lower_bound,
            }
            for mode in arguments.modes:
                pruned, _ = op.prune(model, batches, plan, solver, mode=mode, certified=False, bound=False)
                row[mode] = measure(model, pruned, test)
            figures = "  ".join(f"{row[mode]['accuracy']:.4f} / {row[mode]['error']:.4f}" for mode in arguments.modes)
            shares = " ".join(f"{share:.3f}" for share in row["densities"].values())
            print(f"{name:9} {level:<5} {planner:40} {figures}   {shares}", flush=True)
            yield row


def verdicts(rows: list[dict[str, Any]], modes: list[str]) -> list[str]:
    """Cells in which the default allocation does worse than equal densities."""
    cells = {(row["network"], row["level"], row["planner"]): row for row in rows}
    return [
        f"{network} {level} {mode}: {row[mode]['error']:.4f}, equal densities {equal:.4f}"
        for (network, level, planner), row in cells.items()
        for mode in modes
        if planner == f"allocated ({DEFAULT})"
        and row[mode]["error"] > (equal := cells[network, level, "uniform"][mode]["error"])
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = ["digits", "saved", "lenet300"]
    parser.add_argument("--out", type=Path, default=Path("bench_allocation.json"))
    default = known if "OPTPRUNE_DATA" in os.environ else known[:1]
    parser.add_argument("--networks", nargs="+", default=default, choices=known)
    parser.add_argument("--solver", default="ADMM", help="a class of optprune that solves the l0 problem")
    parser.add_argument("--levels", nargs="+", type=float, default=list(LEVELS))
    parser.add_argument("--modes", nargs="+", default=["parallel", "cascade"], choices=["parallel", "cascade"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    arguments = parser.parse_args()
    rows = []
    for row in run(arguments):
        rows.append(row)
        record = {"results": rows, "solver": arguments.solver, "torch": torch.__version__}
        arguments.out.write_text(json.dumps(record, indent=1))
    failures = verdicts(rows, arguments.modes)
    print("\n".join(failures) or "the default allocation errs no more than equal densities in every cell")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
