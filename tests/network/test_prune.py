"""The main job on small networks: what ships is what is certified, and the caller's model is left alone."""

import math
from dataclasses import replace

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from optprune.certify import recheck
from optprune.network import plan
from optprune.network.plan import Radius
from optprune.network.prune import prune
from optprune.network.report import Report
from optprune.patterns import Columns, NOfM, PerLayer, PerRow, Rows
from optprune.solvers import ADMM, Magnitude, Wanda
from tests.network.networks import cnn, data, filled, layer, mlp, parameters, same


@pytest.mark.parametrize("mode", ["parallel", "cascade"])
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_counts_are_exact_and_the_model_is_untouched(mode, density):
    for model, x in ((mlp(), data(40, 8)), (cnn(), data(9, 3, 6, 6))):
        model.train()
        before = parameters(model)
        made = plan.uniform(model, density=density)
        pruned, report = prune(model, [x[:5], x[5:]], made, Magnitude(), mode=mode, certified=density == 0.3)
        assert same(before, parameters(model))
        assert model.training
        assert pruned.training
        assert pruned is not model
        for record in report.layers:
            weight = layer(pruned, record.name).weight
            assert int((weight != 0).sum()) == record.kept == made.count(record.name)
            if record.certificate is not None:
                assert record.certificate.lower_bound <= record.certificate.objective
        if density == 1.0:
            assert all(record.error == pytest.approx(0.0, abs=1e-6) for record in report.layers)
        if density == 0.0:
            assert report.kept == 0
            if mode == "parallel":
                assert all(record.error == pytest.approx(1.0) for record in report.layers)
        assert report.network is not None
        assert report.network.measured is not None
        assert report.network.bound is not None
        assert report.network.measured <= report.network.bound


@pytest.mark.parametrize("mode", ["parallel", "cascade"])
def test_certificates_are_of_the_weights_that_ship(mode):
    model, x = cnn(), data(9, 3, 6, 6)
    pruned, report = prune(model, [x], plan.uniform(model, density=0.4), ADMM(), mode=mode)
    for record in report.layers:
        module = layer(pruned, record.name)
        groups = module.groups if isinstance(module, nn.Conv2d) else 1
        shipped = module.weight.detach().double().reshape(groups, module.weight.shape[0] // groups, -1)
        assert len(record.parts) == groups
        for part, matrix in zip(record.parts, shipped, strict=True):
            assert torch.equal(part.matrix, matrix)
            assert part.problem.violation(matrix)["support"] == 0
            assert recheck(part.problem, part.matrix, part.evidence) == part.certificate
        certificate = record.certificate
        assert certificate is not None
        assert certificate.objective == pytest.approx(sum(part.certificate.objective for part in record.parts))
        total = sum(part.certificate.lower_bound for part in record.parts)
        assert certificate.lower_bound <= total <= certificate.lower_bound + 1e-12
        assert record.discrepancy == pytest.approx(
            math.sqrt(2 * record.rows * certificate.objective), rel=1e-9, abs=1e-8
        )


def test_the_error_is_that_of_the_layer_on_dense_inputs():
    model, x = mlp().double(), data(50, 8).double()
    pruned, report = prune(model, x.split(20), plan.uniform(model, density=0.5), Wanda(), certified=False)
    hidden = x
    for name, record in zip(("0", "2", "4"), report.layers, strict=True):
        dense, sparse = layer(model, name), layer(pruned, name)
        with torch.no_grad():
            missed = hidden @ (sparse.weight - dense.weight).mT
            whole = hidden @ dense.weight.mT
            assert record.error == pytest.approx(float(missed.norm() / whole.norm()), rel=1e-9)
            hidden = torch.relu(dense(hidden))
    assert [record.rows for record in report.layers] == [50, 50, 50]


def test_the_cascade_repairs_what_the_prefix_lost():
    model, x = mlp().double(), data(60, 8).double()
    made = plan.uniform(model, density=0.4)
    errors = {}
    for mode in ("parallel", "cascade"):
        pruned, report = prune(model, [x], made, ADMM(), mode=mode, certified=False)
        assert report.network is not None
        errors[mode] = report.network.measured
        if mode == "cascade":
            with torch.no_grad():
                missed = pruned(x) - model(x)
            assert report.layers[-1].discrepancy == pytest.approx(float(missed.norm()), rel=1e-9)
    assert errors["cascade"] < errors["parallel"]


@pytest.mark.parametrize(
    "pattern",
    [NOfM(2, 4), PerRow(3), Rows(2), Columns(5), PerLayer(7), lambda shape: PerRow(shape[1] // 3)],
    ids=lambda pattern: "function" if callable(pattern) else str(pattern),
)
def test_patterns_hold_in_the_shipped_weights(pattern):
    model, x = mlp(), data(40, 8)
    made = plan.uniform(model, pattern=pattern)
    pruned, report = prune(model, [x], made, Magnitude(), certified=False)
    for record in report.layers:
        target = made[record.name]
        assert not isinstance(target, Radius)
        assert target.admits(layer(pruned, record.name).weight != 0)
        assert record.pattern == repr(target)


def test_skipped_layers_stay_as_they_are():
    model, x = mlp(), data(40, 8)
    pruned, report = prune(model, [x], plan.uniform(model, density=0.5, skip="2"), Magnitude())
    assert torch.equal(layer(pruned, "2").weight, layer(model, "2").weight)
    assert [record.name for record in report.layers] == ["0", "4"]


def test_in_place_writes_into_the_model_and_keeps_its_parameters():
    model, x = mlp(), data(40, 8)
    copy, _ = prune(model, [x], plan.uniform(model, density=0.5), Magnitude())
    held = dict(model.named_parameters())
    result, _ = prune(model, [x], plan.uniform(model, density=0.5), Magnitude(), inplace=True)
    assert result is model
    assert all(parameter is held[name] for name, parameter in model.named_parameters())
    assert same(parameters(model), parameters(copy))
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_layers_of_one_shape_are_solved_together_as_alone():
    model = filled(nn.Sequential(*(nn.Linear(6, 6) for _ in range(3))))
    x = data(30, 6)
    made = plan.uniform(model, density=0.5)
    together, _ = prune(model, [x], made, ADMM(), bound=False, certified=False)
    alone, report = prune(model, [x], made, ADMM(), bound=False, certified=False, memory=1)
    for a, b in zip(together.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert report.network is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", ["parallel", "cascade"])
def test_weights_are_certified_after_the_cast(dtype, mode):
    model, x = mlp().to(dtype), data(40, 8)
    pruned, report = prune(model, [x], plan.uniform(model, density=0.5), ADMM(), mode=mode)
    assert {parameter.dtype for parameter in pruned.parameters()} == {dtype}
    for record in report.layers:
        assert record.certificate is not None
        assert record.certificate.lower_bound <= record.certificate.objective
        (part,) = record.parts
        assert torch.equal(part.matrix, layer(pruned, record.name).weight.detach().double())
        assert record.certificate.objective == pytest.approx(float(part.problem.objective(part.matrix)), rel=1e-12)
    assert report.network is not None
    assert report.network.measured is not None
    assert report.network.bound is not None
    assert report.network.measured <= report.network.bound


def test_progress_names_every_layer():
    model, seen = mlp(), []
    made = plan.uniform(model, density=0.5)
    for mode in ("parallel", "cascade"):
        seen.clear()
        prune(model, [data(10, 8)], made, Magnitude(), mode=mode, progress=lambda *event: seen.append(event))
        assert {name for name, _, _ in seen} == {"0", "2", "4", ""}
        assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
        assert seen[-1] == ("", 3, 3)


def test_provenance_says_where_the_numbers_come_from():
    model, x = mlp(), data(30, 8)
    made = plan.uniform(model, density=0.5)
    _, report = prune(model, x.split(20), made, Magnitude(), seed=5)
    facts = report.provenance
    assert facts["data"]["samples"] == 30
    assert facts["data"]["batches"] == 2
    assert len(facts["data"]["sha256"]) == 64
    assert (facts["seed"], facts["mode"], facts["device"]) == (5, "parallel", "cpu")
    assert facts["plan"] == {"0": "PerLayer(k=48)", "2": "PerLayer(k=72)", "4": "PerLayer(k=24)"}
    assert facts["solver"] == repr(Magnitude())
    assert facts["versions"]["torch"] == torch.__version__
    again = Report.from_json(report.to_json())
    assert again.to_json() == report.to_json()


def test_without_evidence_nothing_large_is_kept():
    model = mlp()
    _, report = prune(model, [data(10, 8)], plan.uniform(model, density=0.5), Magnitude(), evidence=False)
    assert all(record.parts == () and record.certificate is not None for record in report.layers)
    _, report = prune(model, [data(10, 8)], plan.uniform(model, density=0.5), Magnitude(), certified=False)
    assert all(record.parts == () and record.certificate is None for record in report.layers)
    assert "no certificate" in str(report)


def test_the_same_run_twice_gives_the_same_bits():
    model, x = mlp(), data(30, 8)
    made = plan.uniform(model, density=0.5)
    (a, first), (b, second) = (prune(model, [x], made, ADMM()) for _ in range(2))
    assert same(parameters(a), parameters(b))
    for one, two in zip(first.layers, second.layers, strict=True):
        assert replace(one, seconds=0.0) == replace(two, seconds=0.0)
    assert first.network == second.network


def trained_on_digits() -> tuple[nn.Sequential, torch.Tensor, torch.Tensor]:
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    model = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 10))
    filled(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[:1400]), y[:1400]).backward()
        optimizer.step()
    return model, x, y


def test_digits_keep_their_accuracy():
    model, x, y = trained_on_digits()

    def accuracy(m: nn.Module) -> float:
        with torch.no_grad():
            return float((m(x[1400:]).argmax(1) == y[1400:]).float().mean())

    made = plan.uniform(model, density=0.5)
    pruned, report = prune(model, x[:1400].split(256), made, ADMM(), mode="cascade")
    assert accuracy(model) > 0.85
    assert accuracy(pruned) > accuracy(model) - 0.03
    assert report.network is not None
    assert report.network.measured is not None
    assert report.network.bound is not None
    assert report.network.measured <= report.network.bound
    for record in report.layers:
        assert record.termination.ok
        assert record.certificate is not None
        assert 0 <= record.certificate.lower_bound <= record.certificate.objective


@pytest.mark.parametrize("mode", ["parallel", "cascade"])
def test_an_attention_keeps_its_own_projection(mode):
    """It is never called, its parent multiplies by its weight; what is around it is pruned."""
    block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    before = block.self_attn.out_proj.weight.detach().clone()
    made = plan.uniform(block, density=0.5)
    assert list(made) == ["linear1", "linear2"]
    pruned, _ = prune(block, [data(6, 3, 8)], made, Magnitude(), mode=mode)
    assert torch.equal(pruned.self_attn.out_proj.weight, before)
    assert int((pruned.linear1.weight != 0).sum()) == 64
