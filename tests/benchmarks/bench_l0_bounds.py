"""How far from the optimum the l0 layer problem's answers provably are: certified gap and certificate time per level.

    OPTPRUNE_DATA=... python tests/benchmarks/bench_l0_bounds.py [--out FILE] [--layers NAME ...] [--levels 0.5 2:4 ...]

Layers: `digits256`, `s512`, `isotropic256` (256 x 256, standard normal weight, 4,096 standard normal rows), and the
three layers of a LeNet-300-100 trained on MNIST, on 2,000 images; those with "-damped" in their names have 1 % damping.
The undamped first layer of LeNet-300-100 has a singular Hessian and is left out. `condition` is that of the Hessian of
the live inputs, damping included, scaled to a unit diagonal: bounds do not depend on the inputs' units.

The gap is (U - L) / U with U the default solver's objective and L the certified lower bound, both of the problem as
stated, damping included. `gap_to_best_known` has for U the least objective published for that file (`PEERS`), which
does not depend on our solver. `gap_of_one_minorant` is what the best diagonal minorant that all rows share leaves: from
it the certificate has to be better. CPU seconds of solver and certificate are apart; `check_seconds` is the part that a
verification repeats.

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
from optprune.certify._perspective import Perspective, scaled_minorant
from optprune.certify._tighten import outputs, tighten

LAYERS = (
    "digits256",
    "digits256-damped",
    "s512",
    "isotropic256",
    "lenet300-fc1-damped",
    "lenet300-fc2",
    "lenet300-fc2-damped",
    "lenet300-fc3",
    "lenet300-fc3-damped",
)
DAMPED = "-damped"


def layer(name: str) -> tuple[Tensor, Tensor]:
    """Weight and calibration rows, in float64."""
    name = name.removesuffix(DAMPED)
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
    file = np.load(data_folder() / "layers" / f"{name}.npz")
    return torch.from_numpy(file["W"]).double(), torch.from_numpy(file["X"]).double()


def condition(gram: Tensor) -> float:
    """Of the Hessian of the live inputs, scaled to a unit diagonal."""
    live = gram.diagonal() > 0
    unit = gram.diagonal()[live].rsqrt()
    values = torch.linalg.eigvalsh(gram[live][:, live] * unit * unit[:, None])
    return float(values[-1] / values[0])


def one_minorant(problem: op.L0LeastSquares, matrix: Tensor) -> dict[str, Tensor]:
    """Evidence with the best diagonal minorant that all rows share."""
    exact = Perspective.of(problem, scaled_minorant(problem.gram))
    objective = 2 * float(problem.objective(matrix))
    size, _ = outputs(exact.energy, objective)
    growth = 1e-4 * objective / size**2
    found, x = tighten(exact.per(size), exact.enter(matrix) / size, growth, rounds=40, own=False)
    found = exact.moved(found.root.square())
    return {"minorant": found.minorant, "point": found.leave(x * size)}


def cell(name: str, level: str, statistics: op.Statistics, effort: float) -> dict[str, Any]:
    """One layer at one level."""
    shape = (int(statistics.reference.shape[0]), int(statistics.reference.shape[1]))
    damping = 0.01 if name.endswith(DAMPED) else 0.0
    problem = op.L0LeastSquares(statistics, pattern(level, shape), damping)
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
        "damping": damping,
        "condition": condition(problem.gram),
        "objective": certificate.objective,
        "lower_bound": certificate.lower_bound,
        "gap": 1 - certificate.lower_bound / certificate.objective,
        "relative_error": certificate.details["relative_error"],
        "solver_seconds": solved - start,
        "certificate_seconds": certified - solved,
        "check_seconds": checked - certified,
        "effort": effort,
    }
    if ":" not in level:
        other = recheck(problem, matrix, one_minorant(problem, matrix))
        record["gap_of_one_minorant"] = 1 - other.lower_bound / other.objective
    if name in PEERS and level in LEVELS:
        energy = 0.5 * float((statistics.reference * (statistics.reference @ statistics.gram)).sum())
        best = PEERS[name][LEVELS.index(level)] ** 2 * energy
        record["gap_to_best_known"] = 1 - certificate.lower_bound / best
    return record


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("bench_l0_bounds.json"))
    parser.add_argument("--layers", nargs="+", default=LAYERS, choices=LAYERS)
    parser.add_argument("--levels", nargs="+", default=LEVELS)
    parser.add_argument("--effort", type=float, default=LeastSquaresChecker().effort)
    arguments = parser.parse_args()
    results: list[dict[str, Any]] = []
    for name in arguments.layers:
        statistics = op.Statistics.from_layer(*layer(name))
        shape = (int(statistics.reference.shape[0]), int(statistics.reference.shape[1]))
        for level in arguments.levels:
            if ":" in level and shape[1] % int(level.partition(":")[2]):
                print(f"{name:19} {level:4} skipped: {shape[1]} inputs do not fall into such groups")
                continue
            results.append(cell(name, level, statistics, arguments.effort))
            arguments.out.write_text(json.dumps({"results": results, "torch": torch.__version__}, indent=1))
            r = results[-1]
            gap = f"{r['gap']:6.1%}"
            if "gap_of_one_minorant" in r:
                gap += f" (one minorant: {r['gap_of_one_minorant']:6.1%})"
            print(
                f"{name:19} {level:4} condition {r['condition']:.1e}  error {r['relative_error']:.5f}  solver "
                f"{r['solver_seconds']:6.1f} s  certificate {r['certificate_seconds']:6.1f} s  gap {gap}",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
