"""Callbacks driven by trainers that call the hooks of Lightning and transformers in their order, with their arguments.

Neither package is needed: the base classes here have the hooks' names and signatures, and nothing else.
"""

import copy
import io
import sys
from collections import OrderedDict
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import optprune as op
from optprune.errors import InvalidInputError, MissingDependencyError, UnsupportedError
from tests.training.loops import BATCH, EVERY, OPTIMIZERS, cnn, data, go


class Callback:
    """`lightning.pytorch.Callback`: the hooks that a fit calls."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None: ...
    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None: ...
    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None: ...
    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None: ...
    def on_train_end(self, trainer: Any, pl_module: Any) -> None: ...
    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...


class TrainerCallback:
    """`transformers.TrainerCallback`: the hooks that `train` calls."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None: ...
    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None: ...
    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None: ...
    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None: ...
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None: ...
    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None: ...


@pytest.fixture(autouse=True)
def packages(monkeypatch):
    """Both packages as far as the callbacks see them."""
    for name, kind in (("lightning", None), ("lightning.pytorch", Callback), ("transformers", TrainerCallback)):
        module = ModuleType(name)
        if kind is not None:
            setattr(module, kind.__name__, kind)
        monkeypatch.setitem(sys.modules, name, module)


class Wrapped(nn.Module):
    """A LightningModule's part in a fit, and a model of transformers: inputs and labels in, a loss out."""

    automatic_optimization = True

    def __init__(self) -> None:
        super().__init__()
        self.inner = cnn()

    def forward(self, inputs: Tensor, labels: Tensor | None = None) -> OrderedDict[str, Tensor]:
        logits = self.inner(inputs)
        loss = {} if labels is None else {"loss": F.cross_entropy(logits, labels)}
        return OrderedDict(**loss, logits=logits)


def rows(step: int) -> slice:
    return slice(BATCH * (step % EVERY), BATCH * (step % EVERY + 1))


INPUTS, LABELS = data(1, 8, 8)


def fit(module: Any, optimizer: torch.optim.Optimizer, callback: Any, steps: range, accumulate: int = 1) -> None:
    """The order of calls of Lightning's automatic optimization."""
    trainer = SimpleNamespace(optimizers=[optimizer])
    callback.on_train_start(trainer, module)
    for index in range(steps.start * accumulate, steps.stop * accumulate):
        some = rows(index // accumulate)
        batch = [part[some].chunk(accumulate)[index % accumulate] for part in (INPUTS, LABELS)]
        callback.on_train_batch_start(trainer, module, batch, index)
        if index % accumulate == 0:
            optimizer.zero_grad()
        loss = module(*batch)["loss"] / accumulate
        loss.backward()
        if index % accumulate == accumulate - 1:
            callback.on_before_optimizer_step(trainer, module, optimizer)
            optimizer.step()
        callback.on_train_batch_end(trainer, module, {"loss": loss.detach()}, batch, index)
    callback.on_train_end(trainer, module)


class Accelerated:
    """The wrapper that accelerate puts around an optimizer."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer


def train(
    model: Any, optimizer: torch.optim.Optimizer, callback: Any, steps: range, labelled: bool = True, fp16: bool = False
) -> None:
    """The order of calls of transformers' Trainer."""
    given = SimpleNamespace(fp16=fp16), SimpleNamespace(global_step=steps.start), SimpleNamespace()
    kwargs = {"model": model, "optimizer": Accelerated(optimizer), "lr_scheduler": None, "train_dataloader": None}
    callback.on_train_begin(*given, **kwargs)
    for step in steps:
        callback.on_step_begin(*given, **kwargs)
        output = model(INPUTS[rows(step)], LABELS[rows(step)] if labelled else None)
        loss = output["loss"] if labelled else F.cross_entropy(output["logits"], LABELS[rows(step)])
        loss.backward()
        callback.on_pre_optimizer_step(*given, **kwargs)
        optimizer.step()
        callback.on_optimizer_step(*given, **kwargs)
        optimizer.zero_grad()
        callback.on_step_end(*given, **kwargs)
    with torch.no_grad():
        model.eval()
        model(INPUTS, LABELS)  # an evaluation in between is no step
    model.train()
    callback.on_train_end(*given, **kwargs)


RUNS = {"lightning": (op.training.lightning_callback, fit), "transformers": (op.training.trainer_callback, train)}
METHODS = {
    "slr": lambda: op.training.SLR(every=EVERY, rho=0.1),
    "drop": lambda: op.training.DropPruning(every=EVERY, rounds=4, recovery=0.5),
}


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("package", RUNS)
def test_it_is_the_loop_of_ones_own_bit_for_bit(package, kind):
    make, run = RUNS[package]
    module = Wrapped()
    plan = op.plan.uniform(module.inner, density=0.3)
    optimizer = OPTIMIZERS["adam"](module)
    callback = make(METHODS[kind](), plan, model=module.inner, prune_at=4 * EVERY, calibration=[INPUTS])
    run(module, optimizer, callback, range(6 * EVERY))

    model = cnn()
    own_optimizer = OPTIMIZERS["adam"](model)
    method = METHODS[kind]().attach(model, plan, own_optimizer)
    go(model, own_optimizer, method, 4 * EVERY, INPUTS, LABELS)
    method.prune()
    go(model, own_optimizer, method, 2 * EVERY, INPUTS, LABELS)
    _, report = method.finish([INPUTS])
    assert callback.report.kept == report.kept == plan.count()
    for name, weight in model.state_dict().items():
        assert torch.equal(module.inner.state_dict()[name], weight)
    assert callback.method.history == method.history
    assert callback.method.history[0].keys() > {"loss"}


@pytest.mark.parametrize("package", RUNS)
def test_interrupted_and_resumed_is_uninterrupted(package):
    make, run = RUNS[package]

    def started() -> tuple[Any, torch.optim.Optimizer]:
        module = Wrapped()
        return module, OPTIMIZERS["momentum"](module)

    whole, optimizer = started()
    plan = op.plan.uniform(whole, density=0.3)
    assert list(plan) == ["inner.0", "inner.2", "inner.5"]
    run(whole, optimizer, make(METHODS["slr"](), plan), range(3 * EVERY + 1))
    first, optimizer = started()
    before = make(METHODS["slr"](), plan)
    run(first, optimizer, before, range(EVERY + 2))
    saved = io.BytesIO()
    own = before.state_dict() if package == "lightning" else before.method.state_dict()
    torch.save((first.state_dict(), optimizer.state_dict(), own), saved)
    saved.seek(0)
    weights, momentum, state = torch.load(saved, weights_only=True)
    second, optimizer = started()
    second.load_state_dict(weights)
    optimizer.load_state_dict(momentum)
    if package == "lightning":
        after = make(METHODS["slr"](), plan)
        after.load_state_dict(state)  # before the training starts, as Lightning does
    else:
        after = make(METHODS["slr"](), plan, state=state)
    run(second, optimizer, after, range(EVERY + 2, 3 * EVERY + 1))
    assert all(torch.equal(weight, second.state_dict()[name]) for name, weight in whole.state_dict().items())


def test_accumulated_batches_are_one_step():
    module = Wrapped()
    plan = op.plan.uniform(module, density=0.3)
    optimizer = OPTIMIZERS["momentum"](module)
    callback = op.training.lightning_callback(METHODS["slr"](), plan)
    fit(module, optimizer, callback, range(2 * EVERY), accumulate=2)
    plain = Wrapped()
    at_once = op.training.lightning_callback(METHODS["slr"](), plan)
    fit(plain, OPTIMIZERS["momentum"](plain), at_once, range(2 * EVERY))
    assert callback.method.steps == at_once.method.steps == 2 * EVERY
    for one, other in zip(callback.method.history, at_once.method.history, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
    for name, weight in plain.state_dict().items():
        assert torch.allclose(module.state_dict()[name], weight, atol=1e-5)


def test_a_batch_left_out_is_no_step():
    module = Wrapped()
    callback = op.training.lightning_callback(METHODS["slr"](), op.plan.uniform(module, density=0.3))
    trainer = SimpleNamespace(optimizers=[OPTIMIZERS["adam"](module)])
    callback.on_train_start(trainer, module)
    callback.on_train_batch_end(trainer, module, None, [], 0)
    assert callback.method.steps == 0


def test_refusals(monkeypatch):
    module = Wrapped()
    plan = op.plan.uniform(module, density=0.3)
    optimizer = OPTIMIZERS["adam"](module)
    for make, _ in RUNS.values():
        with pytest.raises(InvalidInputError, match="attached already"):
            make(op.training.SLR(copy.deepcopy(module), plan, every=1), plan)
        with pytest.raises(InvalidInputError, match="prune_at=0"):
            make(METHODS["slr"](), plan, prune_at=0)
    halves = [torch.optim.SGD(part.parameters(), lr=0.1) for part in (module.inner[0], module.inner[5])]
    with pytest.raises(UnsupportedError, match="2 optimizers hold weights"):
        op.training.lightning_callback(METHODS["slr"](), plan).on_train_start(
            SimpleNamespace(optimizers=halves), module
        )
    twice = op.training.lightning_callback(METHODS["slr"](), plan)
    fit(module, optimizer, twice, range(1))
    with pytest.raises(InvalidInputError, match="a second time"):
        fit(module, optimizer, twice, range(1))
    monkeypatch.setattr(Wrapped, "automatic_optimization", False)
    with pytest.raises(UnsupportedError, match="manual optimization"):
        fit(module, optimizer, op.training.lightning_callback(METHODS["slr"](), plan), range(1))
    with pytest.raises(UnsupportedError, match="fp16"):
        train(module, optimizer, op.training.trainer_callback(METHODS["slr"](), plan), range(1), fp16=True)
    with pytest.raises(InvalidInputError, match="goes on from step 5"):
        train(module, optimizer, op.training.trainer_callback(METHODS["slr"](), plan), range(5, 6))
    with pytest.raises(InvalidInputError, match="returned no `loss`"):
        train(module, optimizer, op.training.trainer_callback(METHODS["slr"](), plan), range(1), labelled=False)


def test_a_missing_package_is_named(monkeypatch):
    for name in ("lightning", "lightning.pytorch", "pytorch_lightning", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)
    plan = op.plan.uniform(Wrapped(), density=0.3)
    with pytest.raises(MissingDependencyError, match=r"pip install 'lightning'"):
        op.training.lightning_callback(METHODS["slr"](), plan)
    with pytest.raises(MissingDependencyError, match=r"pip install 'optprune\[hf\]'"):
        op.training.trainer_callback(METHODS["slr"](), plan)
