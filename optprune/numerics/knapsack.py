r"""The multiple-choice knapsack: one option of every group, the least total error within a budget.

$$\min_o \sum_l e_{l, o_l} \quad \text{s.t.} \quad \sum_l c_{l, o_l} \le B$$

with integer costs $c \ge 0$ and errors $e \ge 0$. The Lagrangian relaxation
$L(\mu) = \sum_l \min_o (e_{lo} + \mu c_{lo}) - \mu B$ bounds it from below for every $\mu \ge 0$; the best $\mu$ is a
slope of the groups' lower convex hulls.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from optprune.errors import InvalidInputError
from optprune.numerics.rounding import gamma

MAX_STATES = 2**20
"""Partial choices held at a time; beyond this the dynamic programme is cut and no longer exact."""

CHUNK = 2**22
"""Extended partial choices that are formed at a time."""

MAX_COST = 2**53
"""Costs are exact in float64 up to here."""


@dataclass(frozen=True)
class Selection:
    r"""An option of every group.

    Attributes:
        options: index of the option taken, one per group.
        error: its total error, $\sum_l e_{l, o_l}$, correctly rounded.
        cost: its total cost.
        multiplier: $\mu$ that maximises the Lagrangian bound.
        exact: whether no choice has a smaller error (up to the rounding of the sums); False where the dynamic
            programme was cut at its limit of states.
        states: the most partial choices that were held.
    """

    options: tuple[int, ...]
    error: float
    cost: int
    multiplier: float
    exact: bool
    states: int


@dataclass(frozen=True, eq=False)
class _Group:
    """The options of a group that no other beats in cost and error, cheapest first."""

    index: Int[Tensor, " options"]
    cost: Int[Tensor, " options"]
    error: Float[Tensor, " options"]


@dataclass(frozen=True)
class _Relaxed:
    """The relaxation's multiplier, and a feasible choice next to it (positions in the groups)."""

    multiplier: float
    greedy: list[int]
    error: float


def knapsack(
    costs: Sequence[Shaped[Tensor, "_"]],
    errors: Sequence[Shaped[Tensor, "_"]],
    budget: int,
    *,
    max_states: int = MAX_STATES,
) -> Selection:
    r"""Solve the multiple-choice knapsack by dynamic programming over efficient partial choices.

    A partial choice of the first groups is dropped when another is neither dearer nor worse, and when its error plus
    the Lagrangian bound of the remaining groups exceeds that of a known choice. Both leave an optimal choice in place
    whatever the budget's size, so that costs need no scaling. Options that the bound excludes are dropped beforehand.

    Only where more than `max_states` partial choices are left is the cost axis cut into as many intervals, of which
    each keeps its choice of least error: true costs are carried along, so that the result stays within the budget, and
    the Lagrangian bound says what may have been lost.

    Args:
        costs: $c_l$, one tensor per group.
        errors: $e_l$, alike.
        budget: $B$.
        max_states: partial choices held at a time.

    Raises:
        InvalidInputError: shapes differ, a cost is negative or above $2^{53}$, an error negative or not finite, or the
            cheapest choice exceeds the budget.

    Guarantees:
        T09 (b), (c).

    References:
        Nemhauser & Ullmann 1969 (dominance); Sinha & Zoltners 1979; Pisinger 1995 (multiple-choice knapsack).
    """
    groups = _checked(costs, errors, budget)
    relaxed = _relax(groups, budget)
    options, exact, states = _programme(groups, budget, relaxed, max_states)
    if options is None:  # the cut lost every choice as good as the one beside the relaxation
        options = relaxed.greedy
    return Selection(
        tuple(int(group.index[o]) for group, o in zip(groups, options, strict=True)),
        math.fsum(float(group.error[o]) for group, o in zip(groups, options, strict=True)),
        sum(int(group.cost[o]) for group, o in zip(groups, options, strict=True)),
        relaxed.multiplier,
        exact,
        states,
    )


def _checked(costs: Sequence[Tensor], errors: Sequence[Tensor], budget: int) -> list[_Group]:
    if not costs or len(costs) != len(errors):
        raise InvalidInputError(
            f"costs of {len(costs)} groups, errors of {len(errors)} given; both are needed per group"
        )
    groups = []
    for number, (cost, error) in enumerate(zip(costs, errors, strict=True)):
        if cost.shape != error.shape or cost.dim() != 1 or len(cost) == 0 or cost.is_floating_point():
            raise InvalidInputError(
                f"group {number}: costs of shape {tuple(cost.shape)} and dtype {cost.dtype}, errors of shape "
                f"{tuple(error.shape)} given; integer costs and as many errors are needed, one option at least"
            )
        cost, error = cost.to("cpu", torch.int64), error.to("cpu", torch.float64)
        if not bool(((cost >= 0) & (cost <= MAX_COST)).all()) or not bool(((error >= 0) & error.isfinite()).all()):
            raise InvalidInputError(
                f"group {number}: costs {int(cost.min())} to {int(cost.max())}, errors {float(error.min())} to "
                f"{float(error.max())} given; costs in [0, 2^53] and finite errors >= 0 are needed"
            )
        kept = _efficient(cost, error)
        groups.append(_Group(kept, cost[kept], error[kept]))
    least = sum(int(group.cost[0]) for group in groups)
    if least > budget:
        raise InvalidInputError(
            f"a budget of {budget} given; the cheapest options of the {len(groups)} groups cost {least}. "
            "Raise the budget, or give cheaper options"
        )
    return groups


def _efficient(cost: Int[Tensor, " n"], error: Float[Tensor, " n"]) -> Int[Tensor, " kept"]:
    """The choices that no other beats or equals in both, by ascending cost and strictly descending error."""
    order = error.argsort(stable=True)
    order = order[cost[order].argsort(stable=True)]
    ranked = error[order]
    best = ranked.cummin(0).values
    return order[torch.cat([torch.ones(1, dtype=torch.bool), ranked[1:] < best[:-1]])]


def _relax(groups: Sequence[_Group], budget: int) -> _Relaxed:
    """Walk along the hulls by descending gain per cost; the first step that does not fit has the best multiplier."""
    steps = []
    for number, group in enumerate(groups):
        hull = _hull(group)
        for before, after in itertools.pairwise(hull):
            extra = int(group.cost[after] - group.cost[before])
            steps.append((float(group.error[before] - group.error[after]) / extra, number, after, extra))
    steps.sort(key=lambda step: (-step[0], step[1], step[2]))
    greedy, multiplier = [0] * len(groups), 0.0
    left = budget - sum(int(group.cost[0]) for group in groups)
    closed: set[int] = set()
    for slope, number, after, extra in steps:
        if number in closed:
            continue
        if extra <= left:
            left -= extra
            greedy[number] = after
        else:
            multiplier = max(multiplier, slope)
            closed.add(number)
    error = math.fsum(float(group.error[o]) for group, o in zip(groups, greedy, strict=True))
    return _Relaxed(multiplier, greedy, error)


def _hull(group: _Group) -> list[int]:
    """Corners of the lower convex hull of a group's efficient options."""
    costs, errors = group.cost.tolist(), group.error.tolist()
    corners: list[int] = []
    for i in range(len(costs)):
        while len(corners) > 1:
            a, b = corners[-2], corners[-1]
            if (errors[a] - errors[b]) * (costs[i] - costs[a]) > (errors[a] - errors[i]) * (costs[b] - costs[a]):
                break
            corners.pop()
        corners.append(i)
    return corners


@dataclass(frozen=True, eq=False)
class _Layer:
    """The partial choices after a group: which one of those before was extended by which option."""

    parent: Int[Tensor, " states"]
    option: Int[Tensor, " states"]


def _programme(
    groups: Sequence[_Group], budget: int, relaxed: _Relaxed, max_states: int
) -> tuple[list[int] | None, bool, int]:
    """The options of the best choice (None if the cut lost all), whether nothing was cut, the most states held."""
    mu = relaxed.multiplier
    least = [float(_priced(group.error, group.cost, mu).min()) for group in groups]
    # A choice that is worth keeping is not lost to rounding: no sum below has a term above the ceiling.
    ceiling = (relaxed.error + mu * budget) * (1 + 4 * gamma(len(groups) + 8))
    cost, error = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.float64)
    layers: list[_Layer] = []
    exact, most = True, 1
    for number, group in enumerate(groups):
        rest = math.fsum(least[number + 1 :])
        room = budget - sum(int(later.cost[0]) for later in groups[number + 1 :])
        others = math.fsum(least[:number]) + rest
        open_options = (_priced(group.error, group.cost, mu) + others <= ceiling).nonzero().squeeze(-1)
        parent, option, cost, error = _extended(cost, error, group, open_options, room, (ceiling - rest, mu))
        if len(cost) > max_states:
            last = _last_of_each(cost, budget, max_states)
            parent, option, cost, error = parent[last], option[last], cost[last], error[last]
            exact = False
        if len(cost) == 0:
            return None, exact, most
        most = max(most, len(cost))
        layers.append(_Layer(parent, option))
    state, options = len(cost) - 1, []
    for layer in reversed(layers):
        options.append(int(layer.option[state]))
        state = int(layer.parent[state])
    return options[::-1], exact, most


def _extended(
    cost: Tensor, error: Tensor, group: _Group, options: Tensor, room: int, ceiling: tuple[float, float]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All states with all options, those kept that fit, may still be best, and that no other beats."""
    limit, mu = ceiling
    whole = [torch.zeros(0, dtype=torch.int64)] * 3
    parents, chosen, costs, errors = *whole, torch.zeros(0, dtype=torch.float64)
    step = max(1, CHUNK // len(cost))
    for start in range(0, len(options), step):
        part = options[start : start + step]
        total, missed = cost.unsqueeze(-1) + group.cost[part], error.unsqueeze(-1) + group.error[part]
        state, place = ((total <= room) & (_priced(missed, total, mu) <= limit)).nonzero(as_tuple=True)
        parents, chosen = torch.cat([parents, state]), torch.cat([chosen, part[place]])
        costs, errors = torch.cat([costs, total[state, place]]), torch.cat([errors, missed[state, place]])
        if len(costs):
            kept = _efficient(costs, errors)
            parents, chosen, costs, errors = parents[kept], chosen[kept], costs[kept], errors[kept]
    return parents, chosen, costs, errors


def _priced(error: Tensor, cost: Tensor, multiplier: float) -> Tensor:
    return error + multiplier * cost.double()


def _last_of_each(cost: Int[Tensor, " states"], budget: int, intervals: int) -> Int[Tensor, " kept"]:
    """The last state, that of least error, in each of equally long intervals of cost."""
    width = -(-(budget + 1) // intervals)
    interval = cost // width
    return (interval != torch.cat([interval[1:], interval[-1:] + 1])).nonzero().squeeze(-1)
