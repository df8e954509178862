"""Edges sampled as published and in pairs, and what can be said of the pruned network on images that it never saw.

python examples/sampled_edges.py [--density 0.3] [--epochs 15]
"""

import argparse

import optprune as op
from optprune.cli.embedded import accuracy, digits, mlp, train

arguments = argparse.ArgumentParser(description="Sample the edges of a small network, and certify it on held-out data.")
arguments.add_argument("--density", type=float, default=0.3)
arguments.add_argument("--epochs", type=int, default=15)
arguments.add_argument("--hidden", type=int, nargs="+", default=[300, 100])
asked = arguments.parse_args()

data = digits()
model = mlp([64, *asked.hidden, 10])
train(model, data.train_inputs, data.train_targets, epochs=asked.epochs)

# Half of the images that the network never saw are for certificates, half show that the certificates hold.
half = len(data.test_inputs) // 2
held, labels = data.test_inputs[:half], data.test_targets[:half]
rest, truth = data.test_inputs[half:], data.test_targets[half:]

plan = op.plan.uniform(model, density=asked.density)
for solver in (op.SiPPDet(), op.SiPPRand(), op.PivotalEdges()):
    pruned, report = op.prune(model, data.train_inputs[:256], plan, solver, bound=False)
    worst = [record.certificate.details["worst"] for record in report.layers if record.certificate is not None]
    print(f"\n{solver}")
    print(f"largest relative error of a neuron on the points, layer by layer: {', '.join(f'{w:.2f}' for w in worst)}")
    print(f"accuracy {accuracy(model, rest, truth):.3f} dense, {accuracy(pruned, rest, truth):.3f} pruned")
    # Nothing is assumed of the network, and of the images only that new ones are like these.
    claims = op.held_out(model, pruned, held, labels=[labels])
    print(claims)
    bound = claims.claim("output", "conditional").bound
    missed = (pruned(rest) - model(rest)).norm(dim=-1) / model(rest).norm(dim=-1)
    print(f"the output's conditional bound holds for {(missed <= bound).double().mean():.3f} of the other images")
