"""One layer: state the problem, choose a solver, read the certificate.

python examples/one_layer.py
"""

import torch

import optprune as op

# A layer of 32 neurons with 64 inputs, and what it sees: 512 samples of rectified, correlated activations.
generator = torch.Generator().manual_seed(0)
weight = torch.randn(32, 64, generator=generator, dtype=torch.float64)
mixing = torch.eye(64, dtype=torch.float64) + torch.randn(64, 64, generator=generator, dtype=torch.float64) / 20
inputs = (torch.randn(512, 64, generator=generator, dtype=torch.float64) @ mixing).relu()

# The problem is a mathematical statement: reproduce the layer's outputs with 2 of every 4 weights.
problem = op.L0LeastSquares.from_layer(weight, inputs, op.NOfM(2, 4))

# A solver is a frozen record of settings. Two of them, on the same problem.
for solver in (op.Magnitude(refit=False), op.ADMM()):
    solution = op.solve(problem, solver)
    certificate = solution.certificate
    assert certificate is not None
    print(f"{type(solver).__name__}: {solution}")

    # Why it stopped is the solver's claim; what is true of the weights was found by code that cannot see the solver.
    assert solution.termination.ok
    assert certificate.lower_bound <= certificate.objective
    assert op.NOfM(2, 4).admits(solution.weight != 0)

# The lower bound speaks of every 2:4 pruning of this layer, so it bounds what the better answer leaves to gain.
print(f"No 2:4 pruning of this layer can have an error below {certificate.lower_bound:.4g}.")
