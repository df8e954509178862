"""What a tensor must be before numbers are made of it; errors that say what was given and what to do."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from optprune.errors import InvalidInputError, NonFiniteError


@runtime_checkable
class _Shaped(Protocol):
    @property
    def shape(self) -> Sequence[int]: ...


@runtime_checkable
class _Placed(Protocol):
    @property
    def device(self) -> torch.device: ...


def require_finite(name: str, tensor: Shaped[Tensor, "..."], advice: str) -> None:
    """Refuse NaN and infinity.

    Raises:
        NonFiniteError: says how many entries are bad and where the first one is.
    """
    bad = ~tensor.isfinite()
    count = int(bad.sum())
    if count:
        first = tuple(bad.nonzero()[0].tolist())
        raise NonFiniteError(
            f"The {name} of shape {tuple(tensor.shape)} holds {count} NaN or infinite entries, the first at "
            f"{first}. {advice}"
        )


def as_rows(name: str, tensor: Shaped[Tensor, "..."], device: torch.device) -> Float[Tensor, "*batch rows columns"]:
    """A matrix of data that may enter: real, floating, finite, with columns, on the device of the rest.

    It comes back detached; float16 and bfloat16 are widened to float32.

    Raises:
        InvalidInputError: dtype, shape or device do not fit.
        NonFiniteError: an entry is NaN or infinite.
    """
    if not isinstance(tensor, Tensor):
        raise InvalidInputError(f"The {name} matrix is a {type(tensor).__name__}; give a torch tensor.")
    if not tensor.is_floating_point() or tensor.dim() < 2 or tensor.shape[-1] == 0:
        raise InvalidInputError(
            f"The {name} matrix has shape {tuple(tensor.shape)} and dtype {tensor.dtype}; floating dtypes "
            "are accepted, with two dimensions or more and at least one column. Reshape or convert it."
        )
    if tensor.device != device:
        raise InvalidInputError(f"The {name} matrix is on {tensor.device} and the rest on {device}; move it there.")
    require_finite(f"{name} matrix", tensor, "Find where they arise, or leave those rows out.")
    tensor = tensor.detach()
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def require_one_device(**placed: _Placed | None) -> None:
    """Refuse data on several devices.

    Args:
        placed: by name, what has a `device` (a tensor, a linear map), or None.

    Raises:
        InvalidInputError: says what is where.
    """
    devices = {name: data.device for name, data in placed.items() if data is not None}
    if len(set(devices.values())) > 1:
        given = ", ".join(f"{name} on {device}" for name, device in devices.items())
        raise InvalidInputError(f"{given} given; move them to one device (rows in a file stay on the CPU)")


def require_columns(inputs: _Shaped, weight: Float[Tensor, "*layers out in"]) -> None:
    """Refuse inputs (samples, in) that do not belong to a weight (out, in).

    Raises:
        InvalidInputError: says both shapes, and whether the weight seems to be transposed.
    """
    d_out, d_in = weight.shape[-2:]
    if inputs.shape[-1] != d_in:
        swapped = f" Is the weight transposed? It is (out, in), as in torch: {d_in} x {d_out} would fit."
        raise InvalidInputError(
            f"Inputs with {inputs.shape[-1]} columns were given for a weight of {d_out} outputs x {d_in} inputs; "
            f"inputs are (samples, in).{swapped if inputs.shape[-1] == d_out else ''}"
        )
