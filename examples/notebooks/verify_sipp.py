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
# # Are the bounds of sampled edges refuted by sampling?
#
# SiPP draws edges of a neuron with replacement and weights them so that the neuron's sum is right on average.
# [T14](../../proofs/T14-bernstein-half-neuron.md) says how far it is off with probability $1 - \delta$: (c) is the
# printed bound, which knows the sensitivities alone; (d) is Bernstein's inequality with the exact variance at one
# point. A statement about a probability is tested by drawing, as in
# [T21](../../proofs/T21-monte-carlo-refutation.md): a claim is refuted when even the lower confidence limit of its
# failures exceeds what it allows.
#
# The neuron is one of the second layer of a network trained on scikit-learn's digits, its positive half, at the
# training image where it does worst. As a script: `python examples/notebooks/verify_sipp.py [--small] [--output
# runs/notebooks]`.

# %%
import argparse
import math
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

import optprune as op
from optprune.bounds.bernstein import drawn_radius, draws_needed, relative_error
from optprune.bounds.evidence import monte_carlo
from optprune.cli.embedded import digits, mlp, train

arguments = argparse.ArgumentParser(description="Try to refute the bounds of sampled edges by sampling.")
arguments.add_argument("--small", action="store_true", help="a small layer and few trials")
arguments.add_argument("--output", type=Path, default=Path("runs/notebooks"))
asked, _ = arguments.parse_known_args()  # a notebook's kernel has arguments of its own
trials = 20_000 if asked.small else 100_000
delta = 0.01 if asked.small else 0.001
draws = [10, 100] if asked.small else [10, 30, 100, 300, 1000]
rng = torch.Generator().manual_seed(0)

stored = Path(os.environ.get("OPTPRUNE_DATA", "nowhere")) / "layers/digits256.npz"
if stored.is_file() and not asked.small:
    arrays = np.load(stored)
    weight, points = (torch.from_numpy(arrays[name]).double() for name in ("W", "X"))
    points = points[:256]
else:
    data, hidden = digits(), (24, 16) if asked.small else (300, 100)
    model = mlp([64, *hidden, 10])
    train(model, data.train_inputs, data.train_targets, epochs=3 if asked.small else 15)
    points = model[:2](data.train_inputs[:256]).detach().double()
    weight = model.get_submodule("fc2").get_parameter("weight").detach().double()

# %% [markdown]
# ## A half-neuron, its sensitivities, its bounds
#
# The terms $w_j a_j(x) \ge 0$ of the positive weights sum to $z(x)$. The sensitivity $s_j$ is the largest share of
# edge $j$ at any of the points, $S$ their sum, and edges are drawn with probabilities $s_j / S$. The half-neuron
# with the median $S$ is taken.

# %%
terms = points[:, None, :] * weight.clamp(min=0)  # points, neurons, edges
through = terms.sum(-1)
share = torch.where(through[..., None] > 0, terms / through[..., None].clamp(min=1e-300), 0.0)
totals = share.amax(0).sum(-1)
neuron = int(totals.argsort()[len(totals) // 2])
terms, through, total = terms[:, neuron], through[:, neuron], float(totals[neuron])
fires = through > 0.1 * through.max()
terms, through = terms[fires], through[fires]
probabilities = share[:, neuron].amax(0) / total
print(
    f"neuron {neuron}: {int((probabilities > 0).sum())} edges, S = {total:.3f}, {len(terms)} points at which it fires"
)
print(f"for an error of 10 % the printed bound asks for {float(draws_needed(0.1, total, delta)):.0f} draws")
printed = {m: float(relative_error(m, total, delta)) for m in draws}
variance = {m: drawn_radius(terms, probabilities, m, delta) / through for m in draws}
worst = {m: int(variance[m].argmax()) for m in draws}

# %% [markdown]
# ## Attack 1: draw, and count
#
# At every sample size the point is chosen where the variance is largest. `errors` draws all edges of many pruned
# half-neurons; both bounds must fail no more often than $\delta$ allows.


# %%
def multiplicities(count: int, m: int, generator: torch.Generator) -> torch.Tensor:
    """How often each edge is drawn in `count` trials of m draws: binomials, one edge after the other."""
    left, mass = torch.full((count,), float(m), dtype=torch.float64), 1.0
    columns = []
    for probability in probabilities.tolist():
        part = torch.full_like(left, min(1.0, probability / mass) if mass > 1e-12 else 0.0)
        columns.append(torch.binomial(left, part, generator=generator))
        left, mass = left - columns[-1], mass - probability
    return torch.stack(columns, -1)


def errors(count: int, m: int, generator: torch.Generator) -> torch.Tensor:
    """Relative errors of the half-neuron at its worst point."""
    row = terms[worst[m]]
    weights = torch.where(probabilities > 0, row / (m * probabilities.clamp(min=1e-300)), 0.0)
    return (multiplicities(count, m, generator) @ weights / through[worst[m]] - 1).abs()


claims = {"T14 (c), printed": printed, "T14 (d), exact variance": {m: float(variance[m][worst[m]]) for m in draws}}
evidence = {}
for name, radii in claims.items():
    for m in draws:
        found = monte_carlo(lambda n, g, m=m, r=radii[m]: errors(n, m, g) > r, delta, rng, trials=trials, chunk=20_000)
        evidence[name, m] = found
        print(f"{name}, {m} draws: {found}")
        assert not found.refuted

# %% [markdown]
# ## Attack 2: choose the point after the draw
#
# The theorem is about one point that was chosen before. Whoever looks at the worst of all points after the draw
# needs a union bound: $\delta$ divided by their number. Without it the claim may fail; with it, it must not.

# %%
m = draws[-1]


def any_point(count: int, generator: torch.Generator, share: float) -> torch.Tensor:
    """Whether some point is missed by more than its radius at this failure probability."""
    radius = drawn_radius(terms, probabilities, m, delta * share) / through
    counts = multiplicities(count, m, generator)
    weights = torch.where(probabilities > 0, terms / (m * probabilities.clamp(min=1e-300)), 0.0)
    return ((counts @ weights.mT / through - 1).abs() > radius).any(-1)


afterwards = {}
for name, divided in (("worst point, no union bound", 1.0), ("worst point, union bound", 1 / len(terms))):
    afterwards[name] = monte_carlo(
        lambda n, g, d=divided: any_point(n, g, d), delta, rng, trials=trials // 5, chunk=4_000
    )
    print(f"{name}: {afterwards[name]}")
assert not afterwards["worst point, union bound"].refuted

# %% [markdown]
# ## Attack 3: wrong constants
#
# The published code has $2 \alpha / m$ under the root of the printed bound where $4 \alpha / m$ is right, which is
# half of the variance; the same slip in (d) is tried here, and two others: no factor 2 for the two tails together
# with it, and half of the radius. At least one must be refuted, or the experiment could not have refuted anything.


# %%
def slipped(m: int, tails: float = 2.0) -> float:
    r"""(d) with $V \ell$ for $2 V \ell$ under the root, and $\ell = \ln(\text{tails} / \delta)$."""
    row, z = terms[worst[m]], float(through[worst[m]])
    ratio = torch.where(probabilities > 0, row / probabilities.clamp(min=1e-300), 0.0)
    spread = float((probabilities * (ratio - z).square()).sum()) / m
    linear = float(torch.where(probabilities > 0, (ratio - z).abs(), 0.0).max()) / m * math.log(tails / delta) / 3
    return (linear + math.sqrt(linear**2 + spread * math.log(tails / delta))) / z


exact = claims["T14 (d), exact variance"]
wrong = {
    "wrong: half the variance": {m: slipped(m) for m in draws},
    "wrong: half the variance, one tail": {m: slipped(m, tails=1.0) for m in draws},
    "wrong: half the radius": {m: exact[m] / 2 for m in draws},
}
for name, radii in wrong.items():
    for m in draws:
        evidence[name, m] = monte_carlo(
            lambda n, g, m=m, r=radii[m]: errors(n, m, g) > r, delta, rng, trials=trials, chunk=20_000
        )
    refuted = [m for m in draws if evidence[name, m].refuted]
    print(f"{name}: refuted at {refuted or 'no'} draws; at {draws[-1]}: {evidence[name, draws[-1]]}")
assert any(found.refuted for (name, _), found in evidence.items() if name in wrong)

# %% [markdown]
# ## Picture
#
# Left, the radii, and the error that is exceeded with probability $\delta$ in fact. Right, how often each claim
# failed, with exact confidence limits (99.9 %), against what it allows: a claim whose whole interval lies right of
# the line is refuted.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(12.5, 5))
quantile = [float(errors(trials, m, rng).quantile(1 - delta)) for m in draws]
styles = {"T14 (c), printed": ("tab:blue", "-"), "T14 (d), exact variance": ("tab:green", "-")}
styles |= {name: (color, "--") for name, color in zip(wrong, ("tab:orange", "tab:red", "tab:brown"), strict=True)}
for name, radii in {**claims, **wrong}.items():
    color, line = styles[name]
    left.plot(draws, [radii[m] for m in draws], line, color=color, label=name, linewidth=1.5)
left.plot(draws, quantile, "ko", label=f"drawn: exceeded with probability {delta:g}")
left.set(
    title=f"Half-neuron of {int((probabilities > 0).sum())} edges, at its worst point",
    xlabel="draws m",
    ylabel="relative error",
    xscale="log",
    yscale="log",
)
left.legend(fontsize=8.5)
last = {name: evidence[name, draws[-1]] for name in styles} | afterwards
floor = 0.3 / trials
for height, found in enumerate(reversed(last.values())):
    color = "tab:red" if found.refuted else "tab:blue"
    rate = max(found.failures / found.trials, floor)
    limits = [[rate - max(found.low, floor)], [found.high - rate]]
    right.errorbar([rate], [height], xerr=limits, fmt="o", color=color, capsize=4)
right.axvline(delta, color="black", linewidth=1)
right.text(delta, len(last) - 0.35, rf" allowed: $\delta$ = {delta:g}", ha="center", va="bottom")
right.set_yticks(range(len(last)), [name.removeprefix("wrong: ") for name in reversed(last)])
right.set(
    title=f"How often each claim failed, m = {draws[-1]}\n",
    xlabel=f"fraction of {trials} trials that fail (log scale; red: refuted)",
    xscale="log",
    ylim=(-0.6, len(last) - 0.4),
)
figure.tight_layout()
asked.output.mkdir(parents=True, exist_ok=True)
figure.savefig(asked.output / "verify_sipp.png", dpi=130)
print(f"wrote {asked.output / 'verify_sipp.png'}")
print(f"optprune {op.__version__}")
