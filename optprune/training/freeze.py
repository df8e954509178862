"""Masks that no optimizer can undo.

A frozen layer holds its pruned positions in a buffer that no state dict shows, and sets the weights there to zero
before every forward and before every state dict is taken; after every step of an optimizer that it was told of, the
weights and everything that the optimizer remembers of them. Names in the state dict stay as they were, and a deep copy
is as frozen as the original.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from optprune.errors import InvalidInputError, UnsupportedError, layer_context
from optprune.network.layers import Adapter, candidates, named_adapters

BUFFER = "_kept_bits"
"""Name of the buffer of a frozen layer: integers of the weight's size, all bits set where it is kept, none elsewhere.

A bitwise and with them leaves the kept bits as they are and makes all others +0.0, NaN and infinity too, in a tenth of
the time of a masked fill.
"""

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class Frozen:
    """The masks of a model while they are held; made by `freeze`.

    Attributes:
        model: whose layers are frozen.
    """

    def __init__(self, model: nn.Module, adapters: Mapping[str, Adapter]) -> None:
        self.model = model
        self._adapters = dict(adapters)
        self._optimizers: list[tuple[Optimizer, RemovableHandle]] = []

    @property
    def masks(self) -> dict[str, Tensor]:
        """The masks in the shape of the weights (True = kept), copies."""
        return {name: _bits(adapter.module) != 0 for name, adapter in self._adapters.items()}

    def set(self, masks: Mapping[str, Tensor]) -> None:
        """Hold other masks from now on, of some or all of the frozen layers, and apply them.

        Raises:
            InvalidInputError: a layer is not frozen, or a mask does not fit; names the layer.
        """
        for name, mask in masks.items():
            if name not in self._adapters:
                raise InvalidInputError(f"a mask for '{name}' given; frozen are {', '.join(self._adapters)}")
            with layer_context(name):
                bits = _checked(self._adapters[name], mask)
            _bits(self._adapters[name].module).copy_(bits)
        self.apply()

    def release(self) -> None:
        """Hold nothing for now: every mask is all True until the next `set`. No weight changes."""
        for adapter in self._adapters.values():
            _bits(adapter.module).fill_(-1)

    def apply(self) -> None:
        """Zero at every pruned position in the weights and in what the watched optimizers keep."""
        for adapter in self._adapters.values():
            weight, bits = adapter.module.weight, _bits(adapter.module)
            _erase(weight.data, bits)
            for optimizer, _ in self._optimizers:
                for kept in optimizer.state.get(weight, {}).values():
                    if isinstance(kept, Tensor) and kept.shape == weight.shape:
                        _erase(kept, bits)

    def watch(self, optimizer: Optimizer) -> None:
        """Apply the masks after every step of this optimizer.

        Raises:
            InvalidInputError: it does not hold any of the frozen weights.
        """
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        if not any(id(adapter.module.weight) in held for adapter in self._adapters.values()):
            raise InvalidInputError(
                f"{type(optimizer).__name__} holds none of the frozen weights ({', '.join(self._adapters)}); give the "
                "optimizer that trains this model, made from its parameters"
            )
        if all(optimizer is not known for known, _ in self._optimizers):
            self._optimizers.append((optimizer, optimizer.register_step_post_hook(self._after_step)))
        self.apply()

    def remove(self) -> None:
        """Let go: the weights stay as they are, and nothing holds them any longer."""
        for _, handle in self._optimizers:
            handle.remove()
        self._optimizers.clear()
        thaw(self.model)

    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.apply()


def freeze(model: nn.Module, masks: Mapping[str, Tensor] | None = None, optimizer: Optimizer | None = None) -> Frozen:
    r"""$W \leftarrow m \circ W$ from now on, whatever an optimizer does to $W$.

    The zeros are restored before each forward and before a state dict is taken, so that any optimizer may be used. With
    `optimizer` they are also restored right after each of its steps, in the weights and in every tensor of their shape
    that it keeps (momentum, moments): a weight that a later mask gives back starts without a past. Gradients at pruned
    positions are computed as always; clipping by a norm sees them.

    Args:
        model: its layers of a kind that can be pruned.
        masks: layer name -> boolean tensor, True = kept, in the shape of the weight or of its matrix `(out, d)`.
            Without it the masks of a model that is frozen already stay; else every layer keeps its present zeros.
        optimizer: what trains the model.

    Raises:
        InvalidInputError: no such layer, a mask that does not fit, an optimizer of another model.
        UnsupportedError: a layer without adapter; names it.
    """
    held = frozen_masks(model)
    adapters = named_adapters(model, list(held if masks is None and held else masks or candidates(model)))
    if not adapters:
        raise InvalidInputError(
            f"{type(model).__name__} has no layer to freeze; Linear, Conv1d and Conv2d are accepted"
        )
    if masks is None:
        masks = held or {name: adapter.module.weight.detach() != 0 for name, adapter in adapters.items()}
    bits = {}
    for name, adapter in adapters.items():
        with layer_context(name):
            bits[name] = _checked(adapter, masks[name])
    thaw(model)
    for name, adapter in adapters.items():
        adapter.module.register_buffer(BUFFER, bits[name], persistent=False)
        adapter.module.register_forward_pre_hook(_before_forward)
        adapter.module.register_state_dict_pre_hook(_before_state_dict)
    frozen = Frozen(model, adapters)
    frozen.apply()
    if optimizer is not None:
        frozen.watch(optimizer)
    return frozen


def thaw(model: nn.Module) -> None:
    """Remove what `freeze` put into a model, or into the model that this is a deep copy of; no weight changes."""
    for module in model.modules():
        if BUFFER in module._buffers:
            del module._buffers[BUFFER]
            module._non_persistent_buffers_set.discard(BUFFER)
            _drop(module._forward_pre_hooks, _before_forward)
            _drop(module._state_dict_pre_hooks, _before_state_dict)


def frozen_masks(model: nn.Module) -> dict[str, Tensor]:
    """The masks that a model is frozen with, by layer name; empty for one that is not frozen."""
    return {name: _bits(module) != 0 for name, module in model.named_modules() if BUFFER in module._buffers}


def to_torch_prune(model: nn.Module) -> None:
    """Hand the masks over to `torch.nn.utils.prune`: `weight_orig`, `weight_mask` and its hook replace the freezing.

    Raises:
        InvalidInputError: the model is not frozen.
    """
    masks = frozen_masks(model)
    if not masks:
        raise InvalidInputError(f"{type(model).__name__} is not frozen; call freeze(model, masks) first")
    thaw(model)
    for name, adapter in named_adapters(model, masks).items():
        torch_prune.custom_from_mask(adapter.module, "weight", masks[name].to(adapter.module.weight.dtype))


def from_torch_prune(model: nn.Module, optimizer: Optimizer | None = None) -> Frozen:
    """Take the masks over from `torch.nn.utils.prune`; the parameters stay the same objects, so an optimizer goes on.

    Raises:
        InvalidInputError: no module has a `weight_mask`.
        UnsupportedError: another parameter than a weight is pruned, or the layer has no adapter; names the layer.
    """
    masks: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        for buffer in [key for key in module._buffers if key.endswith("_mask")]:
            if buffer.removesuffix("_mask") + "_orig" not in module._parameters:
                continue
            if buffer != "weight_mask":
                with layer_context(name):
                    raise UnsupportedError(
                        f"its '{buffer.removesuffix('_mask')}' is pruned; masks are held for weights alone. Make it "
                        "permanent first (torch.nn.utils.prune.remove)"
                    )
            masks[name] = module.get_buffer(buffer).bool()
    if not masks:
        raise InvalidInputError(f"{type(model).__name__} has no weight_mask; torch.nn.utils.prune has not pruned it")
    for name in masks:
        torch_prune.remove(model.get_submodule(name), "weight")
    try:
        return freeze(model, masks, optimizer)
    except Exception:
        thaw(model)
        for name, mask in masks.items():  # the masks are not lost on the way
            torch_prune.custom_from_mask(model.get_submodule(name), "weight", mask)
        raise


def _checked(adapter: Adapter, mask: Tensor) -> Tensor:
    """A mask as bits for the weight; checks that it fits."""
    weight = adapter.module.weight
    if mask.dtype != torch.bool or tuple(mask.shape) not in (tuple(weight.shape), adapter.shape):
        raise InvalidInputError(
            f"a mask of dtype {mask.dtype} and shape {tuple(mask.shape)} given; a boolean one is needed (True = kept) "
            f"in the shape of the weight {tuple(weight.shape)} or of its matrix {adapter.shape}"
        )
    return _as_bits(mask.reshape(weight.shape).to(weight.device), weight)


def _as_bits(mask: Tensor, like: Tensor) -> Tensor:
    return -mask.to(_INTEGERS[like.element_size()])


def _erase(values: Tensor, bits: Tensor) -> None:
    """Set to +0.0 what is not kept; a tensor of another precision than the bits are for gets bits of its own."""
    fitting = bits if bits.element_size() == values.element_size() else _as_bits(bits != 0, values)
    values.view(fitting.dtype).bitwise_and_(fitting)


def _bits(module: nn.Module) -> Tensor:
    found = module._buffers.get(BUFFER)
    if found is None:
        raise InvalidInputError("the model was thawed, or frozen anew, since these masks were made; freeze it again")
    return found


def _hold(module: nn.Module) -> None:
    # Through .data: a second forward before the backward must not look like a change of what autograd saved.
    _erase(module.get_parameter("weight").data, module.get_buffer(BUFFER))


def _before_forward(module: nn.Module, args: tuple[Any, ...]) -> None:
    _hold(module)


def _before_state_dict(module: nn.Module, prefix: str, keep_vars: bool) -> None:
    _hold(module)


def _drop(hooks: dict[int, Any], wanted: Any) -> None:
    keys: Iterable[int] = [key for key, hook in hooks.items() if hook is wanted]
    for key in keys:
        del hooks[key]
