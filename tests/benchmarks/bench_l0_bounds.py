"""How far from the optimum the l0 layer problem's answers provably are: certified gap and certificate time per level.

    OPTPRUNE_DATA=... python tests/benchmarks/bench_l0_bounds.py [--out FILE] [--layers NAME ...] [--levels 0.5 2:4 ...]

Layers: `digits256` (ill-conditioned: 247 live inputs, condition 4e9) as it is and with 1 % damping, `s512`,
`isotropic256` (256 x 256, standard normal weight, 4,096 standard normal rows), and the three layers of a LeNet-300-100
trained on MNIST with 1 % damping, on 2,000 images. The gap is (U - L) / U with U the default solver's objective and L
the certified lower bound, both of the problem as stated, damping included. `best_known` is the ratio of L to the least
objective published for that file (`PEERS`, undamped layers only), which does not depend on our solver. CPU seconds of
solver and certificate are apart; `check` is the part that a verification repeats.

Writes JSON after every cell. Exits with 1 if a bound exceeds its objective.
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
from bench_l0 import LEVELS, PEERS, pattern
from torch import Tensor, nn

import optprune as op
from optprune.certify import LeastSquaresChecker, certify, recheck

LAYERS = {
    "digits256": 0.0,
    "digits256-damped": 0.01,
    "s512": 0.0,
    "isotropic256": 0.0,
    "lenet300-fc1": 0.01,
    "lenet300-fc2": 0.01,
    "lenet300-fc3": 0.01,
}
"""Layer and damping."""


def layer(name: str) -> tuple[Tensor, Tensor]:
    """Weight and calibration rows, in float64."""
    if name == "isotropic256":
        generator = torch.Generator().manual_seed(0)
        rows = torch.randn(4096, 256, generator=generator, dtype=torch.float64)
        return torch.randn(256, 256, generator=generator, dtype=torch.float64), rows
    if name.startswith("lenet300"):
        network, (images, _) = lenet300(), mnist()
        index = int(name[-1]) - 1
        linear = [module for module in network if isinstance(module, nn.Linear)]
        with torch.no_grad():
            rows = images[:2000]
            for previous in linear[:index]:
                rows = torch.relu(previous(rows))
        return linear[index].weight.detach().double(), rows.double()
    file = np.load(data_folder() / "layers" / f"{name.removesuffix('-damped')}.npz")
    return torch.from_numpy(file["W"]).double(), torch.from_numpy(file["X"]).double()


def cell(name: str, level: str, statistics: op.Statistics, effort: float) -> dict[str, Any]:
    """One layer at one level."""
    shape = (int(statistics.reference.shape[0]), int(statistics.reference.shape[1]))
    problem = op.L0LeastSquares(statistics, pattern(level, shape), LAYERS[name])
    start = time.process_time()
    matrix = op.Portfolio().run(problem).matrix
    solved = time.process_time()
    certificate, evidence = certify(problem, matrix, checker=LeastSquaresChecker(effort))
    certified = time.process_time()
    again = recheck(problem, matrix, evidence)
    checked = time.process_time()
    if again.lower_bound != certificate.lower_bound or not certificate.lower_bound <= certificate.objective:
        raise SystemExit(f"{name} at {level}: bound {certificate.lower_bound}, objective {certificate.objective}")
    record = {
        "layer": name,
        "level": level,
        "damping": LAYERS[name],
        "objective": certificate.objective,
        "lower_bound": certificate.lower_bound,
        "gap": 1 - certificate.lower_bound / certificate.objective,
        "relative_error": certificate.details["relative_error"],
        "solver_seconds": solved - start,
        "certificate_seconds": certified - solved,
        "check_seconds": checked - certified,
        "effort": effort,
    }
    if name in PEERS:
        energy = 0.5 * float((statistics.reference * (statistics.reference @ statistics.gram)).sum())
        best = PEERS[name][LEVELS.index(level)] ** 2 * energy
        record["gap_to_best_known"] = 1 - certificate.lower_bound / best
    return record


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("bench_l0_bounds.json"))
    parser.add_argument("--layers", nargs="+", default=list(LAYERS), choices=LAYERS)
    parser.add_argument("--levels", nargs="+", default=list(LEVELS), choices=LEVELS)
    parser.add_argument("--effort", type=float, default=LeastSquaresChecker().effort)
    arguments = parser.parse_args()
    results: list[dict[str, Any]] = []
    for name in arguments.layers:
        statistics = op.Statistics.from_layer(*layer(name))
        shape = (int(statistics.reference.shape[0]), int(statistics.reference.shape[1]))
        for level in arguments.levels:
            if ":" in level and shape[1] % int(level.partition(":")[2]):
                print(f"{name:17} {level:4} skipped: {shape[1]} inputs do not fall into such groups")
                continue
            results.append(cell(name, level, statistics, arguments.effort))
            arguments.out.write_text(json.dumps({"results": results, "torch": torch.__version__}, indent=1))
            r = results[-1]
            print(
                f"{name:17} {level:4} gap {r['gap']:6.1%}  error {r['relative_error']:.5f}  solver "
                f"{r['solver_seconds']:6.1f} s  certificate {r['certificate_seconds']:6.1f} s",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
