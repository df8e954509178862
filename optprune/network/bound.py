r"""The error of the whole network on the calibration data: a bound from the errors of its layers, and the measurement.

Both are about the networks with their weights widened to float64, run in float64. The dense network's operations are
run one by one; the discrepancy of every value follows from those before it (T04), the rounding of the run included.
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from optprune.network.calibration import Calibration, map_tensors, tensors_of
from optprune.network.chain import chain_errors, closed_forms
from optprune.network.graph import trace
from optprune.network.lipschitz import UnknownError
from optprune.network.recursion import Recursion
from optprune.network.report import NetworkBound
from optprune.network.walk import Walk


def network_bound(
    dense: nn.Module, pruned: nn.Module, data: Calibration, names: Sequence[str], *, cascade: bool
) -> NetworkBound:
    r"""Bound and measure $\lVert \hat f(x) - f(x) \rVert_F$ over the calibration data.

    Layer by layer $d_l \le \lVert \hat W_l \rVert_2 d_{l-1} + e_l$ with $e_l$ the error on dense inputs; in cascade
    mode the discrepancy of a pruned layer's output, which is what its problem minimises, is measured and replaces the
    right-hand side.

    Args:
        dense: the original, in evaluation mode.
        pruned: the same module with other weights in the named layers.
        data: the calibration batches.
        names: the pruned layers.
        cascade: which of the two.

    Guarantees:
        T04 (a), (c), (d), (e), (g), rounding of the float64 run included; T07 (a) where the network is a chain.
    """
    wide, thin = copy.deepcopy(dense).double(), copy.deepcopy(pruned).to(data.device).double()
    traced, reason = trace(wide)
    walk = None if traced is None else Walk(traced, wide, thin, names, cascade)
    measured = _Sums()
    try:
        for batch in data:
            going = None if reason else walk
            reason = _measure(wide, thin, map_tensors(_double, batch), data, going, measured) or reason
    except UnknownError as error:
        return NetworkBound(None, None, None, 0, "float64", {}, str(error))
    known = None if measured.samples == 0 else measured
    if not math.isfinite(measured.error):
        reason = "the outputs hold NaN or infinity"
    bound, terms, forms = None, {}, None
    if walk is not None and not reason:
        try:
            recursion = Recursion(walk)
            bound, terms = recursion.bound(), recursion.terms
            errors = chain_errors(walk, recursion)
            if errors:
                terms = {name: term | {"behind": errors[name]} for name, term in terms.items()}
                forms = closed_forms(walk, errors, math.sqrt(measured.scale))
        except UnknownError as error:
            reason = str(error)
    return NetworkBound(
        bound,
        None if known is None else math.sqrt(known.error),
        None if known is None else math.sqrt(known.scale),
        measured.samples,
        "float64",
        terms,
        reason,
        forms,
    )


@dataclass
class _Sums:
    """Squares summed over batches, and the number of samples."""

    error: float = 0.0
    scale: float = 0.0
    samples: int = 0


def _measure(wide: nn.Module, thin: nn.Module, batch: Any, data: Calibration, walk: Walk | None, sums: _Sums) -> str:
    """Run both networks on one batch, and the walk on what the dense one was called with; a reason if that fails."""
    noise = torch.get_rng_state()
    calls = _root_calls(wide, batch, data)
    torch.set_rng_state(noise)
    kept: dict[str, list[Tensor]] = defaultdict(list)
    names = walk.measured if walk is not None else ()
    handles = [thin.get_submodule(name).register_forward_hook(_keep(kept[name])) for name in names]
    try:
        pruned = _root_calls(thin, batch, data)
    finally:
        for handle in handles:
            handle.remove()
    if not calls or len(calls) != len(pruned):
        return f"the forward calls the model {len(calls)} times dense, {len(pruned)} times pruned; they must match"
    for (_, _, output), (_, _, other) in zip(calls, pruned, strict=True):
        for a, b in zip(tensors_of(output), tensors_of(other), strict=True):
            sums.error += float((a.double() - b.double()).square().sum())
            sums.scale += float(a.double().square().sum())
        first = next(tensors_of(output), None)
        if first is None:
            return f"the model returns no tensor but {type(output).__name__}"
        sums.samples += first.shape[0] if first.dim() else 1
    if walk is None:
        return ""
    torch.set_rng_state(noise)
    try:
        for args, kwargs, output in calls:
            walk.visit(args, kwargs, output, kept)
    except UnknownError as error:
        return str(error)
    return ""


def _root_calls(model: nn.Module, batch: Any, data: Calibration) -> list[tuple[tuple[Any, ...], dict[str, Any], Any]]:
    """What the model itself was called with in one forward, and what it returned."""
    seen: list[tuple[tuple[Any, ...], dict[str, Any], Any]] = []

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        seen.append((args, kwargs, output))

    handle = model.register_forward_hook(hook, with_kwargs=True)
    try:
        data.run(model, batch)
    except (RuntimeError, TypeError) as error:
        # It ran in its own dtype before: a constant or a cast in its code does not go with float64.
        line = (str(error).splitlines() or [""])[0]
        raise UnknownError(f"the model does not run in float64: {line}") from error
    finally:
        handle.remove()
    return seen


def _keep(values: list[Tensor]) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        values.append(output.clone())  # what follows may work in place

    return hook


def _double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor
