"""Checks of what a training method is given."""

from __future__ import annotations

import torch
from torch import Tensor

from optprune.errors import InvalidInputError


def require(method: object, name: str, holds: bool, accepted: str) -> None:
    """Refuse a setting.

    Raises:
        InvalidInputError: `holds` is False.
    """
    if not holds:
        raise InvalidInputError(
            f"{type(method).__name__}: {name}={getattr(method, name)!r} given; {accepted} is needed"
        )


def added(total: Tensor, loss: object) -> Tensor:
    """The running sum with one more loss, on the device of the loss, so that nothing waits for it.

    Raises:
        InvalidInputError: the loss is no number and no floating-point scalar.
    """
    if isinstance(loss, Tensor) and loss.numel() == 1 and loss.is_floating_point():
        value = loss.detach().reshape(()).to(torch.float64)
        return total.to(value.device) + value
    if isinstance(loss, int | float) and not isinstance(loss, bool):
        return total + loss
    given = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
    raise InvalidInputError(
        f"step got {given} as the loss; give the scalar loss of this step, without the penalty: step(loss)"
    )
