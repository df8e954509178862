"""Methods that hold a mask throughout: projected steps, budgets over layers, random drops, the gradual schedule."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import optprune as op
from optprune.errors import InvalidInputError
from optprune.training import IHT, Budget, DropPruning, Gradual, multiplications
from tests.training.loops import EVERY, OPTIMIZERS, cnn, data, go, mlp
from tests.training.test_admm import quadratic
from tests.training.test_slr import optimum

pytestmark = pytest.mark.usefixtures("unchecked")  # many steps


def descend(model: nn.Linear, gram: torch.Tensor, dense: torch.Tensor, method: op.training.IHT, steps: int) -> list:
    """Full gradient steps at 0.9 over the Lipschitz constant; the losses before each."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.9 / float(torch.linalg.eigvalsh(gram)[-1]))
    losses = []
    for _ in range(steps):
        off = model.weight - dense
        loss = 0.5 * (off * (off @ gram)).sum()
        optimizer.zero_grad()
        (loss + method.penalty()).backward()
        optimizer.step()
        method.step(loss)
        losses.append(float(loss.detach()))
    return losses


def test_projected_steps_are_iterative_hard_thresholding():
    model, gram, dense = quadratic(7)
    method = IHT(model, op.plan.uniform(model, pattern=op.PerLayer(4)), every=1)
    w, rate = dense.clone(), 0.9 / float(torch.linalg.eigvalsh(gram)[-1])
    for _ in range(30):
        descend(model, gram, dense, method, 1)
        w = op.PerLayer(4).project(w - rate * (w - dense) @ gram)
        torch.testing.assert_close(model.weight.detach(), w)


def test_projected_steps_descend_to_a_fixed_point():
    model, gram, dense = quadratic(8)
    method = IHT(model, op.plan.uniform(model, pattern=op.PerLayer(4)), every=1)
    losses = descend(model, gram, dense, method, 600)[1:]
    assert all(b <= a * (1 + 1e-12) for a, b in itertools.pairwise(losses))
    w = model.weight.detach()
    step = w - (w - dense) @ gram / float(torch.linalg.eigvalsh(gram)[-1])
    torch.testing.assert_close(op.PerLayer(4).project(step), w)
    assert losses[-1] >= optimum(gram, dense, 4) * (1 - 1e-9)


def test_masks_stay_between_projections():
    model, (inputs, targets) = cnn(), data(1, 8, 8)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    method = IHT(model, op.plan.uniform(model, density=0.3), optimizer, every=4)
    go(model, optimizer, method, 4, inputs, targets)
    changes = []
    for step in range(5, 17):
        before = model.get_parameter("5.weight").detach() != 0
        go(model, optimizer, method, 1, inputs, targets)
        after = model.get_parameter("5.weight").detach() != 0
        assert int(after.sum()) == 77
        changes.append(step % 4 == 0 and not torch.equal(before, after))
        if step % 4:
            assert torch.equal(before, after)
    assert any(changes), "projections do change the support"


def test_one_budget_for_all_layers_counts_weights():
    model, (inputs, targets) = mlp(), data(8)
    optimizer = OPTIMIZERS["adam"](model)
    plan = op.plan.uniform(model, density=1.0, override={"2": 0.5})
    method = IHT(model, plan, optimizer, every=EVERY, budget=Budget(60))
    values = torch.cat([model.get_parameter(f"{name}.weight").detach().flatten().abs() for name in plan])
    assert sum(int(mask.sum()) for mask in method.masks.values()) == 60
    assert float(min(model.get_parameter(f"{n}.weight").detach()[m].abs().min() for n, m in method.masks.items())) >= (
        float(values.sort().values[-60]) - 1e-7
    )
    go(model, optimizer, method, 4 * EVERY, inputs, targets)
    _, report = method.finish([inputs])
    assert report.kept == 60
    assert report.layer("2").kept <= 32
    assert {record.pattern for record in report.layers} == {f"PerLayer(k={r.kept})" for r in report.layers}


def test_multiplications_are_output_positions():
    model, (inputs, _) = cnn(), data(1, 8, 8)
    plan = op.plan.uniform(model, density=1.0)
    assert multiplications(model, plan, [inputs]) == {"0": 36.0, "2": 16.0, "5": 1.0}


def test_a_budget_of_multiplications_with_groups():
    model, (inputs, targets) = cnn(), data(1, 8, 8)
    optimizer = OPTIMIZERS["adam"](model)
    plan = op.plan.uniform(model, density=1.0)
    costs = multiplications(model, plan, [inputs])
    whole = sum(costs[name] * math.prod(plan.shapes[name]) for name in plan)
    method = IHT(model, plan, optimizer, every=EVERY, budget=Budget(0.2 * whole, costs))
    go(model, optimizer, method, 4 * EVERY, inputs, targets)
    pruned, report = method.finish([inputs])
    used = sum(costs[record.name] * record.kept for record in report.layers)
    assert 0.2 * whole - max(costs.values()) < used <= 0.2 * whole
    assert report.layer("2").pattern.startswith("Fixed")
    assert report.kept == sum(int((pruned.get_parameter(f"{name}.weight") != 0).sum()) for name in plan)


def test_the_greedy_rule_misses_less_than_one_weight():
    rng = torch.Generator().manual_seed(0)
    for _ in range(20):
        weights = {name: torch.randn(3, generator=rng).reshape(1, 3) for name in "abc"}
        costs = {"a": 1.0, "b": 2.0, "c": 5.0}
        masks = {name: torch.ones(1, 3, dtype=torch.bool) for name in "abc"}
        chosen = Budget(9.0, costs).select(weights, masks)
        values = torch.cat([weights[name].flatten().square() for name in "abc"])
        prices = torch.tensor([costs[name] for name in "abc" for _ in range(3)])
        sets = (torch.arange(512).unsqueeze(-1) >> torch.arange(9)) & 1
        best = float(torch.where((sets * prices).sum(-1) <= 9, (sets * values).sum(-1), 0).max())
        found = sum(float(weights[name].square()[chosen[name]].sum()) for name in "abc")
        assert sum(costs[name] * int(chosen[name].sum()) for name in "abc") <= 9
        assert best - float(values.max()) <= found <= best + 1e-6


def test_dropping_follows_the_mean_field():
    """Weights that nobody trains: the density follows the recursion within three deviations, and ends exactly."""
    rng = torch.Generator().manual_seed(0)
    model = nn.Linear(500, 400, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.randn(400, 500, generator=rng))
    n, wanted, rounds = 200_000, 0.09, 40
    method = DropPruning(model, op.plan.uniform(model, density=wanted), every=1, rounds=rounds, recovery=0.2)
    density = 1.0
    for t in range(rounds):
        method.step(1.0)
        share = t / (0.8 * rounds)
        back = 0.1 * wanted / (1 - wanted) * (0.5 * (1 + math.cos(math.pi * share)) if share < 1 else 0.0)
        corrected = wanted - back / 0.5 * (1 - wanted)
        density = density - 0.5 * max(0.0, density - corrected) + back * (1 - density)
        if t < rounds - 1:
            deviation = math.sqrt((0.25 * 1.0 + back) / n / (1 - (0.5 - back) ** 2))
            assert abs(method.history[-1]["density"] - density) < 3 * deviation
    assert int(method.masks[""].sum()) == 18_000
    assert method.history[5]["recovered"] > 0
    method.step(1.0)
    assert method.history[-1]["dropped"] == method.history[-1]["recovered"] == 0


def test_what_comes_back_has_no_past():
    model, (inputs, targets) = mlp(), data(8)
    optimizer = OPTIMIZERS["adam"](model)
    plan = op.plan.uniform(model, density=0.4)
    method = DropPruning(model, plan, optimizer, every=EVERY, rounds=12, recovery=1.0)
    seen = 0
    for _ in range(6):
        weight = model.get_parameter("0.weight")
        go(model, optimizer, method, EVERY - 1, inputs, targets)
        before = method._mask["0"].clone()
        go(model, optimizer, method, 1, inputs, targets)
        returned = method._mask["0"] & ~before
        assert bool((weight.detach()[returned] == 0).all())
        assert bool((optimizer.state[weight]["exp_avg"][returned] == 0).all())
        seen += int(returned.sum())
    assert seen > 0


@pytest.mark.parametrize("make", [DropPruning, Gradual])
@pytest.mark.parametrize("pattern", [op.NOfM(2, 4), op.Rows(5), op.Columns(3), op.Blocks(4, 2, 6), op.PerRow(3)])
def test_units_leave_as_a_whole(make, pattern):
    model, (inputs, targets) = mlp(), data(8)
    optimizer = OPTIMIZERS["adam"](model)
    plan = op.plan.uniform(model, pattern=pattern, override={"2": 0.5})
    method = make(model, plan, optimizer, every=EVERY, rounds=4)
    for _ in range(4):
        go(model, optimizer, method, EVERY, inputs, targets)
        (units,) = method._layers["0"].units(method._mask["0"])
        assert torch.equal(method._layers["0"].mask([units]), method._mask["0"])
    assert int(method.masks["0"].sum()) == pattern.count((16, 8))
    go(model, optimizer, method, EVERY, inputs, targets)
    assert pattern.admits(model.get_parameter("0.weight").detach() != 0)


def test_gradual_follows_the_cubic():
    model, (inputs, targets) = mlp(), data(8)
    optimizer = OPTIMIZERS["momentum"](model)
    method = Gradual(model, op.plan.uniform(model, density=0.25), optimizer, every=EVERY, rounds=5)
    before = {name: torch.ones_like(mask) for name, mask in method.masks.items()}
    for t in range(1, 8):
        go(model, optimizer, method, EVERY, inputs, targets)
        share = 0.25 + 0.75 * max(0.0, 1 - t / 5) ** 3
        held = {name: model.get_parameter(f"{name}.weight").detach() != 0 for name in before}
        for name, mask in held.items():
            assert int(mask.sum()) == math.floor(share * mask.numel() + 0.5)
            assert bool((mask <= before[name]).all()), "what is pruned stays pruned"
        before = held


def test_refusals():
    model = mlp()
    with pytest.raises(InvalidInputError, match=r"layer '0'.*single weights"):
        IHT(model, op.plan.uniform(model, pattern=op.Rows(3)), every=1, budget=Budget(10))
    with pytest.raises(InvalidInputError, match="total >= 0"):
        Budget(-1)
    method = IHT(model, op.plan.uniform(model, density=1.0), every=1, budget=Budget(10, {"0": 2.0}))
    with pytest.raises(InvalidInputError, match="no cost for '2'"):
        method.prune()
    refused: list[tuple[Callable[..., object], dict[str, Any]]] = [
        (DropPruning, {"drop": 0.0}),
        (DropPruning, {"recovery": 1.5}),
        (DropPruning, {"rounds": 0}),
        (Gradual, {"rounds": 0}),
    ]
    for make, settings in refused:
        with pytest.raises(InvalidInputError, match=f"{next(iter(settings))}="):
            make(every=1, **settings)
