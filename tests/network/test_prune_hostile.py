"""Hostile models, data and solvers: an error that names the layer, or an answer that holds."""

import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

from optprune.errors import InvalidInputError, NonFiniteError, UnsupportedError
from optprune.network import plan
from optprune.network.prune import prune
from optprune.problems import L0LeastSquares
from optprune.solution import Answer, Termination
from optprune.solvers import ADMM, Magnitude, Solver
from tests.network.networks import data, filled, layer, mlp, parameters, same


def test_a_layer_of_one_input_and_one_output():
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 1))
    filled(model, seed=2)
    for mode in ("parallel", "cascade"):
        _, report = prune(model, [data(20, 1)], plan.uniform(model, density=0.5), ADMM(), mode=mode)
        assert [record.kept for record in report.layers] == [1, 2, 2]
        assert all(record.certificate is not None for record in report.layers)


def test_fewer_samples_than_inputs_and_dead_inputs():
    model, x = mlp(), data(4, 8)
    x[:, 2] = 0
    _, report = prune(model, [x], plan.uniform(model, density=0.5), ADMM())
    assert report.layers[0].dead_inputs == 1
    assert "0: 1 inputs were zero in every sample" in str(report)
    assert all(record.certificate is not None for record in report.layers)


@pytest.mark.parametrize("mode", ["parallel", "cascade"])
@pytest.mark.parametrize("inplace", [True, False])
def test_what_fails_leaves_the_model_untouched(mode, inplace):
    model, x = mlp(), data(20, 8)
    before = parameters(model)
    calls = []

    def forward(m, batch):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("the loader broke")
        return m(batch)

    made = plan.uniform(model, density=0.5)
    with pytest.raises(RuntimeError, match="the loader broke"):
        prune(model, [x], made, Magnitude(), mode=mode, inplace=inplace, forward=forward)
    assert same(before, parameters(model))
    assert all(module.training for module in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_and_activations_that_are_not_finite_name_the_layer(value):
    model, x = mlp(), data(20, 8)
    made = plan.uniform(model, density=0.5)
    broken = mlp()
    layer(broken, "2").weight.data[3, 4] = value
    with pytest.raises(NonFiniteError, match=r"layer '2': its weight holds 1 NaN or infinite"):
        prune(broken, [x], made, Magnitude())
    broken = mlp()
    layer(broken, "2").bias.data[0] = value
    with pytest.raises(NonFiniteError, match=r"layer '2': its bias"):
        prune(broken, [x], made, Magnitude())
    x[3, 2] = value
    for mode in ("parallel", "cascade"):
        with pytest.raises(NonFiniteError, match="layer '0'"):
            prune(model, [x], made, Magnitude(), mode=mode)


@dataclass(frozen=True)
class Odd(Solver[L0LeastSquares]):
    """Returns what the tests ask for."""

    factor: float = 1.0
    reason: Termination = Termination.STEP_LIMIT

    accepts: ClassVar = (L0LeastSquares,)
    summary: ClassVar[str] = "a test's"
    source: ClassVar[str] = "none"

    def run(self, problem, progress=None):
        matrix = self.factor * problem.pattern.project(problem.dense)
        return Answer(matrix, (self.reason,) * max(1, math.prod(problem.batch_shape)), 7)


def test_a_solver_that_stops_early_is_reported():
    model = mlp()
    _, report = prune(model, [data(20, 8)], plan.uniform(model, density=0.5), Odd())
    assert {record.termination for record in report.layers} == {Termination.STEP_LIMIT}
    assert {record.steps for record in report.layers} == {7}
    assert "step limit" in str(report)


@pytest.mark.parametrize("factor", [math.nan, math.inf, 1e300])
def test_a_solution_that_is_not_finite_raises_and_nothing_is_written(factor):
    model = mlp()
    before = parameters(model)
    made = plan.uniform(model, density=0.5)
    with pytest.raises(NonFiniteError, match=r"layer '0': the pruned weight holds NaN or infinity in torch.float32"):
        prune(model, [data(20, 8)], made, Odd(factor, Termination.NON_FINITE), inplace=True)
    assert same(before, parameters(model))


def test_tied_and_repeated_layers():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x):
            return self.head(self.embed(x))

    tied, tokens = Tied(), torch.arange(6).reshape(2, 3)
    with pytest.raises(UnsupportedError, match=r"layer 'head': .*'embed'"):
        prune(tied, [tokens], plan.uniform(tied, density=0.5), Magnitude())

    shared = nn.Linear(5, 5)
    twice = nn.Sequential(shared, nn.ReLU(), shared)
    _, report = prune(twice, [data(10, 5)], plan.uniform(twice, density=0.5), Magnitude())
    assert [(record.name, record.rows) for record in report.layers] == [("0", 20)]
    with pytest.raises(UnsupportedError, match=r"layer '0': it is called 2 times"):
        prune(twice, [data(10, 5)], plan.uniform(twice, density=0.5), Magnitude(), mode="cascade")


def test_a_layer_that_is_never_reached_is_named_unless_skipped():
    class Spare(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.spare = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            return self.used(x)

    model = Spare()
    with pytest.raises(InvalidInputError, match=r"layer 'spare': it is never reached"):
        prune(model, [data(5, 3)], plan.uniform(model, density=0.5), Magnitude())
    _, report = prune(model, [data(5, 3)], plan.uniform(model, density=0.5, skip="spare"), Magnitude())
    assert [record.name for record in report.layers] == ["used"]


def test_misuse_is_refused():
    model, x = mlp(), data(10, 8)
    made = plan.uniform(model, density=0.5)
    with pytest.raises(InvalidInputError, match="no sample"):
        prune(model, [], made, Magnitude())
    with pytest.raises(InvalidInputError, match="samples=0"):
        prune(model, [x], made, Magnitude(), samples=0)
    with pytest.raises(InvalidInputError, match=r"relu names '1'"):
        prune(model, [x], made, Magnitude(), relu={"1": True})
    with pytest.raises(UnsupportedError, match=r"layer '0': Radius.*needs a pattern"):
        prune(model, [x], plan.radius(model, 0.1), Magnitude())
    with pytest.raises(InvalidInputError, match="an empty plan"):
        prune(model, [x], plan.uniform(model, density=0.5, skip="*"), Magnitude())
    with pytest.raises(InvalidInputError, match="'cuda:7' cannot be used"):
        prune(model, [x], made, Magnitude(), device="cuda:7")
    with pytest.raises(InvalidInputError, match="'meta' and holds no numbers"):
        prune(mlp().to("meta"), [x], made, Magnitude())
