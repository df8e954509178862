"""Settling fractional choices in pairs: by chance, or in the direction of the smaller expected squared error."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

SETTLED = 1e-9
"""Probabilities nearer than this to 0 or 1 are taken as settled."""


def choose_in_pairs(probabilities: Float[Tensor, "groups n"], generator: torch.Generator) -> Bool[Tensor, "groups n"]:
    r"""A random choice that holds item $j$ with probability $p_j$, of a size within 1 of $\sum_j p_j$.

    In rounds, neighbours meet in pairs: one of the two is settled, at 0 or at 1, and the other goes on with what is
    left of their sum, at random, so that neither probability changes on average. The order is fixed beforehand, hence
    the choices are negatively associated.

    Args:
        probabilities: of the items, in the order in which they meet.
        generator: the only source of randomness.

    Guarantees:
        T19 (e). With a whole sum the size is that sum.

    References:
        Deville & Tillé 1998; tournaments and their negative dependence: Brändén & Jonasson 2012.
    """
    settled = probabilities.clone()
    item = torch.arange(settled.shape[-1], device=settled.device).expand(settled.shape)
    while item.shape[-1] > 1:
        odd = item[:, -1:] if item.shape[-1] % 2 else item[:, :0]
        first, second = item[:, 0 : item.shape[-1] - 1 : 2], item[:, 1::2]
        p, q = settled.gather(-1, first), settled.gather(-1, second)
        total = p + q
        few = total <= 1
        # Few: one takes all. Many: one becomes 1, the other keeps the rest.
        chance = torch.where(few, p / torch.where(total > 0, total, 1.0), (1 - q) / torch.where(few, 1.0, 2 - total))
        uniform = torch.rand(chance.shape, generator=generator, dtype=torch.float64).to(chance.device)
        win = uniform < chance
        high, low = torch.where(few, total, 1.0), torch.where(few, 0.0, total - 1)
        settled = settled.scatter(-1, first, torch.where(win, high, low))
        settled = settled.scatter(-1, second, torch.where(win, low, high))
        # Of few the winner goes on, of many the other one.
        item = torch.cat([torch.where(win == few, first, second), odd], -1)
    left = settled.gather(-1, item)
    uniform = torch.rand(left.shape, generator=generator, dtype=torch.float64).to(left.device)
    left = torch.where((left - left.round()).abs() < SETTLED, left.round(), (uniform < left).double())
    return settled.scatter(-1, item, left) > 0.5


def settle(
    probabilities: Float[Tensor, "rows in"],
    weight: Float[Tensor, "rows in"],
    gram: Float[Tensor, "in in"],
    budget: Int[Tensor, " groups"],
) -> Bool[Tensor, "rows in"]:
    r"""Which edges to keep, at most `budget` of them in each group of rows, so that the squared error is small.

    With $B_{ij}$ independent, 1 with probability $p_{ij}$, and $y$ = `weight`, the expected squared error of a row,

    $$\Phi(p) = \langle m, m G \rangle + \sum_j G_{jj} y_j^2 p_j (1 - p_j), \qquad m_j = y_j (p_j - p^0_j),$$

    is linear in each $p_j$. In every row two open probabilities move, their sum kept, until one of them is 0 or 1, in
    the direction in which $\Phi$ is smaller; this is repeated with the next open one. One may stay open in each row:
    those are settled last, up where that lowers $\Phi$ most. The loop is over the columns; all rows step together.

    Args:
        probabilities: $p^0$; each group's sum is at most its budget.
        weight: $y_{ij}$, the weight of a kept edge.
        gram: $G$, the mean of $x x^\top$.
        budget: of each group of rows: one group, or one per row.

    Guarantees:
        T19 (d): no move raises $\Phi$ where $G_{jk} y_j y_k \ge 0$, as between edges of one sign behind a ReLU.
    """
    state = _State(probabilities.clone(), weight, gram)
    row = torch.arange(len(weight), device=weight.device)
    # Edges of one sign meet each other: what one loses the other gains, and the sums stay.
    leaders = torch.full((2, len(weight)), -1, dtype=torch.long, device=weight.device)
    for column in range(weight.shape[1]):
        j = torch.full_like(row, column)
        sign = (weight[:, column] < 0).long()
        leader = leaders[sign, row]
        is_open = state.is_open(j)
        f = torch.where(leader >= 0, leader, j)
        state.pair(f, j, is_open & (leader >= 0))
        leaders[sign, row] = torch.where(
            (leader >= 0) & state.is_open(f), f, torch.where(state.is_open(j), j, torch.full_like(j, -1))
        )
    both = (leaders >= 0).all(0)
    state.pair(leaders[0].clamp(min=0), leaders[1].clamp(min=0), both)
    return state.last(budget)


class _State:
    """Probabilities on their way to 0 and 1, and the mean error that they have by now."""

    def __init__(self, p: Tensor, weight: Tensor, gram: Tensor) -> None:
        self.p, self.weight, self.gram = p, weight, gram
        self.drift = torch.zeros_like(weight)
        self.energy = gram.diagonal() * weight.square()
        self.row = torch.arange(len(weight), device=weight.device)

    def is_open(self, column: Int[Tensor, " rows"]) -> Bool[Tensor, " rows"]:
        """Whether the row's probability in this column is still between 0 and 1."""
        p = self.p[self.row, column]
        return (p > 0) & (p < 1)

    def pair(self, f: Int[Tensor, " rows"], j: Int[Tensor, " rows"], where: Bool[Tensor, " rows"]) -> None:
        """Settle one of two edges of a row, in the direction of the smaller expected error."""
        row, weight, gram = self.row, self.weight, self.gram
        first, second = self.p[row, f], self.p[row, j]
        # (which direction, which edge, row)
        moves = torch.stack([_move(first, second), _move(second, first).flip(0)]) * where
        slope = torch.stack([self._slope(f), self._slope(j)])
        cross = 2 * gram[f, j] * weight[row, f] * weight[row, j]
        change = (slope * moves).sum(1) + cross * moves.prod(1)
        step = torch.where(change[0] <= change[1], moves[0], moves[1])
        for edge, by in ((f, step[0]), (j, step[1])):
            moved = self.p[row, edge] + by
            moved = torch.where(moved < SETTLED, 0.0, torch.where(moved > 1 - SETTLED, 1.0, moved))
            self.p[row, edge] = torch.where(where, moved, self.p[row, edge])
            self.drift += (weight[row, edge] * by)[:, None] * gram[edge]

    def _slope(self, edge: Int[Tensor, " rows"]) -> Float[Tensor, " rows"]:
        at = (self.row, edge)
        return 2 * self.weight[at] * self.drift[at] + self.energy[at] * (1 - 2 * self.p[at])

    def last(self, budget: Int[Tensor, " groups"]) -> Bool[Tensor, "rows in"]:
        """Settle what stayed open: at most one edge in each row, so that rows do not interact."""
        is_open = (self.p > 0) & (self.p < 1)
        # Up is better than down where the error falls with the probability, in which it is linear.
        slope = 2 * self.weight * self.drift + self.energy * (1 - 2 * self.p)
        gain = torch.where(is_open, -slope, -torch.inf).reshape(len(budget), -1)
        room = budget - (self.p == 1).reshape(len(budget), -1).sum(-1)
        rank = gain.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
        raised = (rank < room[:, None]) & (gain > 0)
        return (self.p == 1) | raised.reshape(self.p.shape)


def _move(first: Tensor, second: Tensor) -> Float[Tensor, "two rows"]:
    """The change of two probabilities when as much as possible goes to the first."""
    amount = torch.minimum(1 - first, second)
    return torch.stack([amount, -amount])
