"""The planned layers of a model as matrices in units of their patterns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from optprune.errors import InvalidInputError, layer_context
from optprune.network.capture import require_untied
from optprune.network.layers import Adapter, named_adapters
from optprune.network.plan import Plan, Radius
from optprune.numerics.selection import top_k
from optprune.patterns import Pattern


@dataclass(frozen=True, eq=False)
class PlannedLayer:
    """One layer that a training method prunes.

    Attributes:
        name: as in `model.named_modules()`.
        adapter: the layer as a matrix.
        parameter: its weight when the method was attached, the one that the optimizer trains.
        patterns: one per group.
    """

    name: str
    adapter: Adapter
    parameter: nn.Parameter
    patterns: tuple[Pattern, ...]

    @property
    def weight(self) -> Tensor:
        """The weight's present values, outside of autograd."""
        return self.parameter.detach()

    @property
    def count(self) -> int:
        """Weights that the patterns keep."""
        return sum(pattern.count(self.shape) for pattern in self.patterns)

    @property
    def kept(self) -> list[int | Tensor]:
        """Per group, the units that each budget of its pattern keeps."""
        return [pattern.kept(self.shape) for pattern in self.patterns]

    def scores(self, values: Tensor) -> list[Tensor]:
        """Per group, the squared norms `(budgets, units)` of the units of a tensor in the shape of the weight.

        They are taken in float64 and divided by the square of the largest entry.
        """
        scale = values.abs().amax().clamp_min(torch.finfo(values.dtype).tiny)
        squares = self.adapter.matrix((values / scale).to(torch.float64).square())
        return [pattern.units(part).sum(-1) for pattern, part in zip(self.patterns, squares, strict=True)]

    def units(self, mask: Tensor) -> list[Tensor]:
        """Per group, which units `(budgets, units)` hold a True of a mask in the shape of the weight."""
        parts = self.adapter.matrix(mask)
        return [pattern.units(part).any(-1) for pattern, part in zip(self.patterns, parts, strict=True)]

    def mask(self, units: Sequence[Tensor]) -> Tensor:
        """The mask in the shape of the weight that keeps the given units whole; inverse of `units`."""
        parts = []
        for pattern, chosen in zip(self.patterns, units, strict=True):
            size = pattern.layout(self.shape)[2]
            parts.append(pattern.from_units(chosen.unsqueeze(-1).expand(*chosen.shape, size), self.shape))
        return self.adapter.weight_from(torch.stack(parts))

    def support(self, values: Tensor) -> Tensor:
        """The mask of the nearest tensor (Frobenius) with an admissible support."""
        return self.mask([top_k(score, kept) for score, kept in zip(self.scores(values), self.kept, strict=True)])

    def project(self, values: Tensor) -> Tensor:
        """The nearest tensor (Frobenius) with an admissible support, each group with its own budget."""
        return torch.where(self.support(values), values, 0.0)

    @property
    def shape(self) -> tuple[int, int]:
        """(out, d) of the matrix of one group."""
        return (self.adapter.shape[0] // self.adapter.groups, self.adapter.shape[1])


def planned_layers(model: nn.Module, plan: Plan) -> dict[str, PlannedLayer]:
    """The layers of a plan in a model.

    Raises:
        InvalidInputError: an empty plan, one that does not fit, or a target that is no pattern; names the layer.
        UnsupportedError: tied weights, a layer without adapter; names the layer.
    """
    if not plan:
        raise InvalidInputError("an empty plan given; plan at least one layer")
    plan.validate(model)
    require_untied(model, plan)
    layers = {}
    for name, adapter in named_adapters(model, plan).items():
        target = plan[name]
        with layer_context(name):
            if isinstance(target, Radius):
                raise InvalidInputError(
                    f"{target} given; training methods prune to a count: plan a density or a pattern with plan.uniform"
                )
            parameter = adapter.module.weight
            assert isinstance(parameter, nn.Parameter)
            layers[name] = PlannedLayer(name, adapter, parameter, tuple(target.split(adapter.groups, adapter.shape)))
    return layers
