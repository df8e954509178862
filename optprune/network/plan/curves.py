"""Error curves: what each layer costs the network at several densities, measured with any solver."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from optprune.errors import InvalidInputError, NonFiniteError, UnsupportedError, layer_context
from optprune.network.bound import network_bound
from optprune.network.calibration import (
    Calibration,
    Forward,
    calibration,
    device_of,
    evaluating,
    require_finite_weights,
    survey,
    tensors_of,
)
from optprune.network.capture import Captured, call_counts, capture_parallel, passes, require_untied
from optprune.network.error_curve import ErrorCurve
from optprune.network.layers import Adapter, named_adapters
from optprune.network.statements import group_statistics, least_squares, problem_type
from optprune.patterns import Pattern, PerLayer, Shape
from optprune.problems import L0LeastSquares
from optprune.solvers import Solver, solve_all

Weighting = Literal["output", "layer", "propagated"]
Choices = Callable[[Shape], Sequence[Pattern]]

GRID = (0.0, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.14, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Densities at which a curve is measured: closer together where errors change fast."""


def on_grid(shape: Shape) -> list[Pattern]:
    """`PerLayer` budgets at the densities of `GRID`, each once."""
    return list(dict.fromkeys(PerLayer.at_density(density, shape) for density in GRID))


def error_curves(
    model: nn.Module,
    batches: Iterable[Any],
    names: Sequence[str],
    solver: Solver,
    *,
    weighting: Weighting = "output",
    choices: Choices = on_grid,
    damping: float = 0.0,
    forward: Forward | None = None,
    device: str | torch.device | None = None,
    memory: int = 2**30,
) -> dict[str, ErrorCurve]:
    r"""Prune every layer by itself to every target of `choices`, and measure what that does.

    The unit has to make errors of different layers comparable. With $E_l$ what layer $l$ errs on the dense network's
    inputs, $Z_l$ its outputs without bias, and $f_l$ the network in which this layer alone is pruned:

    - "output": $\lVert f_l - f \rVert_F^2 / \lVert f \rVert_F^2$, the relative squared error of the network's outputs.
      To first order the errors that layers cause there add, and where they are uncorrelated their squares add.
    - "layer": $\lVert E_l \rVert_F^2 / \lVert Z_l \rVert_F^2$. Needs no forward of the network, but takes every layer
      for equally important, whatever stands behind it.
    - "propagated": the bound on $\lVert f_l - f \rVert_F / \lVert f \rVert_F$ that T04 gives from $E_l$ and the
      operator norms behind it. Their sum bounds the network's error to first order.

    Args:
        model: put into evaluation mode for the time of the call, otherwise untouched.
        batches: calibration data, as in `prune`.
        names: layers.
        solver: of `L0LeastSquares`.
        weighting: the unit.
        choices: the targets of a layer of a shape.
        damping: of the l0 problem.
        forward: runs the model on a batch of another kind.
        device: where to compute; by default where the model is.
        memory: bytes for the statistics of one pass over the batches.

    Raises:
        InvalidInputError: no data, an unknown weighting or layer, a layer that is never reached; names it.
        NonFiniteError: a solution or an output is not finite; names the layer.
        UnsupportedError: the solver does not solve the l0 problem; a layer has no adapter; or no bound is known
            ("propagated").
    """
    if weighting not in get_args(Weighting):
        raise InvalidInputError(f"weighting={weighting!r} given; it is one of {', '.join(get_args(Weighting))}")
    require_untied(model, names)
    require_finite_weights(model, names)
    place = device_of(model, device)
    dense = copy.deepcopy(model).to(place)
    data = calibration(model, batches, forward, place, memory)
    curves: dict[str, ErrorCurve] = {}
    with evaluating(dense):
        survey(data)
        counts = call_counts(dense, named_adapters(dense, names), data)
        measure = _Measurement(dense, copy.deepcopy(dense), data, weighting)
        none = dict.fromkeys(counts, 0)
        for piece in passes(named_adapters(dense, counts), none, memory):
            captured = capture_parallel(dense, piece, data, none, seed=0)
            for name, adapter in piece.items():
                with layer_context(name):
                    targets = choices(adapter.shape)
                    weights = _solved(captured[name], adapter, targets, solver, damping)
                    errors = measure(name, adapter, captured.pop(name), weights)
                    kept = [_count(target, adapter) for target in targets]
                    curves[name] = ErrorCurve(tuple(targets), tuple(kept), tuple(errors))
    return {name: curves[name] for name in names}


def _count(target: Pattern, adapter: Adapter) -> int:
    own = (adapter.shape[0] // adapter.groups, adapter.shape[1])
    return sum(part.count(own) for part in target.split(adapter.groups, adapter.shape))


def _solved(
    captured: Captured, adapter: Adapter, targets: Sequence[Pattern], solver: Solver, damping: float
) -> list[Tensor]:
    """The layer's weight at every target, in its own dtype; groups in front."""
    for target in targets:
        if problem_type(solver, target) is not L0LeastSquares:
            raise UnsupportedError(
                f"{type(solver).__name__} given to measure an error curve; a solver of L0LeastSquares is needed"
            )
    weight = adapter.module.weight
    found = []
    for target in targets:
        solutions = solve_all(least_squares(captured, target, adapter, damping), solver, certified=False)
        if not all(bool(solution.weight.isfinite().all()) for solution in solutions):
            raise NonFiniteError(f"{solver} at {target} gave NaN or infinity; use another solver or damping")
        found.append(torch.stack([solution.weight for solution in solutions]).to(weight))
    return found


@dataclass(frozen=True, eq=False)
class _Measurement:
    """Errors of one layer at several weights, in the unit that makes layers comparable.

    Attributes:
        dense: the network.
        trial: a copy whose layers are changed one at a time.
        data: the calibration batches.
        weighting: the unit.
    """

    dense: nn.Module
    trial: nn.Module
    data: Calibration
    weighting: Weighting

    def __call__(self, name: str, adapter: Adapter, captured: Captured, weights: Sequence[Tensor]) -> list[float]:
        if self.weighting == "layer":
            return _layer_errors(captured, adapter, weights)
        parameter = self.trial.get_submodule(name).get_parameter("weight")
        before = parameter.clone()
        try:
            if self.weighting == "output":
                return self._output_errors(parameter, [adapter.weight_from(weight) for weight in weights])
            return [self._bound(name, parameter, adapter.weight_from(weight)) for weight in weights]
        finally:
            parameter.copy_(before)

    def _output_errors(self, parameter: Tensor, weights: Sequence[Tensor]) -> list[float]:
        missed, scale = [0.0] * len(weights), 0.0
        for batch in self.data:
            noise = torch.get_rng_state()
            dense = _outputs(self.dense, self.data, batch)
            scale += sum(float(output.double().square().sum()) for output in dense)
            for place, weight in enumerate(weights):
                parameter.copy_(weight)
                torch.set_rng_state(noise)
                pruned = _outputs(self.trial, self.data, batch)
                pairs = zip(pruned, dense, strict=True)
                missed[place] += sum(float((a.double() - b.double()).square().sum()) for a, b in pairs)
        if scale == 0:
            raise InvalidInputError('the dense network puts out zeros alone; use weighting="layer"')
        return [_finite(error / scale) for error in missed]

    def _bound(self, name: str, parameter: Tensor, weight: Tensor) -> float:
        parameter.copy_(weight)
        found = network_bound(self.dense, self.trial, self.data, [name], cascade=False)
        if found.relative_bound is None:
            raise UnsupportedError(f'no bound on the outputs is known: {found.reason}; use weighting="output"')
        return _finite(found.relative_bound)


def _layer_errors(captured: Captured, adapter: Adapter, weights: Sequence[Tensor]) -> list[float]:
    parts = group_statistics(captured.statistics, adapter.shape[1])
    energy = sum(float(part.target_energy.sum()) for part in parts)
    errors = [
        sum(2 * float(part.error(own).sum()) for part, own in zip(parts, weight, strict=True)) for weight in weights
    ]
    return [_finite(error / energy) if energy else 0.0 for error in errors]


def _outputs(model: nn.Module, data: Calibration, batch: Any) -> list[Tensor]:
    """The floating tensors that the model itself returns in one forward."""
    seen: list[Tensor] = []

    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        seen.extend(tensor.detach() for tensor in tensors_of(output) if tensor.is_floating_point())

    handle = model.register_forward_hook(hook)
    try:
        data.run(model, batch)
    finally:
        handle.remove()
    return seen


def _finite(error: float) -> float:
    if not error < float("inf"):
        raise NonFiniteError(f"its error is {error}; find the activation that overflows, or use another dtype")
    return error
