"""Net-Trim's layers solved in parts: the same optimum, whatever the form, with little memory."""

import pytest
import torch

from optprune.certify import certify
from optprune.errors import InvalidInputError
from optprune.problems.net_trim import NetTrim
from optprune.solution import Termination
from optprune.solvers import NetTrimADMM
from optprune.solvers.net_trim_admm import _BYTES

FORMS = ("joint", "per neuron", "penalised", "linear", "bias", "cascade")
SAMPLES, INPUTS, OUT = 60, 12, 7


def make(form: str, share: float = 0.2) -> NetTrim:
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    # Neurons of different sizes, so that a common ball is not one for each.
    weight = normal(OUT, INPUTS) * torch.logspace(-1, 1, OUT, dtype=torch.float64)[:, None]
    data = normal(SAMPLES, INPUTS)
    bias = normal(OUT) if form == "bias" else None
    outputs = data @ weight.mT + (0.0 if bias is None else bias)
    if form == "cascade":
        return NetTrim.cascade(weight, data + 0.1 * normal(SAMPLES, INPUTS), outputs, 1.2, 0.05)
    if form == "penalised":
        return NetTrim.from_layer(weight, data, penalty=4.0)
    norms = outputs.norm(dim=0) if form == "linear" else outputs.clamp(min=0).norm(dim=0)
    radius = share * (norms if form == "per neuron" else norms.norm())
    return NetTrim.from_layer(weight, data, radius, bias, relu=form != "linear")


def parted(neurons: int) -> NetTrimADMM:
    """The solver with memory for so many neurons."""
    return NetTrimADMM(memory=(neurons + 0.5) * SAMPLES * _BYTES / 2**30)


@pytest.mark.parametrize("neurons", [1, 3])
@pytest.mark.parametrize("form", FORMS)
def test_parts_make_the_whole(form, neurons):
    problem = make(form)
    whole, parts = NetTrimADMM().run(problem), parted(neurons).run(problem)
    certificate, _ = certify(problem, parts.matrix, parts.hint)
    assert parts.termination == (Termination.CONVERGED,)
    assert certificate.primal_residual <= 2e-9
    assert abs(certificate.gap) <= 1e-7 * certificate.objective
    assert certificate.objective == pytest.approx(float(problem.objective(whole.matrix)), rel=1e-7)
    torch.testing.assert_close(parts.matrix, whole.matrix, rtol=1e-5, atol=1e-6 * float(whole.matrix.abs().max()))


@pytest.mark.parametrize("share", [0.0, 1e-6, 0.9, 1.5])
def test_small_and_large_balls(share):
    problem = make("joint", share)
    answer = parted(3).run(problem)
    certificate, _ = certify(problem, answer.matrix, answer.hint)
    assert answer.termination == (Termination.CONVERGED,)
    assert certificate.primal_residual <= 2e-9
    assert abs(certificate.gap) <= 1e-6 * certificate.objective
    assert bool((answer.matrix == 0).all()) == (share == 1.5)


def test_a_ball_that_holds_nothing_is_not_called_solved():
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(SAMPLES, 3, generator=generator, dtype=torch.float64)
    targets = torch.rand(SAMPLES, 4, generator=generator, dtype=torch.float64)
    problem = NetTrim(data, targets, targets > 0.4, None, torch.tensor(1e-3), torch.ones(3, dtype=torch.bool))
    answer = parted(2).run(problem)
    assert not answer.termination[0].ok


def test_memory_is_positive():
    with pytest.raises(InvalidInputError, match="memory > 0"):
        NetTrimADMM(memory=0.0)
