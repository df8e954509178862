"""One real layer at every density: what each method errs by, below which no method can go, and what it costs in time.

python examples/error_against_density.py [--hidden 300 100] [--densities 0.5 0.3 0.2 0.1 0.05] [--damping 0.01]
                                         [--output runs/curves]

The layer is the second of a network trained on scikit-learn's digits. The dark line is the best error found, the edge
of the grey area a proved lower bound. Both fall with the density, and rigorously so: an answer with fewer weights is an
answer with more, and a bound that holds for more weights holds for fewer.
"""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import optprune as op
from optprune.cli.embedded import digits, mlp, train

SOLVERS = {
    "Portfolio": op.Portfolio(),
    "Portfolio, fast": op.Portfolio("fast"),
    "OBC": op.OBC(),
    "SparseGPT": op.SparseGPT(),
    "Wanda": op.Wanda(),
    "Magnitude": op.Magnitude(refit=False),
}

arguments = argparse.ArgumentParser(description="Error, lower bound and time of one layer against its density.")
arguments.add_argument("--hidden", type=int, nargs=2, default=[300, 100])
arguments.add_argument("--densities", type=float, nargs="+", default=[0.7, 0.5, 0.4, 0.3, 0.2, 0.15, 0.1, 0.05])
arguments.add_argument("--damping", type=float, default=0.01)
arguments.add_argument("--output", type=Path, default=Path("runs/curves"))
asked = arguments.parse_args()

data = digits()
model = mlp([64, *asked.hidden, 10])
train(model, data.train_inputs, data.train_targets)
inputs = model[:2](data.train_inputs).detach().double()
weight = model.get_submodule("fc2").get_parameter("weight").detach().double()
statistics = op.Statistics.from_layer(weight, inputs)

densities = sorted(asked.densities, reverse=True)
errors = {name: [] for name in SOLVERS}
seconds = {name: [] for name in (*SOLVERS, "certificate")}
bounds = []
for density in densities:
    pattern = op.PerLayer.at_density(density, (weight.shape[0], weight.shape[1]))
    problem = op.L0LeastSquares(statistics, pattern, damping=asked.damping)
    energy = float(problem.objective(0 * weight))
    for name, solver in SOLVERS.items():
        solution = op.solve(problem, solver, certified=name == "Portfolio")
        errors[name].append((float(problem.objective(solution.weight)) / energy) ** 0.5)
        seconds[name].append(solution.seconds)
        if solution.certificate is not None:
            bounds.append((max(solution.certificate.lower_bound, 0.0) / energy) ** 0.5)
            seconds["certificate"].append(solution.info["certificate_seconds"])
    print(f"density {density:.2f}: at least {bounds[-1]:.4f}, found {errors['Portfolio'][-1]:.4f}")

# An answer with fewer weights serves a larger budget too; a bound for more weights holds for a smaller one.
found = [min(min(curve[i:]) for curve in errors.values()) for i in range(len(densities))]
proved = [max(bounds[: i + 1]) for i in range(len(densities))]
assert all(low <= high for low, high in zip(proved, found, strict=True))

asked.output.mkdir(parents=True, exist_ok=True)
record = {"densities": densities, "errors": errors, "found": found, "proved": proved, "seconds": seconds}
(asked.output / "curves.json").write_text(json.dumps(record, indent=1))

figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5), sharex=True, layout="constrained")
for name, curve in errors.items():
    left.plot(densities, curve, marker=".", linewidth=1, label=name)
    right.plot(densities, seconds[name], marker=".", linewidth=1, label=name)
left.plot(densities, found, color="black", linewidth=2, label="best found")
left.plot(densities, proved, color="grey", label="proved lower bound")
left.fill_between(densities, min(value for value in proved if value > 0) / 2, proved, color="lightgrey")
right.plot(densities, seconds["certificate"], color="grey", label="certificate")
left.set(xlabel="density", ylabel="relative error of the layer's outputs", yscale="log", xscale="log")
right.set(xlabel="density", ylabel="seconds", yscale="log")
left.set_xticks(densities, [f"{density:g}" for density in densities])
left.minorticks_off()
right.minorticks_off()
figure.legend(*right.get_legend_handles_labels(), loc="outside upper center", ncols=len(errors) + 1, frameon=False)
left.legend(handles=left.lines[-2:])
figure.savefig(asked.output / "curves.png", dpi=150)
print(f"wrote {asked.output / 'curves.png'}")
