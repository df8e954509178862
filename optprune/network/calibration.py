"""The calibration data as the model sees it, and the model kept as it was while it looks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from optprune.errors import InvalidInputError, NonFiniteError, layer_context
from optprune.network.files import tensor_digest

Forward = Callable[[nn.Module, Any], Any]
"""Runs the model on one batch; what it returns is not used."""


def call(model: nn.Module, batch: Any) -> Any:
    """The default forward: a tensor is the input, the first of a tuple is, a mapping gives keyword arguments.

    Raises:
        InvalidInputError: another kind of batch.
    """
    if isinstance(batch, Tensor):
        return model(batch)
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, tuple | list) and batch and isinstance(batch[0], Tensor):
        return model(batch[0])
    raise InvalidInputError(
        f"a batch of type {type(batch).__name__} given; a tensor, a tuple that begins with the input tensor, or a "
        "mapping of keyword arguments is understood. Give forward=lambda model, batch: ... for anything else"
    )


@dataclass(frozen=True, eq=False)
class Calibration:
    """Batches that can be gone through several times, on the model's device and in its dtype.

    Attributes:
        batches: a re-iterable of batches.
        forward: runs the model on one batch.
        device: where the model is.
        dtype: what floating tensors of a batch are converted to; None leaves them.
        random_state: the state of torch's CPU generator from which every pass starts, so that a loader that shuffles
            gives one order.
    """

    batches: Iterable[Any]
    forward: Forward
    device: torch.device
    dtype: torch.dtype | None
    random_state: Tensor

    def __iter__(self) -> Iterator[Any]:
        """One pass; inside of `evaluating`, which gives the caller's random state back."""
        torch.set_rng_state(self.random_state)
        for batch in self.batches:
            yield map_tensors(self._move, batch)

    def run(self, model: nn.Module, batch: Any) -> None:
        """One forward."""
        self.forward(model, batch)

    def _move(self, tensor: Tensor) -> Tensor:
        dtype = self.dtype if tensor.is_floating_point() and self.dtype is not None else tensor.dtype
        return tensor.to(self.device, dtype)


def calibration(
    model: nn.Module, batches: Iterable[Any], forward: Forward | None, device: torch.device, memory: int
) -> Calibration:
    """Prepare batches for a model.

    A single tensor is one batch. An iterator that can be read only once is kept in memory if it fits.

    Raises:
        InvalidInputError: not iterable, or a one-shot iterator larger than `memory` bytes.
    """
    if isinstance(batches, Tensor):
        batches = [batches]
    if not isinstance(batches, Iterable):
        raise InvalidInputError(
            f"batches of type {type(batches).__name__} given; an iterable of batches is needed (a DataLoader, a list)"
        )
    if iter(batches) is batches:
        batches = _materialised(batches, memory)
    kinds = {p.dtype for p in model.parameters() if p.is_floating_point()}
    dtype = kinds.pop() if len(kinds) == 1 else None
    return Calibration(batches, forward or call, device, dtype, torch.get_rng_state())


def _materialised(batches: Iterable[Any], memory: int) -> list[Any]:
    held, size = [], 0
    for batch in batches:
        held.append(batch)
        size += sum(tensor.nbytes for tensor in tensors_of(batch))
        if size > memory:
            raise InvalidInputError(
                f"an iterator that can be read only once was given, and its first {len(held)} batches exceed the "
                f"memory of {memory} bytes; several passes are needed: give a list, a DataLoader or another re-iterable"
            )
    return held


@dataclass(frozen=True)
class Survey:
    """What the calibration data is: number of batches and samples, and a hash of its tensors in their order."""

    batches: int
    samples: int
    sha256: str


def survey(data: Calibration) -> Survey:
    """One pass over the data without the model.

    Raises:
        InvalidInputError: there is no batch, or none holds a tensor.
    """
    digest, count, samples = hashlib.sha256(), 0, 0
    torch.set_rng_state(data.random_state)
    for batch in data.batches:
        tensors = list(tensors_of(batch))
        count += 1
        samples += tensors[0].shape[0] if tensors and tensors[0].dim() else 0
        for tensor in tensors:
            digest.update(tensor_digest(tensor.detach().cpu()).encode())
    if samples == 0:
        raise InvalidInputError(
            f"the calibration data holds {count} batches and no sample; give at least one batch with one sample "
            "(an exhausted iterator is empty, too)"
        )
    return Survey(count, samples, digest.hexdigest())


def tensors_of(tree: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists and mappings, in order."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from tensors_of(value)
    elif isinstance(tree, tuple | list):
        for value in tree:
            yield from tensors_of(value)


def map_tensors(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """The same nested tuples, lists and mappings with every tensor replaced."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, Mapping):
        return {key: map_tensors(function, value) for key, value in tree.items()}
    if isinstance(tree, tuple | list):
        values = [map_tensors(function, value) for value in tree]
        return type(tree)(*values) if isinstance(tree, tuple) and type(tree) is not tuple else type(tree)(values)
    return tree


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; training flags and random states come back, whatever happens inside."""
    flags = [(module, module.training) for model in models for module in model.modules()]
    cuda = {p.device.index for model in models for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(index for index in cuda if index is not None)), torch.no_grad():
        try:
            for model in models:
                model.eval()
            yield
        finally:
            for module, training in flags:
                module.training = training


def device_of(model: nn.Module, asked: str | torch.device | None) -> torch.device:
    """Where the calibration runs: the device asked for, else the one that holds the model.

    Raises:
        InvalidInputError: the model is on several devices or has no data, the device is not there or has no float64.
    """
    held = {t.device for t in [*model.parameters(), *model.buffers()]}
    if any(device.type == "meta" for device in held):
        raise InvalidInputError("the model is on device 'meta' and holds no numbers; load its weights first")
    if asked is None and len(held) > 1:
        places = ", ".join(sorted(map(str, held)))
        raise InvalidInputError(f"the model lies on several devices ({places}); move it to one, or give device=")
    wanted = asked if asked is not None else next(iter(held), torch.device("cpu"))
    try:
        probe = torch.zeros(1, dtype=torch.float64, device=wanted)
        probe.item()
    except (RuntimeError, AssertionError, TypeError) as error:
        raise InvalidInputError(
            f"device '{wanted}' cannot be used ({str(error).splitlines()[0]}); statistics need a device of this "
            "machine that holds numbers in float64: cpu, or cuda where there is one"
        ) from error
    return probe.device


def require_finite_weights(model: nn.Module, names: Iterable[str]) -> None:
    """Refuse layers whose parameters hold NaN or infinity.

    Raises:
        NonFiniteError: names the layer and the parameter.
    """
    for name in names:
        for kind, parameter in model.get_submodule(name).named_parameters(recurse=False):
            bad = int((~parameter.detach().isfinite()).sum())
            if bad:
                with layer_context(name):
                    raise NonFiniteError(
                        f"its {kind} holds {bad} NaN or infinite entries of {parameter.numel()}; repair or skip it"
                    )
