"""What a Net-Trim problem must be: everything that would otherwise surface as a wrong number."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from optprune.errors import InvalidInputError, NonFiniteError
from optprune.numerics.checks import require_one_device

if TYPE_CHECKING:
    from optprune.problems.net_trim import NetTrim


def validate(problem: NetTrim) -> None:
    """Refuse data that are no Net-Trim problem.

    Raises:
        InvalidInputError: see `NetTrim`.
        NonFiniteError: NaN or infinity in the data.
    """
    inputs, targets = problem.inputs, problem.targets
    fields = ("inputs", "targets", "active", "ceiling", "radius", "penalised", "penalty")
    require_one_device(**{name: getattr(problem, name) for name in fields})
    if len(inputs.shape) < 2 or tuple(inputs.shape[:-1]) != tuple(targets.shape[:-1]):
        raise InvalidInputError(
            f"inputs of shape {tuple(inputs.shape)} and targets of shape {tuple(targets.shape)} given; "
            "(*batch, samples, in) and (*batch, samples, out) are needed, equal but for the last dimension"
        )
    if 0 in inputs.shape or 0 in targets.shape:
        raise InvalidInputError(
            f"inputs of shape {tuple(inputs.shape)} and targets of shape {tuple(targets.shape)} given; a problem "
            "needs at least one sample, one input and one output"
        )
    batch, out, d = tuple(inputs.shape[:-2]), targets.shape[-1], inputs.shape[-1]
    for name, shapes in {
        "active": [tuple(targets.shape)],
        "ceiling": [tuple(targets.shape)],
        "radius": [batch, (*batch, out)],
        "penalised": [(*batch, d)],
        "penalty": [batch],
    }.items():
        tensor = getattr(problem, name)
        if tensor is not None and tuple(tensor.shape) not in shapes:
            wanted = " or ".join(str(shape) for shape in shapes)
            raise InvalidInputError(
                f"{name} of shape {tuple(tensor.shape)} given; {wanted} fits these inputs and targets"
            )
    if (problem.radius is None) == (problem.penalty is None):
        raise InvalidInputError("give a radius (ball) or a penalty (penalised form), one of the two")
    for name in ("inputs", "targets", "ceiling", "radius", "penalty"):
        tensor = getattr(problem, name)
        # A map is finite from its construction on.
        if isinstance(tensor, Tensor) and not bool(tensor.isfinite().all()):
            raise NonFiniteError(
                f"{name} holds {int((~tensor.isfinite()).sum())} NaN or infinite entries; give finite numbers"
            )
    if problem.radius is not None and bool((problem.radius < 0).any()):
        raise InvalidInputError(
            f"radius {float(problem.radius.min())} given; a radius is a number >= 0, in the units of the outputs' norm"
        )
    if problem.penalty is not None and not bool((problem.penalty > 0).all()):
        raise InvalidInputError(f"penalty {float(problem.penalty.min())} given; a penalty is a number > 0")
    _validate_bias(problem)


def _validate_bias(problem: NetTrim) -> None:
    """The dual proof needs the free column to be constant over the samples, and `split` expects it last."""
    penalised = problem.penalised
    if not bool(penalised[..., :-1].all()):
        raise InvalidInputError(
            "an unpenalised column other than the last given; only the bias, the last column, may be free"
        )
    last = problem.linear.last()
    constant = (last == last[..., :1]).all(-1) & (last[..., 0] != 0)
    if not bool((penalised[..., -1] | constant).all()):
        raise InvalidInputError("the last column is unpenalised but not constant; a bias is a column of ones")
    if not bool((penalised[..., -1] == penalised[..., -1].reshape(-1)[0]).all()):
        raise InvalidInputError("a bias in some problems of the stack only; stack problems of one kind")
