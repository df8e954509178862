"""The best rows of two weights of one problem, within the budgets."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from optprune.problems import L0LeastSquares


def recombined(
    problem: L0LeastSquares, one: Float[Tensor, "*batch out in"], other: Float[Tensor, "*batch out in"]
) -> Float[Tensor, "*batch out in"]:
    """Rows of `other` in place of those of `one` where that lowers the objective and the pattern allows it; never worse
    than `one`, and as good as the better of the two where they keep as much.

    Where rows have budgets of their own each is chosen for itself; where they share one budget and units lie in single
    rows, by `affordable`; otherwise one of the two is taken whole.

    Args:
        problem: the problem.
        one: admissible.
        other: admissible.
    """
    pattern, shape = problem.pattern, problem.shape
    height, width = pattern.tile(shape)
    change = problem.row_objective(other) - problem.row_objective(one)
    whole = (change.sum(-1, keepdim=True) < 0).expand_as(change)
    if pattern.row_separable:
        taken = change < 0
    elif height == 1:
        used, more = (_units_used(matrix, width) for matrix in (one, other))
        left = pattern.count(shape) // width - used.sum(-1)
        taken = affordable(change, more - used, left)
        better = _total(change, taken) <= _total(change, whole)
        taken = torch.where(better.unsqueeze(-1), taken, whole)
    else:
        taken = whole
    return torch.where(taken.unsqueeze(-1), other, one)


def affordable(
    change: Float[Tensor, "*batch out"], units: Int[Tensor, "*batch out"], left: Int[Tensor, "*batch"]
) -> Bool[Tensor, "*batch out"]:
    """Rows whose changes have a low total, while the units that they need more are no more than what is left.

    This is a knapsack. All rows that gain are taken, and then decisions are turned, cheapest first for each unit that
    this frees, until the budget holds: at most one turned decision is missing to the optimum of the linear relaxation.
    Where that loses more than it gains, only the rows are taken that gain and need nothing.

    Args:
        change: of the objective, where a row is taken.
        units: that a row needs more, where it is taken; negative where it frees some.
        left: units of the budget that are not used, at least 0.
    """
    taken = change < 0
    free = taken & (units <= 0)
    turns = (taken & (units > 0)) | (~taken & (units < 0))
    freed = torch.where(turns, units.abs(), 0)
    rate = torch.where(turns, change.abs() / freed.clamp_min(1), torch.inf)
    order = rate.argsort(dim=-1, stable=True)
    before = freed.gather(-1, order)
    before = before.cumsum(-1) - before
    missing = (units * taken).sum(-1) - left
    turned = torch.zeros_like(turns).scatter(-1, order, before < missing.unsqueeze(-1)) & turns
    taken = taken ^ turned
    gains = _total(change, taken) <= _total(change, free)
    return torch.where(gains.unsqueeze(-1), taken, free)


def _total(change: Float[Tensor, "*batch out"], taken: Bool[Tensor, "*batch out"]) -> Float[Tensor, "*batch"]:
    return torch.where(taken, change, 0.0).sum(-1)


def _units_used(matrix: Float[Tensor, "*batch out in"], width: int) -> Int[Tensor, "*batch out"]:
    """In every row, units of so many weights of which one is kept."""
    return (matrix != 0).unflatten(-1, (-1, width)).any(-1).sum(-1)
