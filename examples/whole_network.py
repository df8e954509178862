"""A whole network: train, plan, prune, read the report, write the run, verify it.

python examples/whole_network.py [--density 0.2] [--epochs 15] [--output runs/whole_network]
"""

import argparse
from pathlib import Path

import optprune as op
from optprune.cli.embedded import accuracy, digits, mlp, train

arguments = argparse.ArgumentParser(description="Prune a small network on scikit-learn's digits and verify the run.")
arguments.add_argument("--density", type=float, default=0.2)
arguments.add_argument("--epochs", type=int, default=15)
arguments.add_argument("--hidden", type=int, nargs="+", default=[300, 100])
arguments.add_argument("--output", type=Path, default=Path("runs/whole_network"))
asked = arguments.parse_args()

data = digits()
model = mlp([64, *asked.hidden, 10])
train(model, data.train_inputs, data.train_targets, epochs=asked.epochs)
print(f"dense: {100 * accuracy(model, data.test_inputs, data.test_targets):.2f} % of the test images right")

# What each layer may keep, so that the outputs err least in total. What a layer costs at several densities is measured
# with a fast solver; a better one errs less everywhere, but its curves have much the same shape.
batches = data.train_inputs.split(256)
plan = op.plan.allocated(model, batches, asked.density, op.Magnitude())
print(plan)

# Cascade: each layer sees what the pruned layers before it put out, and repairs what it can.
pruned, report = op.prune(model, batches, plan, op.ADMM(), mode="cascade")
print(report)
print(f"pruned: {100 * accuracy(pruned, data.test_inputs, data.test_targets):.2f} % of the test images right")

# The folder holds the weights, dense and packed, and all it takes to check every certificate without a solver.
op.export(pruned, report, asked.output, overwrite=True)
print(op.verify(asked.output))
