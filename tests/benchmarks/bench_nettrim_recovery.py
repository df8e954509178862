"""How many samples Net-Trim needs to find a sparse neuron exactly, beside the number that theory asks for.

    python tests/benchmarks/bench_nettrim_recovery.py [--out FILE] [--trials 40]

Inputs with independent standard normal entries, a neuron with s of N weights, radius 0; found means that all weights
are within 1e-6 of the neuron's norm. T08 bounds the probability of failure at every P; the printed theorem (Aghasi et
al. 2017, Theorem 3) asks for P >= (11 s + 7) mu log N to fail with probability at most N^(1 - mu), and T08 is asked for
its P at the same probability. A JSON file with the shares found, their Clopper-Pearson intervals at 99.9 %, T08's
bound, and the ratios of both P to the least P at which 95 % were found. Exits with 1 where T08 is refuted at any P.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

import torch

import optprune as op
from optprune.bounds.evidence import clopper_pearson
from optprune.bounds.net_trim_recovery import cone_dimension, recovery_failure, recovery_samples

MU = 1.5
CASES = {(40, 2): (8, 12, 16, 20, 24, 32, 48), (80, 4): (16, 24, 32, 40, 48, 64)}


def asked_for(n: int, s: int) -> dict[str, int]:
    """Numbers of samples at one probability of failure: T08's, and the printed theorem's."""
    return {"T08": recovery_samples(n, s, n ** (1 - MU)), "printed": math.ceil((11 * s + 7) * MU * math.log(n))}


def found(n: int, s: int, samples: int, trials: int, seed: int = 0) -> int:
    """How many of the trials end with the neuron itself."""
    generator = torch.Generator().manual_seed(seed)
    draw = {"generator": generator, "dtype": torch.float64}
    count = 0
    for _ in range(trials):
        inputs, weight = torch.randn(samples, n, **draw), torch.zeros(1, n, dtype=torch.float64)
        weight[0, torch.randperm(n, generator=generator)[:s]] = torch.randn(s, **draw)
        answer = op.NetTrimADMM().run(op.NetTrim.from_layer(weight, inputs, 0.0))
        near = float((answer.matrix - weight).norm()) <= 1e-6 * float(weight.norm())
        count += near and answer.termination[0].ok
    return count


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("bench_nettrim_recovery.json"))
    parser.add_argument("--trials", type=int, default=40)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows, ratios, refuted = [], {}, False
    for (n, s), sizes in CASES.items():
        asks, least = asked_for(n, s), None
        for samples in sorted({*sizes, *asks.values()}):
            count, failure = found(n, s, samples, asked.trials), recovery_failure(n, s, samples)
            low, high = clopper_pearson(count, asked.trials)
            row = {"inputs": n, "nonzeros": s, "samples": samples, "found": count / asked.trials}
            rows.append(row | {"interval": (low, high), "bound": 1 - failure})
            least = samples if least is None and count >= 0.95 * asked.trials else least
            shares = f"found {count / asked.trials:.3f}  [{low:.3f}, {high:.3f}]  at least {1 - failure:.3f} by T08"
            print(f"N {n:3} s {s} P {samples:4}  {shares}", flush=True)
            refuted |= high < 1 - failure
        ratios[f"{n}, {s}"] = {name: None if least is None else count / least for name, count in asks.items()}
        half = f"twice the dimension {2 * cone_dimension(n, s):.1f}, 95 % found at {least}"
        print(f"N {n} s {s}: {half}; asked for: {asks}, times too many: {ratios[f'{n}, {s}']}")
    asked.out.write_text(json.dumps({"mu": MU, "rows": rows, "ratios": ratios, "refuted": refuted}, indent=1))
    return int(refuted)


if __name__ == "__main__":
    sys.exit(main())
