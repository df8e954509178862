"""LeNet-300-100 on MNIST, pruned layer by layer without retraining: what is lost, and what could not have been saved.

    OPTPRUNE_DATA=folder python examples/lenet300_mnist.py [--densities 0.2 0.1] [--methods l0] [--modes cascade]

`folder/mnist` holds the four files of MNIST in idx format, gzipped. Writes `results.json` and `results.md` after every
row; a row is pruned once, a second call goes on where the first one stopped. Exits with 1 if the measured error of a
network exceeds its bound.
"""

import argparse
import gzip
import itertools
import json
import os
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import optprune as op
from optprune.cli.embedded import accuracy, mlp, train

METHODS = {"net-trim": op.NetTrimADMM(), "l0": op.ADMM()}
COLUMNS = (
    "mode",
    "method",
    "density",
    "kept",
    "test accuracy",
    "layer errors",
    "certified gaps",
    "error",
    "bound",
    "time",
)


def idx(path: Path) -> Tensor:
    """An array in idx format: two zero bytes, a type (8 is uint8), the number of dimensions, the sizes, the entries."""
    with gzip.open(path) as file:
        zeros, kind, dimensions = struct.unpack(">HBB", file.read(4))
        if (zeros, kind) != (0, 8):
            raise SystemExit(f"{path} is not an idx file of bytes")
        shape = struct.unpack(f">{dimensions}I", file.read(4 * dimensions))
        return torch.frombuffer(bytearray(file.read()), dtype=torch.uint8).reshape(shape)


def mnist(folder: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images as rows in [0, 1] and their classes: 60,000 to train on, 10,000 to test on."""
    parts = [
        idx(folder / f"{part}-{kind}.gz")
        for part in ("train", "t10k")
        for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
    ]
    images, labels, test_images, test_labels = parts
    return images.flatten(1) / 255, labels.long(), test_images.flatten(1) / 255, test_labels.long()


def dense_network(path: Path, images: Tensor, labels: Tensor, epochs: int) -> nn.Sequential:
    """The trained network, from the file where it was trained before."""
    model = mlp([784, 300, 100, 10])
    if path.exists():
        model.load_state_dict(load_file(path))
        return model.eval()
    start = time.perf_counter()
    train(model, images, labels, epochs=epochs, batch=128, rate=1.5e-3, decay=1e-2)
    print(f"trained {epochs} epochs in {time.perf_counter() - start:.0f} s")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), path)
    return model


def jobs(asked: argparse.Namespace) -> Iterator[dict]:
    """What is to be pruned, with the settings that its numbers depend on."""
    settings = {"l0": {"damping": asked.damping}, "net-trim": {"rows": asked.rows}}
    for mode, method, density in itertools.product(asked.modes, asked.methods, asked.densities):
        yield {"mode": mode, "method": method, "density": density, "samples": asked.samples, **settings[method]}


def prune_once(model: nn.Module, images: Tensor, job: dict) -> tuple[nn.Module, op.Report]:
    """Every layer at the same density; the solvers see the layers' inputs only, no labels and no gradients."""
    plan = op.plan.uniform(model, density=job["density"])
    return op.prune(
        model,
        images[: job["samples"]].split(1000),
        plan,
        METHODS[job["method"]],
        mode=job["mode"],
        damping=job.get("damping", 0.0),
        samples=job.get("rows", 1),
    )


def row(report: op.Report, test_accuracy: float, seconds: float) -> dict[str, object]:
    """What is reported of one pruned network."""
    network = report.network
    assert network is not None
    certificates = [record.certificate for record in report.layers]
    return {
        "kept": report.kept / report.total,
        "test accuracy": test_accuracy,
        "layer errors": [record.error for record in report.layers],
        "certified gaps": [None if c is None or c.vacuous else c.relative_gap for c in certificates],
        "stopped": [record.termination.value for record in report.layers],
        "error": network.relative_measured,
        "bound": network.relative_bound,
        "holds": network.bound is not None and network.measured is not None and network.measured <= network.bound,
        "seconds": seconds,
    }


def table(rows: list[dict], dense: float) -> str:
    """The rows in Markdown."""
    lines = [
        "# LeNet-300-100 on MNIST, pruned without retraining",
        "",
        f"Dense test accuracy {100 * dense:.2f} %. Layer errors are relative, of fc1 / fc2 / fc3 on what each saw; "
        "gaps are certified distances to the optimum (objective minus lower bound, of the objective). Error and bound "
        "are those of the network's outputs on the calibration images, relative.",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|" + "---|" * len(COLUMNS),
    ]
    for r in rows:
        gaps = " / ".join("vacuous" if gap is None else f"{100 * gap:.2g} %" for gap in r["certified gaps"])
        errors = " / ".join(f"{error:.3f}" for error in r["layer errors"])
        bound = "none" if r["bound"] is None else f"{r['bound']:.3f}"
        cells = (
            r["mode"],
            r["method"],
            f"{r['density']:g}",
            f"{r['kept']:.4f}",
            f"{100 * r['test accuracy']:.2f} %",
            errors,
            gaps,
            f"{r['error']:.3f}",
            bound if r["holds"] else f"{bound} FAILS",
            f"{r['seconds']:.0f} s",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description="Prune LeNet-300-100 on MNIST layer by layer, without retraining.")
    parser.add_argument("--densities", type=float, nargs="+", default=[0.5, 0.3, 0.2, 0.1])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--modes", nargs="+", choices=("parallel", "cascade"), default=["parallel", "cascade"])
    parser.add_argument("--samples", type=int, default=10_000, help="calibration images, the first of the training set")
    parser.add_argument("--rows", type=int, default=500, help="of a layer's inputs, drawn for Net-Trim")
    # Some border pixels are lit in the same few images only. The data does not tell their weights apart, and without
    # damping a certificate could state nothing; with damping it speaks of the damped problem.
    parser.add_argument("--damping", type=float, default=1e-4, help="of the l0 problem, relative to the mean diagonal")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--output", type=Path, default=Path("runs/lenet300_mnist"))
    asked = parser.parse_args()
    if "OPTPRUNE_DATA" not in os.environ:
        raise SystemExit(
            "set OPTPRUNE_DATA to a folder whose subfolder mnist holds the four gzipped idx files of MNIST"
        )

    images, labels, test_images, test_labels = mnist(Path(os.environ["OPTPRUNE_DATA"]) / "mnist")
    model = dense_network(asked.output / "dense.safetensors", images, labels, asked.epochs)
    dense = accuracy(model, test_images, test_labels)
    print(f"dense: {100 * dense:.2f} % of the test images right")

    results = asked.output / "results.json"
    rows: list[dict] = json.loads(results.read_text())["rows"] if results.exists() else []
    for job in jobs(asked):
        if any(job.items() <= done.items() for done in rows):
            continue
        start = time.perf_counter()
        pruned, report = prune_once(model, images, job)
        rows.append(job | row(report, accuracy(pruned, test_images, test_labels), time.perf_counter() - start))
        name = f"{job['mode']}-{job['method']}-{job['density']:g}"
        op.export(pruned, report, asked.output / name, overwrite=True)
        results.write_text(json.dumps({"dense": dense, "rows": rows}, indent=1))
        (asked.output / "results.md").write_text(table(rows, dense))
        print(f"{name}: {100 * rows[-1]['test accuracy']:.2f} %, {rows[-1]['seconds']:.0f} s", flush=True)
    print(table(rows, dense))
    broken = [r for r in rows if not r["holds"]]
    for r in broken:
        print(f"no valid bound: {r['mode']} {r['method']} density {r['density']:g}: {r['error']} against {r['bound']}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
