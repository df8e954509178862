"""A network that was pruned and trained elsewhere gets the report that `prune` gives, about the weights as they are."""

import copy

import pytest
import torch
from torch import nn

import optprune as op
from optprune.errors import InvalidInputError, NonFiniteError
from optprune.network.assess import assess
from tests.network.networks import cnn, data, layer, mlp, parameters, same


def test_what_prune_made_is_assessed_as_prune_did(tmp_path):
    model, batches = cnn(), [data(6, 3, 6, 6), data(6, 3, 6, 6, seed=1)]
    plan = op.plan.uniform(model, density=0.4)
    pruned, report = op.prune(model, batches, plan, op.Magnitude())
    before = parameters(pruned)
    again = assess(model, pruned, batches, plan, by="elsewhere", steps=7)
    assert same(before, parameters(pruned))
    for one, other in zip(report.layers, again.layers, strict=True):
        assert (one.name, one.kept, one.pattern, one.rows) == (other.name, other.kept, other.pattern, other.rows)
        assert other.error == pytest.approx(one.error, rel=1e-12)
        assert one.certificate is not None
        assert other.certificate is not None
        assert other.certificate.objective == pytest.approx(one.certificate.objective, rel=1e-12)
        assert (other.solver, other.steps) == ("'elsewhere'", 7)
    assert report.network is not None
    assert again.network is not None
    assert again.network.bound == pytest.approx(report.network.bound, rel=1e-12)
    op.export(pruned, again, tmp_path / "run")
    op.verify(tmp_path / "run")


def test_biases_that_moved_are_part_of_the_error(tmp_path):
    model, batch = cnn(), data(8, 3, 6, 6)
    plan = op.plan.uniform(model, density=0.4)
    pruned, _ = op.prune(model, [batch], plan, op.Magnitude())
    with torch.no_grad():
        for name in plan:
            layer(pruned, name).bias.add_(0.3 * torch.arange(1, len(layer(pruned, name).bias) + 1))
    report = assess(model, pruned, [batch], plan, by="elsewhere")
    inputs = batch
    for index, module in enumerate(model):
        other = pruned[index]
        if str(index) in plan:
            record = report.layer(str(index))
            missed = (other(inputs) - module(inputs)).detach().double().square().sum()
            assert record.discrepancy == pytest.approx(float(missed.sqrt()), rel=1e-6)
            assert record.certificate is not None
            # Half the mean of the same squares: the problem is that of the weight, the moved bias given.
            assert record.certificate.objective == pytest.approx(float(missed) / (2 * record.rows), rel=1e-6)
            assert 0 <= record.certificate.lower_bound <= record.certificate.objective
        inputs = module(inputs)
    op.export(pruned, report, tmp_path / "run")
    op.verify(tmp_path / "run")


def test_the_best_weight_for_a_moved_bias_closes_the_gap():
    model, batch = nn.Sequential(nn.Linear(4, 3)), data(50, 4)
    plan = op.plan.uniform(model, density=1.0)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.get_parameter("0.bias").add_(0.5)
        ones = torch.full((50, 1), 0.5)
        other.get_parameter("0.weight").sub_(torch.linalg.lstsq(batch, ones).solution.T)
    report = assess(model, other, [batch], plan, by="elsewhere")
    certificate = report.layer("0").certificate
    assert certificate is not None
    assert certificate.relative_gap < 1e-6
    assert certificate.objective > 0.01


def test_a_change_elsewhere_leaves_no_bound():
    model, batch = mlp(), data(16, 8)
    pruned, _ = op.prune(model, [batch], op.plan.uniform(model, density=0.4), op.Magnitude())
    report = assess(model, pruned, [batch], op.plan.uniform(model, density=0.4, skip="4"), by="elsewhere")
    network = report.network
    assert network is not None
    assert (network.bound, network.terms, network.chain) == (None, {}, None)
    assert network.reason.startswith("'4.weight' changed too")
    missed = (pruned.double()(batch.double()) - model.double()(batch.double())).norm()
    assert network.measured == pytest.approx(float(missed.detach()), rel=1e-9)


def test_refusals():
    model, batch = mlp(), data(16, 8)
    plan = op.plan.uniform(model, density=0.4)
    with pytest.raises(InvalidInputError, match=r"layer '0'.*not within"):
        assess(model, model, [batch], plan, by="elsewhere")
    with pytest.raises(InvalidInputError, match="held against patterns"):
        assess(model, model, [batch], op.plan.radius(model, 0.1), by="elsewhere")
    broken = copy.deepcopy(model)
    layer(broken, "0").weight.data[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"layer '0'"):
        assess(model, broken, [batch], op.plan.uniform(model, density=1.0), by="elsewhere")
