"""measured <= bound on random networks, with every operation that has a rule; no bound where one has none."""

import math
import re
from unittest import mock

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from optprune.network import lipschitz, plan
from optprune.network.prune import Mode, prune
from optprune.network.report import NetworkBound
from optprune.solvers import Magnitude


def data(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def filled(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random parameters and statistics, so that nothing is a default."""
    rng = torch.Generator().manual_seed(seed)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point():
            values = (
                torch.rand(tensor.shape, generator=rng) if "var" in name else torch.randn(tensor.shape, generator=rng)
            )
            tensor.data = (values / max(1.0, math.sqrt(tensor[0].numel() if tensor.dim() > 1 else 1))).to(tensor)
    return model


def bound_of(
    model: nn.Module, x: torch.Tensor, *, mode: Mode = "parallel", density: float = 0.5, **options
) -> NetworkBound:
    made = plan.uniform(model, density=density, **options)
    _, report = prune(
        model, [x[: len(x) // 2], x[len(x) // 2 :]], made, Magnitude(refit=False), mode=mode, certified=False
    )
    assert report.network is not None
    return report.network


def holds(found: NetworkBound) -> bool:
    assert found.reason == ""
    assert found.bound is not None
    assert found.measured is not None
    assert found.measured > 0
    return found.measured <= found.bound


class Residual(nn.Module):
    def __init__(self, inplace: bool = False):
        super().__init__()
        self.c1, self.b1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.c2, self.b2 = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=4), nn.BatchNorm2d(8)
        self.down = nn.Conv2d(8, 16, 3, stride=2, padding=1, padding_mode="reflect")
        self.relu = nn.ReLU(inplace=inplace)
        self.fc = nn.Linear(16, 5)

    def forward(self, x):
        h = self.relu(self.b1(self.c1(x)))
        y = self.b2(self.c2(h))
        y += h
        y = F.max_pool2d(self.relu(y), 2)
        y = self.relu(self.down(y))
        return self.fc(F.adaptive_avg_pool2d(y, 1).flatten(1))


def mlp(activation: nn.Module | None = None) -> nn.Module:
    act = activation or nn.ReLU()
    return nn.Sequential(nn.Linear(8, 12), act, nn.Linear(12, 12, bias=False), act, nn.Linear(12, 4))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, stride=2, padding=1, padding_mode="circular"),
        nn.LeakyReLU(0.1),
        nn.Conv2d(6, 6, 3, groups=3, dilation=2, padding="same"),
        nn.BatchNorm2d(6),
        nn.Tanh(),
        nn.MaxPool2d(3, stride=1, padding=1),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(24, 3),
    )


CASES = {
    "mlp": (mlp, (30, 8)),
    "cnn": (cnn, (10, 2, 8, 8)),
    "residual": (Residual, (6, 3, 8, 8)),
    "residual in place": (lambda: Residual(True), (6, 3, 8, 8)),
    "conv1d": (
        lambda: nn.Sequential(nn.Conv1d(2, 4, 3, stride=2), nn.ReLU(), nn.AvgPool1d(2), nn.Conv1d(4, 3, 2)),
        (8, 2, 13),
    ),
}


@pytest.mark.parametrize("mode", ["parallel", "cascade"])
@pytest.mark.parametrize("case", CASES)
def test_the_measured_error_is_below_the_bound(case, mode):
    build, shape = CASES[case]
    for seed, dtype in enumerate((torch.float32, torch.float64)):
        model = filled(build().to(dtype), seed)
        found = bound_of(model, data(*shape, seed=seed), mode=mode, density=0.2 + 0.4 * seed)
        assert holds(found)
        assert found.samples == shape[0]


@pytest.mark.parametrize("layer", [0, 2, 4])
def test_with_one_pruned_layer_the_last_factor_counts(layer):
    """Pruned last layer: the bound is the measurement itself, so that nothing may be lost on the way."""
    model, x = filled(mlp().double()), data(30, 8)
    found = bound_of(model, x, skip=[str(i) for i in (0, 2, 4) if i != layer])
    assert holds(found)
    if layer == 4:
        assert found.bound == pytest.approx(found.measured, rel=1e-9)


def test_the_terms_are_the_recursion():
    model = filled(mlp().double())
    pruned, report = prune(model, [data(30, 8)], plan.uniform(model, density=0.5), Magnitude(), certified=False)
    found = report.network
    assert found is not None
    before = 0.0
    for name in ("0", "2", "4"):
        term = found.terms[name]
        assert term["bound"] == pytest.approx(term["gain"] * term["incoming"] + term["local"], rel=1e-9)
        assert term["bound"] >= term["gain"] * term["incoming"] + term["local"]
        assert term["incoming"] <= before, "the ReLU between is 1-Lipschitz"
        before = term["bound"]
    assert found.bound == before
    assert found.terms["0"]["incoming"] == 0.0
    with torch.no_grad():
        x = data(30, 8)
        step = pruned.get_submodule("0")(x).relu() - model.get_submodule("0")(x).relu()
        assert found.terms["2"]["incoming"] == pytest.approx(float(step.norm()), rel=1e-9)


def test_the_local_error_is_that_of_the_record():
    model = filled(mlp().double())
    made = plan.uniform(model, density=0.4)
    for mode in ("parallel", "cascade"):
        _, report = prune(model, [data(30, 8)], made, Magnitude(), mode=mode)
        assert report.network is not None
        for record in report.layers:
            assert report.network.terms[record.name]["local"] == pytest.approx(record.discrepancy, rel=1e-9)


def test_the_measurement_is_the_difference_of_the_outputs():
    model, x = filled(cnn().double()).train(), data(10, 2, 8, 8)
    pruned, report = prune(model, [x], plan.uniform(model, density=0.5), Magnitude())
    assert report.network is not None
    with torch.no_grad():
        difference = pruned.eval()(x) - model.eval()(x)
        assert report.network.measured == pytest.approx(float(difference.norm()), rel=1e-12)
        assert report.network.scale == pytest.approx(float(model(x).norm()), rel=1e-12)


class One(nn.Module):
    """A pruned layer, one operation, and nothing else."""

    def __init__(self, operation, channels=4):
        super().__init__()
        self.fc = nn.Conv2d(channels, channels, 1)
        self.operation = operation

    def forward(self, x):
        return self.operation(self.fc(x))


def with_itself(function):
    return lambda y: function(y, y)


OPERATIONS = {
    "identity": nn.Identity(),
    "relu6": nn.ReLU6(),
    "hardtanh": nn.Hardtanh(),
    "softsign": nn.Softsign(),
    "logsigmoid": nn.LogSigmoid(),
    "sigmoid": nn.Sigmoid(),
    "steep leaky": nn.LeakyReLU(2.5),
    "elu": nn.ELU(1.7),
    "unflatten": nn.Unflatten(1, (2, 2)),
    "max pool": nn.MaxPool2d(3, stride=2, padding=1, dilation=2, ceil_mode=True),
    "avg pool": nn.AvgPool2d(3, stride=1, padding=1),
    "avg pool short": nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False, ceil_mode=True),
    "adaptive": nn.AdaptiveAvgPool2d((2, 3)),
    "adaptive max": nn.AdaptiveMaxPool2d((2, 1)),
    "batch norm": nn.BatchNorm2d(4),
    "plain batch norm": nn.BatchNorm2d(4, affine=False),
    "skipped conv": nn.Conv2d(4, 2, 3, padding=1),
    "f.relu": F.relu,
    "f.relu in place": lambda y: F.relu(y, inplace=True),
    "method relu": lambda y: y.relu(),
    "f.leaky": lambda y: F.leaky_relu(y, 0.3),
    "f.elu": lambda y: F.elu(y, 1.5),
    "f.tanh": torch.tanh,
    "f.sigmoid": torch.sigmoid,
    "f.max pool": lambda y: F.max_pool2d(y, 3, stride=1),
    "f.max pool named": lambda y: F.max_pool2d(y, kernel_size=2, stride=2, padding=1),
    "f.avg pool": lambda y: F.avg_pool2d(y, y.size()[3]),
    "f.adaptive": lambda y: F.adaptive_avg_pool2d(y, (1, 1)),
    "f.dropout": lambda y: F.dropout(y, 0.5, training=False),
    "double": with_itself(torch.add),
    "scaled add": lambda y: torch.add(y, y, alpha=-3),
    "minus": lambda y: y - 2.0,
    "rminus": lambda y: 2.0 - y,
    "broadcast": lambda y: y + y.mean((2, 3), keepdim=True),
    "in place": lambda y: y.relu().add_(1.0),
    "scale": lambda y: -0.3 * y / 4,
    "cat": lambda y: torch.cat([y, F.relu(y), y], 1),
    "stack": lambda y: torch.stack((y, y)),
    "mean": lambda y: y.mean(dim=(2, 3)),
    "sum": lambda y: y.sum(1),
    "view": lambda y: y.view(y.shape[0], -1).unsqueeze(1).permute(1, 0, 2).reshape(-1),
    "slice": lambda y: F.pad(y[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2), "constant", 1.0),
    "abs": torch.abs,
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_rule_holds(name):
    model = filled(One(OPERATIONS[name]).double())
    skip = ["operation"] if isinstance(OPERATIONS[name], nn.Conv2d) else []
    assert holds(bound_of(model, 3 * data(6, 4, 6, 6), skip=skip)), name


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("identity", "SAME"),
        ("minus", "ADD"),
        ("stack", "STACK"),
        ("scale", "SCALE"),
    ],
)
def test_a_constant_that_is_too_small_is_seen(name, cause):
    """These operations are isometries, up to a factor: the bound is attained, and a thousandth less breaks it."""
    model, x = filled(One(OPERATIONS[name]).double()), data(6, 4, 6, 6)
    original = lipschitz.Step

    def smaller(factors, *rest, **more):
        return original(tuple((node, constant * (1 - 1e-3)) for node, constant in factors), *rest, **more)

    with mock.patch.object(lipschitz, "Step", smaller):
        found = bound_of(model, x)
    assert found.measured is not None
    assert found.bound is not None
    assert found.measured > found.bound
    assert holds(bound_of(model, x))


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.scale = nn.Linear(4, 4), nn.Parameter(torch.ones(4))

    def forward(self, x):
        y = self.fc(x)
        return y * self.scale


class Reads(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return self.fc(x) @ self.fc.weight


class Clobbers(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        y = self.fc(x)
        z = y.view(-1)
        z += 1
        return y + 0


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return self.fc(x) if x.sum() > 0 else -self.fc(x)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)), r"operation '_1' \(LayerNorm\): no rule"),
        (nn.Sequential(nn.Linear(4, 4), nn.Softmax(-1), nn.ReLU()), r"\(Softmax\): no rule"),
        (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False)), "without stored statistics"),
        (Normed(), r"operation 'mul' \(mul\): a product"),
        (Reads(), "reads the parameters of a pruned layer directly"),
        (Clobbers(), "does not compute what the model does"),
        (Branches(), "cannot be traced symbolically"),
        (nn.Sequential(nn.Linear(4, 4), nn.Threshold(0.1, 20)), r"\(Threshold\)"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_without_a_rule_there_is_no_bound_but_a_measurement(model, words):
    found = bound_of(filled(model), data(10, 4).float())
    assert found.bound is None
    assert found.measured is not None
    assert found.measured > 0
    assert re.search(words, found.reason), found.reason
    assert found.reason in str(found)


def test_an_operation_before_the_first_pruned_layer_needs_no_rule():
    model = filled(nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.Softmax(-1), nn.Linear(8, 3)))
    assert holds(bound_of(model, data(10, 8).float(), skip="1"))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x):
        return self.fc(torch.relu(self.fc(x)))


def test_a_layer_called_twice_is_bounded_at_each_call():
    assert holds(bound_of(filled(Twice().double()), data(20, 6)))


class Dictionary(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.other = nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x, shift=None, *, scale=1.0):
        y = self.fc(x)
        return {"first": y, "rest": [self.other(y), y]}


def test_outputs_may_be_nested_and_arguments_named():
    model, x = filled(Dictionary().double()), data(20, 6)
    made = plan.uniform(model, density=0.5)
    _, report = prune(model, [{"x": x}], made, Magnitude())
    assert report.network is not None
    assert holds(report.network)


def test_a_model_that_does_not_run_in_float64_says_so():
    class Fixed32(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return self.fc(x.float())

    found = bound_of(Fixed32(), data(8, 4).float())
    assert (found.bound, found.measured) == (None, None)
    assert "does not run in float64" in found.reason


def test_a_forward_that_returns_no_tensor_says_so():
    class Text(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            self.fc(x)
            return "done"

    found = bound_of(Text(), data(8, 4).float())
    assert (found.bound, found.measured) == (None, None)
    assert "no tensor but str" in found.reason
