"""Whole networks pruned without retraining: accuracy and error of the logits, beside what others' codes reached.

    OPTPRUNE_DATA=... python tests/benchmarks/bench_networks.py [--out FILE] [--networks digits lenet300]
                                                                [--levels 0.5 ... 2:4] [--methods default obc ...]

Every layer is pruned to the same level, in cascade: inputs from the pruned prefix, targets from the dense network. The
error is the Frobenius norm of the logits' change on the test set, relative to that of the dense logits. `PEERS` are the
best figures on the digits network that others' codes reached, in accuracy and in error, each over all of them.

Exits with 1 unless the default is at or above the peers in each cell.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _networks import data_folder, lenet300, mnist
from torch import Tensor, nn

import optprune as op

LEVELS = ("0.5", "0.7", "0.8", "0.9", "0.95", "2:4")
PEERS = {
    "digits": {
        "accuracy": (0.988, 0.984, 0.984, 0.980, 0.950, 0.986),
        "error": (0.012, 0.035, 0.066, 0.150, 0.285, 0.033),
    }
}
DIGITS = 5e-4
"""Half of the last digit that the peers' figures have."""
METHODS: dict[str, op.Solver] = {
    "default": op.Portfolio(),
    "fast": op.Portfolio("fast"),
    "obc": op.OBC(),
    "admm": op.ADMM(),
    "sparsegpt": op.SparseGPT(),
    "wanda": op.Wanda(),
    "magnitude": op.Magnitude(refit=False),
}
Split = tuple[Tensor, Tensor]


def digits() -> tuple[nn.Sequential, Tensor, Split]:
    """The trained network 64-256-256-10, its training images, and its test images and classes."""
    file = np.load(data_folder() / "layers" / "digits_mlp_64_256_256_10.npz")
    layers = [nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)]
    model = nn.Sequential(*layers)
    names = {f"{i}.{part}": torch.from_numpy(file[f"net_{i}.{part}"]) for i in (0, 2, 4) for part in ("weight", "bias")}
    model.load_state_dict(names)
    train, images, classes = (torch.from_numpy(file[name]) for name in ("Xtr", "Xte", "yte"))
    return model, train, (images, classes)


def network(name: str) -> tuple[nn.Module, Tensor, Split]:
    if name == "digits":
        return digits()
    return lenet300(), mnist()[0][:5000], mnist("t10k")


def plan(model: nn.Module, level: str) -> op.Plan:
    if ":" not in level:
        return op.plan.uniform(model, density=1 - float(level))
    n, m = map(int, level.split(":"))
    return op.plan.uniform(model, pattern=op.NOfM(n, m))


@torch.no_grad()
def measure(model: nn.Module, pruned: nn.Module, test: Split) -> dict[str, float]:
    dense, logits = model(test[0]).double(), pruned(test[0]).double()
    return {
        "accuracy": float((logits.argmax(-1) == test[1]).double().mean()),
        "error": float((logits - dense).norm() / dense.norm()),
    }


def run(name: str, levels: list[str], methods: list[str]) -> list[dict[str, Any]]:
    model, calibration, test = network(name)
    batches, results = calibration.split(256), []
    print(f"{name}: dense accuracy {measure(model, model, test)['accuracy']:.4f}")
    for level in levels:
        for method in methods:
            start = time.process_time()
            pruned, _ = op.prune(
                model, batches, plan(model, level), METHODS[method], mode="cascade", certified=False, bound=False
            )
            cpu = time.process_time() - start
            figures = measure(model, pruned, test)
            results.append({"network": name, "level": level, "method": method, "cpu_seconds": cpu} | figures)
            shown = f"{figures['accuracy']:.4f} {figures['error']:.4f}"
            print(f"{name:8} {level:4} {method:10} {shown} {cpu:7.1f} s", flush=True)
    return results


def verdicts(results: list[dict[str, Any]]) -> list[str]:
    """Cells in which the default does not reach the peers."""
    failures = []
    for r in results:
        if r["method"] != "default" or r["network"] not in PEERS:
            continue
        cell = LEVELS.index(r["level"])
        accuracy, error = (PEERS[r["network"]][key][cell] for key in ("accuracy", "error"))
        if r["accuracy"] < accuracy - DIGITS or r["error"] > error + DIGITS:
            failures.append(f"{r['level']}: {r['accuracy']:.4f} / {r['error']:.4f}, peers {accuracy} / {error}")
    return failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("bench_networks.json"))
    parser.add_argument("--networks", nargs="+", default=["digits", "lenet300"], choices=["digits", "lenet300"])
    parser.add_argument("--levels", nargs="+", default=list(LEVELS), choices=LEVELS)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    arguments = parser.parse_args()
    results = [r for name in arguments.networks for r in run(name, arguments.levels, arguments.methods)]
    failures = verdicts(results)
    record = {"results": results, "peers": PEERS, "failures": failures, "torch": torch.__version__}
    arguments.out.write_text(json.dumps(record, indent=1))
    print("\n".join(failures) or "the default is at or above the peers in every cell that they have")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
