"""ADMM's linear step by conjugate gradients: same optimum, same certificate; a wrong product is caught."""

from dataclasses import replace

import pytest
import torch

from optprune.errors import InvalidInputError
from optprune.numerics.linear import DenseMap
from optprune.problems.net_trim import NetTrim
from optprune.solution import Termination
from optprune.solvers import NetTrimADMM, solve
from optprune.solvers._net_trim_layer import Layer
from optprune.solvers._net_trim_linear import ConjugateGradients, Factored


def layer(samples: int = 80, inputs: int = 30, bias: bool = True) -> NetTrim:
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    data = normal(samples, inputs) @ normal(inputs, inputs)  # far from orthogonal columns
    problem = NetTrim.from_layer(normal(6, inputs), data, 0.0, normal(6) if bias else None)
    return replace(problem, radius=0.2 * problem.size)


@pytest.mark.parametrize(("samples", "inputs"), [(80, 30), (25, 40)])
def test_conjugate_gradients_and_the_factor_find_the_same_optimum(samples, inputs):
    problem = layer(samples, inputs)
    factor, cg = (solve(problem, NetTrimADMM(linear_solver=name)) for name in ("factor", "cg"))
    assert factor.certificate is not None
    assert cg.certificate is not None
    assert cg.termination is factor.termination is Termination.CONVERGED
    assert cg.certificate.objective == pytest.approx(factor.certificate.objective, rel=1e-9)
    assert cg.certificate.lower_bound == pytest.approx(factor.certificate.lower_bound, rel=1e-8)
    assert cg.info["cg_steps"] > 0 == factor.info["cg_steps"]


@pytest.mark.parametrize(("samples", "inputs"), [(80, 30), (25, 40)])
def test_the_residual_is_what_was_asked_for(samples, inputs):
    exact = Layer.of(layer(samples, inputs))
    rounded = exact.to(torch.float32)
    right = torch.randn(6, exact.inputs.shape[1], generator=torch.Generator().manual_seed(1))
    steps = ConjugateGradients(rounded, 20.0)
    wanted = Factored(exact, rounded, 20.0).solve(right, torch.ones(6))
    first = steps.solve(right, torch.full((6,), 1e-3))
    rest = first @ exact.inputs.gram().float() + 20.0 * first - right
    assert bool((rest.norm(dim=1) <= 1.1e-4 * right.norm(dim=1)).all())
    made = steps.steps
    assert made > 3
    # Warm-started: nothing is left to do at the same accuracy, and little at a finer one.
    assert torch.equal(steps.solve(right, torch.full((6,), 1e-2)), first)
    assert steps.steps == made
    torch.testing.assert_close(steps.solve(right, torch.full((6,), 1e-5)), wanted, rtol=1e-3, atol=1e-5)


class _Wrong(DenseMap):
    """Its adjoint is not that of its product, nor a multiple of it: that would only change the multipliers' unit."""

    def adjoint(self, lam):
        right = super().adjoint(lam)
        return right * torch.linspace(1.0, 1.05, right.shape[-1], dtype=lam.dtype)

    def scaled(self, live, scale):
        right = super().scaled(live, scale)
        return _Wrong(right.matrix, right.columns)

    def to(self, dtype):
        return _Wrong(self.matrix.to(dtype), self.columns.to(dtype))


@pytest.mark.parametrize("name", ["factor", "cg"])
def test_the_certificate_catches_a_wrong_adjoint(name):
    problem = layer(40, 8, bias=False)
    assert isinstance(problem.inputs, torch.Tensor)
    short = NetTrimADMM(linear_solver=name, max_steps=200, max_rounds=2)
    wrong = solve(replace(problem, inputs=_Wrong(problem.inputs)), short).certificate
    right = solve(problem, NetTrimADMM(linear_solver=name)).certificate
    assert right is not None
    assert wrong is not None
    assert max(abs(right.relative_gap), right.primal_residual) <= 1e-8
    assert max(abs(wrong.relative_gap), wrong.primal_residual) > 1e-4
    assert wrong.lower_bound <= right.objective


def test_other_names_are_refused():
    with pytest.raises(InvalidInputError, match="auto, factor, cg"):
        NetTrimADMM(linear_solver="lu")
