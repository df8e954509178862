"""The main job on small networks: what ships is what is certified, and the caller's model is left alone."""

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from optprune.certify import recheck
from optprune.errors import InvalidInputError, NonFiniteError, UnsupportedError
from optprune.network import Radius, Report, plan, prune
from optprune.patterns import Columns, NOfM, PerLayer, PerRow, Rows
from optprune.problems import L0LeastSquares
from optprune.solution import Answer, Termination
from optprune.solvers import ADMM, Magnitude, Solver, Wanda


def data(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


M = TypeVar("M", bound=nn.Module)


def filled(model: M, seed: int = 0) -> M:
    rng = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        fan = math.prod(parameter.shape[1:]) or 1
        parameter.data = (torch.randn(parameter.shape, generator=rng) / fan**0.5).to(parameter)
    return model


def mlp() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 4, bias=False))
    filled(model)
    return model


def cnn() -> nn.Sequential:
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, groups=3), nn.ReLU(), nn.Conv2d(6, 8, 2, stride=2), nn.Flatten(), nn.Linear(72, 5)
    )
    filled(model)
    return model


def layer(model: nn.Module, name: str) -> Any:
    return model.get_submodule(name)


def parameters(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


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
    ids=str,
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
    model = nn.Sequential(*(nn.Linear(10, 10) for _ in range(4)))
    filled(model)
    x = data(50, 10)
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


@pytest.mark.parametrize("mode", ["parallel", "cascade"])
def test_digits_keep_their_accuracy(mode):
    model, x, y = trained_on_digits()

    def accuracy(m: nn.Module) -> float:
        with torch.no_grad():
            return float((m(x[1400:]).argmax(1) == y[1400:]).float().mean())

    made = plan.uniform(model, density=0.5)
    pruned, report = prune(model, x[:1400].split(256), made, ADMM(), mode=mode)
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
