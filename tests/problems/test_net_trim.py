"""The statement of Net-Trim: what its fields mean, what it refuses, and the theorems that follow from feasibility."""

import pytest
import torch

from optprune.errors import InvalidInputError, NonFiniteError
from optprune.problems import stack, unstack
from optprune.problems.net_trim import NetTrim


@pytest.fixture
def draw():
    generator = torch.Generator().manual_seed(5)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)


def relu_error(problem: NetTrim, matrix: torch.Tensor) -> torch.Tensor:
    return (problem.linear.outputs(matrix).clamp(min=0) - problem.targets).norm()


def test_the_layer_gives_targets_active_set_and_bias_column(draw):
    weight, inputs, bias = draw(3, 4), draw(10, 4), draw(3)
    problem = NetTrim.from_layer(weight, inputs, 0.5, bias)
    outputs = inputs @ weight.mT + bias
    assert problem.shape == (3, 5)
    assert torch.equal(problem.active, outputs > 0)
    torch.testing.assert_close(problem.targets, outputs.clamp(min=0), rtol=1e-13, atol=1e-13)
    assert problem.penalised.tolist() == [True] * 4 + [False]
    matrix = torch.cat((weight, bias[:, None]), 1)
    assert float(problem.objective(matrix)) == pytest.approx(float(weight.abs().sum()), rel=1e-14)
    kept, free = problem.split(matrix)
    assert torch.equal(kept, weight)
    assert free is not None
    assert torch.equal(free, bias)


def test_the_dense_weight_is_admissible_and_zero_is_not(draw):
    weight, inputs = draw(4, 6), draw(30, 6)
    problem = NetTrim.from_layer(weight, inputs, 0.1)
    assert all(float(v) <= 1e-13 for v in problem.violation(weight).values())
    missing = float(problem.violation(torch.zeros_like(weight))["ball"])
    assert missing == pytest.approx(float((problem.size - 0.1) / problem.size), rel=1e-12)


def test_violations_are_relative_to_the_data(draw):
    weight, inputs = draw(4, 6), draw(30, 6)
    other = draw(4, 6)
    small, large = (NetTrim.from_layer(weight, inputs * c, 0.1 * c) for c in (1e-6, 1e6))
    for name, value in small.violation(other).items():
        assert float(value) == pytest.approx(float(large.violation(other)[name]), rel=1e-9)
        assert float(value) > 0


@pytest.mark.parametrize("seed", range(10))
def test_the_residuals_bound_the_error_behind_the_relu(seed):
    """T1 of the method's own tests: for any matrix, admissible or not."""
    generator = torch.Generator().manual_seed(seed)
    weight, other = torch.randn(2, 5, 7, generator=generator, dtype=torch.float64)
    inputs = torch.randn(40, 7, generator=generator, dtype=torch.float64)
    problem = NetTrim.from_layer(weight, inputs, 1.0)
    residual = problem.residual(other)
    bound = torch.where(problem.active, residual, residual.clamp(min=0)).norm()
    assert float(relu_error(problem, other)) <= float(bound) * (1 + 1e-13)


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("per_neuron", [True, False])
def test_behind_a_pruned_prefix_the_dense_weight_is_on_the_boundary(draw, relu, per_neuron):
    """T7: gamma = 1, kappa = 1; and with gain the radius is the larger of the two rules."""
    weight, inputs, bias = draw(4, 6), draw(30, 6), draw(4)
    seen = inputs + 0.1 * draw(30, 6)
    targets = inputs @ weight.mT + bias
    problem = NetTrim.cascade(weight, seen, targets, bias=bias, relu=relu, per_neuron=per_neuron)
    dense = torch.cat((weight, bias[:, None]), 1)
    residual = torch.where(problem.active, problem.residual(dense), 0.0)
    norm = residual.norm(dim=0) if per_neuron else residual.norm()
    torch.testing.assert_close(problem.radius, norm)
    assert all(float(v) <= 1e-13 for v in problem.violation(dense).values())
    wide = NetTrim.cascade(weight, seen, targets, 1.5, 0.9, bias, kappa=0.5, relu=relu, per_neuron=per_neuron)
    y = problem.targets.norm(dim=0) if per_neuron else problem.targets.norm()
    torch.testing.assert_close(wide.radius, 0.5 * torch.maximum(1.5**0.5 * norm, 0.9 * y))


def test_a_cascade_of_two_layers_keeps_its_bound(draw):
    """T3, one link: gamma a^2 + b^2 bounds the error of every admissible matrix, here one between dense and zero."""
    weight, inputs = draw(5, 6), draw(40, 6)
    seen = inputs + 0.05 * draw(40, 6)
    targets = inputs @ weight.mT
    problem = NetTrim.cascade(weight, seen, targets, gamma=1.3)
    assert problem.ceiling is not None
    overshoot = problem.ceiling.clamp(min=0).norm()
    assert problem.radius is not None
    bound = (problem.radius.square() + overshoot.square()).sqrt()
    assert float(relu_error(problem, weight)) <= float(bound)


def test_stacks_and_files_lose_nothing(draw):
    one = [NetTrim.from_layer(draw(3, 4), draw(8, 4), 0.5, draw(3)) for _ in range(2)]
    both = stack(one)
    assert both.batch_shape == (2,)
    matrix = draw(2, 3, 5)
    for k, member in enumerate(unstack(both)):
        for name, tensor in one[k].tensors().items():
            assert torch.equal(member.tensors()[name], tensor)
        assert float(member.objective(matrix[k])) == float(both.objective(matrix)[k])
        for name, value in member.violation(matrix[k]).items():
            assert float(value) == pytest.approx(float(both.violation(matrix)[name][k]), rel=1e-13)
    per_neuron = NetTrim.from_layer(draw(3, 4), draw(8, 4), torch.rand(3))
    again = NetTrim.restore(per_neuron.tensors(), per_neuron.settings())
    assert again.per_neuron
    assert torch.equal(again.tensors()["radius"], per_neuron.tensors()["radius"])


def test_what_makes_no_problem_is_refused(draw):
    weight, inputs = draw(3, 4), draw(8, 4)
    with pytest.raises(InvalidInputError, match="radius -1"):
        NetTrim.from_layer(weight, inputs, -1.0)
    with pytest.raises(InvalidInputError, match="radius of shape"):
        NetTrim.from_layer(weight, inputs, torch.ones(4))
    with pytest.raises(InvalidInputError, match="one of the two"):
        NetTrim.from_layer(weight, inputs, 1.0, penalty=1.0)
    with pytest.raises(InvalidInputError, match="penalty 0"):
        NetTrim.from_layer(weight, inputs, penalty=0.0)
    with pytest.raises(InvalidInputError, match="gamma = 0"):
        NetTrim.cascade(weight, inputs, inputs @ weight.mT, gamma=0.5)
    with pytest.raises(NonFiniteError):
        NetTrim.from_layer(weight, inputs * float("inf"), 1.0)
    problem = NetTrim.from_layer(weight, inputs, 1.0)
    free = torch.tensor([True, True, True, False])
    with pytest.raises(InvalidInputError, match="not constant"):
        NetTrim(problem.inputs, problem.targets, problem.active, None, problem.radius, free)
    with pytest.raises(InvalidInputError, match="other than the last"):
        NetTrim(problem.inputs, problem.targets, problem.active, None, problem.radius, ~free)
