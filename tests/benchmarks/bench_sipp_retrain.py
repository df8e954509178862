"""Pruned and retrained in rounds: sampled edges beside global magnitude and the l0 default, one budget for all.

    OPTPRUNE_DATA=... python tests/benchmarks/bench_sipp_retrain.py [--networks lenet300 lenet5 resnet20] [--seeds 3]
                                                                  [--methods ...] [--out FILE]

A round prunes to the next density and retrains what is kept, with the same epochs, optimizer and batches for every
method; the next round starts from there. The prune ratio is the largest whose test accuracy is within 0.5 points of the
dense network's. Training, retraining and pruning see the first `images` of the training set; the dense networks of
MNIST are trained from seeds of their own, the ResNet-20 is the pretrained one and its batches are seeded. The loop is
the user's own: `op.prune` between epochs, `op.training.freeze` around the optimizer.

The JSON file is written after every row; rows that are there are not run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _networks import cifar10, lenet5, mnist, resnet20
from torch import Tensor, nn
from torch.nn import functional as F

import optprune as op
from optprune.cli.embedded import accuracy, mlp, train

DROP = 0.005
POINTS, BATCH = 512, 128
Planned = Callable[[nn.Module, Sequence[Tensor], float], op.Plan]
Data = tuple[Tensor, Tensor]
PLANS: dict[str, Planned] = {
    "uniform": lambda model, batches, density: op.plan.uniform(model, density),
    "global": lambda model, batches, density: op.plan.global_magnitude(model, density),
    "threshold": lambda model, batches, density: op.plan.sensitivity(model, batches, density, samples=256),
    "bounds": lambda model, batches, density: op.plan.sensitivity(model, batches, density, by="bounds", samples=256),
}
SOLVERS: dict[str, op.Solver] = {
    "magnitude": op.Magnitude(refit=False),
    "l0 fast": op.Portfolio("fast"),
    "SiPPDet": op.SiPPDet(),
    "SiPPRand": op.SiPPRand(),
    "SiPPHybrid": op.SiPPHybrid(),
    "pairs": op.PivotalEdges(),
    "l0 default": op.Portfolio(),
}
METHODS = (
    *("magnitude, global", "l0 fast, uniform", "l0 fast, global", "l0 default, uniform"),
    *("SiPPDet, uniform", "SiPPDet, threshold", "SiPPDet, global"),
    *("SiPPRand, uniform", "SiPPRand, bounds", "SiPPHybrid, uniform", "pairs, uniform", "pairs, global"),
)
"""Solver and plan: one density for all layers, one threshold on magnitudes, on sensitivities, or shares by bounds."""


@dataclass(frozen=True)
class Setting:
    """A network, how much it is trained, and the densities of its rounds."""

    images: int
    shape: tuple[int, ...]
    epochs: int
    rate: float
    densities: tuple[float, ...]


SETTINGS = {
    "lenet300": Setting(20_000, (-1, 784), 2, 1e-3, (0.4, 0.25, 0.16, 0.1, 0.07, 0.05, 0.035, 0.025, 0.017)),
    "lenet5": Setting(6000, (-1, 1, 28, 28), 1, 1e-3, (0.4, 0.2, 0.1, 0.05, 0.025)),
    "resnet20": Setting(4000, (-1, 3, 32, 32), 1, 2e-4, (0.6, 0.4, 0.25)),
}


def dense_network(name: str, setting: Setting, data: Data, seed: int) -> nn.Module:
    """What all methods of a seed begin with."""
    if name == "resnet20":
        return resnet20()
    if name == "lenet5":
        return lenet5(setting.images, 4, seed)
    model = mlp([784, 300, 100, 10], seed)
    train(model, *data, epochs=6, batch=BATCH, rate=1.5e-3, decay=1e-2, seed=seed)
    return model


def retrain(model: nn.Module, setting: Setting, data: Data, seed: int) -> None:
    """Adam with a cosine schedule on what is not zero now."""
    optimizer = torch.optim.Adam(model.parameters(), lr=setting.rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, setting.epochs * -(-len(data[0]) // BATCH))
    frozen = op.training.freeze(model, None, optimizer)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for _ in range(setting.epochs):
        for some in torch.randperm(len(data[0]), generator=generator).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(model(data[0][some]), data[1][some]).backward()
            optimizer.step()
            schedule.step()
    model.eval()
    frozen.apply()
    frozen.remove()


def rounds(
    dense: nn.Module, setting: Setting, data: Data, seed: int, planned: Planned, solver: op.Solver
) -> Iterator[tuple[str, nn.Module, float, float]]:
    """The network after pruning and after retraining, with its density and the seconds of pruning, round by round."""
    model, batches = dense, data[0][:POINTS].split(128)
    for density in setting.densities:
        start = time.process_time()
        model, report = op.prune(
            model,
            batches,
            planned(model, batches, density),
            solver,
            certified=False,
            bound=False,
            evidence=False,
            samples=256,
            damping=1e-2 if isinstance(solver, op.Portfolio) else 0.0,
        )
        seconds = time.process_time() - start
        yield "pruned", model, report.kept / report.total, seconds
        retrain(model, setting, data, 100 + seed)
        yield "retrained", model, report.kept / report.total, seconds


def rows_of(name: str, done: set[tuple[Any, ...]], asked: Any) -> Iterator[dict[str, Any]]:
    """One row per seed and method; seeds outermost, so that an early end leaves whole tables."""
    setting = SETTINGS[name]
    parts = (cifar10(), cifar10("test")) if name == "resnet20" else (mnist(), mnist("t10k"))
    (images, labels), (test_images, test_labels) = parts
    data = images[: setting.images].reshape(setting.shape), labels[: setting.images]
    test = partial(accuracy, inputs=test_images.reshape(setting.shape), targets=test_labels)
    for seed in range(asked.seeds):
        left = [method for method in asked.methods if (name, seed, method) not in done]
        dense = dense_network(name, setting, data, seed) if left else nn.Identity()
        reference = test(dense) if left else 0.0
        for method in left:
            found: dict[str, list[float]] = {"density": [], "pruned": [], "retrained": [], "seconds": []}
            solver, _, plan = method.partition(", ")
            for stage, model, density, seconds in rounds(dense, setting, data, seed, PLANS[plan], SOLVERS[solver]):
                found[stage].append(test(model))
                if stage == "pruned":
                    found["density"].append(density)
                    found["seconds"].append(seconds)
            kept = [d for d, a in zip(found["density"], found["retrained"], strict=True) if a >= reference - DROP]
            head = {"network": name, "seed": seed, "method": method, "dense": reference}
            yield head | found | {"prune ratio": 1 - min(kept, default=1.0)}


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Means over the seeds: the prune ratio with its deviation, and the accuracies after retraining."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["network"], row["method"]), []).append(row)
    lines = []
    for (network, method), own in groups.items():
        ratios = [100 * row["prune ratio"] for row in own]
        deviation = statistics.stdev(ratios) if len(own) > 1 else float("nan")
        dense = 100 * statistics.mean(row["dense"] for row in own)
        cells = [
            f"{100 * density:.3g}: {100 * statistics.mean(row['retrained'][at] for row in own):.2f}"
            for at, density in enumerate(SETTINGS[network].densities)
        ]
        seconds = statistics.mean(sum(row["seconds"]) for row in own)
        lines.append(
            f"{network:9} {method:21} dense {dense:.2f}  ratio {statistics.mean(ratios):5.2f} ± {deviation:4.2f}  "
            f"({len(own)} seeds, {seconds:.1f} s pruning)  kept %: accuracy  {'  '.join(cells)}"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("bench_sipp_retrain.json"))
    parser.add_argument("--networks", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = json.loads(asked.out.read_text())["rows"] if asked.out.exists() else []
    for name in asked.networks:
        for row in rows_of(name, {(r["network"], r["seed"], r["method"]) for r in rows}, asked):
            rows.append(row)
            print("\n".join(table([row])), flush=True)
            asked.out.write_text(json.dumps({"rows": rows}, indent=1))
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
