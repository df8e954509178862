"""The interior point method of single neurons, and the layers that the Net-Trim solver needs it for."""

import pytest
import torch

from optprune.certify import certify
from optprune.problems.net_trim import NetTrim
from optprune.solution import Termination
from optprune.solvers import NetTrimADMM
from optprune.solvers._net_trim_interior import interior
from optprune.solvers._net_trim_layer import Layer


def thin(seed: int, samples: int, inputs: int, neurons: int, form: str = "neuron") -> NetTrim:
    """Nonnegative inputs of decaying spectrum, some neurons active on a few samples only: thin cones of weights."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    mixing = normal(inputs, inputs) / torch.arange(1, inputs + 1) ** 0.5
    data = (normal(samples, inputs) @ mixing.mT).clamp(min=0)
    strong = torch.rand(neurons, inputs, generator=generator, dtype=torch.float64) < 0.1
    weight = normal(neurons, inputs) * torch.where(strong, 1.0, 0.02)
    if form == "penalised":
        return NetTrim.from_layer(weight, data, penalty=2.0)
    bias = normal(neurons) if form == "bias" else None
    norms = (data @ weight.mT + (0.0 if bias is None else bias)).clamp(min=0).norm(dim=0)
    return NetTrim.from_layer(weight, data, 0.1 * (norms.norm() if form == "joint" else norms), bias)


@pytest.mark.parametrize("form", ["neuron", "bias", "penalised"])
def test_it_ends_at_the_optimum(form):
    problem = thin(0, 120, 12, 6, form)
    layer = Layer.of(problem)
    rows = torch.tensor([4, 0, 2])
    start = layer.penalty[rows] if layer.penalty is not None else torch.full((3,), 1e-2, dtype=torch.float64)
    found = interior(layer, rows, start)
    assert bool(found.done.all())
    exact = NetTrimADMM().run(problem)
    matrix = exact.matrix.clone()
    whole = layer.targets.new_zeros(layer.targets.shape[0], layer.inputs.shape[1])
    whole[rows] = found.u
    matrix[rows] = layer.matrix(whole)[rows]
    assert float(problem.objective(matrix)) == pytest.approx(float(problem.objective(exact.matrix)), rel=1e-8)
    assert max(float(v) for v in problem.violation(matrix).values()) <= 1e-8
    weights = exact.matrix[rows][:, :12] != 0
    assert bool((found.support[:, :12] == weights).all())
    # A neuron without weights has many multipliers.
    some = weights.any(1)
    multipliers = (exact.hint["multipliers"].mT[rows] / layer.dual_unit)[some]
    torch.testing.assert_close(found.lam[some], multipliers, rtol=1e-5, atol=1e-6 * float(multipliers.abs().max()))


def test_what_cannot_be_is_not_called_done():
    """Outputs that no weights come near, in a ball that asks for them."""
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(60, 3, generator=generator, dtype=torch.float64)
    targets = torch.rand(60, 2, generator=generator, dtype=torch.float64)
    active = targets > 0.4
    radius = torch.full((2,), 1e-3, dtype=torch.float64)
    problem = NetTrim(data, targets, active, None, radius, torch.ones(3, dtype=torch.bool))
    layer = Layer.of(problem)
    found = interior(layer, torch.arange(2), torch.full((2,), 1e-2, dtype=torch.float64))
    assert not bool(found.done.any())


@pytest.mark.parametrize("form", ["neuron", "joint"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_thin_cones_are_solved(seed, form):
    """Newton's steps alone leave gaps near 1e-2 here."""
    problem = thin(seed, 500, 25, 50, form)
    answer = NetTrimADMM().run(problem)
    certificate, _ = certify(problem, answer.matrix, answer.hint)
    assert answer.termination == (Termination.CONVERGED,)
    assert certificate.relative_gap <= 1e-9
    assert certificate.primal_residual <= 1e-9
