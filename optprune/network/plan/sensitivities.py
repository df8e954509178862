"""One budget shared among the layers by the empirical sensitivities of their edges, as SiPP does."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from optprune.errors import InvalidInputError
from optprune.network.calibration import Forward
from optprune.network.capture import capture
from optprune.network.layers import Adapter
from optprune.network.plan.budget import Shared, above, levelled, share
from optprune.network.statements import edge_sampling
from optprune.network.targets import Plan, Rule
from optprune.numerics.water_filling import allocate_draws
from optprune.patterns import PerLayer
from optprune.problems import EdgeSampling


def sensitivity(
    model: nn.Module,
    batches: Iterable[Any],
    density: float,
    *,
    by: Literal["threshold", "bounds"] = "threshold",
    samples: int = 2000,
    seed: int = 0,
    delta: float = 0.1,
    constant: float = 3.0,
    cost: Mapping[str, int] | None = None,
    skip: str | Iterable[str] = (),
    override: Mapping[str, Rule] | None = None,
    forward: Forward | None = None,
    memory: int = 2**30,
) -> Plan:
    r"""Shares of the layers from the sensitivities $s_{ij}$ of their edges (`EdgeSampling.sensitivity`).

    - "threshold": one for all edges of the network; each layer keeps as many as exceed it (SiPPDet).
    - "bounds": $\min_m \sum_i \varepsilon_i(m_i) / \eta_{l(i)}$ over all half-neurons $i$ of the network, with at most
      the budget of draws in all and no more than the edges of each; $\varepsilon_i$ is the bound of T14 (c) and
      $\eta_l$ the number of neurons of layer $l$ (SiPPRand). A layer's count is what its half-neurons get.

    A sensitivity is a share of what flows through its own neuron: wide neurons have small ones, so that a threshold
    takes most from the layers with many inputs.

    How far pruning and retraining in rounds goes with LeNet-300-100 within half a point of accuracy, in per cent of the
    weights, means of three seeds: `SiPPDet` 90 by threshold, 92 by `global_magnitude`, 78 `uniform`; `SiPPRand` 70 by
    bounds, 0 `uniform` (less than 60); beside them `Magnitude` 92 and `Portfolio("fast")` 95, both by
    `global_magnitude` (`tests/benchmarks/bench_sipp_retrain.py`).

    Args:
        model: its `Linear`, `Conv1d` and `Conv2d` layers are planned.
        batches: calibration data, as in `prune`.
        density: fraction kept of all weights that share the budget; with `cost`, of what they cost together.
        by: "threshold" or "bounds".
        samples: rows per layer that sensitivities are taken over.
        seed: of the subsample of rows.
        delta: "bounds": divided among the half-neurons of the network.
        constant: "bounds": $C$ of T14; 3 in the published settings.
        cost: of one kept weight per layer (`macs`); 1 by default.
        skip: names or globs of layers to leave alone.
        override: name or glob -> a target of the layer's own, outside of the budget.
        forward: runs the model on a batch of another kind.
        memory: bytes for the statistics of one pass over the batches.

    Raises:
        InvalidInputError: as `erk`; or another rule than these two, or settings outside of their range.
        UnsupportedError: as `erk`.

    Guarantees:
        T18 for "bounds".

    References:
        Baykal, Liebenwein, Gilitschenski, Feldman & Rus 2019 (SiPP), the allocation over layers.
    """
    if by not in ("threshold", "bounds") or not 0 < delta < 1 or not 0 < constant < math.inf or samples < 1:
        raise InvalidInputError(
            f"by={by!r}, delta={delta}, constant={constant}, samples={samples} given; by is 'threshold' or 'bounds', "
            "delta a probability in (0, 1), constant positive, samples at least 1"
        )
    shared = share(model, density, cost, skip, override)
    captured = capture(
        model, batches, list(shared.adapters), samples=samples, seed=seed, memory=memory, forward=forward
    )
    problems = {name: _problems(captured[name], adapter) for name, adapter in shared.adapters.items()}
    if by == "threshold":
        scores = [torch.cat([p.sensitivity.flatten() for p in own]).cpu() for own in problems.values()]
        counts = above(scores, list(shared.costs.values()), shared.budget)
    else:
        counts = _by_bounds(shared, problems, delta, constant)
    targets = {name: PerLayer(count) for name, count in zip(shared.adapters, counts, strict=True)}
    name = "sensitivity" if by == "threshold" else by
    return shared.plan(name, targets, {"density": density, "samples": samples, "seed": seed})


def _problems(captured: Any, adapter: Adapter) -> list[EdgeSampling]:
    """One per group, with everything allowed."""
    return [
        p for p in edge_sampling(captured, PerLayer(math.prod(adapter.shape)), adapter) if isinstance(p, EdgeSampling)
    ]


def _by_bounds(shared: Shared, problems: Mapping[str, list[EdgeSampling]], delta: float, constant: float) -> list[int]:
    """Whole counts next to what the half-neurons of each layer get, the budget spent."""
    costs = list(shared.costs.values())
    halves = {name: torch.cat([_halves(problem) for problem in own], 1) for name, own in problems.items()}
    neurons = [own.shape[1] // 2 for own in halves.values()]
    log = math.log(2 * 2 * sum(neurons) / delta)
    total, edges = torch.cat(list(halves.values()), 1)
    of_layer = torch.repeat_interleave(torch.arange(len(halves)), torch.tensor([2 * n for n in neurons]))
    price = torch.tensor(costs, dtype=torch.float64)[of_layer]
    weight = 1 / torch.tensor(neurons, dtype=torch.float64)[of_layer]
    # A draw of price c in place of 1: the program in c m, whose bounds have c alpha.
    spent = allocate_draws(
        2 * constant * total * log * price, weight, edges * price, torch.tensor(float(shared.budget)).double()
    )
    exact = torch.zeros(len(halves), dtype=torch.float64).index_add(0, of_layer, spent / price)
    ratios = (exact / torch.tensor(shared.sizes)).tolist()
    # What dead edges leave of the budget goes to all layers alike.
    return levelled(
        lambda level: [ratio * min(level, 1.0) + max(0.0, level - 1.0) for ratio in ratios],
        shared.sizes,
        costs,
        shared.budget,
    )


def _halves(problem: EdgeSampling) -> Tensor:
    """(sum of sensitivities, edges that carry anything) of the half-neurons of a layer `(2, 2 out)`."""
    s, weight = problem.sensitivity.cpu(), problem.weight.cpu()
    own = torch.cat([s * (weight > 0), s * (weight < 0)])
    return torch.stack([own.sum(-1), (own > 0).sum(-1).double()])
