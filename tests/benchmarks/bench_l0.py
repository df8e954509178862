"""The l0 layer problem: error and CPU time of every solver, beside the best figures that others' codes reached.

    OPTPRUNE_DATA=... python tests/benchmarks/bench_l0.py [--out FILE] [--layers digits256 s512] [--levels 0.5 2:4 ...]

Per layer and level: relative error ||X (U - W)^T|| / ||X W^T|| on calibration and held-out rows and CPU seconds (the
Gram matrix, which all share, not counted). `PEERS` are the least errors of SparseGPT, Wanda, RIA, DSnoT, OBC, ADMM and
ALPS in their authors' code on the same files, `ALPS_PEER` those of ALPS. ALPS is also run here, as a plain replica, so
that times can be compared.

Exits with 1 unless the default is at or below every peer, and the fast preset at or below ALPS, in each cell.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _alps import alps
from _networks import data_folder
from torch import Tensor

import optprune as op

LEVELS = ("0.5", "0.6", "0.7", "0.8", "0.9", "2:4", "4:8")
PEERS = {
    "digits256": (0.0014, 0.0026, 0.0047, 0.0089, 0.0200, 0.0044, 0.0039),
    "s512": (0.1410, 0.1923, 0.2545, 0.3388, 0.4601, 0.1956, 0.1718),
}
ALPS_PEER = {
    "digits256": (0.0041, 0.0067, 0.0104, 0.0171, 0.0336, 0.0093, 0.0081),
    "s512": (0.1410, 0.1924, 0.2559, 0.3388, 0.4633, 0.1958, 0.1718),
}
DIGITS = 5e-5
"""Half of the last digit that the peers' figures have."""
SOLVERS: dict[str, Callable[[op.L0LeastSquares], Tensor]] = {
    "default": lambda problem: op.Portfolio().run(problem).matrix,
    "fast": lambda problem: op.Portfolio("fast").run(problem).matrix,
    "swap-search": lambda problem: op.SwapSearch().run(problem).matrix,
    "obc": lambda problem: op.OBC().run(problem).matrix,
    "admm": lambda problem: op.ADMM().run(problem).matrix,
    "wanda": lambda problem: op.Wanda().run(problem).matrix,
    "wanda, refitted": lambda problem: op.Wanda(refit=True).run(problem).matrix,
    "alps replica": alps,
}


def pattern(level: str, shape: tuple[int, int]) -> op.Pattern:
    """`n:m`, or a fraction pruned over the whole layer."""
    if ":" in level:
        n, m = level.split(":")
        return op.NOfM(int(n), int(m))
    return op.PerLayer.at_density(1 - float(level), shape)


def relative_error(weight: Tensor, dense: Tensor, rows: Tensor) -> float:
    return float((rows @ (weight - dense).mT).norm() / (rows @ dense.mT).norm())


def measure(layer: str, levels: list[str]) -> list[dict[str, Any]]:
    file = np.load(data_folder() / "layers" / f"{layer}.npz")
    dense, rows, held_out = (torch.from_numpy(file[name]).double() for name in ("W", "X", "Xtest"))
    statistics = op.Statistics.from_layer(dense, rows)
    results = []
    for level in levels:
        problem = op.L0LeastSquares(statistics, pattern(level, (dense.shape[0], dense.shape[1])))
        for name, solver in SOLVERS.items():
            start = time.process_time()
            weight = solver(problem)
            seconds = time.process_time() - start
            if not problem.pattern.admits(weight != 0):
                raise SystemExit(f"{name} on {layer} at {level}: the support is not admissible")
            results.append(
                {
                    "layer": layer,
                    "level": level,
                    "solver": name,
                    "error": relative_error(weight, dense, rows),
                    "held_out": relative_error(weight, dense, held_out),
                    "cpu_seconds": seconds,
                }
            )
            print(f"{layer:10} {level:4} {name:16} {results[-1]['error']:.5f} {seconds:8.2f} s", flush=True)
    return results


def verdicts(results: list[dict[str, Any]]) -> list[str]:
    """Cells in which a promise of the module's docstring does not hold."""
    failures = []
    for ours, peers in (("default", PEERS), ("fast", ALPS_PEER)):
        for r in results:
            if r["solver"] == ours and r["layer"] in peers:
                limit = peers[r["layer"]][LEVELS.index(r["level"])]
                if r["error"] > limit + DIGITS:
                    failures.append(f"{ours} on {r['layer']} at {r['level']}: {r['error']:.5f} above {limit}")
    return failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("bench_l0.json"))
    parser.add_argument("--layers", nargs="+", default=["digits256", "s512"])
    parser.add_argument("--levels", nargs="+", default=list(LEVELS), choices=LEVELS)
    arguments = parser.parse_args()
    results = [r for layer in arguments.layers for r in measure(layer, arguments.levels)]
    failures = verdicts(results)
    record = {"results": results, "peers": PEERS, "alps": ALPS_PEER, "failures": failures}
    arguments.out.write_text(json.dumps(record | {"torch": torch.__version__}, indent=1))
    print("\n".join(failures) or "every cell at or below the peers")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
