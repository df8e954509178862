r"""What the layers see, by forward hooks that return nothing, in bounded memory.

Inputs are streamed into Gram matrices in float64; rows themselves are kept only where a problem needs them, as a
uniform subsample. Where a layer has a bias, its rows end in a one, so that the statistics know the bias as a last
column.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from optprune.errors import InvalidInputError, UnsupportedError, layer_context
from optprune.network.calibration import (
    Calibration,
    Forward,
    calibration,
    device_of,
    evaluating,
    survey,
    tensors_of,
)
from optprune.network.layers import Adapter, named_adapters
from optprune.numerics.sampling import Divider, Reservoir, generator
from optprune.statistics import Accumulator, Statistics

CHUNK_BYTES = 2**26
"""Unfolded rows in float64 that are formed at a time."""


@dataclass(frozen=True, eq=False)
class Captured:
    """What one layer saw.

    Attributes:
        statistics: per group, of rows that end in a one where the layer has a bias, centred at the dense parameters.
        inputs: a uniform subsample of the rows `(groups, n, d)`, without the one; None where none was asked for.
        targets: the dense pre-activations of the same rows (cascade only).
        halves: the statistics of two disjoint sets of samples, which together are all: to fit on, and held out; None
            where the samples were not divided.
    """

    statistics: Statistics
    inputs: Float[Tensor, "groups n d"] | None = None
    targets: Float[Tensor, "groups n outg"] | None = None
    halves: tuple[Statistics, Statistics] | None = None


def capture(
    model: nn.Module,
    batches: Iterable[Any],
    names: Sequence[str],
    *,
    samples: int = 0,
    seed: int = 0,
    memory: int = 2**30,
    forward: Forward | None = None,
) -> dict[str, Captured]:
    """Statistics of the dense network's activations at the named layers.

    Args:
        model: put into evaluation mode for the time of the call, otherwise untouched.
        batches: tensors, tuples that begin with the input, or mappings of keyword arguments; read several times.
        names: layers, as in `model.named_modules()`.
        samples: rows to keep per layer besides the statistics.
        seed: of the subsample.
        memory: bytes for the statistics formed in one pass over the batches.
        forward: runs the model on a batch of any other kind.

    Raises:
        InvalidInputError: no data, an unknown layer, or a layer that the data never reaches; names it.
        NonFiniteError: an activation is NaN or infinite; names the layer.
        UnsupportedError: a layer without adapter.
    """
    adapters = named_adapters(model, names)
    data = calibration(model, batches, forward, device_of(model, None), memory)
    with evaluating(model):
        survey(data)
        order = list(call_counts(model, adapters, data))
        found: dict[str, Captured] = {}
        for group in passes({name: adapters[name] for name in order}, dict.fromkeys(order, samples), memory):
            found |= capture_parallel(model, group, data, dict.fromkeys(group, samples), seed)
    return {name: found[name] for name in names}


def call_counts(model: nn.Module, adapters: Mapping[str, Adapter], data: Calibration) -> dict[str, int]:
    """How often each layer is called in one forward, at most, in the order of the first calls.

    Batches are run until every layer was reached.

    Raises:
        InvalidInputError: a layer is never reached; names it.
    """
    most: dict[str, int] = {}
    now: dict[str, int] = defaultdict(int)

    def count(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            now[name] += 1

        return hook

    with hooked(adapters, count):
        for batch in data:
            now.clear()
            data.run(model, batch)
            most = {name: max(most.get(name, 0), now.get(name, 0)) for name in [*most, *now]}
            if len(most) == len(adapters):
                return most
    missing = [name for name in adapters if name not in most]
    with layer_context(missing[0]):
        raise InvalidInputError(
            f"it is never reached by the calibration data{_others(missing)}; skip it in the plan, or give batches that "
            "reach it (a module whose parent uses its weight directly is never called)"
        )


def layer_uses(model: nn.Module, adapters: Mapping[str, Adapter], data: Calibration) -> dict[str, int]:
    """How often a sample meets each weight, at most, over the batches until every layer was reached.

    Raises:
        InvalidInputError: a layer is never reached; names it.
    """
    call_counts(model, adapters, data)
    most = dict.fromkeys(adapters, 0)
    now: dict[str, int] = defaultdict(int)

    def count(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = _input(args, kwargs)
            now[name] += adapters[name].samples(x).shape[0] * adapters[name].rows_per_sample(x)

        return hook

    with hooked(adapters, count):
        for batch in data:
            now.clear()
            data.run(model, batch)
            samples = max(1, next(tensors_of(batch)).shape[0])
            most = {name: max(uses, -(-now[name] // samples)) for name, uses in most.items()}
            if all(most.values()):
                break
    return most


def passes(
    adapters: Mapping[str, Adapter], samples: Mapping[str, int], memory: int, *, divided: bool = False
) -> Iterator[dict[str, Adapter]]:
    """The layers in order, cut so that the statistics of each piece fit in `memory` bytes (one layer at least).

    Divided samples take three times the statistics: of either set, and of both.
    """
    piece: dict[str, Adapter] = {}
    used = 0
    for name, adapter in adapters.items():
        out, d = adapter.shape
        d += adapter.module.bias is not None
        need = 8 * (
            (2 * adapter.groups * d * d + 2 * out * d) * (3 if divided else 1)
            + samples[name] * (adapter.groups * d + out)
        )
        if piece and used + need > memory:
            yield piece
            piece, used = {}, 0
        piece[name] = adapter
        used += need
    if piece:
        yield piece


def capture_parallel(
    model: nn.Module,
    adapters: Mapping[str, Adapter],
    data: Calibration,
    samples: Mapping[str, int],
    seed: int,
    *,
    held_out: float = 0.0,
) -> dict[str, Captured]:
    """Dense activations of several layers in one pass; the calls of a layer that is called twice are pooled.

    With a share `held_out` the samples are divided at random, at all layers alike; a layer that is called twice may see
    one sample on both sides.
    """
    collectors = {name: _Collector(adapter, samples[name], seed, held_out) for name, adapter in adapters.items()}

    def collect(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            with layer_context(name):
                collectors[name].add(_input(args, kwargs))

        return hook

    with hooked(adapters, collect):
        for batch in data:
            data.run(model, batch)
    found = {}
    for name, collector in collectors.items():
        with layer_context(name):
            found[name] = collector.finish()
    return found


def capture_cascade(
    dense: nn.Module,
    pruned: nn.Module,
    name: str,
    data: Calibration,
    samples: int,
    seed: int,
    *,
    held_out: float = 0.0,
) -> Captured:
    """Inputs from the pruned network, targets from the dense one; each forward stops at the layer.

    With a share `held_out` the samples are divided at random.

    Raises:
        InvalidInputError: the two networks do not reach the layer on the same batches.
    """
    adapter = named_adapters(dense, [name])[name]
    collector = _Collector(adapter, samples, seed, held_out)
    with layer_context(name):
        for batch in data:
            target = _stopped(dense, name, data, batch, at_input=False)
            inputs = _stopped(pruned, name, data, batch, at_input=True)
            if (target is None) != (inputs is None):
                raise InvalidInputError(
                    "the dense and the pruned network reach it on different batches: the forward depends on values. "
                    'Use mode="parallel", or skip the layer'
                )
            if target is not None and inputs is not None:
                collector.add(inputs, target)
        return collector.finish()


def require_called_once(counts: Mapping[str, int]) -> None:
    """Cascade mode has one input and one target per layer.

    Raises:
        UnsupportedError: a layer is called several times in one forward; names it.
    """
    for name, count in counts.items():
        if count > 1:
            with layer_context(name):
                raise UnsupportedError(
                    f"it is called {count} times in one forward; in cascade mode its inputs would depend on itself. "
                    'Use mode="parallel", which pools the calls, or skip the layer'
                )


def require_untied(model: nn.Module, names: Iterable[str]) -> None:
    """Refuse layers that share a parameter with another module.

    Raises:
        UnsupportedError: names both.
    """
    owners: dict[int, list[str]] = defaultdict(list)
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)].append(name)
    for name in names:
        for kind, parameter in model.get_submodule(name).named_parameters(recurse=False):
            others = [other for other in owners[id(parameter)] if other != name]
            if others:
                with layer_context(name):
                    raise UnsupportedError(
                        f"its {kind} is the same parameter as that of '{others[0]}'; what is written for one would "
                        "change the other. Skip both, or untie them (give one a copy)"
                    )


class _Collector:
    """Statistics, and a subsample where asked for, of one layer."""

    def __init__(self, adapter: Adapter, samples: int, seed: int, held_out: float) -> None:
        self._adapter = adapter
        module = adapter.module
        reference = adapter.matrix(module.weight.detach()).double()
        self._bias = module.bias is not None
        if module.bias is not None:
            bias = module.bias.detach().double().reshape(adapter.groups, -1, 1)
            reference = torch.cat([reference, bias], -1)
        self._fitted, self._held_out = Accumulator(reference), Accumulator(reference) if held_out else None
        self._divider = Divider(held_out, generator(seed))
        self._reservoir = Reservoir(samples, generator(seed)) if samples else None

    def add(self, x: Tensor, y: Tensor | None = None) -> None:
        if self._held_out is None:
            self._add(x, y, self._fitted)
            return
        x, y = self._adapter.batch(x), None if y is None else self._adapter.batch(y)
        aside = self._divider.take(x.shape[0]).to(x.device)
        for accumulator, chosen in ((self._fitted, ~aside), (self._held_out, aside)):
            if bool(chosen.any()):
                self._add(x[chosen], None if y is None else y[chosen], accumulator)

    def _add(self, x: Tensor, y: Tensor | None, accumulator: Accumulator) -> None:
        for rows, targets in self._adapter.chunks(x, y, CHUNK_BYTES):
            full = torch.cat([rows, torch.ones_like(rows[..., :1])], -1) if self._bias else rows
            accumulator.add(full, targets)
            if self._reservoir is not None:
                kept = [rows] if targets is None else [rows, targets]
                self._reservoir.add(*(tensor.transpose(0, 1) for tensor in kept))

    def finish(self) -> Captured:
        statistics, halves = self._statistics()
        if self._reservoir is None:
            return Captured(statistics, halves=halves)
        rows = [tensor.transpose(0, 1) for tensor in self._reservoir.finish()]
        return Captured(statistics, *rows, halves=halves)

    def _statistics(self) -> tuple[Statistics, tuple[Statistics, Statistics] | None]:
        if self._held_out is None:
            return self._fitted.finish(), None
        if min(len(self._fitted), len(self._held_out)) == 0:
            raise InvalidInputError(
                f"{self._divider.seen} samples reach it, too few to hold some out and fit on others; give more, or a "
                "damping that is a number"
            )
        halves = self._fitted.finish(), self._held_out.finish()
        return halves[0].merge(halves[1]), halves


class _Reached(BaseException):
    """Leaves a forward; no exception of the model's, so that no handler of the model's catches it."""


def _stopped(model: nn.Module, name: str, data: Calibration, batch: Any, *, at_input: bool) -> Tensor | None:
    """The input or the output of a layer in one forward that goes no further; None where it is not reached."""
    seen: list[Tensor] = []

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(_input(args, kwargs))
        raise _Reached

    def after(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        seen.append(output)
        raise _Reached

    layer = model.get_submodule(name)
    if at_input:
        handle = layer.register_forward_pre_hook(before, with_kwargs=True)
    else:
        handle = layer.register_forward_hook(after)
    try:
        data.run(model, batch)
    except _Reached:
        pass
    finally:
        handle.remove()
    return seen[0] if seen else None


@contextmanager
def hooked(adapters: Mapping[str, Adapter], make: Callable[[str], Callable[..., None]]) -> Iterator[None]:
    """A forward pre-hook on every layer, removed whatever happens."""
    handles = []
    try:
        for name, adapter in adapters.items():
            handles.append(adapter.module.register_forward_pre_hook(make(name), with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    return args[0] if args else kwargs["input"]


def _others(missing: Sequence[str]) -> str:
    return f" (nor are {', '.join(map(repr, missing[1:]))})" if len(missing) > 1 else ""
