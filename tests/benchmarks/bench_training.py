"""Methods inside the training loop: against known optima, against each other on MNIST, and what their calls cost.

    OPTPRUNE_DATA=folder python tests/benchmarks/bench_training.py [--parts convex overhead lenet300 lenet5 lossless
        resnet20]

convex: rows of 20 weights under quadratic losses, k of them kept; the ratio of the loss after hard pruning to the
optimum over all supports, 20 seeds, 100 iterations with exact steps in W (IHT: full gradient steps).

lenet300, lenet5: a dense network per seed, trained on the first images of MNIST; then every method from the same dense
network with the same epochs, optimizer (Adam, 1e-3) and order of batches: accuracy on all test images at hard pruning
without retraining, and after the same epochs of masked retraining. A layer-wise `prune` by ADMM in cascade mode on
2,000 images stands beside them; it trains only in the retraining. Every layer is pruned to the same density. A period
is 16 steps. rho, growth, the step size of SLR and the probabilities were chosen on another seed of LeNet-300-100 by the
mean accuracy at hard pruning at densities 0.1 and 0.03, SLR and either ADMM among two to four settings each.

lossless: LeNet-5 again, densities by the shapes of the layers (`plan.erk`), the dense network trained for as many
epochs as the pruned ones have had in all: how far each method goes without loss of accuracy.

resnet20: the pretrained network on the 4,000 training images of CIFAR-10 that are there, one seed of batches, periods
of 4 steps.

overhead: processor time of a training step of LeNet-5 with the calls of a method over that of the step without them,
medians of alternating steps in one run.

The JSON file is written after every row; rows that are there are not run again.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _networks import cifar10, lenet5, mnist, resnet20
from torch import Tensor, nn
from torch.nn import functional as F

import optprune as op
from optprune.cli.embedded import accuracy, mlp, train
from optprune.training import ADMM, IHT, SLR, DropPruning, Gradual, freeze

Data = tuple[Tensor, Tensor]
PERIOD, BATCH = 16, 128
METHODS: dict[str, Callable[..., Any]] = {
    "SLR": lambda *given, every, rounds: SLR(*given, every=every, rho=0.1),
    "ADMM, constant rho": lambda *given, every, rounds: ADMM(*given, every=every, rho=1e-2),
    "ADMM, growing rho": lambda *given, every, rounds: ADMM(*given, every=every, rho=3e-3, growth=1.15),
    "IHT": lambda *given, every, rounds: IHT(*given, every=every),
    "Drop Pruning": lambda *given, every, rounds: DropPruning(*given, every=every, rounds=rounds, drop=0.15),
    "gradual magnitude": lambda *given, every, rounds: Gradual(*given, every=every, rounds=rounds),
}
CONVEX: dict[str, Callable[..., Any]] = {
    "SLR": lambda *given: SLR(*given, every=1, rho=0.2),
    "ADMM, constant rho": lambda *given: ADMM(*given, every=1, rho=0.2),
    "ADMM, growing rho": lambda *given: ADMM(*given, every=1, rho=0.02, growth=1.1),
    "IHT": lambda *given: IHT(*given, every=1),
}


@dataclass(frozen=True)
class Part:
    """A table of networks: the data, what they are pruned to, and how they are trained.

    Attributes:
        images: the first of the training set.
        shape: of the images as the network takes them.
        densities: of the rows.
        planned: from a model and a density to a plan.
        dense_epochs: of the dense network; none where it is pretrained.
        period: steps in a period.
        rate: of Adam.
        seeds: at most.
    """

    images: int
    shape: tuple[int, ...]
    densities: tuple[float, ...]
    planned: Callable[[nn.Module, float], op.Plan] = op.plan.uniform
    dense_epochs: int = 3
    period: int = PERIOD
    rate: float = 1e-3
    seeds: int = 3


SMALL, LARGE = (-1, 1, 28, 28), (-1, 3, 32, 32)
PARTS = {
    "lenet300": Part(20_000, (-1, 784), (0.1, 0.05, 0.02), dense_epochs=4),
    "lenet5": Part(6000, SMALL, (0.1, 0.05, 0.02)),
    "lossless": Part(12_000, SMALL, (0.2, 0.1, 0.05), op.plan.erk, 7, seeds=1),
    "resnet20": Part(4000, LARGE, (0.3,), dense_epochs=0, period=4, rate=2e-4, seeds=1),
}


# --- quadratic losses ------------------------------------------------------------------------------------------------


def quadratic(family: str, seed: int, d: int = 20) -> tuple[Tensor, Tensor]:
    """H of 80 samples with 1 % damping, independent or with correlation 0.7^|i-j|, and the dense row."""
    draw = {"generator": torch.Generator().manual_seed(seed), "dtype": torch.float64}
    inputs = torch.randn(4 * d, d, **draw)
    if family == "ar1":
        index = torch.arange(d, dtype=torch.float64)
        inputs = inputs @ torch.linalg.cholesky(0.7 ** (index[:, None] - index).abs()).T
    gram = inputs.T @ inputs / len(inputs)
    return gram + 0.01 * gram.diagonal().mean() * torch.eye(d, dtype=torch.float64), torch.randn(1, d, **draw)


def optimum(gram: Tensor, dense: Tensor, k: int) -> float:
    """The least loss over all supports of k weights."""
    best = 0.0
    everything = torch.tensor(list(itertools.combinations(range(len(gram)), k)))
    for supports in everything.split(20_000):
        right = (gram @ dense[0])[supports]
        fitted = torch.linalg.solve(gram[supports[:, :, None], supports[:, None, :]], right)
        best = max(best, float((right * fitted).sum(-1).max()))
    return 0.5 * float(dense[0] @ gram @ dense[0] - best)


def hard_pruned(make: Callable[..., Any], gram: Tensor, dense: Tensor, k: int, steps: int = 100) -> float:
    """The loss after the iterations and hard pruning, without a refit."""
    model = nn.Linear(len(gram), 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(dense)
    method = make(model, op.plan.uniform(model, pattern=op.PerLayer(k)))
    top = float(torch.linalg.eigvalsh(gram)[-1])
    for _ in range(steps):
        off = model.weight - dense
        loss = 0.5 * (off * (off @ gram)).sum() + method.penalty()
        (slope,) = torch.autograd.grad(loss, model.weight)
        rho = 0.0 if isinstance(method, IHT) else method._rho
        with torch.no_grad():
            exact = torch.linalg.solve(gram + rho * torch.eye(len(gram), dtype=torch.float64), slope.T).T
            model.weight.sub_(0.9 * slope / top if isinstance(method, IHT) else exact)
            off = model.weight - dense
        method.step(0.5 * (off * (off @ gram)).sum())
    method.prune()
    off = model.weight.detach() - dense
    return 0.5 * float((off * (off @ gram)).sum())


def convex(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """One row per family, k and method."""
    for family, k in itertools.product(("gauss", "ar1"), (10, 5)):
        if any(row["part"] == "convex" and (row["family"], row["k"]) == (family, k) for row in rows):
            continue
        problems = [quadratic(family, seed) for seed in range(20)]
        best = [optimum(gram, dense, k) for gram, dense in problems]
        for name, make in CONVEX.items():
            ratios = [
                hard_pruned(make, gram, dense, k) / least for (gram, dense), least in zip(problems, best, strict=True)
            ]
            assert min(ratios) > 1 - 1e-9
            yield {
                "part": "convex",
                "family": family,
                "k": k,
                "method": name,
                "median": statistics.median(ratios),
                "worst": max(ratios),
                "optimal": sum(ratio < 1 + 1e-6 for ratio in ratios),
                "seeds": len(ratios),
            }


# --- MNIST -----------------------------------------------------------------------------------------------------------


def dense_network(part: str, seed: int, inputs: Tensor, labels: Tensor) -> nn.Module:
    """The network that all methods of a seed begin with."""
    if part == "resnet20":
        return resnet20()
    if part != "lenet300":
        return lenet5(PARTS[part].images, PARTS[part].dense_epochs, seed)
    model = mlp([784, 300, 100, 10], seed=seed)
    train(model, inputs, labels, epochs=PARTS[part].dense_epochs, batch=BATCH, rate=1.5e-3, decay=1e-2, seed=seed)
    return model


def epochs(model: nn.Module, count: int, data: tuple[Tensor, Tensor], seed: int, method: Any, optimizer: Any) -> None:
    """The loop, the same for all."""
    generator = torch.Generator().manual_seed(seed)
    inputs, labels = data
    model.train()
    for _ in range(count):
        for some in torch.randperm(len(inputs), generator=generator).split(BATCH):
            loss = F.cross_entropy(model(inputs[some]), labels[some])
            optimizer.zero_grad()
            (loss if method is None else loss + method.penalty()).backward()
            optimizer.step()
            if method is not None:
                method.step(loss)
    model.eval()


def pruned_accuracies(
    name: str, part: Part, dense: nn.Module, density: float, data: Data, test: Data, asked: Any
) -> dict[str, float]:
    """Accuracy at hard pruning and after retraining, and what was kept."""
    start = time.process_time()
    model = copy.deepcopy(dense)
    plan = part.planned(model, density)
    if name in METHODS:
        optimizer = torch.optim.Adam(model.parameters(), lr=part.rate)
        rounds = asked.epochs * -(-len(data[0]) // BATCH) // part.period
        method = METHODS[name](model, plan, optimizer, every=part.period, rounds=3 * rounds // 4)
        epochs(model, asked.epochs, data, 1, method, optimizer)
        method.prune()
    else:
        batches = data[0][:2000].split(500)
        model, _ = op.prune(
            model, batches, plan, op.ADMM(), mode="cascade", damping=1e-2, certified=False, bound=False, evidence=False
        )
        optimizer, method = torch.optim.Adam(model.parameters(), lr=part.rate), None
        freeze(model, None, optimizer)
    hard = accuracy(model, *test)
    epochs(model, asked.retrain, data, 2, method, optimizer)
    kept = sum(int((model.get_parameter(f"{layer}.weight") != 0).sum()) for layer in plan)
    return {
        "hard": hard,
        "retrained": accuracy(model, *test),
        "kept": kept,
        "total": plan.total(),
        "processor_seconds": time.process_time() - start,
    }


def networks(name: str, rows: list[dict[str, Any]], asked: Any) -> Iterator[dict[str, Any]]:
    """One row per seed, density and method; seeds outermost, so that an early end leaves whole tables."""
    part = PARTS[name]
    read = cifar10 if part.shape == LARGE else mnist
    (inputs, labels), (test_inputs, test_labels) = read(), read("test" if read is cifar10 else "t10k")
    data: Data = inputs[: part.images].reshape(part.shape), labels[: part.images]
    test: Data = test_inputs.reshape(part.shape), test_labels
    for seed in range(min(asked.seeds, part.seeds)):
        jobs = [(density, method) for density in part.densities for method in (*METHODS, "layer-wise prune")]
        done = {(row["density"], row["method"]) for row in rows if (row["part"], row.get("seed")) == (name, seed)}
        if done >= set(jobs):
            continue
        dense = dense_network(name, seed, *data)
        before = accuracy(dense, *test)
        for density, method in jobs:
            if (density, method) not in done:
                found = pruned_accuracies(method, part, dense, density, data, test, asked)
                yield {"part": name, "seed": seed, "density": density, "method": method, "dense": before} | found


# --- cost of the calls -----------------------------------------------------------------------------------------------


def overhead(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """One row per batch size and method."""
    if any(row["part"] == "overhead" for row in rows):
        return
    dense = lenet5(128, 1)
    for size in (64, 128):
        images, classes = mnist()
        pieces = list(zip(images.reshape(-1, 1, 28, 28).split(size), classes.split(size), strict=True))
        runs: dict[str, tuple[nn.Module, torch.optim.Optimizer, Any]] = {}
        for name in (None, *METHODS):
            model = copy.deepcopy(dense).train()
            optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
            plan = op.plan.uniform(model, density=0.1)
            made = None if name is None else METHODS[name](model, plan, optimizer, every=PERIOD, rounds=4)
            runs[name or "none"] = (model, optimizer, made)
        times: dict[str, list[float]] = {name: [] for name in runs}
        for inputs, labels in pieces[: 5 * PERIOD]:
            for name, (model, optimizer, method) in runs.items():
                start = time.process_time()
                loss = F.cross_entropy(model(inputs), labels)
                optimizer.zero_grad()
                (loss if method is None else loss + method.penalty()).backward()
                optimizer.step()
                if method is not None:
                    method.step(loss)
                times[name].append(time.process_time() - start)
        base = times["none"][PERIOD:]
        for name in METHODS:
            own = times[name][PERIOD:]
            yield {
                "part": "overhead",
                "batch": size,
                "method": name,
                "step_ms": 1e3 * statistics.median(base),
                "overhead": statistics.median(own) / statistics.median(base) - 1,
                "with_periods": sum(own) / sum(base) - 1,
            }


def summary(rows: list[dict[str, Any]]) -> list[str]:
    """Mean and deviation over the seeds, and how far each method goes without loss."""
    lines = []
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        if "seed" in row:
            groups.setdefault((row["part"], row["density"], row["method"]), []).append(row)
    sparsest: dict[tuple[str, str], float] = {}
    for (part, density, method), own in groups.items():
        cells, means = [], {}
        for what in ("dense", "hard", "retrained"):
            values = [100 * row[what] for row in own]
            deviation = statistics.stdev(values) if len(values) > 1 else float("nan")
            means[what] = statistics.mean(values)
            cells.append(f"{what} {means[what]:6.2f} ± {deviation:4.2f}")
        lines.append(f"{part} {density:5} {method:20} {'  '.join(cells)}  ({len(own)} seeds)")
        kept = statistics.mean(row["kept"] / row["total"] for row in own)
        best = sparsest.setdefault((part, method), 1.0)
        if max(means["hard"], means["retrained"]) >= means["dense"]:
            sparsest[part, method] = min(best, kept)
    lines += [
        f"{part} {method:20} without loss on average: {1 / kept:.1f}x" for (part, method), kept in sparsest.items()
    ]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("bench_training.json"))
    parser.add_argument("--parts", nargs="+", default=["convex", "overhead", *PARTS])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--retrain", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    document: dict[str, Any] = json.loads(asked.out.read_text()) if asked.out.exists() else {"rows": []}
    rows = document["rows"]
    document["settings"] = {"epochs": asked.epochs, "retrain": asked.retrain, "period": PERIOD, "batch": BATCH}
    parts: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
        "convex": lambda: convex(rows),
        "overhead": lambda: overhead(rows),
    } | {name: lambda name=name: networks(name, rows, asked) for name in PARTS}
    for part in asked.parts:
        for row in parts[part]():
            rows.append(row)
            print(row, flush=True)
            asked.out.write_text(json.dumps(document, indent=1))
    print("\n".join(summary(rows)))


if __name__ == "__main__":
    main()
