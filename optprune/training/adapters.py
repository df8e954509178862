"""Training methods inside trainers that own the loop: callbacks for Lightning and for the Trainer of transformers.

The loop is the trainer's; the callback adds the gradient of the penalty, which the loss does not hold, right before the
optimizer's step, and tells the method of the step and its loss.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from optprune.errors import InvalidInputError, MissingDependencyError, UnsupportedError
from optprune.network.plan import Plan
from optprune.network.report import Report
from optprune.training._base import Method

LIGHTNING = ("lightning.pytorch", "pytorch_lightning")
"""Its two names; the first that can be imported is used."""


def lightning_callback(
    method: Method,
    plan: Plan,
    *,
    model: nn.Module | None = None,
    prune_at: int | None = None,
    calibration: Iterable[Any] | None = None,
) -> Any:
    """A callback for the Trainer of Lightning, with automatic optimization.

        method = op.training.SLR(every=len(loader), rho=0.1)  # attached when training starts, on the trainer's device
        callback = op.training.lightning_callback(method, plan, calibration=batches)
        lightning.Trainer(callbacks=[callback], ...).fit(module, loader)
        callback.report

    The gradient of the penalty is added in `on_before_optimizer_step`, where gradients are accumulated and unscaled and
    not clipped yet. A step counts once however many batches were accumulated for it; its loss is the sum of theirs as
    Lightning normalises them. The method's state is part of Lightning's checkpoints. Each process of data parallelism
    holds a method of its own, with the same gradients; strategies that shard parameters are not for this.

    Args:
        method: not attached yet.
        plan: of the module, or of `model`.
        model: the part of the module that the plan is about; the module itself by default.
        prune_at: after this many steps of the optimizer the method prunes, and the rest of the training retrains; at
            the end of training by default.
        calibration: calls `finish` with these batches when training ends; without, call it yourself.

    Returns:
        A `Callback`, with `report` once `finish` was called.

    Raises:
        InvalidInputError: a method that is attached already, or `prune_at` below 1.
        MissingDependencyError: Lightning cannot be imported.
    """
    kind = type("PruningCallback", (_LightningHooks, _base(LIGHTNING, "Callback", "lightning")), {})
    return kind(method, plan, model, prune_at, calibration)


def trainer_callback(
    method: Method,
    plan: Plan,
    *,
    model: nn.Module | None = None,
    prune_at: int | None = None,
    calibration: Iterable[Any] | None = None,
    state: Mapping[str, Any] | None = None,
) -> Any:
    """A callback for the Trainer of transformers.

        method = op.training.ADMM(every=500, growth=1.1)
        callback = op.training.trainer_callback(method, plan, calibration=batches)
        transformers.Trainer(model, args, callbacks=[callback], ...).train()
        callback.report

    The gradient of the penalty is added in `on_pre_optimizer_step`: gradients were clipped just before, by themselves.
    The loss of a step is the mean of the `loss` that the model returned in its batches. Checkpoints of the Trainer do
    not hold the method: save `method.state_dict()` beside them, and give it as `state` to go on.

    Args:
        method: not attached yet.
        plan: of the model, or of `model`.
        model: the part of the Trainer's model that the plan is about; all of it by default.
        prune_at: as for `lightning_callback`.
        calibration: as for `lightning_callback`.
        state: of a method whose run was interrupted; for `resume_from_checkpoint`.

    Returns:
        A `TrainerCallback`, with `report` once `finish` was called.

    Raises:
        InvalidInputError: a method that is attached already, or `prune_at` below 1.
        MissingDependencyError: transformers cannot be imported.
    """
    kind = type("PruningCallback", (_TrainerHooks, _base(("transformers",), "TrainerCallback", "optprune[hf]")), {})
    return kind(method, plan, model, prune_at, calibration, state)


class _Bridge:
    """A method, told of what a trainer does."""

    def __init__(
        self,
        method: Method,
        plan: Plan,
        model: nn.Module | None,
        prune_at: int | None,
        calibration: Iterable[Any] | None,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if method._layers:
            raise InvalidInputError(
                f"{type(method).__name__} is attached already; give one made without a model, it is attached when "
                "training starts, on the trainer's device and with its optimizer"
            )
        if prune_at is not None and prune_at < 1:
            raise InvalidInputError(f"prune_at={prune_at} given; a number of steps >= 1 is needed")
        self.method = method
        self.report: Report | None = None
        self._plan, self._model, self._prune_at, self._calibration = plan, model, prune_at, calibration
        self._state = state
        self._losses: list[Tensor] = []

    def _begin(self, model: nn.Module, optimizers: Iterable[Optimizer]) -> None:
        """Attach to what is trained; to a state that was given, if one was."""
        if self.method._layers:
            raise InvalidInputError(
                f"training starts a second time with a {type(self.method).__name__} that has seen one; make a new "
                "callback with a new method, and give it the state to go on from"
            )
        model = model if self._model is None else self._model
        weights = {id(model.get_submodule(name).get_parameter("weight")) for name in self._plan}
        holders = [
            optimizer
            for optimizer in optimizers
            if weights & {id(p) for group in optimizer.param_groups for p in group["params"]}
        ]
        if len(holders) != 1:
            raise UnsupportedError(
                f"{len(holders)} optimizers hold weights of the planned layers; one that trains all of them is needed. "
                "Call the method in a loop of your own otherwise"
            )
        self.method.attach(model, self._plan, holders[0])
        self._optimizer = holders[0]
        if self._state is not None:
            self.method.load_state_dict(self._state)
            self._state = None

    def _add_gradient(self) -> None:
        """Add the penalty's gradient to those of the planned weights."""
        penalty = self.method.penalty()
        if not penalty.requires_grad:
            return
        parameters = [layer.parameter for layer in self.method._layers.values()]
        # Not `backward`: it would call the hooks of data parallelism a second time.
        for parameter, own in zip(parameters, torch.autograd.grad(penalty, parameters), strict=True):
            parameter.grad = own if parameter.grad is None else parameter.grad.add_(own)

    def _step(self, loss: Tensor) -> None:
        """After a step of the optimizer."""
        self.method.step(loss)
        self._losses.clear()
        if self.method.steps == self._prune_at:
            self.method.prune()

    def _end(self) -> None:
        if self._calibration is not None:
            _, self.report = self.method.finish(self._calibration)


class _LightningHooks(_Bridge):
    """The hooks of `lightning.pytorch.Callback` that are used, with its signatures."""

    _stepped = False

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if not pl_module.automatic_optimization:
            raise UnsupportedError(
                "a module with manual optimization given; call penalty() and step() of the method in its training_step"
            )
        self._begin(pl_module, trainer.optimizers)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Optimizer) -> None:
        if optimizer is self._optimizer:
            self._add_gradient()
            self._stepped = True

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if outputs is None:  # the module left this batch out
            return
        loss = outputs["loss"] if isinstance(outputs, Mapping) else outputs
        self._losses.append(loss.detach())
        if self._stepped:
            self._stepped = False
            self._step(torch.stack(self._losses).sum())

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._end()

    def state_dict(self) -> dict[str, Any]:
        if not self.method._layers or self.report is not None:
            return {}
        return {"method": self.method.state_dict(), "losses": list(self._losses)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict:
            self._state, self._losses = state_dict["method"], list(state_dict["losses"])


class _TrainerHooks(_Bridge):
    """The hooks of `transformers.TrainerCallback` that are used, with its signatures."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.fp16:
            raise UnsupportedError("fp16=True given, whose gradients are scaled where the penalty's is added; use bf16")
        if state.global_step and self._state is None:
            raise InvalidInputError(
                f"training goes on from step {state.global_step} with a method that has seen none; give the "
                "state_dict() of the interrupted one: trainer_callback(..., state=...)"
            )
        model, optimizer = kwargs["model"], kwargs["optimizer"]
        self._begin(model, [getattr(optimizer, "optimizer", optimizer)])  # accelerate wraps it
        self._handle = model.register_forward_hook(self._saw)

    def _saw(self, module: nn.Module, args: Any, output: Any) -> None:
        if module.training and torch.is_grad_enabled() and isinstance(output, Mapping) and "loss" in output:
            self._losses.append(output["loss"].detach())

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._add_gradient()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self._losses:
            raise InvalidInputError(
                "the model returned no `loss`, which the method needs; give labels to the model, or call penalty() and "
                "step(loss) of the method in a Trainer of your own"
            )
        self._step(torch.stack(self._losses).mean())

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._handle.remove()
        self._end()


def _base(modules: Iterable[str], name: str, package: str) -> type:
    """A class of an optional package.

    Raises:
        MissingDependencyError: none of the modules can be imported.
    """
    for module in modules:
        try:
            return getattr(importlib.import_module(module), name)
        except ImportError:
            continue
    tried = " and ".join(modules)
    raise MissingDependencyError(f"the callback needs {tried}, which cannot be imported; pip install '{package}'")
