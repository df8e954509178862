"""Large layers on a device: seconds, memory, share of the machine's speed in products, and what is certified.

    python tests/benchmarks/bench_large.py [--device cuda] [--l0 4096x4096 ...] [--net-trim 784x300x2000 ...]
        [--levels 0.7 2:4] [--presets fast default] [--certificate] [--out FILE]

An l0 layer is inputs x outputs: normal weights, inputs whose covariance has eigenvalues 1/j, four samples for each
input, a level is the share pruned or n:m. A Net-Trim layer is inputs x neurons x samples with one ball of a tenth of
the outputs' norm. Wall seconds, the device waited for; on a CPU, memory is the most that the process ever held.
`products` is the share of the time that the products of ADMM's steps alone would take, at the rate that one such
product reaches in the same run.

Before that a layer of 256 inputs is solved on the CPU and on the device; their answers have to have the same objective
to `SAME`. Exits with 1 where they have not, where a bound exceeds its objective, or a Net-Trim gap exceeds 1e-6.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from bench_l0 import pattern

import optprune as op
from optprune.certify import certify

SAME = 1e-3
"""Relative difference of objectives on two devices: ADMM's float32 steps may end at another support of equal worth."""

T = TypeVar("T")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--l0", nargs="*", default=["4096x4096"], metavar="INPUTSxOUTPUTS")
    parser.add_argument("--net-trim", nargs="*", default=["784x300x2000"], metavar="INPUTSxNEURONSxSAMPLES")
    parser.add_argument("--levels", nargs="+", default=["0.7", "2:4"])
    parser.add_argument("--presets", nargs="+", default=["fast"], choices=["fast", "default"])
    parser.add_argument("--certificate", action="store_true", help="also of the l0 layers")
    parser.add_argument("--out", type=Path, default=Path("bench_large.json"))
    given = parser.parse_args()
    device = torch.device(given.device)
    results = [same_answer(device)]
    for sizes in given.l0:
        inputs, outputs = _sizes(sizes, 2)
        results += l0_layer(device, inputs, outputs, given.levels, given.presets, given.certificate)
    for sizes in given.net_trim:
        inputs, neurons, samples = _sizes(sizes, 3)
        results.append(net_trim_layer(device, inputs, neurons, samples))
    failures = [result for result in results if not result["ok"]]
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    record = {"device": where, "torch": torch.__version__, "results": results, "failures": failures}
    given.out.write_text(json.dumps(record, indent=1))
    return bool(failures)


def same_answer(device: torch.device) -> dict[str, Any]:
    """One layer on the CPU and on the device."""
    problem = op.L0LeastSquares(_statistics(torch.device("cpu"), 256, 128), op.PerLayer.at_density(0.3, (128, 256)))
    here, there = (op.solve(p, op.Portfolio(effort="fast")) for p in (problem, problem.to(device)))
    assert here.certificate is not None
    assert there.certificate is not None
    apart = abs(there.certificate.objective / here.certificate.objective - 1)
    print(f"256 x 128 on the CPU and on {device}: objectives apart by {apart:.1e}", flush=True)
    return {"layer": "256x128", "apart": apart, "ok": apart <= SAME}


def l0_layer(
    device: torch.device, inputs: int, outputs: int, levels: list[str], presets: list[str], certificate: bool
) -> list[dict[str, Any]]:
    statistics, seconds, _ = _timed(device, lambda: _statistics(device, inputs, outputs))
    rate = _product_rate(device, outputs, inputs)
    print(f"{inputs} x {outputs}: statistics {seconds:.1f} s, float32 products {rate / 1e12:.2f} Tflop/s", flush=True)
    found = []
    for level in levels:
        problem = op.L0LeastSquares(statistics, pattern(level, (outputs, inputs)))
        for preset in presets:
            solver = op.Portfolio(effort="fast") if preset == "fast" else op.Portfolio()
            answer, seconds, memory = _timed(device, lambda s=solver, p=problem: s.run(p))
            row = {
                "layer": f"{inputs}x{outputs}",
                "level": level,
                "preset": preset,
                "seconds": seconds,
                "memory_gib": memory,
                "steps": answer.steps,
                "error": float(problem.statistics.relative_error(answer.matrix)),
                "ok": bool(problem.pattern.admits(answer.matrix != 0)),
            }
            if preset == "fast":  # the default's steps are not ADMM's alone
                row["products"] = answer.steps * 4 * outputs * inputs**2 / rate / seconds
            if certificate:
                (proof, _), row["certificate_seconds"], row["certificate_memory_gib"] = _timed(
                    device, lambda p=problem, a=answer: certify(p, a.matrix, a.hint)
                )
                row["gap"] = proof.relative_gap
                row["ok"] &= proof.lower_bound <= proof.upper_bound
            print("   ", {name: round(x, 4) if isinstance(x, float) else x for name, x in row.items()}, flush=True)
            found.append(row)
    return found


def net_trim_layer(device: torch.device, inputs: int, neurons: int, samples: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(samples, inputs, generator=generator, dtype=torch.float64).clamp_min_(0).to(device)
    weight = (torch.randn(neurons, inputs, generator=generator, dtype=torch.float64) / inputs**0.5).to(device)
    outputs = (x @ weight.mT).clamp_min(0)
    problem = op.NetTrim.from_layer(weight, x, radius=0.1 * outputs.norm())
    solution, seconds, memory = _timed(device, lambda: op.solve(problem, op.NetTrimADMM()))
    assert solution.certificate is not None
    row = {
        "layer": f"{inputs}x{neurons}x{samples}",
        "seconds": seconds,
        "memory_gib": memory,
        "products": solution.steps * 4 * inputs * neurons * samples / _product_rate(device, samples, inputs) / seconds,
        "gap": solution.certificate.relative_gap,
        "violation": solution.certificate.primal_residual,
        "steps": solution.steps,
        "ok": solution.certificate.relative_gap <= 1e-6 and solution.certificate.primal_residual <= 1e-8,
    }
    print("Net-Trim", {name: round(x, 10) if isinstance(x, float) else x for name, x in row.items()}, flush=True)
    return row


def _statistics(device: torch.device, inputs: int, outputs: int) -> op.Statistics:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(outputs, inputs, generator=generator) / inputs**0.5
    basis = torch.linalg.qr(torch.randn(inputs, inputs, generator=generator).to(device)).Q
    spread = torch.arange(1, inputs + 1, device=device) ** -0.5
    rows = torch.randn(4 * inputs, inputs, generator=generator).to(device) * spread @ basis
    return op.Statistics.from_layer(weight.to(device), rows)


def _product_rate(device: torch.device, rows: int, inner: int) -> float:
    """Operations per second of a float32 product (rows, inner) by (inner, inner)."""
    a, b = torch.randn(rows, inner, device=device), torch.randn(inner, inner, device=device)
    _timed(device, lambda: a @ b)  # the first one is slow
    seconds = min(_timed(device, lambda: a @ b)[1] for _ in range(3))
    return 2 * rows * inner**2 / seconds


def _timed(device: torch.device, work: Callable[[], T]) -> tuple[T, float, float]:
    """The result, wall seconds, and GiB at the most."""
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    result = work()
    if cuda:
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - start
    most = (
        torch.cuda.max_memory_allocated(device) / 2**30
        if cuda
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    )
    return result, seconds, most


def _sizes(text: str, count: int) -> list[int]:
    sizes = [int(part) for part in text.split("x")]
    if len(sizes) != count:
        raise SystemExit(f"{text} given; {count} sizes with x between them are needed")
    return sizes


if __name__ == "__main__":
    sys.exit(main())
