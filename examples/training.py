"""Pruning inside of a training loop: a method around it, hard pruning, a little retraining, a verified run.

python examples/training.py [--density 0.1] [--epochs 20] [--retrain 5] [--method slr] [--output runs/training]
"""

import argparse
from pathlib import Path

import torch
from torch.nn import functional as F

import optprune as op
from optprune.cli.embedded import accuracy, digits, mlp, train
from optprune.training.diagnostics import plot

METHODS = {
    "slr": lambda *given, every: op.training.SLR(*given, every=every, rho=0.1),
    "admm": lambda *given, every: op.training.ADMM(*given, every=every, rho=1e-2, growth=1.15),
    "iht": lambda *given, every: op.training.IHT(*given, every=every),
    "drop": lambda *given, every: op.training.DropPruning(*given, every=every, rounds=15),
    "gradual": lambda *given, every: op.training.Gradual(*given, every=every, rounds=15),
}

arguments = argparse.ArgumentParser(description="Prune a small network on scikit-learn's digits while it trains.")
arguments.add_argument("--density", type=float, default=0.1)
arguments.add_argument("--method", choices=METHODS, default="slr")
arguments.add_argument("--epochs", type=int, default=20)
arguments.add_argument("--retrain", type=int, default=5)
arguments.add_argument("--hidden", type=int, nargs="+", default=[300, 100])
arguments.add_argument("--output", type=Path, default=Path("runs/training"))
asked = arguments.parse_args()

data = digits()
model = mlp([64, *asked.hidden, 10])
train(model, data.train_inputs, data.train_targets)


def right() -> str:
    """The share of the test images that the model has right now."""
    return f"{100 * accuracy(model, data.test_inputs, data.test_targets):.2f} % of the test images right"


print(f"dense: {right()}")
generator = torch.Generator().manual_seed(0)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
rows = len(data.train_inputs)
plan = op.plan.uniform(model, density=asked.density)
method = METHODS[asked.method](model, plan, optimizer, every=-(-rows // 64))


def epoch() -> None:
    """An epoch of your own loop; the three calls of `method` are all that is new in it."""
    for batch in torch.randperm(rows, generator=generator).split(64):
        loss = F.cross_entropy(model(data.train_inputs[batch]), data.train_targets[batch])
        optimizer.zero_grad()
        (loss + method.penalty()).backward()
        optimizer.step()
        method.step(loss)


for _ in range(asked.epochs):
    epoch()
method.prune()
print(f"pruned, before any retraining: {right()}")
for _ in range(asked.retrain):
    epoch()
print(f"retrained with frozen masks: {right()}")

# The report holds the network against the dense one that it began with, layer by layer, on the same images.
pruned, report = method.finish(data.train_inputs.split(256))
print(report)
op.export(pruned, report, asked.output / "run", overwrite=True)
print(op.verify(asked.output / "run"))
plot(method.history).savefig(asked.output / "history.png")
