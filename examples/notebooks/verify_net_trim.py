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
# # Is Net-Trim's lower bound a bound?
#
# `NetTrim` asks for the matrix of least l1 norm that keeps what a ReLU layer does on its samples, up to a radius.
# Its certificate is a lower bound by weak duality, [T01](../../proofs/T01-net-trim-weak-duality.md): *any*
# multipliers, divided by what makes them admissible, give a number that no admissible matrix can undercut. Here a
# real layer is pruned, and then everything is tried that would show the bound wrong: bad multipliers, admissible
# matrices from elsewhere, a search around the answer, exact arithmetic. At the end the constants of the theorem are
# changed, and the bounds so made are refuted.
#
# The layer is the second of a network trained on scikit-learn's digits. Where `OPTPRUNE_DATA` names a folder with
# `layers/nettrim_300x100.npz`, it is that one, with 1,000 samples. As a script: `python
# examples/notebooks/verify_net_trim.py [--small] [--output runs/notebooks]`.

# %%
import argparse
import os
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

import optprune as op
from optprune.certify import recheck
from optprune.cli.embedded import digits, mlp, train

arguments = argparse.ArgumentParser(description="Try to break the lower bound of a Net-Trim layer.")
arguments.add_argument("--small", action="store_true", help="a small layer and few trials")
arguments.add_argument("--output", type=Path, default=Path("runs/notebooks"))
asked, _ = arguments.parse_known_args()  # a notebook's kernel has arguments of its own
trials = 8 if asked.small else 60
rng = torch.Generator().manual_seed(0)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


stored = Path(os.environ.get("OPTPRUNE_DATA", "nowhere")) / "layers/nettrim_300x100.npz"
if stored.is_file() and not asked.small:
    arrays = np.load(stored)
    weight, inputs = (torch.from_numpy(arrays[name]).double() for name in ("W", "X"))
else:
    data, hidden = digits(), (24, 16) if asked.small else (300, 100)
    model = mlp([64, *hidden, 10])
    train(model, data.train_inputs, data.train_targets, epochs=3 if asked.small else 15)
    inputs = model[:2](data.train_inputs[: 150 if asked.small else 1000]).detach().double()
    weight = model.get_submodule("fc2").get_parameter("weight").detach().double()
outputs = (inputs @ weight.mT).clamp(min=0)
radius = 0.05 * float(outputs.norm())
print(f"{weight.shape[0]} neurons, {weight.shape[1]} inputs, {len(inputs)} samples; radius 5 % of the outputs' norm")

# %% [markdown]
# ## The answer and its certificate
#
# The solver's multipliers are the evidence. `rounded` means that the rounding error of float64 has been bounded and
# subtracted; `certify_exact` evaluates the same evidence in rational arithmetic, where nothing is rounded (it needs
# the extra `proofs`).

# %%
problem = op.NetTrim.from_layer(weight, inputs, radius)
solution = op.solve(problem, op.NetTrimADMM())
certificate = solution.certificate
assert certificate is not None
assert problem.radius is not None
exact = op.certify_exact(problem, solution.matrix, solution.evidence)
print(solution)
print(exact)
assert certificate.lower_bound <= exact.lower_bound.low
kept = int((solution.matrix != 0).sum())
print(f"{kept} of {weight.numel()} weights are left; the gap is at most {float(exact.gap.high):.1e}")

# %% [markdown]
# ## Attack 1: other multipliers
#
# If some multipliers gave a number above the objective of an admissible matrix, the theorem would be false. The
# best ones are disturbed by noise of every size, scaled, reversed, replaced by noise. Each pair is (relative
# disturbance, value / objective - 1).

# %%
best, objective = solution.evidence["multipliers"], certificate.objective
size = best.norm()


def dual(multipliers: torch.Tensor, stated: op.NetTrim = problem) -> float:
    return recheck(stated, solution.matrix, {"multipliers": multipliers}).lower_bound


lower = []
for step in torch.logspace(-9, 1, trials, dtype=torch.float64).tolist():
    noise = normal(*best.shape)
    found = dual(best + step * size / noise.norm() * noise)
    lower.append((step, found / objective - 1))
for factor in (0.0, 0.9, 0.999, 1.001, 1.1, 10.0, -1.0):
    lower.append((abs(factor - 1), dual(factor * best) / objective - 1))
print(
    f"{len(lower)} multipliers, the largest value is {max(value for _, value in lower):+.1e} relative to the objective"
)
# The answer satisfies its constraints up to rounding; to the same degree a bound may exceed its objective.
allowed = 1e-8
assert max(value for _, value in lower) <= allowed

# %% [markdown]
# ## Attack 2: other admissible matrices
#
# The admissible matrices are convex, and the dense weight is one of them. So any matrix can be made admissible by
# moving it towards the dense weight: far enough, and no further. Random directions from the answer are tried,
# directions that shrink it, where the l1 norm falls fastest, and the direction of the dense weight itself. An
# admissible matrix below the bound would refute it.


# %%
def admissible(matrix: torch.Tensor) -> torch.Tensor:
    """The first admissible matrix on the way from a matrix to the dense weight."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        violation = problem.violation((1 - middle) * matrix + middle * weight)
        held = max(float(value) for value in violation.values()) == 0
        low, high = (low, middle) if held else (middle, high)
    return (1 - high) * matrix + high * weight


upper, length = [], solution.matrix.norm()
for step in torch.logspace(-8, 0.5, trials, dtype=torch.float64).tolist():
    for direction in (normal(*weight.shape), -solution.matrix.sign(), weight - solution.matrix):
        found = admissible(solution.matrix + step * length / direction.norm() * direction)
        moved = float((found - solution.matrix).norm() / length)
        upper.append((moved, float(problem.objective(found)) / objective - 1))
least = min(value for _, value in upper)
print(f"{len(upper)} admissible matrices, the smallest objective is {least:+.1e} relative to the answer's")
assert least * objective + objective >= certificate.lower_bound

# %% [markdown]
# ## Attack 3: wrong constants
#
# The bound is the dual function of T01 after a division by $\max(1, \lVert X^\top \Lambda \rVert_\infty)$. Leave
# the division out, take one per cent off the ball's term, or drop the term altogether, and the best multipliers,
# raised a little, give "bounds" above the objective of a matrix that is admissible. Each is refuted by the answer
# itself.


# %%
def undivided(multipliers: torch.Tensor, share: float = 1.0) -> float:
    """The dual function of T01 without its division, `share` of the ball's term taken."""
    lam = torch.where(problem.active, multipliers, multipliers.clamp(min=0))
    return float(-(lam * problem.targets).sum() - share * radius * torch.where(problem.active, lam, 0.0).norm())


wrong = {
    "no division": [(f - 1, undivided(f * best) / objective - 1) for f in (1.0001, 1.001, 1.01, 1.1, 1.5)],
    "radius 1 % smaller": [(1e-8, dual(best, replace(problem, radius=0.99 * problem.radius)) / objective - 1)],
    "no ball": [(1e-8, undivided(best, share=0.0) / objective - 1)],
}
for name, pairs in wrong.items():
    print(f"{name}: a 'bound' {100 * max(value for _, value in pairs):.2g} % above the optimum, refuted")
    assert max(value for _, value in pairs) > allowed

# %% [markdown]
# ## Picture
#
# Everything in one figure: values of the dual function below, admissible matrices above, and the optimum caught
# between them. The vertical axis is symmetric-logarithmic: linear within $10^{-9}$ of the optimum, logarithmic
# outside.

# %%
figure, axes = plt.subplots(figsize=(9, 5.5))
axes.axhspan(-1, 0, color="tab:blue", alpha=0.06)
axes.axhline(0, color="black", linewidth=1)
styles = {
    "objectives of admissible matrices: above": (upper, "tab:green", "."),
    "lower bounds by T01: below": (lower, "tab:blue", "."),
    **{
        f"wrong 'bounds', {name}: refuted": (pairs, "tab:red", mark)
        for (name, pairs), mark in zip(wrong.items(), ("x", "^", "s"), strict=True)
    },
}
for label, (pairs, color, marker) in styles.items():
    horizontal, vertical = zip(*pairs, strict=True)
    axes.scatter([max(h, 1e-9) for h in horizontal], vertical, s=28, color=color, marker=marker, label=label, zorder=3)
axes.set_xscale("log")
axes.set_yscale("symlog", linthresh=1e-9)
axes.set(
    title=f"Net-Trim, {weight.shape[1]} inputs x {weight.shape[0]} neurons: bounds and objectives meet at the optimum",
    xlabel="relative distance from the solver's answer (of multipliers or of weights)",
    ylabel="value / objective of the answer - 1",
)
axes.legend(loc="lower left", fontsize=8)
figure.tight_layout()
asked.output.mkdir(parents=True, exist_ok=True)
figure.savefig(asked.output / "verify_net_trim.png", dpi=130)
print(f"wrote {asked.output / 'verify_net_trim.png'}")
assert all(
    Fraction(value * objective + objective) <= exact.objective.high * (1 + Fraction(allowed)) for _, value in lower
)
