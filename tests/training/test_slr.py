"""Surrogate Lagrangian relaxation: its state machine step by step, and its theorem's conditions."""

import itertools
import math

import pytest
import torch

import optprune as op
from optprune.bounds.surrogate import step_factor, step_product, step_ratio
from optprune.training import ADMM, SLR
from tests.training.loops import EVERY, OPTIMIZERS, data, go, mlp
from tests.training.test_admm import exact_steps, quadratic


def test_conditions_step_by_step():
    model, gram, dense = quadratic(3)
    method = SLR(model, op.plan.uniform(model, density=0.4), every=1, objective=None)
    start = float((model.weight.detach() - method.copies[""]).norm())
    exact_steps(method, model, gram, dense, 60)
    k, lengths = 0, []
    for facts in method.history:
        k += int(facts["first"]) + int(facts["second"])
        assert facts["accepted"] == k
        assert facts["alpha"] == step_factor(k, 300, 0.1)
        if facts["second"]:
            # Where the last half-step was accepted, the length of its move is the first one's times the product.
            lengths.append(facts["step_size"] * facts["violation"])
            assert lengths[-1] == pytest.approx(1e-2 * start * step_product(k, 300, 0.1), rel=1e-9)
            # And the ratio that must tend to 0 is that of T22, times the violation.
            ratio = facts["violation"] / (1e-2 * start) * step_ratio(k, 300, 0.1)
            assert (1 - facts["alpha"]) / facts["step_size"] == pytest.approx(ratio, rel=1e-9)
    assert len(lengths) > 50
    assert all(later < earlier for earlier, later in itertools.pairwise(lengths))


def test_exact_steps_meet_both_conditions():
    model, gram, dense = quadratic(4)
    method = SLR(model, op.plan.uniform(model, density=0.4), every=1)
    exact_steps(method, model, gram, dense, 40)
    assert all(facts["first"] == 1.0 for facts in method.history), "an exact minimiser over W improves"
    for facts in method.history:
        assert facts["lagrangian"] < facts["lagrangian_before"]


def test_one_period_by_hand():
    model, gram, dense = quadratic(5)
    plan = op.plan.uniform(model, density=0.4)
    pattern = plan[""]
    assert isinstance(pattern, op.Pattern)
    method = SLR(model, plan, every=1, rho=0.2, step_size=0.05, M=5.0, r=0.5)
    w0 = model.weight.detach().clone()
    z0 = pattern.project(w0)
    exact_steps(method, model, gram, dense, 1)
    w1 = model.weight.detach()
    torch.testing.assert_close(w1, torch.linalg.solve(gram + 0.2 * torch.eye(12), (gram @ dense.T + 0.2 * z0.T)).T)
    s1 = (1 - 1 / 5) * 0.05 * float((w0 - z0).norm() / (w1 - z0).norm())
    middle = s1 * (w1 - z0)
    z1 = pattern.project(w1 + middle / 0.2)
    s2, moved = s1, middle
    if not torch.equal(z1, z0):
        s2 = (1 - 1 / (5 * 2 ** (1 - 2**-0.5))) * s1 * float((w1 - z0).norm() / (w1 - z1).norm())
        moved = middle + s2 * (w1 - z1)
    torch.testing.assert_close(method.copies[""], z1)
    torch.testing.assert_close(method.multipliers[""], moved)
    assert method.history[0]["step_size"] == pytest.approx(s2, rel=1e-12)


def test_a_rejected_half_step_changes_nothing():
    model, (inputs, targets) = mlp(), data(8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    values = iter([1.0, 2.0, 3.0, 0.5])  # the loss rises twice, while the weights stay where they are
    method = SLR(model, op.plan.uniform(model, density=0.3), optimizer, every=EVERY, objective=lambda: next(values))
    for _ in range(2):
        go(model, optimizer, method, EVERY, inputs, targets)
        facts = method.history[-1]
        assert (facts["first"], facts["second"], facts["accepted"]) == (0.0, 0.0, 0.0)
        assert facts["step_size"] == 1e-2
        assert all(float(m.norm()) == 0.0 for m in method.multipliers.values())
    go(model, optimizer, method, EVERY, inputs, targets)
    facts = method.history[-1]
    assert facts["first"] == 1.0
    assert facts["accepted"] >= 1.0
    assert facts["multipliers"] > 0.0


def test_the_first_condition_compares_means_of_losses_on_two_weights():
    model, (inputs, targets) = mlp(), data(8)
    optimizer = OPTIMIZERS["momentum"](model)
    method = SLR(model, op.plan.uniform(model, density=0.3), optimizer, every=EVERY)
    weights, copies, losses = [model.get_parameter("0.weight").detach().clone()], method.copies, []
    with torch.no_grad():
        losses.append(float(torch.nn.functional.cross_entropy(model(inputs[:32]), targets[:32])))
    go(model, optimizer, method, EVERY, inputs, targets)
    facts = method.history[0]
    losses.append(facts["loss"])
    weights.append(model.get_parameter("0.weight").detach())
    assert not torch.equal(*weights), "what was kept of the weights is a clone"
    other = [facts["lagrangian_before"] - losses[0], facts["lagrangian"] - losses[1]]
    first = [0.05 * float((w - copies["0"]).square().sum()) for w in weights]
    # Without multipliers the rest is the quadratic penalty; the second layer's share is what is left, and positive.
    assert all(o > f for o, f in zip(other, first, strict=True))


def test_weights_that_are_admissible_already_move_nothing():
    model, gram, dense = quadratic(6)
    method = SLR(model, op.plan.uniform(model, density=1.0), every=1)
    exact_steps(method, model, gram, dense, 3)
    assert all(math.isfinite(v) for facts in method.history for v in facts.values())
    assert method.history[-1]["accepted"] == 0.0


def optimum(gram: torch.Tensor, dense: torch.Tensor, k: int) -> float:
    """The least loss over all supports of k weights."""
    supports = torch.tensor(list(itertools.combinations(range(len(gram)), k)))
    right = (gram @ dense[0])[supports]
    inner = torch.linalg.solve(gram[supports[:, :, None], supports[:, None, :]], right)
    return 0.5 * float(dense[0] @ gram @ dense[0] - (right * inner).sum(-1).max())


@pytest.mark.slow
def test_ratio_to_the_optimum_over_twenty_seeds():
    makers = {
        "constant": lambda model, plan: ADMM(model, plan, every=1, rho=0.2),
        "growing": lambda model, plan: ADMM(model, plan, every=1, rho=0.02, growth=1.1),
        "slr": lambda model, plan: SLR(model, plan, every=1, rho=0.2),
    }
    ratios: dict[str, list[float]] = {name: [] for name in makers}
    for seed in range(20):
        for name, make in makers.items():
            model, gram, dense = quadratic(seed)
            best = optimum(gram, dense, 4)
            method = make(model, op.plan.uniform(model, pattern=op.PerLayer(4)))
            exact_steps(method, model, gram, dense, 100)
            method.prune()
            off = model.weight.detach() - dense
            ratios[name].append(0.5 * float((off * (off @ gram)).sum()) / best)
    medians = {name: float(torch.tensor(values).median()) for name, values in ratios.items()}
    assert all(min(values) >= 1 - 1e-9 for values in ratios.values()), "nothing is better than the optimum"
    assert medians["growing"] < 1.1
    assert medians["growing"] < min(medians["slr"], medians["constant"])
