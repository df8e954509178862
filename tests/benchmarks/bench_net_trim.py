"""Net-Trim: our solver, general convex solvers and a plain replica of the method's ADMM, in one run on one thread.

    OPTPRUNE_DATA=... python tests/benchmarks/bench_net_trim.py [--out FILE] [--limit SECONDS] [--only TEXT]

CPU seconds to the answer (certificate apart), its objective, certified gap and violations; a JSON file and a table.
`--limit` is the time that each program of a general solver may take; programs far beyond it are listed as not run.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import optprune as op
from optprune.certify import certify
from optprune.problems.net_trim import NetTrim
from optprune.solution import Answer, Termination
from optprune.solvers import NetTrimADMM
from optprune.solvers.cvxpy_reference import Cvxpy

Run = Callable[[NetTrim], Answer]

PROGRAMS = [
    ("nettrim_64x32", 0.05, "joint", None),
    ("nettrim_64x32", 0.15, "joint", None),
    ("nettrim_64x32", 0.05, "neuron", None),
    ("nettrim_64x32", 0.15, "neuron", None),
    ("nettrim_64x32", 0.05, "penalised", None),
    ("nettrim_300x100", 0.05, "neuron", 10),
    ("nettrim_300x100", 0.15, "neuron", 10),
    ("nettrim_300x100", 0.05, "penalised", 10),
    ("nettrim_300x100", 0.05, "joint", None),
    ("nettrim_300x100", 0.15, "joint", None),
    ("nettrim_300x100", 0.15, "neuron", None),
    ("mnist_784x300", 0.1, "joint", None),
]
SLOW = {("nettrim_300x100", "joint"), ("mnist_784x300", "joint")}
"""Programs for which a general solver needs many minutes."""


def layer(name: str, columns: int | None, data: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and inputs: a saved layer, or a random first layer on MNIST images, 2,000 of them."""
    if name == "mnist_784x300":
        with gzip.open(data / "mnist" / "train-images-idx3-ubyte.gz") as file:
            images = np.frombuffer(file.read(16 + 2000 * 784), np.uint8, offset=16)
        inputs = torch.as_tensor(images.reshape(2000, 784) / 255.0)
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(300, 784, generator=generator, dtype=torch.float64) / 28
        # A few strong weights per neuron, as training leaves them.
        return weight * (torch.rand(300, 784, generator=generator, dtype=torch.float64) < 0.1), inputs
    saved = np.load(data / "layers" / f"{name}.npz")
    return torch.as_tensor(saved["W"]).double()[:columns], torch.as_tensor(saved["X"]).double()


def program(name: str, share: float, form: str, columns: int | None, data: Path) -> NetTrim:
    weight, inputs = layer(name, columns, data)
    norms = (inputs @ weight.mT).clamp(min=0).norm(dim=0)
    if form == "penalised":
        return NetTrim.from_layer(weight, inputs, penalty=2.0)
    return NetTrim.from_layer(weight, inputs, share * (norms if form == "neuron" else norms.norm()))


def replica(problem: NetTrim, steps: int, rho: float = 100.0) -> Answer:
    """The ADMM of the method's authors as published: fixed penalty, no stopping rule, nothing after it (rho = 100)."""
    x, y, active = problem.inputs.mT, problem.targets.mT, problem.active.mT
    c0 = 0.3 * float((x @ x.mT).max()) ** 0.5
    x, y = x / c0, y / c0
    assert problem.radius is not None
    radius = problem.radius / c0
    factor = torch.linalg.cholesky(x @ x.mT + torch.eye(len(x), dtype=x.dtype))
    w = torch.zeros(x.shape[0], y.shape[0], dtype=x.dtype)
    t, u1, s, u2 = torch.zeros_like(y), torch.zeros_like(y), w, w
    for _ in range(steps):
        z = w.mT @ x - u1
        off = torch.where(active, z - y, 0.0)
        norm = off.norm(dim=1, keepdim=True) if problem.per_neuron else off.norm()
        shrink = (radius[:, None] if problem.per_neuron else radius) / norm.clamp(min=1e-300)
        t = torch.where(active, y + shrink.clamp(max=1.0) * off, z.clamp(max=0))
        s = w - u2
        s = s - s.clamp(-1 / rho, 1 / rho)
        w = torch.cholesky_solve(x @ (t + u1).mT + s + u2, factor)
        u1, u2 = u1 + t - w.mT @ x, u2 + s - w
    multipliers = -rho * u1.mT / c0
    return Answer(s.mT.contiguous(), (Termination.STEP_LIMIT,), steps, {"multipliers": multipliers})


def contenders(form: str, slow: bool, limit: float) -> dict[str, Run]:
    ours: dict[str, Run] = {"optprune": lambda p: NetTrimADMM().run(p)}
    general = ("CLARABEL", "SCS", "OSQP") if form == "penalised" else ("CLARABEL", "SCS")
    if not slow:
        ours |= {name: lambda p, name=name: Cvxpy(name, time_limit=limit).run(p) for name in general}
    if form != "penalised":
        ours |= {
            f"replica {steps}": lambda p, steps=steps: replica(p, steps) for steps in ((300,) if slow else (300, 2000))
        }
    return ours


def measure(problem: NetTrim, solve: Run) -> dict[str, object]:
    start = time.process_time()
    answer = solve(problem)
    seconds = time.process_time() - start
    certificate, _ = certify(problem, answer.matrix, answer.hint)
    return {
        "cpu_seconds": round(seconds, 3),
        "termination": answer.termination[0].value,
        "objective": certificate.objective,
        "gap": certificate.relative_gap,
        "violation": certificate.primal_residual,
        "density": float((answer.matrix.abs() > 1e-9 * answer.matrix.abs().max()).double().mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("bench_net_trim.json"))
    parser.add_argument("--limit", type=float, default=120.0, help="seconds per program of a general solver")
    parser.add_argument("--only", default="", help="programs whose name holds this")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = Path(os.environ["OPTPRUNE_DATA"])
    rows = []
    print(f"{'program':34} {'solver':14} {'CPU s':>8} {'objective':>14} {'gap':>9} {'violation':>9} density")
    for name, share, form, columns in PROGRAMS:
        title = f"{name} {form} {share}" + (f" {columns} neurons" if columns else "")
        if arguments.only not in title:
            continue
        problem = program(name, share, form, columns, data)
        for solver, solve in contenders(form, (name, form) in SLOW, arguments.limit).items():
            row = {"program": title, "solver": solver, **measure(problem, solve)}
            rows.append(row)
            print(
                f"{title:34} {solver:14} {row['cpu_seconds']:8.2f} {row['objective']:14.6f} {row['gap']:9.1e} "
                f"{row['violation']:9.1e} {row['density']:.3f}",
                flush=True,
            )
        if (name, form) in SLOW:
            print(f"{title:34} general solvers not run: minutes to hours")
    arguments.out.write_text(
        json.dumps({"version": op.__version__, "torch": torch.__version__, "rows": rows}, indent=1)
    )


if __name__ == "__main__":
    main()
