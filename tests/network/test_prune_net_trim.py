"""Net-Trim on networks: radii and counts, both modes, the bias free, the ReLU found or given."""

import math

import pytest
import torch
from torch import nn

from optprune.errors import InvalidInputError, UnsupportedError
from optprune.network import plan
from optprune.network.plan import Radius
from optprune.network.prune import prune
from optprune.patterns import NOfM
from optprune.problems.net_trim import NetTrim
from optprune.solvers import Magnitude
from optprune.solvers.net_trim_admm import NetTrimADMM
from tests.network.networks import data, filled, layer


def net() -> nn.Sequential:
    return filled(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)))


def test_a_radius_bounds_the_error_behind_the_relu():
    model, x = net(), data(40, 6)
    pruned, report = prune(model, [x[:10], x[10:]], plan.radius(model, 0.1), NetTrimADMM())
    with torch.no_grad():
        dense, sparse = model[1](model[0](x)).double(), pruned[1](pruned[0](x)).double()
        logits = model[2](model[1](model[0](x))).double()
        rebuilt = pruned[2](model[1](model[0](x))).double()
    first, second = report.layers
    assert first.relu_error is not None
    assert first.relu_error == pytest.approx(float((sparse - dense).norm() / dense.norm()), rel=1e-4)
    assert first.relu_error <= 0.1 + 1e-6
    assert second.relu_error is None
    assert float((rebuilt - logits).norm()) <= 0.1 * float(logits.norm()) * (1 + 1e-5)
    assert report.provenance["relu"] == {"0": True, "2": False}
    for record in report.layers:
        assert (record.problem, record.pattern, record.target) == ("NetTrim", "", "Radius(relative=0.1, gamma=1.0)")
        assert record.kept < math.prod(record.shape)
        assert record.certificate is not None
        assert record.certificate.relative_gap == pytest.approx(0.0, abs=1e-5)
        assert record.certificate.primal_residual <= 1e-6
    assert report.network is not None
    assert report.network.measured is not None
    assert report.network.bound is not None
    assert report.network.measured <= report.network.bound


def test_the_bias_is_free_and_written_back():
    model, x = net(), data(40, 6)
    pruned, report = prune(model, [x], plan.radius(model, 0.2), NetTrimADMM())
    for record in report.layers:
        module, (part,) = layer(pruned, record.name), record.parts
        assert isinstance(part.problem, NetTrim)
        assert torch.equal(part.matrix[:, :-1], module.weight.detach().double())
        assert torch.equal(part.matrix[:, -1], module.bias.detach().double())
        assert not torch.equal(module.bias, layer(model, record.name).bias)
        assert record.kept == int((module.weight != 0).sum())


def test_the_error_over_all_rows_counts_the_change_of_the_bias():
    model, x = net().double(), data(40, 6).double()
    pruned, report = prune(model, [x], plan.radius(model, 0.2), NetTrimADMM(), certified=False)
    with torch.no_grad():
        missed = pruned[0](x) - model[0](x)
        whole = x @ layer(model, "0").weight.mT
    assert report.layers[0].error == pytest.approx(float(missed.norm() / whole.norm()), rel=1e-9)


@pytest.mark.parametrize("mode", ["parallel", "cascade"])
def test_a_density_is_a_count_that_is_not_exceeded(mode):
    model, x = net(), data(20, 6)
    made = plan.uniform(model, density=0.4)
    _, report = prune(model, [x], made, NetTrimADMM(), mode=mode)
    for record in report.layers:
        assert record.kept <= made.count(record.name)
        assert record.termination.ok
    if mode == "parallel":
        assert report.kept >= 0.9 * made.count()


def test_the_cascade_aims_at_the_dense_outputs():
    model, x = net(), data(40, 6)
    made = plan.radius(model, 0.05, override={"2": Radius(0.02, gamma=1.1)})
    pruned, report = prune(model, [x], made, NetTrimADMM(), mode="cascade")
    first, second = report.layers
    with torch.no_grad():
        logits, hidden = model(x).double(), pruned[1](pruned[0](x))
        passed = float((model[2](hidden).double() - logits).norm())
        reached = float((pruned(x).double() - logits).norm())
    radius = max(math.sqrt(1.1) * passed, 0.02 * float(logits.norm()))
    (part,) = second.parts
    assert isinstance(part.problem, NetTrim)
    assert part.problem.radius is not None
    assert float(part.problem.radius) == pytest.approx(radius, rel=1e-5)
    assert reached <= radius * (1 + 1e-5)
    assert second.discrepancy == pytest.approx(reached, rel=1e-5)
    assert first.relu_error is not None
    assert first.relu_error <= 0.05 * (1 + 1e-5)


def test_rows_are_sampled_and_the_error_is_of_all():
    model, x = net(), data(200, 6)
    _, report = prune(model, x.split(64), plan.radius(model, 0.1), NetTrimADMM(), samples=30, seed=1)
    for record in report.layers:
        (part,) = record.parts
        assert part.problem.tensors()["inputs"].shape[0] == 30
        assert record.rows == 200
    assert report.provenance["samples"] == 30


def test_groups_of_a_convolution_are_problems_of_their_own():
    model = filled(nn.Sequential(nn.Conv2d(4, 4, 2, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)))
    pruned, report = prune(model, [data(10, 4, 3, 3)], plan.radius(model, 0.1), NetTrimADMM())
    record = report.layers[0]
    assert len(record.parts) == 2
    assert record.relu_error is not None
    assert record.relu_error <= 0.1 + 1e-6
    norm = float(layer(pruned, "0").weight.detach().double().abs().sum())
    assert record.certificate is not None
    assert record.certificate.objective == pytest.approx(norm, rel=1e-12)


def test_the_relu_may_be_told():
    model, x = net(), data(40, 6)
    _, report = prune(model, [x], plan.radius(model, 0.1), NetTrimADMM(), relu={"0": False})
    assert report.provenance["relu"] == {"0": False, "2": False}
    assert report.layers[0].relu_error is None
    assert report.layers[0].error <= 0.2


def test_what_net_trim_does_not_take_is_refused():
    model, x = net(), data(40, 6)
    with pytest.raises(UnsupportedError, match=r"layer '0': NOfM\(n=1, m=2\).*accepted are a density, PerLayer"):
        prune(model, [x], plan.uniform(model, pattern=NOfM(1, 2)), NetTrimADMM())
    with pytest.raises(UnsupportedError, match=r"layer '0': .*or a Net-Trim solver"):
        prune(model, [x], plan.radius(model, 0.1), Magnitude())
    with pytest.raises(InvalidInputError, match="samples=0"):
        prune(model, [x], plan.radius(model, 0.1), NetTrimADMM(), samples=0)
