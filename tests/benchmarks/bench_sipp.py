"""Sampled edges on a real layer and network: errors, every bound against what happened, time, and refutations.

    OPTPRUNE_DATA=... python tests/benchmarks/bench_sipp.py [--out FILE] [--splits 300] [--trials 20000]

On `digits256` with 256 points, in four parts:

- `layer`: each variant at three budgets; relative error on the calibration and on held-out rows, and for
  every bound the share of (neuron, row) pairs that violate it, the median slack, the share of neurons for
  which it is below 1.
- `time`: sensitivities and sampling beside a replica of the published loop, one point and one neuron at a time, and
  beside the same loop with a point's neurons at once.
- `promise`: Bernstein with the exact variance before the choice is made, per neuron and over all neurons and points at
  once; the conformal certificate of the whole network and its coverage over random choices of the held-out points.
- `refuted`: printed, published and wrong constants against draws.

Exits with 1 where a proved bound is violated on the points, or refuted.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _networks import data_folder
from bench_networks import digits
from torch import Tensor

import optprune as op
from optprune.bounds.bernstein import drawn_radius, relative_error
from optprune.bounds.conformal import conditional_rank, conformal_rank, order_bound
from optprune.bounds.evidence import monte_carlo
from optprune.bounds.horvitz_thompson import kept_radius
from optprune.bounds.sipp import deterministic_errors
from optprune.certify.edge_sampling import drawn_errors, promised_errors
from optprune.network.held_out import held_out
from optprune.numerics.pivotal import choose_in_pairs
from optprune.numerics.water_filling import water_fill

POINTS = 256
SPARSITIES = (0.5, 0.7, 0.9)
DELTA = 0.1
SOLVERS: dict[str, op.Solver] = {
    "det": op.SiPPDet(),
    "det, mean kept": op.SiPPDet("mean"),
    "det, minimax": op.SiPPDet("minimax"),
    "rand": op.SiPPRand(),
    "rand, C = 1": op.SiPPRand(constant=1.0),
    "hybrid": op.SiPPHybrid(),
    "corenet": op.CoreNet(),
    "pairs, variance": op.PivotalEdges(derandomise=False),
    "pairs, sensitivity": op.PivotalEdges(derandomise=False, score="sensitivity"),
    "pairs without chance": op.PivotalEdges(),
    "pairs without chance, sensitivity": op.PivotalEdges(score="sensitivity"),
}


def layer() -> tuple[Tensor, Tensor, Tensor]:
    """The weight, the calibration rows and the held-out rows of `digits256`."""
    file = np.load(data_folder() / "layers" / "digits256.npz")
    weight, inputs, held = (torch.from_numpy(file[name]).double() for name in ("W", "X", "Xtest"))
    return weight, inputs, held


def timed(run: Callable[[], Any], repeats: int = 3) -> tuple[Any, float]:
    """What it returns, and the least processor time of some runs."""
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        found = run()
        seconds.append(time.process_time() - start)
    return found, min(seconds)


def against(problem: op.EdgeSampling, matrix: Tensor, bound: Tensor, rows: Tensor) -> dict[str, float]:
    """Violations of a bound per neuron among all pairs, the median slack where there is an error."""
    missed = (rows @ (matrix - problem.weight).mT).abs()
    through = rows.abs() @ problem.weight.abs().mT
    allowed = bound * through
    pairs = (missed > 0) & allowed.isfinite()
    slack = (allowed / missed)[pairs]
    return {
        "violated": float((missed > allowed * (1 + 1e-9)).double().mean()),
        "median slack": float(slack.median()) if len(slack) else math.nan,
    }


def bounds(problem: op.EdgeSampling, solution: op.Solution) -> dict[str, Tensor]:
    """Every bound that a solution has, relative to what flows, per neuron."""
    weight, matrix, evidence = problem.weight, solution.matrix, solution.evidence
    out = len(weight)
    found = {
        "printed, of what was changed": deterministic_errors(weight, matrix, problem.sensitivity).amax(-1),
        "exact maximum on the points": problem.relative_errors(matrix),
    }
    if "draws" in evidence and not bool(evidence["draws"].isnan().any()):
        draws, (delta, constant) = evidence["draws"], evidence["settings"].tolist()
        total = torch.stack([(problem.sensitivity * (s * weight > 0)).sum(-1) for s in (1, -1)], -1)
        found["printed, of the draws"] = relative_error(draws, total, delta / (2 * out), constant).amax(-1)
        found["exact variance of the draws"] = drawn_errors(problem, draws, delta / (2 * out)).amax(-1)
    if "probabilities" in evidence:
        found["exact variance of the choices"] = promised_errors(problem, evidence["probabilities"], DELTA / out)
    return found


def part_layer(weight: Tensor, inputs: Tensor, held: Tensor) -> tuple[list[dict[str, Any]], bool]:
    rows, broken = [], False
    for sparsity in SPARSITIES:
        pattern = op.PerLayer.at_density(1 - sparsity, (int(weight.shape[0]), int(weight.shape[1])))
        for name, solver in SOLVERS.items():
            problem = op.EdgeSampling(weight, inputs[:POINTS], pattern)
            solution = op.solve(problem, solver)
            assert solution.certificate is not None
            errors = [
                float(((solution.matrix - weight) @ x.mT).norm() / (weight @ x.mT).norm()) for x in (inputs, held)
            ]
            row: dict[str, Any] = {
                "solver": name,
                "target": sparsity,
                "sparsity": 1 - float((solution.matrix != 0).double().mean()),
                "error": errors[0],
                "held-out": errors[1],
                "objective": solution.certificate.objective,
                "lower bound": solution.certificate.lower_bound,
                "seconds": solution.seconds,
                "bounds": {},
            }
            for kind, bound in bounds(problem, solution).items():
                at = {
                    on: against(problem, solution.matrix, bound, x)
                    for on, x in (("S", inputs[:POINTS]), ("held", held))
                }
                row["bounds"][kind] = at | {
                    "below one": float((bound < 1).double().mean()),
                    "median": float(bound.median()),
                }
                broken |= at["S"]["violated"] > 0 and kind.startswith(("printed, of what", "exact maximum"))
            rows.append(row)
            head = f"{sparsity:.1f} {name:34} {row['sparsity']:.3f}"
            print(f"{head} error {errors[0]:.4f} held-out {errors[1]:.4f} {solution.seconds:.2f} s", flush=True)
            for kind, at in row["bounds"].items():
                print(
                    f"      {kind:32} below one {at['below one']:.2f} median {at['median']:.3g} slack "
                    f"{at['S']['median slack']:.3g} violated {at['S']['violated']:.4f} / {at['held']['violated']:.4f}"
                )
    return rows, broken


def published_loop(weight: Tensor, inputs: Tensor) -> Tensor:
    """Sensitivities as published: one point and one neuron at a time, in float32, every share of a point stored."""
    found = torch.zeros_like(weight, dtype=torch.float32)
    up, down = weight.clamp(min=0).float(), weight.clamp(max=0).float()
    for x in inputs.float():
        points = _halves(x[None])[:, :, None]  # (point, edge, patch)
        sums = [_divisible(half @ points) for half in (up, down)]
        shares = torch.zeros(len(points), *weight.shape)
        for i in range(len(weight)):
            parts = [half[i][None, :, None] * points / z[:, i, None] for half, z in zip((up, down), sums, strict=True)]
            shares[:, i] = torch.maximum(*parts).amax(-1)
        found = torch.maximum(found, shares.amax(0))
    return found


def batched_loop(weight: Tensor, inputs: Tensor) -> Tensor:
    """The same with all neurons of a point at once: what is left of the difference without Python's loop over them."""
    found = torch.zeros_like(weight, dtype=torch.float32)
    for x in inputs.float():
        for part in _halves(x[None]):
            for half in (weight.clamp(min=0).float(), weight.clamp(max=0).float()):
                terms = half * part
                found = torch.maximum(found, terms / _divisible(terms.sum(1, keepdim=True)))
    return found


def _halves(points: Tensor) -> Tensor:
    """The points, or twice as many where one is negative somewhere: their positive and their negative parts."""
    return points if bool((points >= 0).all()) else torch.cat([points.clamp(min=0), -points.clamp(max=0)])


def _divisible(sums: Tensor) -> Tensor:
    """Infinity in place of what counts as no sum."""
    return sums.masked_fill(sums.abs() <= torch.finfo(sums.dtype).eps, torch.inf)


def part_time(weight: Tensor, inputs: Tensor) -> dict[str, float]:
    def fresh() -> op.EdgeSampling:
        return op.EdgeSampling(weight, inputs[:POINTS], op.PerLayer(weight.numel() // 2))

    ours, fast = timed(lambda: fresh().sensitivity)
    found = {"sensitivities": fast}
    for name, loop in (("published loop", published_loop), ("all neurons of a point at once", batched_loop)):
        theirs, slow = timed(lambda loop=loop: loop(weight, inputs[:POINTS]), 1)
        # Published sums below float32's epsilon count as none; elsewhere the two agree.
        assert float((ours - theirs.double()).abs().median()) < 1e-6
        found |= {name: slow, f"{name}, ratio": slow / fast}
    for name, solver in SOLVERS.items():
        seconds = timed(lambda s=solver: s.run(fresh()), 1)[1]
        found |= {f"sensitivities and {name}": seconds, f"{name}, ratio": found["published loop"] / seconds}
    for name, value in found.items():
        print(f"{name:50} {value:.3f}")
    return found


def part_promise(weight: Tensor, inputs: Tensor, splits: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    problem = op.EdgeSampling(weight, inputs[:POINTS], op.PerLayer(weight.numel() // 2))
    out = len(weight)
    for score in ("variance", "sensitivity"):
        answer = op.PivotalEdges(score=score, derandomise=False).run(problem)
        for name, delta in (("per neuron", DELTA), ("all neurons", DELTA / out), ("all pairs", DELTA / out / POINTS)):
            promised = promised_errors(problem, answer.hint["probabilities"], delta)
            found[f"{score}, {name}"] = {
                "below one": float((promised < 1).double().mean()),
                "median": float(promised.median()),
            }
    model, train, (images, classes) = digits()
    model = model.double()
    dense, generator = model(images.double()).detach(), torch.Generator().manual_seed(0)
    for density in (0.5, 0.2):
        pruned, _ = op.prune(
            model, train[:POINTS].double(), op.plan.uniform(model, density), op.PivotalEdges(), bound=False
        )
        after = pruned(images.double()).detach()
        scores = (after - dense).norm(dim=-1) / dense.norm(dim=-1)
        certificate = held_out(model, pruned, images[:250].double(), labels=[classes[:250]])
        covered: dict[str, list[float]] = {"conformal": [], "conditional": []}
        ranks = {"conformal": conformal_rank(250, 0.1), "conditional": conditional_rank(250, 0.1, 0.05)}
        # The test images are the law: 250 independent draws are held out, and what a bound covers is known exactly.
        for _ in range(splits):
            drawn = scores[torch.randint(len(scores), (250,), generator=generator)]
            for kind, rank in ranks.items():
                covered[kind].append(float((scores <= order_bound(drawn, rank)).double().mean()))
        found[f"network at {density}"] = {
            "accuracy": float((after.argmax(-1) == classes).double().mean()),
            "claims": certificate.to_json()["claims"],
            "coverage": {kind: float(np.mean(shares)) for kind, shares in covered.items()},
            "below 1 - alpha": {kind: float(np.mean(np.array(shares) < 0.9)) for kind, shares in covered.items()},
        }
    print(json.dumps(found, indent=1))
    return found


def part_refuted(weight: Tensor, inputs: Tensor, trials: int) -> tuple[list[dict[str, Any]], bool]:
    """A half-neuron of the layer at one point, and the case in which Bernstein is sharp: one edge in a hundred."""
    problem = op.EdgeSampling(weight[:1], inputs[:POINTS], op.PerLayer(1))
    own = weight[0] > 0
    terms, s = (weight[0] * inputs[0])[own], problem.sensitivity[0][own]
    terms, s = terms[s > 0], s[s > 0]
    sharp = torch.zeros(100, dtype=torch.float64)
    sharp[0] = 1.0
    cases = {"half-neuron": (terms, s, 100), "one of a hundred": (sharp, torch.ones(100).double(), 400_000)}
    rng, rows, broken = torch.Generator().manual_seed(0), [], False
    for case, (c, sensitivity, draws) in cases.items():
        q, total, z = sensitivity / sensitivity.sum(), float(sensitivity.sum()), float(c.sum())
        budget = torch.full((1,), float(len(c) // 2), dtype=torch.float64)
        p = water_fill(sensitivity[None], torch.ones_like(sensitivity)[None], budget)[0]
        for delta in (0.1, 0.01, 0.001):
            alpha = 2 * total * math.log(2 / delta)
            published = 0.5 * (alpha / (3 * draws) + math.sqrt((alpha / (3 * draws)) ** 2 + 2 * alpha / draws))
            exact = float(drawn_radius(c, q, draws, delta))
            tried = {
                "printed sample size (T14)": (True, "draws", z * float(relative_error(draws, total, delta))),
                "published inverse": (False, "draws", z * published),
                "exact variance (T14)": (True, "draws", exact),
                "exact variance, half": (False, "draws", exact / 2),
                "pairs, exact variance (T19)": (True, "pairs", float(kept_radius(c, p, delta))),
                "pairs, a third": (False, "pairs", float(kept_radius(c, p, delta)) / 3),
            }
            for name, (proved, how, radius) in tried.items():
                if radius == 0.0:
                    continue
                experiment = Missed(c, q, p, draws, z, how, radius)
                evidence = monte_carlo(experiment, delta, rng, trials=trials)
                broken |= proved and evidence.refuted
                rows.append({"case": case, "bound": name, "proved": proved} | dataclasses.asdict(evidence))
                rows[-1]["refuted"] = evidence.refuted
                print(f"{case:18} {name:30} {evidence}", flush=True)
    return rows, broken


@dataclasses.dataclass(frozen=True)
class Missed:
    """Whether reweighted sums of drawn or chosen terms miss the sum by a radius."""

    terms: Tensor
    q: Tensor
    p: Tensor
    draws: int
    total: float
    how: str
    radius: float

    def __call__(self, trials: int, generator: torch.Generator) -> Tensor:
        return (self.sums(trials, generator) - self.total).abs() >= self.radius

    def sums(self, trials: int, generator: torch.Generator) -> Tensor:
        """One per trial."""
        c, q = self.terms, self.q
        if self.how == "pairs":
            return (choose_in_pairs(self.p.expand(trials, -1), generator) * c / self.p).sum(-1)
        if int((c != 0).sum()) == 1:  # only how often that one is drawn matters
            most = torch.full((trials,), float(self.draws), dtype=torch.float64)
            return torch.binomial(most, q[0].expand(trials), generator=generator) * c[0] / (self.draws * q[0])
        index = torch.multinomial(q, self.draws * trials, replacement=True, generator=generator)
        return (c / q)[index].reshape(trials, self.draws).mean(-1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("bench_sipp.json"))
    parser.add_argument("--splits", type=int, default=300)
    parser.add_argument("--trials", type=int, default=20_000)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    weight, inputs, held = layer()
    seconds = part_time(weight, inputs)
    refutations, refuted = part_refuted(weight, inputs, asked.trials)
    promise = part_promise(weight, inputs, asked.splits)
    rows, violated = part_layer(weight, inputs, held)
    record = {"layer": rows, "time": seconds, "promise": promise, "refuted": refutations}
    asked.out.write_text(json.dumps(record, indent=1))
    return int(refuted or violated)


if __name__ == "__main__":
    sys.exit(main())
