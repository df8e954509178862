"""What every training method shares: attaching, counting steps and periods, hard pruning, the state, the report."""

from __future__ import annotations

import copy
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import KW_ONLY, InitVar, dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from optprune.errors import InvalidInputError, NonFiniteError, UnsupportedError, layer_context
from optprune.network.assess import assess
from optprune.network.calibration import Forward
from optprune.network.plan import Plan
from optprune.network.report import Report
from optprune.training._checks import added, require
from optprune.training._layers import PlannedLayer, planned_layers
from optprune.training.freeze import Frozen, freeze, frozen_masks


@dataclass(eq=False)
class Method(ABC):
    """A way to prune while the user's own loop trains.

        method = SomeMethod(model, plan, optimizer, every=len(loader))
        for inputs, targets in loader:  # as many epochs as you like
            loss = criterion(model(inputs), targets)
            optimizer.zero_grad()
            (loss + method.penalty()).backward()
            optimizer.step()
            method.step(loss)
        method.prune()  # optional: from here on the masks are frozen; go on with the same loop to retrain
        pruned, report = method.finish(batches)

    `step` is called once per step of the optimizer, after it, with the loss of that step without the penalty. `every`
    calls make a *period*, at whose end the method does its own work; `every=len(loader)` makes a period an epoch. The
    method never calls the model, the loss or the optimizer. It keeps a copy of the model as it was attached.

    The methods of one type differ in how a period ends. `prune` chooses the masks, zeroes the weights outside of them
    and freezes them (`freeze`); `penalty` is 0 from then on. `finish` prunes if that has not been done, lets the masks
    go, and returns the very model that was attached with a report that holds it against the network as it was when
    `attach` was called.

    Attributes:
        every: steps in a period.
        history: one record of numbers per period; what they are is said by the method.

    Raises:
        InvalidInputError: a setting outside of its range; a call in the wrong order; a model that is not the one that
            was attached any more.
        NonFiniteError: the losses of a period hold NaN or infinity.
    """

    model: InitVar[nn.Module | None] = None
    plan: InitVar[Plan | None] = None
    optimizer: InitVar[Optimizer | None] = None
    _: KW_ONLY
    every: int

    def __post_init__(self, model: nn.Module | None, plan: Plan | None, optimizer: Optimizer | None) -> None:
        require(self, "every", self.every >= 1 and int(self.every) == self.every, "an integer >= 1")
        self._check_settings()
        self._layers: dict[str, PlannedLayer] = {}
        self.history: list[dict[str, float]] = []
        if (model is None) != (plan is None):
            raise InvalidInputError("a model and a plan are needed together; give both, or call attach(model, plan)")
        if model is not None and plan is not None:
            self.attach(model, plan, optimizer)

    def attach(self, model: nn.Module, plan: Plan, optimizer: Optimizer | None = None) -> Self:
        """Begin with a model as it is now; its present weights are the dense network of the report.

        Args:
            model: the module itself, not a wrapper around it (`torch.compile` and data parallelism wrap it).
            plan: layer name -> pattern.
            optimizer: what trains the model; where it is known, its memory of pruned weights is erased with them.

        Raises:
            InvalidInputError: attached before, an empty plan or one that does not fit, an optimizer of another model.
            UnsupportedError: a frozen model, tied weights, a layer without adapter.
        """
        if self._layers:
            raise InvalidInputError(f"{type(self).__name__} is attached already; make another one for another model")
        if frozen_masks(model):
            raise UnsupportedError("the model is frozen, so that nothing is left to choose; call thaw(model) first")
        layers = planned_layers(model, plan)
        self._model, self._plan, self._optimizer = model, plan, optimizer
        self._dense = copy.deepcopy(model)
        self._frozen: Frozen | None = None
        self._pruned = self._finished = False
        self._steps, self._total = 0, torch.zeros((), dtype=torch.float64)
        self._started = time.perf_counter()
        self._layers = layers
        try:
            self._begin()
        except Exception:
            self._layers = {}
            raise
        return self

    @property
    def steps(self) -> int:
        """Calls of `step` so far."""
        return self._steps if self._layers else 0

    @property
    def masks(self) -> dict[str, Tensor]:
        """What hard pruning would keep of each layer now, in the shape of the weights; after it, what it kept."""
        self._require_attached("masks")
        return frozen_masks(self._model) if self._pruned else self._chosen()

    def penalty(self) -> Tensor:
        """What is to be added to the loss before `backward`; a zero where the method needs none.

        Raises:
            InvalidInputError: before `attach`, after `finish`, or the model is not the one that was attached.
        """
        self._require_running("penalty")
        return next(iter(self._layers.values())).weight.new_zeros(())

    def step(self, loss: Tensor | float | None = None) -> None:
        """Count a step of the optimizer, which was made just before, and do what is due.

        Args:
            loss: of this step, without the penalty.

        Raises:
            InvalidInputError: no loss, not a scalar, before `attach`, after `finish`, another model, no penalty where
                the method needs one.
            NonFiniteError: at the end of a period, if its losses hold NaN or infinity.
        """
        self._require_running("step")
        self._total = added(self._total, loss)
        self._steps += 1
        if self._frozen is not None and self._optimizer is None:
            self._frozen.apply()  # an optimizer that is known has done it
        if not self._pruned:
            self._after_step()
        if self._steps % self.every:
            return
        mean = float(self._total) / self.every
        self._total = torch.zeros_like(self._total)
        if not math.isfinite(mean):
            raise NonFiniteError(
                f"the losses of steps {self._steps - self.every + 1} to {self._steps} hold NaN or infinity; "
                "lower the learning rate, or go back to an earlier state"
            )
        facts = {"step": float(self._steps), "loss": mean}
        self.history.append(facts | ({} if self._pruned else self._end_period(mean)))

    def prune(self) -> dict[str, Tensor]:
        r"""$W \leftarrow m \circ W$: choose the masks, prune, and freeze them; returns the masks.

        Raises:
            InvalidInputError: before `attach`, after `finish`, or a second time.
        """
        self._require_running("prune")
        if self._pruned:
            raise InvalidInputError("hard pruned already; go on training with the frozen masks, or call finish")
        masks = self._chosen()
        self._hold(masks)
        self._pruned = True
        return masks

    def _hold(self, masks: Mapping[str, Tensor]) -> None:
        """Freeze the model with these masks from now on."""
        if self._frozen is None:
            self._frozen = freeze(self._model, masks, self._optimizer)
        else:
            self._frozen.set(masks)

    def _chosen(self) -> dict[str, Tensor]:
        """The final masks, within those that are held already."""
        held = frozen_masks(self._model)
        return {name: mask & held.get(name, True) for name, mask in self._final_masks().items()}

    def finish(
        self,
        batches: Iterable[Any],
        *,
        damping: float = 0.0,
        memory: int = 2**30,
        forward: Forward | None = None,
        certified: bool = True,
        bound: bool = True,
        evidence: bool = True,
    ) -> tuple[nn.Module, Report]:
        """Prune if that has not been done, let the masks go, and report.

        Args:
            batches: calibration data as for `prune`; the layers' errors and certificates are about it.
            damping, memory, forward, certified, bound, evidence: as for `assess`.

        Returns:
            The attached model, with exact zeros and nothing left in it that holds them, and the report.

        Raises:
            InvalidInputError: before `attach`, or a second time; no data.
            NonFiniteError: NaN or infinity in weights or activations; names the layer.
        """
        self._require_running("finish")
        if not self._pruned:
            self.prune()
        assert self._frozen is not None
        self._frozen.apply()
        masks = frozen_masks(self._model)
        self._frozen.remove()
        try:
            report = assess(
                self._dense,
                self._model,
                batches,
                self._final_plan(),
                by=self,
                steps=self._steps,
                seconds=time.perf_counter() - self._started,
                damping=damping,
                memory=memory,
                forward=forward,
                certified=certified,
                bound=bound,
                evidence=evidence,
            )
        except Exception:
            self._frozen = freeze(self._model, masks, self._optimizer)  # with other data it may be called again
            raise
        self._finished = True
        return self._model, report

    # --- what a method adds ------------------------------------------------------------------------------------------

    def _check_settings(self) -> None:
        """Refuse settings outside of their range."""
        return

    def _begin(self) -> None:
        """Set up what the method keeps of each layer."""
        return

    def _after_step(self) -> None:
        """What every step asks for, before hard pruning."""
        return

    @abstractmethod
    def _end_period(self, loss: float) -> dict[str, float]:
        """What ends a period with this mean loss, before hard pruning; returns numbers for the history."""

    def _final_masks(self) -> dict[str, Tensor]:
        """What hard pruning keeps of the present weights."""
        return {name: layer.support(layer.weight) for name, layer in self._layers.items()}

    def _final_plan(self) -> Plan:
        """The patterns that the report is about."""
        return self._plan

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        """What the method keeps, as kind -> layer -> tensor; restoring writes into these very tensors."""
        return {}

    def _numbers(self) -> dict[str, Any]:
        """The other things that it keeps."""
        return {}

    def _restore(self, numbers: Mapping[str, Any]) -> None:
        """Take over what `_numbers` gave; the tensors are in place already."""
        return

    # --- state -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that a run needs to go on, but for the state dicts of the model and the optimizer, which are yours.

        Saved between two steps, with those two and the state of the data loader, a run that goes on from them makes the
        same steps as one that was never interrupted.

        Raises:
            InvalidInputError: before `attach` or after `finish`.
        """
        self._require_running("state_dict")
        return {
            "method": repr(self),
            "plan": {name: repr(target) for name, target in self._plan.items()},
            "steps": self._steps,
            "total": self._total.clone(),
            "seconds": time.perf_counter() - self._started,
            "history": copy.deepcopy(self.history),
            "masks": {name: mask.clone() for name, mask in frozen_masks(self._model).items()},
            "pruned": self._pruned,
            "dense": {name: tensor.clone() for name, tensor in self._dense.state_dict().items()},
            "tensors": {
                kind: {name: tensor.clone() for name, tensor in own.items()} for kind, own in self._tensors().items()
            },
            "numbers": copy.deepcopy(self._numbers()),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a state was saved; attach to the model first, and load the model's own state dict too.

        Raises:
            InvalidInputError: not attached, or a state of other settings, another plan or another model.
        """
        self._require_running("load_state_dict")
        plan = {name: repr(target) for name, target in self._plan.items()}
        for what, own, given in (("settings", repr(self), state["method"]), ("plan", plan, dict(state["plan"]))):
            if own != given:
                raise InvalidInputError(f"a state with {what} {given} given to one with {own}; they must be the same")
        try:
            self._dense.load_state_dict(state["dense"])
        except RuntimeError as error:
            raise InvalidInputError(f"a state of another model given: {error}") from error
        self._steps, self._pruned = state["steps"], state["pruned"]
        self._total = state["total"].clone()
        self._started = time.perf_counter() - state["seconds"]
        self.history = copy.deepcopy(state["history"])
        if state["masks"]:
            self._hold(state["masks"])
        for kind, own in self._tensors().items():
            for name, tensor in own.items():
                tensor.copy_(state["tensors"][kind][name])
        self._restore(state["numbers"])

    # --- wrong use ---------------------------------------------------------------------------------------------------

    def _require_attached(self, call: str) -> None:
        if not self._layers:
            raise InvalidInputError(
                f"{call} before attach: {type(self).__name__} knows no model yet; give model and plan when making it, "
                "or call attach(model, plan)"
            )

    def _require_running(self, call: str) -> None:
        """Attached, not finished, and every layer still the one that was attached."""
        self._require_attached(call)
        if self._finished:
            raise InvalidInputError(f"{call} after finish; make a new {type(self).__name__} to prune further")
        for name, layer in self._layers.items():
            module = layer.adapter.module
            if module.weight is layer.parameter and self._model.get_submodule(name) is module:
                continue
            with layer_context(name):
                raise InvalidInputError(
                    f"its weight was replaced after attach, so that {type(self).__name__} holds another parameter; "
                    "load values into the old one (load_state_dict), or attach to the changed model"
                )
