# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # Can a pruned layer be better than its lower bound says?
#
# `L0LeastSquares` asks for the weight with an admissible support whose outputs come closest to the dense layer's.
# It is a hard combinatorial problem, so an answer comes with a lower bound,
# [T03](../../proofs/T03-minorant-lower-bound.md): split a diagonal $\delta$ off the Hessian $H$ so that $H -
# \operatorname{diag} \delta \succeq 0$, linearise the rest at any point, and one selection by the pattern bounds
# every admissible weight; squares of two weights each may be split off besides,
# [T25](../../proofs/T25-pairs-in-the-minorant.md). Between answer and bound lies the gap. Here half of every row of a
# real layer is pruned, and everything is tried to get below the bound: every solver, random supports, changes of the
# best answer. On a part of the layer so small that all supports can be tried, the bound is compared with the true
# optimum, and wrong constants are refuted.
#
# The layer is the second of a network trained on scikit-learn's digits. Where `OPTPRUNE_DATA` names a folder with
# `layers/digits256.npz`, it is that one, 256 x 256. As a script: `python examples/notebooks/verify_l0_gap.py
# [--small] [--output runs/notebooks]`.

# %%
import argparse
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

import optprune as op
from optprune.bounds.minorant import minorant_bound
from optprune.certify import LeastSquaresChecker, certify, recheck
from optprune.cli.embedded import digits, mlp, train

arguments = argparse.ArgumentParser(description="Try to get below the lower bound of an l0 layer.")
arguments.add_argument("--small", action="store_true", help="a small layer and few trials")
arguments.add_argument("--output", type=Path, default=Path("runs/notebooks"))
asked, _ = arguments.parse_known_args()  # a notebook's kernel has arguments of its own
trials = 5 if asked.small else 25
rng = torch.Generator().manual_seed(0)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


stored = Path(os.environ.get("OPTPRUNE_DATA", "nowhere")) / "layers/digits256.npz"
if stored.is_file() and not asked.small:
    arrays = np.load(stored)
    weight, inputs = (torch.from_numpy(arrays[name]).double() for name in ("W", "X"))
else:
    data, hidden = digits(), (24, 16) if asked.small else (300, 100)
    model = mlp([64, *hidden, 10])
    train(model, data.train_inputs, data.train_targets, epochs=3 if asked.small else 15)
    inputs = model[:2](data.train_inputs).detach().double()
    weight = model.get_submodule("fc2").get_parameter("weight").detach().double()
pattern, damping = op.PerRow(weight.shape[1] // 2), 0.01
problem = op.L0LeastSquares.from_layer(weight, inputs, pattern, damping)
energy = float(problem.objective(0 * weight))
print(f"{weight.shape[0]} outputs, {weight.shape[1]} inputs, {len(inputs)} samples, {pattern}, damping {damping}")


def relative(objective: float) -> float:
    """The square root of an objective relative to that of the weight 0: an error relative to the outputs."""
    return (objective / energy) ** 0.5


# %% [markdown]
# ## The answer and its certificate
#
# Several solvers are asked, and the best answer is certified. The checker does not know where it came from.
# `certify_exact` proves the same bound in rational arithmetic, the semidefiniteness of every $H -
# \operatorname{diag} \delta_r$ included.

# %%
solvers = (op.Magnitude(), op.Wanda(), op.RIA(), op.SparseGPT(), op.OBC(), op.ADMM(), op.SwapSearch())
answers = [op.solve(problem, solver, certified=False) for solver in solvers]
answer = min(answers, key=lambda found: float(problem.objective(found.matrix)))
print(f"the best answer is that of {answer.solver}")
certificate, evidence = certify(
    problem, answer.matrix, checker=LeastSquaresChecker(effort=3e9 if asked.small else 1e11)
)
exact = op.certify_exact(problem, answer.matrix, evidence)
print(certificate)
print(exact)
assert certificate.lower_bound <= exact.lower_bound.low

# %% [markdown]
# ## Attack 1: get below the bound
#
# Three kinds of admissible weights: what the solvers return; supports drawn at random, near and far from the
# magnitudes, each fitted as well as it can be; and the best answer with some of its choices drawn anew. None may
# fall below the bound.


# %%
def fitted(mask: torch.Tensor) -> float:
    """The least objective on a support."""
    fixed = op.L0LeastSquares(problem.statistics, op.Fixed(mask), damping)
    return float(problem.objective(op.solve(fixed, op.Magnitude(refit=True), certified=False).matrix))


attempts: dict[str, list[float]] = {"solvers": [], "random supports": [], "changes of the answer": []}
attempts["solvers"] = [float(problem.objective(found.matrix)) for found in answers]
for trial in range(trials):
    trust = 3 * trial / trials  # from pure noise to the magnitudes
    scores = weight.abs().log().clamp(min=-20) * trust + normal(*weight.shape)
    attempts["random supports"].append(fitted(pattern.support((scores - scores.min()) + 1e-3)))
    scores = (answer.matrix != 0).double() * 2 + torch.rand(weight.shape, generator=rng, dtype=torch.float64)
    redrawn = torch.rand(weight.shape, generator=rng) < 10.0 ** (-3 * trial / trials)
    scores = torch.where(redrawn, normal(*weight.shape).abs(), scores)
    attempts["changes of the answer"].append(fitted(pattern.support(scores)))
for name, values in attempts.items():
    print(f"{name}: {len(values)} tried, least error {relative(min(values)):.4f}")
    assert min(values) > certificate.lower_bound
print(f"the answer {relative(certificate.objective):.4f}, the bound {relative(certificate.lower_bound):.4f}")

# %% [markdown]
# ## Attack 2: other evidence
#
# Any $\delta$ that is small enough and any point give a bound. Disturbed ones must give bounds too, below every
# admissible weight; a $\delta$ that is too large must be refused, that is, give the vacuous bound 0.

# %%
others = []
for trial in range(trials):
    size = 10.0 ** (-1 - 10 * trial / trials)
    noise = size * evidence["point"].abs() * normal(*weight.shape)
    shrink = 1 - size * torch.rand(1, generator=rng, dtype=torch.float64)
    changed = {**evidence, "minorant": evidence["minorant"] * shrink, "point": evidence["point"] + noise}
    others.append(recheck(problem, answer.matrix, changed).lower_bound)
assert 0 < max(others) < min(min(values) for values in attempts.values())
smallest = 1 + torch.rand(evidence["minorant"].shape, generator=rng, dtype=torch.float64)
refused = recheck(problem, answer.matrix, {**evidence, "minorant": evidence["minorant"] * smallest})
assert refused.lower_bound == 0
print(f"{trials} other evidences: bounds up to {relative(max(others)):.4f}; a larger minorant: refused")

# %% [markdown]
# ## The true optimum, and wrong constants
#
# With 12 inputs a row has 924 supports of 6, and all can be tried. So the optimum is known; the bound must lie
# below it, and does not lie far below. Two changes of the theorem give "bounds" above it: a $\delta$ larger by a
# tenth than its largest admissible multiple, at a point far along a direction in which the rest is then concave;
# and a selection of one weight fewer than the pattern keeps.

# %%
ratios: dict[str, list[float]] = {"the bound": [], "wrong: larger minorant": [], "wrong: one weight fewer": []}
rows, few = 3 if asked.small else 40, op.PerRow(6)
strongest = inputs.square().mean(0).argsort(descending=True)[:12]
statistics = op.Statistics.from_layer(weight[:, strongest], inputs[:, strongest])
for index in range(len(weight)):
    if len(ratios["the bound"]) == rows:
        break
    own = (statistics.cross[:, [index]], statistics.energy[[index]], statistics.count, weight[[index]][:, strongest])
    part = op.Statistics(statistics.gram, *own)
    tiny = op.L0LeastSquares(part, few, damping)
    best = op.solve(tiny, op.Exhaustive())
    assert best.certificate is not None
    optimum = best.certificate.objective
    if optimum < 1e-6 * float(tiny.objective(0 * tiny.dense)):
        continue  # nothing is lost here
    ratios["the bound"].append(best.certificate.lower_bound / optimum)
    minorant, point = (best.evidence[name].reshape(-1, 12) for name in ("minorant", "point"))
    known = (tiny.gram, part.cross, part.energy, part.reference)
    root = minorant[0].sqrt()
    large = 1.1 * minorant[0] * torch.linalg.eigvalsh(tiny.gram / (root[:, None] * root))[0]
    values, vectors = torch.linalg.eigh(tiny.gram - torch.diag(large))
    assert float(values[0]) < 0
    far = point + 3 * point.norm() * vectors[:, 0]
    ratios["wrong: larger minorant"].append(minorant_bound(*known, large, far, few.support) / optimum)
    fewer = recheck(op.L0LeastSquares(part, op.PerRow(5), damping), best.matrix, best.evidence)
    ratios["wrong: one weight fewer"].append(fewer.lower_bound / optimum)
for name, values in ratios.items():
    print(f"{name}: {min(values):.3f} to {max(values):.3f} of the optimum in {len(values)} rows")
assert max(ratios["the bound"]) <= 1
assert min(max(values) for name, values in ratios.items() if name.startswith("wrong")) > 1

# %% [markdown]
# ## Picture
#
# Left, everything that was tried on the whole layer, and the region that the bound excludes. Right, the bound and
# its wrong relatives against the optimum of the small parts.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.8), width_ratios=(3, 2))
bound = relative(certificate.lower_bound)
colors = ("tab:orange", "tab:purple", "tab:green", "black")
shown = {**attempts, "the answer": [certificate.objective]}
for height, (values, color) in enumerate(zip(shown.values(), colors, strict=True)):
    left.scatter([relative(v) for v in values], [height] * len(values), s=26, color=color, alpha=0.7)
left.scatter(
    [relative(v) for v in others if v > 0], [-1] * sum(v > 0 for v in others), s=26, color="tab:blue", alpha=0.7
)
left.axvspan(bound / 4, bound, color="tab:blue", alpha=0.12)
left.axvline(bound, color="tab:blue")
left.text(bound * 0.97, 3.45, "proved impossible", ha="right", color="tab:blue")
left.set_yticks([-1, *range(len(shown))], ["bounds of other evidence", *shown])
left.set(
    title=f"{weight.shape[1]} inputs x {weight.shape[0]} outputs, half of every row kept",
    xlabel="error relative to the outputs (log scale)",
    xscale="log",
    xlim=(bound / 4, None),
    ylim=(-1.6, 3.8),
)
for height, values in enumerate(ratios.values()):
    right.scatter(values, [height] * len(values), s=26, color="tab:red" if height else "tab:blue", alpha=0.7)
right.axvline(1, color="black", linewidth=1)
right.set_yticks(range(len(ratios)), ratios)
right.set(
    title=f"{len(ratios['the bound'])} parts of 12 inputs",
    xlabel="value / true optimum (above 1: refuted)",
    xscale="log",
    ylim=(-0.6, 2.6),
)
figure.tight_layout()
asked.output.mkdir(parents=True, exist_ok=True)
figure.savefig(asked.output / "verify_l0_gap.png", dpi=130)
print(f"wrote {asked.output / 'verify_l0_gap.png'}")
