"""ADMM: its Lagrangian, its updates, what a change of rho does, the patterns, the stages."""

import pytest
import torch
from torch import nn

import optprune as op
from optprune.training import ADMM
from optprune.training._splitting import Splitting
from tests.training.loops import EVERY, OPTIMIZERS, cnn, data, go, mlp


def quadratic(seed: int, d: int = 12) -> tuple[nn.Linear, torch.Tensor, torch.Tensor]:
    """A row of d weights, and H and w0 of the loss (w - w0) H (w - w0) / 2."""
    rng = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=rng, dtype=torch.float64)
    factor = torch.randn(3 * d, d, generator=rng, dtype=torch.float64) @ (torch.eye(d, dtype=torch.float64) + 0.3 * mix)
    dense = torch.randn(1, d, generator=rng, dtype=torch.float64)
    model = nn.Linear(d, 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(dense)
    return model, factor.T @ factor / (3 * d), dense


def exact_steps(method: Splitting, model: nn.Linear, gram: torch.Tensor, dense: torch.Tensor, steps: int):
    """Each step minimises loss and penalty exactly: a Newton step, on a quadratic."""
    for _ in range(steps):
        off = model.weight - dense
        loss = 0.5 * (off * (off @ gram)).sum()
        (gradient,) = torch.autograd.grad(loss + method.penalty(), model.weight)
        hessian = gram + method._rho * torch.eye(len(gram), dtype=torch.float64)
        with torch.no_grad():
            model.weight.sub_(torch.linalg.solve(hessian, gradient.T).T)
        off = model.weight.detach() - dense
        method.step(0.5 * (off * (off @ gram)).sum())


def test_penalty_is_the_lagrangian_and_its_gradient():
    model, (inputs, targets) = cnn(), data(1, 8, 8)
    optimizer = OPTIMIZERS["adam"](model)
    method = ADMM(model, op.plan.uniform(model, density=0.3), optimizer, every=EVERY, rho=0.3)
    go(model, optimizer, method, 2 * EVERY + 1, inputs, targets)
    copies, multipliers = method.copies, method.multipliers
    value = 0.0
    optimizer.zero_grad()
    penalty = method.penalty()
    penalty.backward()
    for name, copy in copies.items():
        weight = model.get_parameter(f"{name}.weight")
        off = weight.detach().double() - copy.double()
        value += float((multipliers[name].double() * off).sum() + 0.15 * off.square().sum())
        assert weight.grad is not None
        torch.testing.assert_close(weight.grad, (multipliers[name] + 0.3 * off).float(), rtol=1e-4, atol=1e-5)
    assert float(penalty.detach()) == pytest.approx(value, rel=1e-4)
    assert any(float(m.norm()) > 0 for m in multipliers.values())


def test_updates_are_those_of_the_paper():
    model, (inputs, targets) = mlp(), data(8)
    optimizer = OPTIMIZERS["momentum"](model)
    plan = op.plan.uniform(model, density=0.3)
    method = ADMM(model, plan, optimizer, every=EVERY, rho=0.2, growth=1.5)
    rho, before = 0.2, method.multipliers
    for _ in range(3):
        go(model, optimizer, method, EVERY, inputs, targets)
        for name, pattern in plan.items():
            weight = model.get_parameter(f"{name}.weight").detach()
            assert isinstance(pattern, op.Pattern)
            copy = pattern.project(weight + before[name] / rho)
            torch.testing.assert_close(method.copies[name], copy, rtol=0, atol=0)
            # The multipliers are moved by rho, and a change of rho does not touch them.
            torch.testing.assert_close(method.multipliers[name], before[name] + rho * (weight - copy))
        before, rho = method.multipliers, 1.5 * rho
        assert method.history[-1]["rho"] == pytest.approx(rho / 1.5)


def test_with_nothing_to_prune_it_finds_the_minimum():
    model, gram, dense = quadratic(0)
    with torch.no_grad():
        model.weight.add_(1.0)
    method = ADMM(model, op.plan.uniform(model, density=1.0), every=1, rho=0.05)
    exact_steps(method, model, gram, dense, 300)
    torch.testing.assert_close(model.weight.detach(), dense, rtol=1e-9, atol=1e-9)


def test_growing_rho_closes_the_split_at_the_proved_rate():
    model, gram, dense = quadratic(1)
    method = ADMM(model, op.plan.uniform(model, density=0.3), every=1, rho=0.05, growth=1.1)
    exact_steps(method, model, gram, dense, 120)
    scaled = [facts["violation"] * facts["rho"] for facts in method.history]
    assert max(scaled[60:]) <= 1.01 * max(scaled[:60]), "rho times the violation stays bounded"
    assert method.history[-1]["violation"] < 1e-3 * method.history[0]["violation"]


@pytest.mark.parametrize(
    "pattern",
    [
        op.PerLayer(40),
        op.PerRow(3),
        op.NOfM(2, 4),
        op.Rows(5),
        op.Columns(5),
        op.Blocks(4, 2, 6),
        op.Blocks(16, 2, 2),  # whole channels of two columns
        op.Fixed(torch.arange(128).reshape(16, 8) % 3 == 0),
    ],
    ids=lambda p: type(p).__name__,
)
def test_every_pattern(pattern):
    model, (inputs, targets) = mlp(), data(8)
    optimizer = OPTIMIZERS["adam"](model)
    method = ADMM(model, op.plan.uniform(model, pattern=pattern, skip="2"), optimizer, every=EVERY, rho=0.1)
    go(model, optimizer, method, 3 * EVERY, inputs, targets)
    pruned, report = method.finish([inputs])
    assert pattern.admits(pruned.get_parameter("0.weight").detach() != 0)
    assert report.layer("0").kept == pattern.count((16, 8))
    network = report.network
    assert network is not None
    assert network.bound is None, "the layer that was skipped was trained"
    assert "'2.weight' changed too" in network.reason
    assert network.measured is not None


def test_four_taps_of_every_kernel():
    model, (inputs, targets) = cnn(), data(1, 8, 8)
    optimizer = OPTIMIZERS["adam"](model)
    plan = op.plan.uniform(model, pattern=op.NOfM(4, 9), skip="5")
    method = ADMM(model, plan, optimizer, every=EVERY, rho=0.1)
    go(model, optimizer, method, 2 * EVERY, inputs, targets)
    for mask in method.prune().values():
        assert bool((mask.flatten(2).sum(-1) == 4).all())


def test_columns_before_filters():
    model, (inputs, targets) = cnn(), data(1, 8, 8)
    optimizer = OPTIMIZERS["adam"](model)
    columns = op.plan.uniform(model, density=0.5, pattern=op.Columns, skip=("2", "5"))
    rows = op.plan.uniform(model, density=0.5, pattern=op.Rows, skip=("2", "5"))
    method = ADMM(model, rows, optimizer, every=EVERY, rho=0.1, through=(columns,), periods=2)
    early = method.masks["0"].reshape(6, 9)
    assert (int(early.any(0).sum()), int(early.any(1).sum())) == (5, 3), "both are asked for from the start"
    go(model, optimizer, method, 2 * EVERY, inputs, targets)
    after = model.get_parameter("0.weight").detach().reshape(6, 9) != 0
    assert int(after.any(0).sum()) == 5
    assert int(after.any(1).sum()) == 6
    go(model, optimizer, method, 3 * EVERY, inputs, targets)
    final = method.prune()["0"].reshape(6, 9)
    assert bool((final.any(0) <= after.any(0)).all()), "what the first stage pruned stays pruned"
    go(model, optimizer, method, EVERY, inputs, targets)
    assert torch.equal(model.get_parameter("0.weight").detach().reshape(6, 9) != 0, final)
    assert (int(final.any(0).sum()), int(final.any(1).sum())) == (5, 3)


def test_half_precision_weights_have_wide_copies():
    model = mlp().to(torch.bfloat16)
    method = ADMM(model, op.plan.uniform(model, density=0.3), every=1, rho=0.1)
    method.penalty().backward()
    assert all(copy.dtype == torch.float32 for copy in method.copies.values())
    weight = model.get_parameter("0.weight")
    assert weight.grad is not None
    assert weight.grad.dtype == torch.bfloat16
