"""What every training method keeps: exact budgets, frozen zeros, states that resume bit for bit, clear refusals."""

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import optprune as op
from optprune.errors import InvalidInputError, NonFiniteError, UnsupportedError
from optprune.training._base import Method
from optprune.training._splitting import Splitting
from tests.training.loops import EVERY, OPTIMIZERS, cnn, data, go, mlp

METHODS: dict[str, Callable[..., Method]] = {
    "admm": lambda *given: op.training.ADMM(*given, every=EVERY, rho=0.1, growth=1.2),
    "progressive": lambda model, plan, *rest: op.training.ADMM(
        model, plan, *rest, every=EVERY, rho=0.1, through=(op.plan.uniform(model, density=0.6),), periods=2
    ),
    "slr": lambda *given: op.training.SLR(*given, every=EVERY, rho=0.1),
    "iht": lambda *given: op.training.IHT(*given, every=EVERY),
    "drop": lambda *given: op.training.DropPruning(*given, every=EVERY, rounds=4, recovery=0.5),
    "gradual": lambda *given: op.training.Gradual(*given, every=EVERY, rounds=4),
}


def started(kind: str, optimizer: str = "adam") -> tuple[nn.Sequential, torch.optim.Optimizer, Method]:
    model = cnn()
    trained_by = OPTIMIZERS[optimizer](model)
    return model, trained_by, METHODS[kind](model, op.plan.uniform(model, density=0.3), trained_by)


def leaves(tree: object) -> list[object]:
    if isinstance(tree, dict):
        return [leaf for key in sorted(tree, key=str) for leaf in (key, *leaves(tree[key]))]
    return [leaf for item in tree for leaf in leaves(item)] if isinstance(tree, list) else [tree]


def identical(a: object, b: object) -> bool:
    """The same trees, tensors bit for bit."""
    pairs = list(zip(leaves(a), leaves(b), strict=True))
    return all(torch.equal(x, y) if isinstance(x, Tensor) and isinstance(y, Tensor) else x == y for x, y in pairs)


def test_every_method_is_tried():
    exported = [getattr(op.training, name) for name in op.training.__all__]
    methods = {c for c in exported if isinstance(c, type) and issubclass(c, Method)}
    assert {type(started(kind)[2]) for kind in METHODS} == methods


def test_finish_may_be_called_again_with_better_data():
    model, optimizer, method = started("gradual")
    inputs, targets = data(1, 8, 8)
    go(model, optimizer, method, 5 * EVERY, inputs, targets)
    with pytest.raises(InvalidInputError, match="no sample"):
        method.finish([])
    go(model, optimizer, method, 1, inputs, targets)
    _, report = method.finish([inputs])
    assert report.kept == sum(method._plan.count(name) for name in ("0", "2", "5"))
    assert op.training.frozen_masks(model) == {}


@pytest.mark.parametrize("kind", METHODS)
def test_from_the_first_step_to_a_verified_run(kind, tmp_path):
    model, optimizer, method = started(kind)
    inputs, targets = data(1, 8, 8)
    dense = copy.deepcopy(model).eval()
    plan = op.plan.uniform(model, density=0.3)
    go(model, optimizer, method, 5 * EVERY, inputs, targets)
    masks = method.prune()
    for name in plan:
        assert int(masks[name].sum()) == plan.count(name)
    go(model, optimizer, method, 2 * EVERY, inputs, targets)
    pruned, report = method.finish([inputs])
    assert pruned is model
    assert op.training.frozen_masks(model) == {}
    for name, mask in masks.items():
        weight = model.get_parameter(f"{name}.weight").detach()
        assert bool((weight[~mask] == 0).all())
        assert report.layer(name).kept == int((weight != 0).sum()) <= plan.count(name)
    out, before = dense(inputs).double(), report.network
    assert before is not None
    assert before.measured == pytest.approx(float((model(inputs).double() - out).detach().norm()), rel=1e-5)
    first = dense.get_submodule("0")
    with torch.no_grad():
        error = (model[0](inputs) - first(inputs)).norm() / (
            first(inputs) - first.get_parameter("bias")[:, None, None]
        ).norm()
    assert report.layer("0").error == pytest.approx(float(error), rel=1e-5)
    op.export(pruned, report, tmp_path / "run")
    assert op.verify(tmp_path / "run").certificates == 4  # a convolution of two groups has two


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("stop", [1, 2 * EVERY, 5 * EVERY + 2])
def test_resumed_is_uninterrupted_bit_for_bit(kind, stop):
    inputs, targets = data(1, 8, 8)
    whole = 7 * EVERY

    def run(model: nn.Module, optimizer: torch.optim.Optimizer, method: Method, until: int) -> None:
        if method.steps < 5 * EVERY:
            go(model, optimizer, method, min(until, 5 * EVERY) - method.steps, inputs, targets)
            if method.steps == 5 * EVERY:
                method.prune()
        go(model, optimizer, method, until - method.steps, inputs, targets)

    one = started(kind)
    run(*one, whole)
    two = started(kind)
    run(*two, stop)
    saved = io.BytesIO()
    torch.save([part.state_dict() for part in two], saved)
    saved.seek(0)
    model = cnn()
    with torch.no_grad():
        model.get_parameter("0.weight").add_(1.0)  # another start: all that counts is in the states
    optimizer = OPTIMIZERS["adam"](model)
    three = (model, optimizer, METHODS[kind](model, op.plan.uniform(model, density=0.3), optimizer))
    for part, state in zip(three, torch.load(saved, weights_only=True), strict=True):
        part.load_state_dict(state)
    run(*three, whole)
    for part, other in zip(one, three, strict=True):
        state, resumed = part.state_dict(), other.state_dict()
        if isinstance(part, Method):
            del state["seconds"], resumed["seconds"]
        assert identical(state, resumed)


@pytest.mark.parametrize("kind", METHODS)
def test_wrong_use_is_refused(kind):
    model, optimizer, method = started(kind)
    inputs, targets = data(1, 8, 8)
    bare = type(method)(every=EVERY)
    for call in (bare.penalty, lambda: bare.step(1.0), bare.prune, lambda: bare.finish([inputs]), bare.state_dict):
        with pytest.raises(InvalidInputError, match="before attach"):
            call()
    with pytest.raises(InvalidInputError, match="attached already"):
        method.attach(model, op.plan.uniform(model, density=0.3))
    method.penalty()
    with pytest.raises(InvalidInputError, match="got None as the loss"):
        method.step()
    method.penalty()
    with pytest.raises(InvalidInputError, match=r"shape \(3,\) as the loss"):
        method.step(torch.ones(3))
    other = type(method)(cnn(), op.plan.uniform(model, density=0.3), every=EVERY + 1)
    with pytest.raises(InvalidInputError, match="settings"):
        other.load_state_dict(method.state_dict())
    with pytest.raises(InvalidInputError, match="no sample"):
        type(method)(cnn(), op.plan.uniform(cnn(), density=0.3), every=EVERY).finish([])
    method.prune()
    with pytest.raises(InvalidInputError, match="hard pruned already"):
        method.prune()
    with pytest.raises(UnsupportedError, match="frozen"):
        type(method)(model, op.plan.uniform(model, density=0.3), every=EVERY)
    assert float(method.penalty()) == 0.0
    go(model, optimizer, method, 1, inputs, targets)
    method.finish([inputs])
    with pytest.raises(InvalidInputError, match="after finish"):
        method.penalty()


def test_a_penalty_that_was_forgotten():
    _, _, method = started("admm")
    assert isinstance(method, Splitting)
    with pytest.raises(InvalidInputError, match="step without penalty"):
        method.step(1.0)
    method.penalty()
    method.step(1.0)
    with pytest.raises(InvalidInputError, match="step without penalty"):
        method.step(1.0)


def test_a_model_that_changed_in_between():
    model, _, method = started("slr")
    model[0].weight = nn.Parameter(torch.zeros(6, 1, 3, 3))
    with pytest.raises(InvalidInputError, match=r"layer '0'.*replaced after attach"):
        method.penalty()
    model, _, method = started("iht")
    model[5] = nn.Linear(64, 4)
    with pytest.raises(InvalidInputError, match=r"layer '5'.*replaced after attach"):
        method.step(1.0)
    model, _, method = started("slr")
    model.to("meta")
    with pytest.raises(InvalidInputError, match=r"replaced after attach|moved from cpu to meta"):
        method.penalty()


def test_losses_that_are_not_finite_end_the_period_with_an_error():
    _, _, method = started("admm")
    for _ in range(EVERY - 1):
        method.penalty()
        method.step(float("nan"))
    method.penalty()
    with pytest.raises(NonFiniteError, match=f"losses of steps 1 to {EVERY}"):
        method.step(1.0)


def test_settings_and_plans_that_make_no_sense():
    model = mlp()
    plan = op.plan.uniform(model, density=0.3)
    refused: list[tuple[Callable[..., Method], dict[str, Any]]] = [
        *((op.training.ADMM, bad) for bad in ({"every": 0}, {"rho": 0.0}, {"growth": 0.5}, {"periods": 0})),
        *((op.training.SLR, bad) for bad in ({"step_size": 0.0}, {"M": 1.0}, {"r": 1.0}, {"growth": 0.5})),
    ]
    for make, settings in refused:
        with pytest.raises(InvalidInputError, match=f"{next(iter(settings))}="):
            make(**{"every": 1} | settings)
    with pytest.raises(InvalidInputError, match="needed together"):
        op.training.SLR(model, every=1)
    with pytest.raises(InvalidInputError, match="prune to a count"):
        op.training.SLR(model, op.plan.radius(model, 0.1), every=1)
    with pytest.raises(InvalidInputError, match="plans of the same layers"):
        op.training.ADMM(model, plan, every=1, through=(op.plan.uniform(model, density=0.5, skip="0"),))
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    with pytest.raises(UnsupportedError, match="same parameter"):
        op.training.SLR(tied, op.plan.uniform(tied, density=0.3), every=1)
