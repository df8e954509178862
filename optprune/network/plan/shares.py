"""Planners that share one budget among the layers by a rule: their shapes, their weights, or their outliers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from optprune.criteria import activation_weighted
from optprune.errors import InvalidInputError
from optprune.network.calibration import Forward
from optprune.network.capture import capture
from optprune.network.plan.budget import Shared, above, levelled, share
from optprune.network.statements import group_statistics
from optprune.network.targets import Plan, Rule
from optprune.patterns import PerLayer

OUTLIER = 5.0
"""How many times the layer's mean score an outlier has, at least."""

SPREAD = 0.08
"""How far a layer's density may be from the others' mean, and never more than half the density itself."""


def erk(
    model: nn.Module,
    density: float,
    *,
    cost: Mapping[str, int] | None = None,
    skip: str | Iterable[str] = (),
    override: Mapping[str, Rule] | None = None,
) -> Plan:
    r"""Erdos-Renyi-kernel: densities in proportion to $\sum_i s_i / \prod_i s_i$, with $s$ a weight's dimensions.

    At most 1, so that small layers keep more. The total is exact where the budget counts weights.

    Args:
        model: its `Linear`, `Conv1d` and `Conv2d` layers are planned.
        density: fraction kept of all weights that share the budget; with `cost`, of what they cost together.
        cost: of one kept weight per layer (`macs`); 1 by default.
        skip: names or globs of layers to leave alone.
        override: name or glob -> a target of the layer's own, outside of the budget.

    Raises:
        InvalidInputError: the density is no fraction, a name matches no layer, or no layer shares the budget.
        UnsupportedError: a layer that is not skipped cannot be pruned as it is; names it.

    References:
        Mocanu et al. 2018 (SET), eq. (3), with one unit's two ends; Evci et al. 2020 (RigL), section 3(1), for kernels.
    """
    shared = share(model, density, cost, skip, override)
    shapes = [adapter.module.weight.shape for adapter in shared.adapters.values()]
    ratios = [sum(shape) / shape.numel() for shape in shapes]
    counts = levelled(
        lambda level: [level * ratio for ratio in ratios], shared.sizes, list(shared.costs.values()), shared.budget
    )
    return _per_layer(shared, "erk", counts, {"density": density})


def global_magnitude(
    model: nn.Module,
    density: float,
    *,
    cost: Mapping[str, int] | None = None,
    skip: str | Iterable[str] = (),
    override: Mapping[str, Rule] | None = None,
) -> Plan:
    """One threshold on the magnitude of all weights; each layer keeps as many as exceed it.

    Weights enter by descending magnitude, the first layer's first among equals, as long as the budget lasts. Arguments
    and errors as `erk`.

    References:
        Han et al. 2015, with one threshold in place of one per layer.
    """
    shared = share(model, density, cost, skip, override)
    weights = [
        adapter.module.weight.detach().to("cpu").double().abs().flatten() for adapter in shared.adapters.values()
    ]
    counts = above(weights, list(shared.costs.values()), shared.budget)
    return _per_layer(shared, "magnitude", counts, {"density": density})


def owl(
    model: nn.Module,
    batches: Iterable[Any],
    density: float,
    *,
    outlier: float = OUTLIER,
    spread: float | None = None,
    cost: Mapping[str, int] | None = None,
    skip: str | Iterable[str] = (),
    override: Mapping[str, Rule] | None = None,
    forward: Forward | None = None,
    memory: int = 2**30,
) -> Plan:
    r"""Outlier-weighed layer sparsity: $\rho_l = t + 2 \lambda (D_l - \min D) / (\max D - \min D)$.

    $t$ is where the budget is met, and $D_l$ is the share of the layer's weights whose score
    $|w_{ij}| \lVert x_j \rVert_2$ exceeds `outlier` times the layer's mean score: layers with more outliers keep more.

    Args:
        model: as in `erk`.
        batches: calibration data, as in `prune`.
        density: as in `erk`.
        outlier: $M$, times the mean.
        spread: $\lambda$; densities differ by at most twice this. By default 0.08, or half the density where that is
            less: a larger one empties layers.
        cost: as in `erk`.
        skip: as in `erk`.
        override: as in `erk`.
        forward: runs the model on a batch of another kind.
        memory: bytes for the statistics of one pass over the batches.

    Raises:
        InvalidInputError: as `erk`; or a spread or an outlier factor that is negative or not finite.
        UnsupportedError: as `erk`.

    References:
        Yin et al. 2024 (OWL), section 3.2, with M = 5 and lambda = 8 %; layers in place of transformer blocks, and the
        mean weighted by the layers' costs, so that the budget is met.
    """
    spread = min(SPREAD, density / 2) if spread is None else spread
    if not (0 <= spread < float("inf") and 0 < outlier < float("inf")):
        raise InvalidInputError(
            f"outlier={outlier}, spread={spread} given; finite numbers, the first positive, are needed"
        )
    shared = share(model, density, cost, skip, override)
    captured = capture(model, batches, list(shared.adapters), memory=memory, forward=forward)
    shares = []
    for name, adapter in shared.adapters.items():
        parts = group_statistics(captured[name].statistics, adapter.shape[1])
        scores = torch.stack([activation_weighted(part.reference, part).sqrt() for part in parts])
        shares.append(_outliers(scores, outlier))
    least, span = min(shares), max(shares) - min(shares)
    raised = [2 * spread * (own - least) / span if span else 0.0 for own in shares]
    counts = levelled(
        lambda level: [level + own for own in raised], shared.sizes, list(shared.costs.values()), shared.budget
    )
    settings = {"density": density, "outlier": outlier, "spread": spread}
    return _per_layer(shared, "owl", counts, settings | {"outliers": dict(zip(shared.adapters, shares, strict=True))})


def _outliers(scores: Tensor, factor: float) -> float:
    return float((scores > factor * scores.mean()).double().mean())


def _per_layer(shared: Shared, method: str, counts: list[int], settings: Mapping[str, Any]) -> Plan:
    return shared.plan(
        method, {name: PerLayer(count) for name, count in zip(shared.adapters, counts, strict=True)}, settings
    )
