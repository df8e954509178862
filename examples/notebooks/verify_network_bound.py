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
# # Does the bound on the network's error hold, and could it be smaller?
#
# Layer errors travel through the network, and [T04](../../proofs/T04-error-propagation.md) bounds what arrives:
# behind layer $l$ the discrepancy is at most $d_l = \lVert \hat W_l \rVert_2 \, d_{l-1} + e_l$, with $e_l$ the
# layer's own error on dense inputs. Here a real network is pruned at many densities, changed at random, and changed
# by gradient ascent on measured error / bound, the worst that an adversary can do; and a network is built in which
# the bound is attained, so that no constant in it can be smaller. Then other rules, which look reasonable, are
# refuted by measurements.
#
# The network is trained on scikit-learn's digits. Where `OPTPRUNE_DATA` names a folder with
# `layers/digits_mlp_64_256_256_10.npz`, it is that one. As a script: `python
# examples/notebooks/verify_network_bound.py [--small] [--output runs/notebooks]`.

# %%
import argparse
import copy
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn

import optprune as op
from optprune.cli.embedded import digits, mlp, train
from optprune.network.assess import assess

arguments = argparse.ArgumentParser(description="Try to exceed the bound on a pruned network's error.")
arguments.add_argument("--small", action="store_true", help="a small network and few trials")
arguments.add_argument("--output", type=Path, default=Path("runs/notebooks"))
asked, _ = arguments.parse_known_args()  # a notebook's kernel has arguments of its own
densities = [0.5, 0.1] if asked.small else [0.7, 0.6, 0.5, 0.35, 0.25, 0.15, 0.1, 0.05]
steps = 15 if asked.small else 150
rng = torch.Generator().manual_seed(0)

stored = Path(os.environ.get("OPTPRUNE_DATA", "nowhere")) / "layers/digits_mlp_64_256_256_10.npz"
if stored.is_file() and not asked.small:
    arrays = np.load(stored)
    model = mlp([64, 256, 256, 10])
    for name, index in (("fc1", 0), ("fc2", 2), ("fc3", 4)):
        layer = model.get_submodule(name)
        layer.load_state_dict({key: torch.from_numpy(arrays[f"net_{index}.{key}"]) for key in ("weight", "bias")})
    inputs = torch.from_numpy(arrays["Xtr"])[:500]
else:
    data, hidden = digits(), (24, 16) if asked.small else (300, 100)
    model = mlp([64, *hidden, 10])
    train(model, data.train_inputs, data.train_targets, epochs=3 if asked.small else 15)
    inputs = data.train_inputs[: 100 if asked.small else 500]
layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
print(f"layers {', '.join(layers)}; {len(inputs)} images")

# %% [markdown]
# ## Attack 1: prune it
#
# `prune` reports the bound and, beside it, the error that it measures on the same images. In `cascade` mode the
# errors of earlier layers are repaired by later ones and the last discrepancy is measured, so that bound and
# measurement are one number; the bound is put to the test in `parallel` mode. A bound above the norm of the output
# itself says nothing: it is vacuous, and reported as such.


# %%
def checked(report: op.Report) -> op.NetworkBound:
    """The network's bound and measurement; the first must not be the smaller one."""
    found = report.network
    assert found is not None
    assert found.bound is not None
    assert found.measured is not None
    assert found.measured <= found.bound
    return found


pruned: dict[str, list[op.NetworkBound]] = {}
for name, solver in (("SparseGPT", op.SparseGPT()), ("Wanda", op.Wanda()), ("magnitude", op.Magnitude(refit=False))):
    plans = [op.plan.uniform(model, density=density) for density in densities]
    pruned[name] = [checked(op.prune(model, [inputs], plan, solver, certified=False)[1]) for plan in plans]
    for density, found in zip(densities, pruned[name], strict=True):
        print(
            f"{name}, density {density:.2f}: measured {found.relative_measured:.3g}, bound {found.relative_bound:.3g}"
            + (" (vacuous)" if found.vacuous else "")
        )

# %% [markdown]
# ## Attack 2: change it at random, and by gradient ascent
#
# `assess` holds any changed network against the dense one. Random changes of all weights come first. Then an
# adversary: the bound is written in torch, and the changes climb measured / bound by Adam, from several starts. If
# the bound were wrong, this is where it should show; how close to 1 the ratio comes says how much of the bound is
# due to the worst case and how much to slack.

# %%
full = op.plan.uniform(model, density=1.0)
modules = [model.get_submodule(name) for name in layers]
dense = [tuple(m.get_parameter(key).detach().double() for key in ("weight", "bias")) for m in modules]
wide = inputs.double()


def with_changes(changes: list[torch.Tensor]) -> op.NetworkBound:
    """The bound and measurement of the network with these changes of its weights."""
    changed = copy.deepcopy(model).double()
    for name, change in zip(layers, changes, strict=True):
        changed.get_submodule(name).get_parameter("weight").data.add_(change)
    return checked(
        assess(copy.deepcopy(model).double(), changed, [wide], full, by="changes", certified=False, evidence=False)
    )


def ratio(changes: list[torch.Tensor]) -> torch.Tensor:
    """Measured error over the recursion of T04 with activations, differentiable."""
    clean = moved = wide
    bound = torch.zeros((), dtype=torch.float64)
    for index, ((weight, bias), change) in enumerate(zip(dense, changes, strict=True)):
        act = torch.relu if index < len(dense) - 1 else nn.Identity()
        own = act(clean @ (weight + change).mT + bias) - act(clean @ weight.mT + bias)
        bound = torch.linalg.matrix_norm(weight + change, ord=2) * bound + own.norm()
        moved, clean = act(moved @ (weight + change).mT + bias), act(clean @ weight.mT + bias)
    return (moved - clean).norm() / bound


def noise(size: float) -> list[torch.Tensor]:
    return [
        size * w.norm() / w.numel() ** 0.5 * torch.randn(w.shape, generator=rng, dtype=torch.float64) for w, _ in dense
    ]


at_random = [with_changes(noise(size)) for size in np.logspace(-3, 0.5, 4 if asked.small else 12).tolist()]
adversarial = []
for size in (0.01, 0.3) if asked.small else (0.001, 0.01, 0.1, 0.3, 1.0):
    changes = [change.requires_grad_() for change in noise(size)]
    optimizer = torch.optim.Adam(changes, lr=0.05 * size)
    for _ in range(steps):
        optimizer.zero_grad()
        (-ratio(changes)).backward()
        optimizer.step()
    adversarial.append(with_changes([change.detach() for change in changes]))


def fraction(found: op.NetworkBound) -> float:
    assert found.measured is not None
    assert found.bound is not None
    return found.measured / found.bound


print(f"measured / bound: pruned up to {max(fraction(f) for runs in pruned.values() for f in runs):.3f}, ", end="")
print(f"at random {max(map(fraction, at_random)):.3f}, adversarial {max(map(fraction, adversarial)):.3f}")

# %% [markdown]
# ## Where the bound is attained
#
# One unit per layer, positive weights: the change of the first layer passes the others without loss, and measured
# error and bound are one number up to rounding. With any gain smaller by one in a thousand the recursion would
# state less than what is measured.

# %%
units = [nn.Linear(1, 1, bias=False).double() for _ in range(3)]
for unit, value in zip(units, (2.0, 3.0, 0.5), strict=True):
    unit.weight.data.fill_(value)
chain = nn.Sequential(units[0], nn.ReLU(), units[1], nn.ReLU(), units[2])
less = copy.deepcopy(chain)
less[0].get_parameter("weight").data.fill_(1.7)
whole = op.plan.uniform(chain, density=1.0)
points = torch.linspace(0.1, 1.0, 20, dtype=torch.float64)[:, None]
attained = checked(assess(chain, less, [points], whole, by="changes", certified=False, evidence=False))
print(f"measured / bound = {fraction(attained):.12f}")
assert fraction(attained) > 1 - 1e-9

# %% [markdown]
# ## Wrong rules
#
# Every instance above is also held against rules that look plausible: layer errors add up without any gain; they
# add up like independent numbers, as the root of their squares; gains are those of a typical direction, $\lVert
# \hat W \rVert_F / \sqrt{\text{rank}}$; or they are 0.1 % smaller. A rule that states less than what was measured
# is refuted.


# %%
def recursion(found: op.NetworkBound, gain=lambda name, g: g, join=lambda a, b: a + b) -> float:
    """T04's recursion over the reported terms, with another gain or another sum."""
    total = 0.0
    for name, term in found.terms.items():
        total = join(gain(name, term["gain"]) * total, term.get("behind", term["local"]))
    return total


spread = {
    name: float(w.norm() / (min(w.shape) ** 0.5 * torch.linalg.matrix_norm(w, 2)))
    for name, (w, _) in zip(layers, dense, strict=True)
}
rules = {
    "no gains": lambda found: recursion(found, gain=lambda name, g: 1.0),
    "root of squares": lambda found: recursion(found, join=lambda a, b: (a * a + b * b) ** 0.5),
    "typical direction": lambda found: recursion(found, gain=lambda name, g: g * spread.get(name, 1.0)),
    "gains 0.1 % smaller": lambda found: recursion(found, gain=lambda name, g: 0.999 * g),
}
groups = {
    "pruned": [found for runs in pruned.values() for found in runs],
    "changed at random": at_random,
    "gradient ascent": adversarial,
    "bound attained": [attained],
}
instances = [found for group in groups.values() for found in group]
assert all(abs(recursion(found) / found.bound - 1) < 1e-6 for found in instances if found.bound), "the rule itself"
excess = {name: [found.measured / rule(found) for found in instances if found.measured] for name, rule in rules.items()}
for name, values in excess.items():
    count = sum(value > 1 + 1e-9 for value in values)
    print(f"{name}: refuted by {count} of {len(values)} networks, at worst {max(values):.3f} times what it states")
    assert count > 0

# %% [markdown]
# ## Picture
#
# Left, the pruned networks: what is stated and what is measured, as a fraction of the output's norm. Right,
# measured error over what was stated, for every network and every rule: nothing may lie right of 1.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(12.5, 4.8))
for (name, runs), color in zip(pruned.items(), ("tab:blue", "tab:green", "tab:orange"), strict=True):
    stated = [run.relative_bound or 0.0 for run in runs]
    left.plot(densities, stated, "-", color=color, label=f"{name}: bound")
    left.plot(
        densities, [run.relative_measured for run in runs], "o--", color=color, label=f"{name}: measured", markersize=4
    )
left.axhspan(1, 1e6, color="grey", alpha=0.15)
highest = max(run.relative_bound or 0.0 for runs in pruned.values() for run in runs)
left.text(densities[0], 0.6 * highest, "vacuous: no less than the output itself", color="dimgrey", ha="right")
left.set(
    title=f"{' - '.join(str(w.shape[1]) for w, _ in dense)} - {len(dense[-1][0])} network, every layer pruned alike",
    xlabel="density (fraction of weights kept)",
    ylabel="error of the outputs / their norm",
    xscale="log",
    yscale="log",
    ylim=(None, 1.5 * highest),
)
left.set_xticks([d for d in densities if d != 0.6], [f"{d:g}" for d in densities if d != 0.6])
left.minorticks_off()
left.legend(fontsize=8.5)
rows = {name: [fraction(found) for found in group] for name, group in groups.items()} | {
    f"wrong: {k}": v for k, v in excess.items()
}
for height, values in enumerate(reversed(rows.values())):
    colors = ["tab:red" if value > 1 + 1e-9 else "tab:blue" for value in values]
    right.scatter(values, [height] * len(values), s=24, c=colors, alpha=0.7)
right.axvline(1, color="black", linewidth=1)
right.axhline(len(rules) - 0.5, color="grey", linewidth=0.8, linestyle=":")
right.set_yticks(range(len(rows)), list(reversed(rows)))
right.set(
    title="Measured error over what is stated",
    xlabel="measured / stated (log scale; red: refuted)",
    xscale="log",
    ylim=(-0.6, len(rows) - 0.4),
)
figure.tight_layout()
asked.output.mkdir(parents=True, exist_ok=True)
figure.savefig(asked.output / "verify_network_bound.png", dpi=130)
print(f"wrote {asked.output / 'verify_network_bound.png'}")
