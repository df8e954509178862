"""Prune, retrain, prune further; or prune at initialisation and train what is left. The training loop is your own.

python examples/prune_and_retrain.py [--at-initialisation] [--method portfolio] [--densities 0.4 0.2 0.1 0.05]

From a shell, with a training script of yours between two commands:

    optprune prune --model mine:network --data mine.npz --weights dense.safetensors --method sipp-det --density 0.4 \
        --output runs/1
    python retrain.py runs/1/sipp-det retrained.safetensors  # op.load, op.training.freeze, your loop, save_file
    optprune prune --model mine:network --data mine.npz --weights retrained.safetensors --method sipp-det \
        --density 0.2 --output runs/2
"""

import argparse

import torch
from torch.nn import functional as F

import optprune as op
from optprune.cli.embedded import accuracy, digits, mlp

METHODS = {
    "portfolio": op.Portfolio("fast"),
    "sipp-det": op.SiPPDet(),
    "pivotal": op.PivotalEdges(),
    "magnitude": op.Magnitude(refit=False),
}

arguments = argparse.ArgumentParser(description="Prune a small network on scikit-learn's digits in rounds.")
arguments.add_argument("--at-initialisation", action="store_true", help="prune once, to the last density, then train")
arguments.add_argument("--method", choices=METHODS, default="portfolio")
arguments.add_argument("--densities", type=float, nargs="+", default=[0.4, 0.2, 0.1, 0.05])
arguments.add_argument("--epochs", type=int, default=15, help="of the dense network")
arguments.add_argument("--retrain", type=int, default=5, help="epochs after each round")
arguments.add_argument("--hidden", type=int, nargs="+", default=[300, 100])
asked = arguments.parse_args()

data = digits()
model = mlp([64, *asked.hidden, 10])
generator = torch.Generator().manual_seed(0)


def fit(epochs: int) -> float:
    """Your own loop: what is zero when it begins is zero after every step. Returns the share of test images right."""
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    frozen = op.training.freeze(model, None, optimizer)
    for _ in range(epochs):
        for batch in torch.randperm(len(data.train_inputs), generator=generator).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(data.train_inputs[batch]), data.train_targets[batch]).backward()
            optimizer.step()
    frozen.remove()
    return accuracy(model, data.test_inputs, data.test_targets)


if asked.at_initialisation:
    # Weights that were never trained say nothing about the layers: their shapes share the budget.
    planner, densities = op.plan.erk, asked.densities[-1:]
    epochs = asked.epochs + asked.retrain * len(asked.densities)
else:
    planner, densities, epochs = op.plan.global_magnitude, asked.densities, asked.retrain
    print(f"dense: {fit(asked.epochs):.3f} of the test images right")
for density in densities:
    plan = planner(model, density)
    model, report = op.prune(model, data.train_inputs, plan, METHODS[asked.method], damping=1e-2, bound=False)
    before = accuracy(model, data.test_inputs, data.test_targets)
    print(f"{report.kept} of {report.total} weights: {before:.3f} right, retrained {fit(epochs):.3f}")
