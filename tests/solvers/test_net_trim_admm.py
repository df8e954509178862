"""The Net-Trim solver against interior points, on every form and on hostile layers, and the program's invariances."""

from typing import Any

import pytest
import torch

from optprune.certify import certify
from optprune.errors import InvalidInputError
from optprune.problems import stack
from optprune.problems.net_trim import NetTrim
from optprune.solution import Termination
from optprune.solvers import NetTrimADMM
from optprune.solvers.cvxpy_reference import Cvxpy

FORMS = ("joint", "per neuron", "penalised", "linear", "bias", "cascade", "bias cascade", "per neuron cascade")


def make(form: str, seed: int, samples: int = 40, inputs: int = 10, out: int = 4) -> NetTrim:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    weight, data = normal(out, inputs), normal(samples, inputs)
    seen = data + 0.1 * normal(samples, inputs)
    bias = normal(out) if "bias" in form else None
    outputs = data @ weight.mT + (0 if bias is None else bias)
    norms = outputs.clamp(min=0).norm(dim=0)
    if "cascade" in form:
        return NetTrim.cascade(weight, seen, outputs, 1.2, 0.05, bias, per_neuron="per neuron" in form)
    if form == "penalised":
        return NetTrim.from_layer(weight, data, penalty=4.0)
    radius = 0.2 * (norms if form == "per neuron" else norms.norm())
    return NetTrim.from_layer(weight, data, radius, bias, relu=form != "linear")


def check(problem: NetTrim, gap: float = 1e-8) -> torch.Tensor:
    """Solve; the answer is admissible to 1e-9 of the data's scale and its certified gap is small."""
    answer = NetTrimADMM().run(problem)
    certificate, _ = certify(problem, answer.matrix, answer.hint)
    assert answer.termination == (Termination.CONVERGED,)
    assert certificate.primal_residual <= 1e-9
    assert abs(certificate.gap) <= gap * certificate.objective
    return answer.matrix


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("form", FORMS)
def test_it_agrees_with_interior_points(form, seed):
    """T2, to 1e-6; a solver that is off by a thousandth fails here and in its certificate."""
    problem = make(form, seed)
    matrix = check(problem)
    reference = Cvxpy().run(problem)
    assert reference.termination == (Termination.CONVERGED,)
    ours, theirs = float(problem.objective(matrix)), float(problem.objective(reference.matrix))
    assert ours == pytest.approx(theirs, rel=1e-6)
    certificate, _ = certify(problem, matrix * 1.001)
    assert certificate.gap > 5e-4 * certificate.objective


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_units_do_not_matter(scale):
    """T4: (cX, cY, c radius) has the same minimiser, and inputs in different units the correspondingly scaled one."""
    problem = make("joint", 2)
    matrix = check(problem)
    assert problem.radius is not None
    scaled = NetTrim(
        problem.inputs * scale, problem.targets * scale, problem.active, None, problem.radius * scale, problem.penalised
    )
    torch.testing.assert_close(check(scaled), matrix, rtol=1e-7, atol=1e-9)


def test_badly_scaled_columns_are_solved():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, 12, generator=generator, dtype=torch.float64) * 10.0 ** torch.linspace(-6, 6, 12).double()
    weight = torch.randn(3, 12, generator=generator, dtype=torch.float64)
    outputs = (inputs @ weight.mT).clamp(min=0)
    check(NetTrim.from_layer(weight, inputs, 0.1 * outputs.norm()))


def test_columns_decouple_at_the_common_multiplier():
    """T8: at the penalty that the joint ball asks for, neurons solved one by one give the joint optimum."""
    problem = make("joint", 3)
    answer = NetTrimADMM().run(problem)
    multipliers = torch.where(problem.active, answer.hint["multipliers"], 0.0)
    assert problem.radius is not None
    penalty = float(problem.radius / multipliers.norm())
    for m in range(problem.shape[0]):
        one = NetTrim(
            problem.inputs,
            problem.targets[:, [m]],
            problem.active[:, [m]],
            None,
            None,
            problem.penalised,
            torch.tensor(penalty, dtype=torch.float64),
        )
        torch.testing.assert_close(check(one)[0], answer.matrix[m], rtol=1e-6, atol=1e-8)


def test_dead_neurons_are_zero():
    """T9: a neuron that never fires; a layer that never fires; both without a residual anywhere."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(30, 6, generator=generator, dtype=torch.float64)
    weight = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    weight[1] = -weight[1].abs()
    outputs = (inputs @ weight.mT).clamp(min=0)
    matrix = check(NetTrim.from_layer(weight, inputs, 0.1 * outputs.norm()))
    assert bool((matrix[1] == 0).all())
    for radius in (0.0, 1.0, torch.zeros(3)):
        assert bool((check(NetTrim.from_layer(-weight.abs(), inputs, radius)) == 0).all())


@pytest.mark.parametrize("form", ["joint", "per neuron", "linear", "bias"])
def test_a_ball_around_all_outputs_needs_no_weights(form):
    problem = make(form, 4)
    assert problem.radius is not None
    wide = NetTrim(problem.inputs, problem.targets, problem.active, None, problem.radius * 10.0, problem.penalised)
    assert bool((check(wide)[:, problem.penalised] == 0).all())


@pytest.mark.parametrize("form", ["joint", "per neuron"])
def test_radius_zero_reproduces_the_layer(form):
    problem = make(form, 5)
    assert problem.radius is not None
    exact = NetTrim(problem.inputs, problem.targets, problem.active, None, problem.radius * 0.0, problem.penalised)
    answer = NetTrimADMM().run(exact)
    assert float(exact.violation(answer.matrix)["ball"]) <= 1e-9
    reference = Cvxpy().run(exact)
    assert float(exact.objective(answer.matrix)) == pytest.approx(float(exact.objective(reference.matrix)), rel=1e-6)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda x: torch.cat((x, x[:, :3], -x[:, 3:5]), 1),  # duplicated columns, of either sign
        lambda x: torch.cat((x, torch.zeros_like(x[:, :3])), 1),  # dead inputs
        lambda x: x[:6],  # fewer samples than inputs
        lambda x: x[:1],
        lambda x: x[:, :1],
        lambda x: x[:, :2] @ x[:2, :],  # rank two
        lambda x: x.round(),  # ties
    ],
    ids=["duplicates", "dead", "few samples", "one sample", "one input", "rank two", "ties"],
)
@pytest.mark.parametrize("per_neuron", [False, True])
def test_degenerate_inputs(spoil, per_neuron):
    generator = torch.Generator().manual_seed(6)
    inputs = spoil(torch.randn(40, 10, generator=generator, dtype=torch.float64))
    weight = torch.randn(4, inputs.shape[1], generator=generator, dtype=torch.float64)
    outputs = (inputs @ weight.mT).clamp(min=0)
    check(NetTrim.from_layer(weight, inputs, 0.1 * (outputs.norm(dim=0) if per_neuron else outputs.norm())))


def test_an_impossible_radius_is_infeasible_with_a_growing_bound():
    """More samples than inputs behind a changed prefix: half of what the dense weight leaves cannot be reached."""
    generator = torch.Generator().manual_seed(7)
    inputs = torch.randn(60, 6, generator=generator, dtype=torch.float64)
    weight = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    seen = inputs + 0.3 * torch.randn(60, 6, generator=generator, dtype=torch.float64)
    problem = NetTrim.cascade(weight, seen, inputs @ weight.mT, kappa=0.5)
    answer = NetTrimADMM().run(problem)
    assert answer.termination == (Termination.INFEASIBLE,)
    certificate, _ = certify(problem, answer.matrix, answer.hint)
    assert certificate.lower_bound > 100 * certificate.objective
    assert certificate.primal_residual > 1e-4
    assert Cvxpy().run(problem).termination == (Termination.INFEASIBLE,)


def test_a_stack_gives_what_its_members_give():
    problems = [make("joint", seed) for seed in (8, 9)]
    together = NetTrimADMM().run(stack(problems))
    for k, problem in enumerate(problems):
        assert torch.equal(together.matrix[k], NetTrimADMM().run(problem).matrix)
    assert together.termination == (Termination.CONVERGED,) * 2


def test_few_rounds_end_at_the_limit_and_say_so():
    problem = make("joint", 10)
    answer = NetTrimADMM(max_steps=5, check_every=5, max_rounds=1).run(problem)
    assert answer.termination == (Termination.STEP_LIMIT,)
    assert answer.steps == 5


def test_settings_out_of_range_are_refused():
    wrongs: tuple[dict[str, Any], ...] = ({"max_steps": 0}, {"tolerance": 0.0}, {"relaxation": 2.0}, {"handover": -1.0})
    for wrong in wrongs:
        with pytest.raises(InvalidInputError, match="given"):
            NetTrimADMM(**wrong)


PROGRAMS = {
    ("nettrim_64x32", 0.05, False, None): 303.26167,
    ("nettrim_64x32", 0.15, False, None): 215.13981,
    ("nettrim_64x32", 0.05, True, None): 307.62792,
    ("nettrim_300x100", 0.05, True, 10): 83.66305,
    ("nettrim_300x100", 0.15, True, 10): 67.31090,
    ("nettrim_300x100", 0.15, False, None): 544.22393,
}


@pytest.mark.data
@pytest.mark.parametrize("program", PROGRAMS, ids=str)
def test_saved_programs_reach_the_reference_objective(program, data_dir):
    import numpy as np

    name, share, per_neuron, columns = program
    saved = np.load(data_dir / "layers" / f"{name}.npz")
    weight = torch.as_tensor(saved["W"]).double()[:columns]
    inputs = torch.as_tensor(saved["X"]).double()
    outputs = (inputs @ weight.mT).clamp(min=0)
    radius = share * (outputs.norm(dim=0) if per_neuron else outputs.norm())
    problem = NetTrim.from_layer(weight, inputs, radius)
    assert float(problem.objective(check(problem))) == pytest.approx(PROGRAMS[program], rel=1e-6)
