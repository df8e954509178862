"""Hostile layers for Net-Trim: a readable error, or the optimum, certified."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import optprune as op
from optprune.errors import InvalidInputError, NonFiniteError
from optprune.solution import Certificate
from optprune.testing.instances import data

pytestmark = pytest.mark.usefixtures("unchecked")  # every error is to be one of ours


@pytest.fixture
def layer():
    return data(0, out=3)


def outputs(weight, inputs):
    return (inputs @ weight.mT).clamp(min=0)


def answer(problem) -> tuple[Tensor, Certificate]:
    """Matrix and certificate of an answer that is admissible and, within 1e-6, the optimum."""
    solution = op.solve(problem, op.NetTrimADMM())
    certificate = solution.certificate
    assert solution.termination is op.Termination.CONVERGED
    assert certificate is not None
    assert all(float(value) <= 1e-8 for value in problem.violation(solution.matrix).values())
    assert certificate.objective == pytest.approx(float(problem.objective(solution.matrix)), rel=1e-12)
    assert certificate.objective - certificate.lower_bound <= 1e-6 * certificate.objective
    return solution.matrix, certificate


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda w, x: (w * float("nan"), x, 1.0), NonFiniteError, "weight .* 24 NaN or infinite"),
        (lambda w, x: (w, x / 0, 1.0), NonFiniteError, "inputs .* 320 NaN or infinite"),
        (lambda w, x: (w, x, 1.0, w[:, 0] / 0), NonFiniteError, "bias .* 3 NaN or infinite"),
        (lambda w, x: (w, x, float("nan")), NonFiniteError, "radius holds 1 NaN"),
        (lambda w, x: (w, x, -1.0), InvalidInputError, "a radius is a number >= 0"),
        (lambda w, x: (w, x), InvalidInputError, "one of the two"),
        (lambda w, x: (w, x, torch.ones(4)), InvalidInputError, r"radius of shape \(4,\) given; \(\) or \(3,\) fits"),
        (lambda w, x: (w.mT, x, 1.0), InvalidInputError, "Is the weight transposed"),
        (lambda w, x: (w, x.mT, 1.0), InvalidInputError, r"inputs are \(samples, in\)"),
        (lambda w, x: (w[0], x, 1.0), InvalidInputError, "two dimensions"),
        (lambda w, x: (w, x, 1.0, w[0]), InvalidInputError, r"bias of shape \(8,\) given; \(3,\) fits"),
        (lambda w, x: (w.long(), x, 1.0), InvalidInputError, "int64; floating dtypes"),
        (lambda w, x: (w, x.int(), 1.0), InvalidInputError, "int32; floating dtypes"),
        (lambda w, x: (w.numpy(), x, 1.0), InvalidInputError, "ndarray; give a torch tensor"),
        (lambda w, x: (w, x[:0], 1.0), InvalidInputError, "at least one sample"),
        (lambda w, x: (w[:0], x, 1.0), InvalidInputError, "one output"),
    ],
)
def test_what_is_refused(layer, change, error, message):
    with pytest.raises(error, match=message):
        op.NetTrim.from_layer(*change(*layer))


def test_a_penalty_is_positive(layer):
    for penalty in (0.0, -1.0):
        with pytest.raises(InvalidInputError, match="a penalty is a number > 0"):
            op.NetTrim.from_layer(*layer, penalty=penalty)


@pytest.mark.parametrize("relu", [True, False])
def test_radius_zero_keeps_the_layer(layer, relu):
    """With more samples than inputs and nothing to lose, a linear layer can only stay what it is."""
    matrix, certificate = answer(op.NetTrim.from_layer(*layer, radius=0.0, relu=relu))
    assert torch.allclose(matrix, layer[0], atol=1e-8)
    assert certificate.objective == pytest.approx(float(layer[0].abs().sum()), rel=1e-9)


def test_a_radius_above_the_outputs_prunes_everything(layer):
    matrix, certificate = answer(op.NetTrim.from_layer(*layer, radius=1.5 * float(outputs(*layer).norm())))
    assert bool((matrix == 0).all())
    assert (certificate.objective, certificate.lower_bound) == (0.0, 0.0)


@pytest.mark.parametrize("scale", [1e-150, 1e-6, 1e6, 1e150])
def test_the_scale_of_the_inputs(layer, scale):
    weight, inputs = layer
    radius = 0.2 * float(outputs(weight, inputs).norm())
    plain, expected = answer(op.NetTrim.from_layer(weight, inputs, radius))
    matrix, certificate = answer(op.NetTrim.from_layer(weight, inputs * scale, radius * scale))
    assert torch.allclose(matrix, plain, rtol=1e-6, atol=1e-9)
    assert certificate.lower_bound == pytest.approx(expected.lower_bound, rel=1e-6)


def test_dead_inputs_get_no_weight(layer):
    weight, inputs = layer
    inputs[:, [1, 5]] = 0.0
    matrix, _ = answer(op.NetTrim.from_layer(weight, inputs, 0.1 * float(outputs(weight, inputs).norm())))
    assert bool((matrix[:, [1, 5]] == 0).all())


def test_dead_neurons_and_dead_samples_get_no_weight(layer):
    weight, inputs = layer
    dead, positive = -weight.abs(), inputs.abs()
    for radius in (0.0, torch.zeros(3, dtype=torch.float64)):
        matrix, _ = answer(op.NetTrim.from_layer(dead, positive, radius))
        assert bool((matrix == 0).all())
    matrix, _ = answer(op.NetTrim.from_layer(weight, inputs * 0, 0.0))
    assert bool((matrix == 0).all())


def test_duplicated_columns_cost_no_more_than_one(layer):
    weight, inputs = layer
    radius = 0.2 * float(outputs(weight, inputs).norm())
    _, single = answer(op.NetTrim.from_layer(weight, inputs, radius))
    twice = torch.cat([weight, torch.zeros(3, 1, dtype=torch.float64)], 1)
    _, double = answer(op.NetTrim.from_layer(twice, torch.cat([inputs, inputs[:, :1]], 1), radius))
    assert double.objective == pytest.approx(single.objective, rel=1e-6)


def test_fewer_samples_than_inputs():
    weight, inputs = data(1, out=3, samples=3)
    _, certificate = answer(op.NetTrim.from_layer(weight, inputs, 0.1 * float(outputs(weight, inputs).norm())))
    assert 0 < certificate.objective < float(weight.abs().sum())


@pytest.mark.parametrize("shape", [(1, 8), (3, 1), (1, 1)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_a_layer_of_one_input_or_one_output(shape, with_bias):
    weight, inputs = data(2, *shape)
    bias = weight[:, 0] if with_bias else None
    kept = outputs(weight, inputs) if bias is None else (inputs @ weight.mT + bias).clamp(min=0)
    answer(op.NetTrim.from_layer(weight, inputs, 0.2 * float(kept.norm()), bias))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_narrow_dtypes_are_read_exactly(layer, dtype):
    weight, inputs = layer[0].to(dtype), layer[1].to(dtype)
    narrow, _ = answer(op.NetTrim.from_layer(weight, inputs, 1.0))
    wide, _ = answer(op.NetTrim.from_layer(weight.double(), inputs.double(), 1.0))
    assert torch.equal(narrow, wide)


def test_nothing_is_attached_or_written(layer):
    weight, inputs = layer
    before = weight.clone(), inputs.clone()
    matrix, _ = answer(op.NetTrim.from_layer(weight.requires_grad_(), inputs.requires_grad_(), 1.0))
    assert not matrix.requires_grad
    assert torch.equal(weight, before[0])
    assert torch.equal(inputs, before[1])


def rectified(seed: int = 0, samples: int = 200, inputs: int = 40, out: int = 20) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, nonnegative inputs, as ReLU gives them, and biases."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return normal(out, inputs), normal(samples, inputs).clamp(min=0), normal(out)


@pytest.mark.parametrize("share", [1e-8, 1e-7, 1e-6, 1e-3])
def test_a_bias_a_million_times_the_weights(share):
    """Feasible, and found so; from a share of 1e-3 of the outputs' norm on the bias alone is enough."""
    weight, inputs, bias = rectified()
    size = (inputs @ weight.mT + 1e6 * bias).clamp(min=0).norm()
    matrix, _ = answer(op.NetTrim.from_layer(weight, inputs, share * float(size), 1e6 * bias))
    assert bool((matrix[:, :-1] == 0).all()) == (share == 1e-3)


@pytest.mark.parametrize("share", [0.05, 0.3])
def test_columns_of_all_sizes(share):
    """Twelve powers of ten between the inputs."""
    weight, inputs, _ = rectified()
    inputs = inputs * 10 ** torch.linspace(-6, 6, 40, dtype=torch.float64)
    answer(op.NetTrim.from_layer(weight, inputs, share * float(outputs(weight, inputs).norm())))


def test_prices_of_all_sizes_are_not_called_solved():
    """Weights and inputs whose sizes cancel over twelve powers of ten: the cheapest weights' conditions, a price of
    1e-6 next to products of size 1, are lost in rounding. The answer says so, and its bound holds.
    """
    weight, inputs, _ = rectified()
    sizes = 10 ** torch.linspace(-6, 6, 40, dtype=torch.float64)
    problem = op.NetTrim.from_layer(weight / sizes, inputs * sizes, 0.3 * float(outputs(weight, inputs).norm()))
    solution = op.solve(problem, op.NetTrimADMM(max_rounds=4))
    assert solution.termination is op.Termination.STEP_LIMIT
    assert solution.certificate is not None
    assert solution.certificate.lower_bound <= float(problem.objective(weight / sizes))


def test_one_sample_ten_thousand_times_the_others():
    weight, inputs, _ = rectified()
    inputs[0] *= 1e4
    answer(op.NetTrim.from_layer(weight, inputs, 0.05 * float(outputs(weight, inputs).norm())))


def test_repeated_samples_count_as_often():
    weight, inputs, _ = rectified(out=4)
    size = float(outputs(weight, inputs).norm())
    once, _ = answer(op.NetTrim.from_layer(weight, inputs, 0.1 * size))
    thrice, _ = answer(op.NetTrim.from_layer(weight, inputs.repeat(3, 1), 0.1 * size * 3**0.5))
    torch.testing.assert_close(once, thrice, rtol=1e-6, atol=1e-8)


def test_a_layer_that_is_nowhere_active_needs_no_weight():
    weight, inputs, _ = rectified()
    matrix, certificate = answer(op.NetTrim.from_layer(-weight.abs(), inputs, 0.1))
    assert certificate.objective == 0.0
    assert not bool(matrix.any())


def test_constant_inputs():
    weight, inputs, bias = rectified(inputs=6, out=4)
    inputs[:, 2] = 3.0
    inputs[:, 4] = 1e-3
    size = (inputs @ weight.mT + bias).clamp(min=0).norm()
    answer(op.NetTrim.from_layer(weight, inputs, 0.1 * float(size), bias))


@pytest.mark.parametrize("samples", [200, 60])
def test_a_cascade_whose_radius_holds_nothing(samples):
    """A risk coefficient far below 1: infeasible, said so, with a bound that no weights of a usual size meet."""
    weight, inputs, _ = rectified(samples=samples)
    seen = (inputs + 0.1) * (1 + 0.05 * rectified(1, samples)[1])
    problem = op.NetTrim.cascade(weight, seen, (inputs + 0.1) @ weight.mT, kappa=0.05)
    solution = op.solve(problem, op.NetTrimADMM())
    assert solution.termination is op.Termination.INFEASIBLE
    assert solution.certificate is not None
    assert solution.certificate.lower_bound > 1e3 * float(weight.abs().sum())


def test_a_cascade_whose_radius_just_holds_the_dense_weight():
    weight, inputs, _ = rectified()
    seen = (inputs + 0.1) * (1 + 0.05 * rectified(1)[1])
    problem = op.NetTrim.cascade(weight, seen, (inputs + 0.1) @ weight.mT)
    _, certificate = answer(problem)
    assert certificate.objective <= float(problem.objective(weight)) * (1 + 1e-9)
