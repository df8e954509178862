"""Hostile layers and statements: a readable error, or a correct answer with a sound certificate."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import optprune as op
from optprune.certify import certify
from optprune.errors import InvalidInputError, NonFiniteError, UnsupportedError
from optprune.problems import L0LeastSquares
from optprune.solution import Certificate
from optprune.testing.instances import data

pytestmark = pytest.mark.usefixtures("unchecked")  # every error is to be one of ours

SOLVERS = [op.ADMM(), op.Exhaustive(), op.Magnitude(), op.Wanda()]
every_solver = pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: type(solver).__name__)
NO_INTEGER: Any = 2.0
NO_PROBLEM: Any = 3
PATTERNS = [op.PerLayer(3), op.PerRow(2), op.NOfM(1, 4), op.Rows(1), op.Columns(3)]


@pytest.fixture
def layer():
    return data(0, out=3)


def answer(problem, solver) -> tuple[Tensor, Certificate]:
    """Weight and certificate of a finite, admissible answer whose bound holds."""
    solution = op.solve(problem, solver)
    certificate = solution.certificate
    assert solution.termination.ok
    assert bool(solution.weight.isfinite().all())
    assert problem.pattern.admits(solution.weight != 0)
    assert certificate is not None
    assert certificate.objective == pytest.approx(float(problem.objective(solution.weight)), rel=1e-12)
    assert 0.0 <= certificate.lower_bound <= certificate.objective + 1e-12 * float(problem.energy.sum())
    assert certificate.primal_residual == 0.0
    return solution.weight, certificate


# --- what is refused, and what the message says -----------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_activations_and_weights_are_located(layer, value):
    weight, inputs = layer
    for broken, name in ((weight, "weight"), (inputs, "inputs")):
        broken = broken.clone()
        broken[1, 2] = value
        pair = (broken, inputs) if name == "weight" else (weight, broken)
        with pytest.raises(NonFiniteError, match=rf"{name} .*holds 1 NaN or infinite entries, the first at \(1, 2\)"):
            L0LeastSquares.from_layer(*pair, op.PerRow(2))


def test_activations_whose_squares_overflow(layer):
    weight, inputs = layer
    with pytest.raises(NonFiniteError, match="squares overflow: scale them"):
        L0LeastSquares.from_layer(weight, inputs * 1e200, op.PerRow(2))


def test_a_transposed_weight_is_called_by_its_name(layer):
    weight, inputs = layer
    with pytest.raises(InvalidInputError, match=r"Is the weight transposed\? .*3 x 8 would fit"):
        L0LeastSquares.from_layer(weight.mT, inputs, op.PerRow(2))
    with pytest.raises(InvalidInputError, match=r"40 columns .* 3 outputs x 8 inputs; inputs are \(samples, in\)\.$"):
        L0LeastSquares.from_layer(weight, inputs.mT, op.PerRow(2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w, x: (w[0], x), r"weight matrix has shape \(8,\).*two dimensions"),
        (lambda w, x: (w, x[0]), r"inputs matrix has shape \(8,\).*two dimensions"),
        (lambda w, x: (w.long(), x), "int64; floating dtypes are accepted"),
        (lambda w, x: (w, x.int()), "int32; floating dtypes are accepted"),
        (lambda w, x: (w.to(torch.complex128), x), "complex128; floating dtypes are accepted"),
        (lambda w, x: (w.numpy(), x.numpy()), "ndarray; give a torch tensor"),
        (lambda w, x: (w, x[:0]), "no rows.*at least one batch"),
        (lambda w, x: (w[:0], x), "at least one output"),
        (lambda w, x: (w[:, :0], x[:, :0]), "at least one column"),
    ],
    ids=["weight 1d", "inputs 1d", "int weight", "int inputs", "complex", "arrays", "no samples", "no out", "no in"],
)
def test_tensors_that_are_no_layer(layer, change, message):
    with pytest.raises(InvalidInputError, match=message):
        L0LeastSquares.from_layer(*change(*layer), pattern=op.PerRow(0))


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (lambda: op.NOfM(2, 5), "5 must divide the number of inputs"),
        (lambda: op.NOfM(5, 4), "n <= m"),
        (lambda: op.Blocks(2, 2, 1), "tile must divide the matrix"),
        (lambda: op.PerRow(9), "keeps 9 of 8 units .* give 0 to 8"),
        (lambda: op.PerLayer(25), "keeps 25 of 24"),
        (lambda: op.PerRow(-1), "nonnegative integer"),
        (lambda: op.PerRow(NO_INTEGER), "nonnegative integer"),
        (lambda: op.PerRow(True), "nonnegative integer"),
        (lambda: op.PerRow.at_density(1.5, (3, 8)), "between 0 and 1"),
        (lambda: op.PerLayer.at_density(float("nan"), (3, 8)), "between 0 and 1"),
        (lambda: op.Fixed(torch.ones(2, 8, dtype=torch.bool)), r"\(2, 8\) given for a matrix of shape \(3, 8\)"),
        (lambda: op.Fixed(torch.ones(3, 8)), "float32.*a boolean matrix"),
        (lambda: 3, "a Pattern is needed"),
    ],
)
def test_patterns_that_do_not_fit(layer, pattern, message):
    with pytest.raises(InvalidInputError, match=message):
        L0LeastSquares.from_layer(*layer, pattern=pattern())


def test_what_is_no_solver_and_no_problem(layer):
    problem = L0LeastSquares.from_layer(*layer, pattern=op.PerRow(2))
    with pytest.raises(UnsupportedError, match="ADMM given a int; it accepts L0LeastSquares"):
        op.solve(NO_PROBLEM, op.ADMM())
    wrong: list[Any] = [op.ADMM, "admm"]
    for solver in wrong:
        with pytest.raises(InvalidInputError, match=r"a Solver is needed.*ADMM\(\)"):
            op.solve(problem, solver)
    with pytest.raises(InvalidInputError, match="unstack"):
        op.solve(op.stack([problem, problem]), op.ADMM())
    with pytest.raises(InvalidInputError, match="supports; it accepts at most"):
        op.solve(L0LeastSquares.from_layer(*data(0, out=8, inputs=40), pattern=op.PerLayer(100)), op.Exhaustive())


def test_weights_to_certify_that_do_not_fit(layer):
    problem = L0LeastSquares.from_layer(*layer, pattern=op.PerRow(2))
    with pytest.raises(NonFiniteError, match="to certify hold NaN"):
        certify(problem, layer[0] * float("nan"))
    with pytest.raises(InvalidInputError, match=r"\(8, 3\) given to certify; the problem's is \(3, 8\)"):
        certify(problem, layer[0].mT)


# --- what is answered, and correctly ----------------------------------------------------------------------------------


@every_solver
@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
def test_dead_inputs_change_nothing_for_the_others(solver, pattern):
    weight, inputs = data(1, out=3)
    inputs[:, 4:] = 0.0
    problem = L0LeastSquares.from_layer(weight, inputs, pattern)
    answer(problem, solver)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_dead_inputs_take_no_part_of_admms_budget(scale):
    """Whatever the weights on them: the loss does not see those."""
    weight, inputs = data(1, out=3)
    inputs[:, 4:] = 0.0
    weight[:, 4:] = 1000.0
    problem = L0LeastSquares.from_layer(weight, inputs * scale, op.PerLayer(3))
    pruned, certificate = answer(problem, op.ADMM())
    assert int((pruned[:, :4] != 0).sum()) == 3
    assert certificate.objective <= 1.05 * problem.objective(op.Exhaustive().run(problem).matrix)


@every_solver
def test_all_inputs_dead(solver):
    weight, inputs = data(2, out=3)
    problem = L0LeastSquares.from_layer(weight, inputs * 0, op.PerRow(2))
    _, certificate = answer(problem, solver)
    assert (certificate.objective, certificate.lower_bound, certificate.relative_gap) == (0.0, 0.0, 0.0)


@every_solver
def test_duplicated_columns(solver):
    """The Gram matrix is singular: the bound is 0, says so, and the answer is that of one column less."""
    weight, inputs = data(3, out=3)
    inputs[:, 1] = inputs[:, 0]
    problem = L0LeastSquares.from_layer(weight, inputs, op.PerRow(4))
    _, certificate = answer(problem, solver)
    assert certificate.vacuous
    assert "vacuous" in str(certificate)


def test_duplicated_columns_are_merged_by_the_good_solvers():
    weight, inputs = data(3, out=3)
    inputs[:, 1] = inputs[:, 0]
    merged = weight.clone()
    merged[:, 0] += merged[:, 1]
    problem = L0LeastSquares.from_layer(weight, inputs, op.PerRow(7))
    less = L0LeastSquares.from_layer(merged[:, [0, *range(2, 8)]], inputs[:, [0, *range(2, 8)]], op.PerRow(7))
    assert answer(less, op.ADMM())[1].objective <= 1e-25
    assert answer(problem, op.Exhaustive())[1].objective <= 1e-25
    assert answer(problem, op.ADMM())[1].objective <= 1e-25


@every_solver
def test_fewer_samples_than_inputs(solver):
    weight, inputs = data(4, out=3, samples=3)
    problem = L0LeastSquares.from_layer(weight, inputs, op.PerRow(4))
    _, certificate = answer(problem, solver)
    if solver in (op.ADMM(), op.Exhaustive(), op.Magnitude()):  # as many weights as samples reproduce any target
        assert certificate.objective <= 1e-14 * float(problem.energy.sum())  # the rounding of the sum
    damped = L0LeastSquares.from_layer(weight, inputs, op.PerRow(4), damping=0.1)
    assert not answer(damped, solver)[1].vacuous


@every_solver
def test_rows_of_zero_weights_stay_zero(solver):
    weight, inputs = data(5, out=3)
    weight[1] = 0.0
    problem = L0LeastSquares.from_layer(weight, inputs, op.PerRow(2))
    pruned, _ = answer(problem, solver)
    assert bool((pruned[1] == 0).all())
    zero = L0LeastSquares.from_layer(weight * 0, inputs, op.PerLayer(3))
    assert answer(zero, solver)[1].objective == 0.0


@every_solver
@pytest.mark.parametrize("shape", [(1, 8), (3, 1), (1, 1)])
@pytest.mark.parametrize("k", [0, 1])
def test_a_layer_of_one_input_or_one_output(solver, shape, k):
    problem = L0LeastSquares.from_layer(*data(6, *shape), pattern=op.PerLayer(k))
    _, certificate = answer(problem, solver)
    assert certificate.relative_gap <= (1.0 if isinstance(solver, op.Wanda) or shape[1] > 1 else 1e-6)


@every_solver
@pytest.mark.parametrize("scale", [1e-150, 1e-30, 1e-6, 1e6, 1e30, 1e150])
def test_the_scale_of_the_inputs(solver, scale):
    """Objective and bound scale with the square; at 1e-150 the fourth powers of the inputs underflow."""
    weight, inputs = data(7, out=3)
    plain, expected = answer(L0LeastSquares.from_layer(weight, inputs, op.PerRow(3)), solver)
    pruned, certificate = answer(L0LeastSquares.from_layer(weight, inputs * scale, op.PerRow(3)), solver)
    assert torch.equal(pruned != 0, plain != 0)
    assert torch.allclose(pruned, plain, rtol=1e-9)
    assert certificate.objective == pytest.approx(expected.objective * scale**2, rel=1e-9)
    assert certificate.lower_bound == pytest.approx(expected.lower_bound * scale**2, rel=1e-4)


def test_columns_of_scales_from_1e_minus_6_to_1e6():
    """ADMM works in units of each input, so that those of the caller do not matter."""
    weight, inputs = data(8, out=3)
    scales = torch.logspace(-6, 6, 8, dtype=torch.float64)
    plain, expected = answer(L0LeastSquares.from_layer(weight, inputs, op.PerRow(3)), op.ADMM())
    pruned, certificate = answer(L0LeastSquares.from_layer(weight / scales, inputs * scales, op.PerRow(3)), op.ADMM())
    assert torch.allclose(pruned * scales, plain, rtol=1e-8)
    assert certificate.lower_bound == pytest.approx(expected.lower_bound, rel=1e-3)


@every_solver
def test_ties_go_to_the_lowest_index(solver):
    inputs, _ = torch.linalg.qr(data(9)[1])
    problem = L0LeastSquares.from_layer(torch.ones(3, 8, dtype=torch.float64), inputs, op.PerRow(3))
    pruned, certificate = answer(problem, solver)
    assert certificate.relative_gap <= 1e-6  # orthogonal inputs: the bound is the optimum
    assert torch.equal(pruned, answer(problem, solver)[0])
    if isinstance(solver, op.Magnitude):
        assert pruned.nonzero()[:, 1].tolist() == [0, 1, 2] * 3


@every_solver
@pytest.mark.parametrize("make", [op.PerLayer, op.PerRow, op.Rows, op.Columns], ids=lambda make: make.__name__)
def test_density_zero_and_one(solver, make, layer):
    weight, inputs = layer
    nothing = L0LeastSquares.from_layer(weight, inputs, make.at_density(0.0, (3, 8)))
    pruned, certificate = answer(nothing, solver)
    assert bool((pruned == 0).all())
    assert certificate.objective == pytest.approx(0.5 * float((inputs @ weight.mT).square().sum()) / 40, rel=1e-12)
    assert certificate.relative_gap <= 1e-3
    everything = L0LeastSquares.from_layer(weight, inputs, make.at_density(1.0, (3, 8)))
    pruned, certificate = answer(everything, solver)
    if isinstance(solver, op.Exhaustive):  # solves the normal equations as they stand
        assert certificate.objective <= 1e-25
    else:
        assert torch.equal(pruned, weight)
        assert certificate.relative_gap == 0.0


@every_solver
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_narrow_dtypes_are_read_exactly(solver, dtype, layer):
    weight, inputs = layer[0].to(dtype), layer[1].to(dtype)
    problem = L0LeastSquares.from_layer(weight, inputs, op.PerRow(3))
    pruned, _ = answer(problem, solver)
    wide = L0LeastSquares.from_layer(weight.double(), inputs.double(), op.PerRow(3))
    assert torch.equal(pruned, answer(wide, solver)[0])
    assert pruned.dtype == torch.float64


@every_solver
def test_parameters_views_and_gradients(solver, layer):
    """A parameter that requires gradients, in a layout of its own: nothing is attached to it and nothing is written."""
    weight, inputs = layer
    parameter = torch.nn.Parameter(weight.mT.contiguous().mT)
    before = parameter.detach().clone()
    problem = L0LeastSquares.from_layer(parameter, inputs.clone().requires_grad_(), op.PerRow(3))
    pruned, certificate = answer(problem, solver)
    assert not pruned.requires_grad
    assert parameter.grad is None
    pruned.zero_()
    assert torch.equal(parameter, before)
    _, plain = answer(L0LeastSquares.from_layer(weight, inputs, op.PerRow(3)), solver)
    assert plain.objective == pytest.approx(certificate.objective, rel=1e-12)
