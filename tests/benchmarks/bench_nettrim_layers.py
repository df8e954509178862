"""Net-Trim's certified optimum on the layers of real networks.

    OPTPRUNE_DATA=... python tests/benchmarks/bench_nettrim_layers.py [--out FILE] [--shares 0.05 0.1] [--rows 2000]

Certified relative gap, violation, density and CPU seconds for every layer of LeNet-300-100, the convolutions of LeNet-5
(both trained here on MNIST) and three convolutions of a pretrained CIFAR-10 ResNet-20: an early one, one of stride 2, a
late one. The ResNet's normalisations are folded into its convolutions, so that a ReLU follows a product; its layers
are the first convolutions of their blocks, as a shortcut is added to what the second ones give.

Rows of inputs (for convolutions, unfolded patches) are those that the library captures; the problem is the one that it
states for a relative radius. Exits with 1 unless every gap is at most 1e-6 and every violation at most 1e-8.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from _networks import cifar10, lenet5, lenet300, mnist, resnet20
from torch import Tensor, nn

import optprune as op
from optprune.certify import certify
from optprune.cli.embedded import accuracy
from optprune.network.capture import capture
from optprune.network.graph import followed_by_relu
from optprune.network.layers import adapter_for
from optprune.network.plan import Radius
from optprune.network.statements import net_trim

GAP, VIOLATION = 1e-6, 1e-8
IMAGES = 2000
"""Calibration images, the first of the training set; every layer's rows are drawn from what they give."""


def networks() -> Iterator[tuple[str, nn.Module, Tensor, tuple[Tensor, Tensor], tuple[str, ...]]]:
    """Name, network, calibration images, images and classes to test on, and layers."""
    images, test = mnist()[0][:IMAGES], mnist("t10k")
    yield "LeNet-300-100", lenet300(), images, test, ("fc1", "fc2", "fc3")
    maps = (test[0].reshape(-1, 1, 28, 28), test[1])
    yield "LeNet-5", lenet5(), images.reshape(-1, 1, 28, 28), maps, ("conv1", "conv2")
    layers = ("layer1.0.conv1", "layer2.0.conv1", "layer3.2.conv1")
    yield "ResNet-20", resnet20(), cifar10()[0][:IMAGES], cifar10("test"), layers


def measure(problem: op.NetTrim) -> dict[str, Any]:
    start = time.process_time()
    answer = op.NetTrimADMM().run(problem)
    seconds = time.process_time() - start
    certificate, _ = certify(problem, answer.matrix, answer.hint)
    weight, _ = problem.split(answer.matrix)
    return {
        "out": problem.shape[0],
        "in": weight.shape[1],
        "rows": problem.inputs.shape[0],
        "cpu_seconds": seconds,
        "termination": answer.termination[0].value,
        "objective": certificate.objective,
        "gap": certificate.relative_gap,
        "violation": certificate.primal_residual,
        "density": float((weight != 0).double().mean()),
        "info": dict(answer.info),
    }


def rows(shares: list[float], count: int, only: str) -> Iterator[dict[str, Any]]:
    for name, model, images, test, layers in networks():
        print(f"{name}: {100 * accuracy(model, *test):.2f} % of the test images right", flush=True)
        captured = capture(model, images.split(200), layers, samples=count)
        relu = followed_by_relu(model, layers)
        for layer in layers:
            adapter = adapter_for(model.get_submodule(layer))
            for share in shares if only in f"{name} {layer}" else ():
                (problem,) = net_trim(captured[layer], Radius(share), adapter, relu[layer])
                about = {"network": name, "layer": layer, "relu": relu[layer], "share": share}
                yield about | measure(problem)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("bench_nettrim_layers.json"))
    parser.add_argument("--shares", type=float, nargs="+", default=[0.05, 0.1], help="radius over the outputs' norm")
    parser.add_argument("--rows", type=int, default=2000, help="of a layer's inputs")
    parser.add_argument("--only", default="", help="layers whose network and name hold this")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'layer':28} {'out x in':>10} {'share':>6} {'CPU s':>8} {'gap':>9} {'violation':>9} {'density':>7} ended")
    found = []
    for row in rows(asked.shares, asked.rows, asked.only):
        found.append(row)
        asked.out.write_text(
            json.dumps({"optprune": op.__version__, "torch": torch.__version__, "rows": found}, indent=1)
        )
        print(
            f"{row['network'] + ' ' + row['layer']:28} {row['out']:>4} x{row['in']:>4} {row['share']:6g} "
            f"{row['cpu_seconds']:8.2f} {row['gap']:9.1e} {row['violation']:9.1e} {row['density']:7.3f} "
            f"{row['termination']}" + ("" if row["relu"] else ", linear"),
            flush=True,
        )
    missed = [row for row in found if not (abs(row["gap"]) <= GAP and row["violation"] <= VIOLATION)]
    for row in missed:
        print(f"MISSED: {row['network']} {row['layer']} at {row['share']:g}: {row['gap']:.1e}, {row['violation']:.1e}")
    return 1 if missed or not found else 0


if __name__ == "__main__":
    sys.exit(main())
