"""A device that is not the CPU, on a machine that has none: tensors that compute on the CPU and say that they do not.

On `device` of this module a tensor holds its numbers in memory of the CPU, and what a real accelerator would refuse is
refused here: operands on two devices, NumPy's view of a tensor elsewhere, a generator of another device. Where the
host would have to wait for the device (the value of a tensor read, its nonzero entries counted, a copy to the CPU) is
counted in `waits`. What this cannot show is what depends on another arithmetic or on memory.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
NAME = "stand_in"
MOVES = {aten.copy_.default, aten._to_copy.default}
"""Operations whose operands may lie on two devices."""
INDEXED = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
}
"""Operations that take indices from the CPU too."""
WAITS = {
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.masked_select.default,
    aten.nonzero.default,
    aten._unique2.default,
    aten.unique_dim.default,
}
"""Operations whose result, or its shape, the host reads."""

waits: Counter[str] = Counter()
"""Line of the package -> how often the host waited there for the device."""


class MixedDevicesError(RuntimeError):
    """What CUDA would refuse."""


class Elsewhere(Tensor):
    """A tensor on the stand-in; `numbers` holds what is in it."""

    numbers: Tensor

    @staticmethod
    def __new__(cls, numbers: Tensor) -> Elsewhere:
        self = Tensor._make_wrapper_subclass(
            cls,
            numbers.size(),
            strides=numbers.stride(),
            storage_offset=numbers.storage_offset(),
            dtype=numbers.dtype,
            device=torch.device(NAME, 0),
        )
        self.numbers = numbers
        return self

    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore[reportAssignmentType]

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})

    def __repr__(self, *, tensor_contents=None) -> str:
        return f"{self.numbers} on {NAME}"


class _Generator(torch.Generator):
    """A generator that says where it is."""

    _device: torch.device

    def __new__(cls, device: str | torch.device = "cpu"):
        self = super().__new__(cls)
        self._device = torch.empty(0, device=device).device
        return self

    def __init__(self, *_: Any) -> None:
        pass

    @property
    def device(self) -> torch.device:
        return self._device


class _Backend:
    """What torch asks of a kind of device: how many there are, which is one inside of the context and none outside."""

    count = 0

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return self.count > 0

    def device_count(self) -> int:
        return self.count

    def current_device(self) -> int:
        return 0

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        pass


class _Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """What does not pass the dispatcher: constructors from Python's numbers, ways to leave torch, generators."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensor = args[0] if args and isinstance(args[0], Tensor) else None
        if func in (torch.tensor, torch.as_tensor):
            device = kwargs.pop("device", None if tensor is None else tensor.device)
            made = func(*args, **kwargs) if tensor is None else tensor.to(kwargs.get("dtype", tensor.dtype))
            return made if device is None else made.to(device)
        if isinstance(kwargs.get("generator"), _Generator):
            home = kwargs.get("device", "cpu" if tensor is None else tensor.device)
            if torch.device(home).type != kwargs["generator"].device.type:
                raise MixedDevicesError(f"{func.__name__} on {home} with a generator of {kwargs['generator'].device}")
        if isinstance(tensor, Elsewhere):
            if func is Tensor.tolist:
                _count_wait()
                return tensor.numbers.tolist()
            if func is Tensor.numpy and kwargs.get("force"):
                return tensor.numbers.numpy(force=True)
            if func is Tensor.__getitem__:
                places = args[1] if isinstance(args[1], tuple) else (args[1],)
                args = (
                    tensor,
                    tuple(torch.as_tensor(i) if isinstance(i, (list, np.ndarray)) else i for i in places),
                )
        return func(*args, **kwargs)


def _run(func, args, kwargs) -> Any:
    operands = list(_tensors((*args, *kwargs.values())))
    there = [x for x in operands if isinstance(x, Elsewhere)]
    asked = kwargs.get("device")
    if there and func not in MOVES:
        # Scalars go everywhere; so do indices that come from the CPU.
        indices = args[1] if func in INDEXED and isinstance(args[0], Elsewhere) else ()
        here = [x for x in operands if x.dim() and not isinstance(x, Elsewhere) and not any(x is i for i in indices)]
        if here or (func in INDEXED and not isinstance(args[0], Elsewhere)):
            raise MixedDevicesError(f"{func} of tensors on " + ", ".join(str(x.device) for x in operands))
    by_mask = func is aten.index.Tensor and any(i is not None and i.dtype == torch.bool for i in args[1])
    if there and (func in WAITS or by_mask or (asked is not None and torch.device(asked).type == "cpu")):
        _count_wait()
    if asked is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
        stays = torch.device(asked).type == NAME
    else:
        stays = isinstance(args[0], Elsewhere) if func is aten.copy_.default else bool(there)
    result = func(*_mapped(_numbers, args), **{name: _mapped(_numbers, x) for name, x in kwargs.items()})
    if not stays:
        return result
    written = {id(x.numbers): x for x in there}  # an operation in place returns its operand
    return _mapped(lambda x: written[id(x)] if id(x) in written else Elsewhere(x), result)


def _tensors(tree: Any) -> Iterator[Tensor]:
    """Arguments are flat but for lists: torch's own trees take twice the time, the package's are what is tested."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, tuple | list):
        for part in tree:
            yield from _tensors(part)


def _mapped(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, tuple | list):
        return type(tree)([_mapped(function, part) for part in tree])
    return tree


def _numbers(x: Tensor) -> Tensor:
    return x.numbers if isinstance(x, Elsewhere) else x


def _count_wait() -> None:
    frame = sys._getframe(1)
    while frame is not None and not frame.f_globals["__name__"].startswith("optprune."):
        frame = frame.f_back
    if frame is not None:
        waits[f"{frame.f_globals['__name__']}:{frame.f_lineno}"] += 1


@contextmanager
def stand_in() -> Iterator[str]:
    """The name of a device that exists inside of the context."""
    register = getattr(backend_registration, "_setup_privateuseone_for_python_backend", None)
    if register is None:
        pytest.skip(f"torch {torch.__version__} cannot have a device written in Python")
    if not hasattr(torch, NAME):
        register(NAME, _Backend())
    waits.clear()
    with pytest.MonkeyPatch.context() as patch, _Functions(), _Dispatch():
        patch.setattr(torch, "Generator", _Generator)
        patch.setattr(_Backend, "count", 1)
        # Parameters change their dtype by exchange: what they hold is no part of a tensor that torch knows.
        before = torch.__future__.get_swap_module_params_on_conversion()
        torch.__future__.set_swap_module_params_on_conversion(True)
        try:
            yield NAME
        finally:
            torch.__future__.set_swap_module_params_on_conversion(before)
