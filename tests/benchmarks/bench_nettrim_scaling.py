"""How the time of our Net-Trim solver grows with samples, inputs and neurons.

    python tests/benchmarks/bench_nettrim_scaling.py [--out FILE] [--plot FILE] [--repeats 3] [--form neuron]

One size at a time around a base of 500 samples, 100 inputs and 50 neurons, on synthetic ReLU layers: nonnegative
inputs of slowly decaying spectrum, a tenth of the weights strong and the others weak, a ball per neuron, or one for
the whole layer, of a tenth of the outputs' norm. CPU seconds of one thread, the median over layers drawn with different
seeds, the certified gaps and the slopes of the least-squares lines through the logarithms; a JSON file and a plot with
logarithmic axes.

The phases: ADMM is the time of the first phase alone, the rest is the exact phase. Exits with 1 if a gap exceeds 1e-6
or a violation 1e-8.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import optprune as op
from optprune.certify import certify
from optprune.solution import Answer
from optprune.solvers._base import Progress

GAP, VIOLATION = 1e-6, 1e-8
BASE = {"samples": 500, "inputs": 100, "neurons": 50}
SIZES = {
    "samples": (250, 500, 1000, 2000, 4000),
    "inputs": (25, 50, 100, 200, 400),
    "neurons": (12, 25, 50, 100, 200),
}
SHARE = 0.1


def problem(samples: int, inputs: int, neurons: int, seed: int, form: str) -> op.NetTrim:
    """A synthetic layer."""
    generator = torch.Generator().manual_seed(seed)
    draw = {"generator": generator, "dtype": torch.float64}
    mixing = torch.randn(inputs, inputs, **draw) / torch.arange(1, inputs + 1) ** 0.5
    x = (torch.randn(samples, inputs, **draw) @ mixing.mT).clamp(min=0)
    weight = torch.randn(neurons, inputs, **draw) * torch.where(torch.rand(neurons, inputs, **draw) < 0.1, 1.0, 0.02)
    outputs = (x @ weight.mT).clamp(min=0)
    return op.NetTrim.from_layer(weight, x, SHARE * (outputs.norm(dim=0) if form == "neuron" else outputs.norm()))


class Watch:
    """Follows a solve: `NetTrimADMM` reports after each look of its first phase, and never in the second."""

    def __init__(self) -> None:
        self.start = self.last = time.process_time()

    def __call__(self, done: int, total: int) -> None:
        self.last = time.process_time()


def measure(statement: op.NetTrim) -> dict[str, Any]:
    watch = Watch()
    progress: Progress = watch
    answer: Answer = op.NetTrimADMM().run(statement, progress)
    end = time.process_time()
    certificate, _ = certify(statement, answer.matrix, answer.hint)
    return {
        "cpu_seconds": end - watch.start,
        "admm_seconds": watch.last - watch.start,
        "exact_seconds": end - watch.last,
        "steps": answer.steps,
        "termination": answer.termination[0].value,
        "gap": certificate.relative_gap,
        "violation": certificate.primal_residual,
        "density": float((answer.matrix != 0).double().mean()),
        **answer.info,
    }


def slope(sizes: list[int], seconds: list[float]) -> float:
    """Of the least-squares line through the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def series(axis: str, form: str, repeats: int, known: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """All sizes of one axis, medians over the seeds; a size is measured once."""
    found = []
    for size in SIZES[axis]:
        sizes = {**BASE, axis: size}
        key = json.dumps(sizes)
        if key not in known:
            known[key] = [measure(problem(**sizes, seed=seed, form=form)) for seed in range(repeats)]
        runs = known[key]
        row: dict[str, Any] = dict(sizes)
        for name in ("cpu_seconds", "admm_seconds", "exact_seconds", "steps", "rounds", "newton_steps", "density"):
            row[name] = statistics.median(run[name] for run in runs)
        row["gap"], row["violation"] = (max(abs(run[name]) for run in runs) for name in ("gap", "violation"))
        row["runs"] = runs
        found.append(row)
        print(
            f"{axis:8} {size:6} {row['cpu_seconds']:8.2f} {row['admm_seconds']:8.2f} {row['exact_seconds']:8.2f} "
            f"{row['steps']:6.0f} {row['rounds']:6.0f} {row['newton_steps']:6.0f} "
            f"{row['density']:8.3f} {row['gap']:9.1e} {row['violation']:9.1e}",
            flush=True,
        )
    return found


def plot(path: Path, results: dict[str, list[dict[str, Any]]], slopes: dict[str, dict[str, float]]) -> None:
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(results), figsize=(12, 4), sharey=True, layout="constrained")
    for panel, (axis, rows) in zip(panels, results.items(), strict=True):
        for phase, marker in (("cpu", "o"), ("admm", "s"), ("exact", "^")):
            label = {"cpu": "whole", "admm": "ADMM phase", "exact": "exact phase"}[phase]
            seconds = [row[f"{phase}_seconds"] for row in rows]
            panel.loglog(
                [row[axis] for row in rows], seconds, marker + "-", label=f"{label}: {slopes[axis][phase]:.2f}"
            )
        rest = ", ".join(f"{size} {name}" for name, size in BASE.items() if name != axis)
        panel.set_xticks([row[axis] for row in rows], [str(row[axis]) for row in rows])
        panel.set_xticks([], minor=True)
        panel.set(xlabel=axis, title=f"{rest}")
        panel.legend(title="slope")
        panel.grid(which="both", alpha=0.3)
    panels[0].set_ylabel("CPU seconds, one thread")
    figure.savefig(path, dpi=150)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("bench_nettrim_scaling.json"))
    parser.add_argument("--plot", type=Path, default=Path("bench_nettrim_scaling.png"))
    parser.add_argument("--repeats", type=int, default=3, help="layers per size")
    parser.add_argument("--form", choices=("joint", "neuron"), default="neuron", help="one ball, or one per neuron")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    measure(problem(20, 5, 3, 0, asked.form))  # what is loaded at the first solve is not measured
    print("axis       size    CPU s   ADMM s  exact s  steps rounds newton  density       gap violation")
    known: dict[str, list[dict[str, Any]]] = {}
    results = {axis: series(axis, asked.form, asked.repeats, known) for axis in SIZES}
    slopes = {
        axis: {
            phase: slope([row[axis] for row in rows], [row[f"{phase}_seconds"] for row in rows])
            for phase in ("cpu", "admm", "exact")
        }
        for axis, rows in results.items()
    }
    for axis, found in slopes.items():
        print(f"slope over {axis}: {found['cpu']:.2f}; ADMM {found['admm']:.2f}, exact phase {found['exact']:.2f}")
    about = {"optprune": op.__version__, "torch": torch.__version__, "base": BASE, "share": SHARE, "form": asked.form}
    asked.out.write_text(json.dumps({**about, "slopes": slopes, "results": results}, indent=1))
    plot(asked.plot, results, slopes)
    missed = [row for rows in results.values() for row in rows if row["gap"] > GAP or row["violation"] > VIOLATION]
    for row in missed:
        print(
            f"MISSED: {row['samples']} x {row['inputs']} x {row['neurons']}: {row['gap']:.1e}, {row['violation']:.1e}"
        )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
