"""One budget shared among layers: exact totals, the optimum against enumeration, curves, and files."""

import itertools
import json
import math

import cvxpy
import numpy as np
import pytest
import torch
from torch import nn

from optprune.errors import InvalidInputError, UnsupportedError
from optprune.network import files, plan
from optprune.network.allocation import Allocation, filled, optimum
from optprune.network.capture import capture
from optprune.network.export import export
from optprune.network.layers import named_adapters
from optprune.network.plan import ErrorCurve, Plan
from optprune.network.prune import prune
from optprune.network.runs import sealed
from optprune.network.statements import group_statistics
from optprune.network.verify import examine, verify
from optprune.patterns import NOfM, PerLayer, PerRow
from optprune.problems import EdgeSampling, L0LeastSquares
from optprune.solvers import OBC, Magnitude, NetTrimADMM, Wanda
from tests.network.networks import cnn, data, mlp, parameters, same

NAMES: tuple[str, ...] = ("0", "2", "4")


def spent(made: Plan, costs: dict[str, int] | None = None) -> int:
    return sum(made.count(name) * (1 if costs is None else costs[name]) for name in made)


def planners(model: nn.Module, batches: list[torch.Tensor], density: float, **options):
    """Every planner that shares a budget."""
    yield plan.erk(model, density, **options)
    yield plan.global_magnitude(model, density, **options)
    yield plan.owl(model, batches, density, **options)
    yield plan.sensitivity(model, batches, density, **options)
    yield plan.sensitivity(model, batches, density, by="bounds", **options)
    yield plan.allocated(model, batches, density, Wanda(), **options)


@pytest.mark.parametrize("density", [0.0, 0.03, 1 / 3, 0.77, 1.0])
def test_the_budget_is_spent_to_the_last_weight(density):
    model = mlp()
    for made in planners(model, [data(32, 8)], density):
        assert made.allocation is not None
        assert made.count() == made.allocation.budget == made.allocation.spent == math.floor(density * 288 + 0.5)
        made.validate(model)


@pytest.mark.parametrize("density", [0.05, 0.4, 0.9])
def test_a_budget_of_multiplications_is_kept(density):
    model, batches = cnn(), [data(6, 3, 6, 6)]
    costs = plan.macs(model, batches)
    assert costs == {"0": 36, "2": 9, "4": 1}
    total = 36 * 54 + 9 * 192 + 1 * 360
    for made in planners(model, batches, density, cost=costs):
        assert made.allocation is not None
        assert made.allocation.budget == math.floor(density * total + 0.5)
        assert spent(made, costs) == made.allocation.spent <= made.allocation.budget
        assert made.allocation.spent > made.allocation.budget - 36


def test_multiplications_are_per_sample_and_pooled_over_calls():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(self.inner(x))

    assert plan.macs(Twice(), [data(5, 7, 4), data(3, 7, 4)]) == {"inner": 14}


def test_erk_follows_the_shapes_until_a_layer_is_full():
    made = plan.erk(mlp(), 0.2)
    ratios = [made.count(name) / (o * d) / ((o + d) / (o * d)) for name, (o, d) in made.shapes.items()]
    assert max(ratios) / min(ratios) < 1.1
    assert plan.erk(mlp(), 0.9).count("4") == 48


def test_one_threshold_separates_all_kept_magnitudes_from_the_others():
    model = mlp()
    made = plan.global_magnitude(model, 0.3)
    magnitudes = {name: model.get_submodule(name).get_parameter("weight").abs().flatten() for name in NAMES}
    kept, dropped = [], []
    for name, values in magnitudes.items():
        ranked = values.sort(descending=True).values
        kept.append(ranked[: made.count(name)])
        dropped.append(ranked[made.count(name) :])
    assert torch.cat(kept).min() > torch.cat(dropped).max()


def sensitivities(model: nn.Module, x: torch.Tensor) -> dict[str, EdgeSampling]:
    problems = {}
    for name, found in capture(model, [x], NAMES, samples=len(x)).items():
        assert found.inputs is not None
        problems[name] = EdgeSampling(model.get_parameter(f"{name}.weight"), found.inputs[0], PerLayer(1))
    return problems


def test_one_threshold_separates_all_kept_sensitivities_from_the_others():
    model, x = mlp(), data(64, 8)
    made = plan.sensitivity(model, [x[:40], x[40:]], 0.6)
    ranked = {
        name: problem.sensitivity.flatten().sort(descending=True).values
        for name, problem in sensitivities(model, x).items()
    }
    kept = torch.cat([values[: made.count(name)] for name, values in ranked.items()])
    dropped = torch.cat([values[made.count(name) :] for name, values in ranked.items()])
    assert kept.min() > dropped.max()


@pytest.mark.parametrize("costs", [{"0": 1, "2": 1, "4": 1}, {"0": 3, "2": 1, "4": 2}])
def test_draws_are_shared_among_layers_at_the_optimum(costs):
    """No move of one draw's worth from one layer's half-neurons to another's lowers the sum of the bounds."""
    model, x, constant, delta = mlp(), data(64, 8), 1.5, 0.2
    problems = sensitivities(model, x)
    total, edges, weight, price, layer = [], [], [], [], []
    neurons = sum(problem.shape[0] for problem in problems.values())
    for number, (name, problem) in enumerate(problems.items()):
        for sign in (1, -1):
            own = problem.sensitivity * (sign * problem.weight > 0)
            total += own.sum(-1).tolist()
            edges += (own > 0).sum(-1).tolist()
            weight += [1 / problem.shape[0]] * problem.shape[0]
            price += [costs[name]] * problem.shape[0]
            layer += [number] * problem.shape[0]
    alpha = 2 * constant * np.array(total) * math.log(4 * neurons / delta)
    made = plan.sensitivity(model, [x], 0.4, by="bounds", delta=delta, constant=constant, cost=costs)
    assert made.allocation is not None
    m, cost = cvxpy.Variable(len(alpha)), np.array(price)
    live = alpha > 0
    # epsilon(m) = u + sqrt(u^2 + 6 u) with u = alpha / (6 m), by its epigraph: u <= e^2 / (2 e + 6).
    e = cvxpy.Variable(len(alpha))
    inverse = alpha[live] / 6
    constraints = [m <= np.array(edges), m >= 0, e >= 0, cost @ m <= made.allocation.budget]
    # u <= e^2 / (2 e + 6) is alpha / 6 (2 / e + 6 / e^2) <= m.
    constraints += [cvxpy.multiply(inverse, 2 * cvxpy.inv_pos(e[live]) + 6 * cvxpy.power(e[live], -2)) <= m[live]]
    cvxpy.Problem(cvxpy.Minimize(np.array(weight)[live] @ e[live]), constraints).solve(solver="CLARABEL")
    assert m.value is not None
    wanted = np.bincount(layer, weights=m.value, minlength=3)
    assert np.abs(wanted - [made.count(name) for name in NAMES]).max() < 1.05


def test_layers_with_outliers_keep_more():
    model = mlp()
    with torch.no_grad():
        model.get_submodule("2").get_parameter("weight")[:, 0] *= 30
    made = plan.owl(model, [data(64, 8)], 0.5)
    densities = {name: made.count(name) / math.prod(made.shapes[name]) for name in made}
    assert made.allocation is not None
    outliers = made.allocation.settings["outliers"]
    assert sorted(NAMES, key=outliers.__getitem__) == sorted(NAMES, key=densities.__getitem__)
    assert max(outliers, key=outliers.__getitem__) == "2"
    assert max(densities.values()) - min(densities.values()) == pytest.approx(0.16, abs=0.02)
    assert min(plan.owl(model, [data(64, 8)], 0.05).count(name) for name in NAMES) > 0


@pytest.mark.parametrize("weighting", ["output", "layer", "propagated"])
def test_the_allocation_is_the_best_of_all_choices(weighting):
    model, batches = mlp(), [data(64, 8)]
    curves = plan.error_curves(model, batches, NAMES, Magnitude(), weighting=weighting)
    for density in (0.1, 0.35, 0.6):
        made = plan.from_curves(model, curves, density)
        assert made.allocation is not None
        found = made.allocation.optimum
        assert found is not None
        assert found.exact
        best = min(
            math.fsum(e for _, e in choice)
            for choice in itertools.product(*(list(zip(c.counts, c.errors, strict=True)) for c in curves.values()))
            if sum(k for k, _ in choice) <= made.allocation.budget
        )
        assert found.lower_bound <= best == pytest.approx(found.objective, rel=1e-12)
        # What the grid left was given out: nobody got less than the choice.
        assert all(made.count(name) >= curves[name].counts[found.chosen[name]] for name in NAMES)


def test_errors_are_what_pruning_one_layer_does():
    model, x = mlp(), data(64, 8)
    curves = plan.error_curves(model, [x[:40], x[40:]], ["2"], Magnitude())
    curve = curves["2"]
    dense = model(x).detach()
    for target, error in zip(curve.targets, curve.errors, strict=True):
        only = plan.uniform(model, pattern=target, skip=["0", "4"])
        pruned, _ = prune(model, [x], only, Magnitude(), certified=False, bound=False)
        assert error == pytest.approx(
            float((pruned(x).detach() - dense).square().sum() / dense.square().sum()), rel=1e-4
        )
    assert (curve.counts[0], curve.counts[-1], curve.errors[-1]) == (0, 144, 0.0)


def test_bounds_are_above_errors_and_layer_errors_are_those_of_the_report():
    model, x = mlp(), data(64, 8)
    output = plan.error_curves(model, [x], NAMES, Magnitude())
    bounds = plan.error_curves(model, [x], NAMES, Magnitude(), weighting="propagated")
    layers = plan.error_curves(model, [x], NAMES, Magnitude(), weighting="layer")
    for name in NAMES:
        pairs = zip(output[name].errors, bounds[name].errors, strict=True)
        assert all(error**0.5 <= bound * (1 + 1e-6) for error, bound in pairs)  # the one is measured in float32
    _, report = prune(model, [x], plan.uniform(model, pattern=layers["0"].targets[9], skip="[24]"), Magnitude())
    assert layers["0"].errors[9] == pytest.approx(report.layer("0").error ** 2, rel=1e-5)


def test_measuring_leaves_model_and_random_state_alone():
    model, before = mlp(), parameters(mlp())
    state = torch.get_rng_state()
    plan.allocated(model, [data(32, 8)], 0.3, Magnitude())
    assert same(parameters(model), before)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training


def test_patterns_of_any_kind_may_be_offered():
    model, batches = mlp(), [data(64, 8)]
    made = plan.allocated(model, batches, 0.5, Magnitude(), choices=lambda shape: [NOfM(n, 4) for n in range(5)])
    assert all(isinstance(target, NOfM) for target in made.values())
    assert made.allocation is not None
    assert made.count() == made.allocation.spent <= made.allocation.budget == 144


def test_a_larger_budget_is_never_worse():
    curves = plan.error_curves(mlp(), [data(64, 8)], NAMES, Magnitude())
    costs = dict.fromkeys(NAMES, 1)
    objectives = [optimum(curves, costs, budget).objective for budget in range(0, 289, 12)]
    assert objectives == sorted(objectives, reverse=True)
    assert objectives[-1] == 0


def test_leftovers_go_up_the_steepest_chord():
    steep, flat = ErrorCurve.from_counts([0, 10], [9, 0]), ErrorCurve.from_counts([0, 10], [1, 0])
    costs = {"steep": 3, "flat": 2}
    found = optimum({"steep": steep, "flat": flat}, costs, 29)
    assert (found.chosen, found.objective) == ({"steep": 0, "flat": 1}, 9)
    assert filled(found, costs, 29) == {"steep": PerLayer(3), "flat": PerLayer(10)}
    rows = ErrorCurve((PerRow(0), PerRow(1)), (0, 10), (9, 0))
    found = optimum({"rows": rows}, {"rows": 1}, 9)
    assert filled(found, {"rows": 1}, 9) == {"rows": PerRow(0)}


def test_one_elimination_gives_the_curve_at_every_count():
    """Curves are data: here from the trace of one greedy elimination per layer, at a resolution of single weights."""
    model, x = mlp(), data(64, 8).double()
    curves = {}
    for name, layer in capture(model, [x.float()], NAMES).items():
        adapter = named_adapters(model, [name])[name]
        (part,) = group_statistics(layer.statistics, adapter.shape[1])
        errors = 2 * OBC().curve(L0LeastSquares(part, PerLayer(0))) / part.target_energy.sum()
        curves[name] = ErrorCurve.from_counts(range(len(errors)), errors.clamp(min=0).tolist())
    made = plan.from_curves(model, curves, 0.3)
    assert made.allocation is not None
    found = made.allocation.optimum
    assert found is not None
    assert dict(made) == found.targets()  # nothing was left to give out
    assert found.gap < 0.01
    _, report = prune(model, [x.float()], made, OBC(), certified=False, bound=False)
    assert found.objective == pytest.approx(sum(record.error**2 for record in report.layers), rel=1e-3)


def test_overridden_layers_are_outside_of_the_budget():
    made = plan.erk(mlp(), 0.25, override={"4": PerLayer(48)}, skip="0")
    assert dict(made) == {"2": PerLayer(36), "4": PerLayer(48)}
    assert made.allocation is not None
    assert (made.allocation.budget, made.allocation.costs) == (36, {"2": 1})


def test_a_run_records_the_allocation_and_a_changed_bound_is_found(tmp_path):
    model, batches = mlp(), [data(64, 8)]
    made = plan.allocated(model, batches, 0.4, Wanda())
    pruned, report = prune(model, batches, made, Wanda())
    assert report.allocation == made.allocation
    assert "allocation 'optimal': 115 of 115 weights; objective" in str(report)
    assert "allocation 'optimal'" in str(made)
    folder = export(pruned, report, tmp_path / "run")
    assert verify(folder).certificates == 4
    document = files.read_json(folder / files.REPORT)
    for key, value in (("lower_bound", 0.5), ("objective", 0.0), ("multiplier", 1.0)):
        changed = json.loads(json.dumps(document))
        changed["report"]["provenance"]["allocation"]["optimum"][key] = value
        (folder / files.REPORT).write_bytes(files.canonical(sealed(changed)))
        assert any("allocation" in finding.message for finding in examine(folder).findings)


@pytest.mark.parametrize("record", [{}, {"method": "erk"}, {"optimum": 3}, {"optimum": None, "unknown": 1}])
def test_a_malformed_record_is_refused(record):
    with pytest.raises(InvalidInputError, match="not an allocation"):
        Allocation.from_json(record)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda m, b: plan.erk(m, 1.2), r"density 1\.2"),
        (lambda m, b: plan.erk(m, 0.5, skip="*"), "none is left to share"),
        (lambda m, b: plan.erk(m, 0.5, cost={"0": 1, "2": 0, "4": 1}), "layer '2': cost 0"),
        (lambda m, b: plan.erk(m, 0.5, cost={"0": 1}), "layer '2': cost None"),
        (lambda m, b: plan.owl(m, b, 0.5, spread=-1), "spread=-1"),
        (lambda m, b: plan.from_curves(m, {}, 0.5), "no error curve for layer '0'"),
        (lambda m, b: plan.allocated(m, b, 0.1, Wanda(), choices=lambda s: [PerLayer(s[1])]), "cheapest options"),
        (lambda m, b: ErrorCurve.from_counts([1, 2], [0.5]), "one of each"),
        (lambda m, b: ErrorCurve.from_counts([1], [math.nan]), "finite errors"),
    ],
)
def test_misuse(make, words):
    with pytest.raises(InvalidInputError, match=words):
        make(mlp(), [data(16, 8)])


def test_a_curve_needs_the_l0_problem():
    with pytest.raises(UnsupportedError, match=r"layer '0': NetTrimADMM given to measure"):
        plan.allocated(mlp(), [data(16, 8)], 0.5, NetTrimADMM())
