"""Weights fitted on the supports of many rows, and what each removal, entry or exchange of a unit would change."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from optprune.numerics.tiles import diagonal_blocks, divided, ratio, root, times

CLOSED = 1e200
"""Pivot of a unit on the support: whatever is divided by it is no gain."""


@dataclass(eq=False)
class Fit:
    r"""Bands of rows, each fitted on its own support, changed in place unit by unit.

    A band is the rows that share a support, a unit a few consecutive columns of it, a group some consecutive units with
    as many slots each as units may be kept there. With $S$ the columns in the slots, $M = H_{SS}^{-1}$, and $w$, $b$ a
    row of the weight and of the linear term:

    Attributes:
        gram: $H$ of each problem, positive definite.
        owner: the problem of each band.
        unit: the unit in each slot, in the order of the groups.
        taken: slots in use.
        inverse: $M$; the identity in free slots.
        reach: $C = H_{:S} M$, the identity on the support; zero in free slots.
        pivot: diagonal blocks of the Schur complement $H - C H_{S:}$, zero on the support.
        weight: $w_S = b_S M$; zero in free slots.
        residual: $r = b - w_S H_{S:}$, the negative gradient, zero on the support.
    """

    gram: Float[Tensor, "n d d"]
    owner: Int[Tensor, " b"]
    unit: Int[Tensor, "b groups slots"]
    taken: Bool[Tensor, "b groups slots"]
    inverse: Float[Tensor, "b s s"]
    reach: Float[Tensor, "b d s"]
    pivot: Float[Tensor, "b u w w"]
    weight: Float[Tensor, "b h s"]
    residual: Float[Tensor, "b h d"]

    @staticmethod
    def of(
        gram: Float[Tensor, "n d d"],
        owner: Int[Tensor, " b"],
        linear: Float[Tensor, "b h d"],
        kept: Bool[Tensor, "b groups units"],
        slots: int,
    ) -> Fit:
        """Fit each band on the units that it keeps.

        Args:
            gram: $H$ of each problem.
            owner: the problem of each band.
            linear: $b$, one per row.
            kept: units of each group on the support, at most `slots`.
            slots: places for units in each group.
        """
        _, groups, size = kept.shape
        width = linear.shape[-1] // (groups * size)
        order = kept.to(torch.uint8).sort(dim=-1, descending=True, stable=True)
        offset = torch.arange(groups, device=kept.device).unsqueeze(-1) * size
        unit, taken = order.indices[..., :slots] + offset, order.values[..., :slots].bool()
        columns = _columns(unit.flatten(1), width)
        used = taken.flatten(1).repeat_interleave(width, dim=-1)
        beside = gram[owner.unsqueeze(-1), columns].mT * used.unsqueeze(-2)
        block = beside.gather(1, columns.unsqueeze(-1).expand(-1, -1, columns.shape[-1])) * used.unsqueeze(-1)
        block.diagonal(dim1=-2, dim2=-1).masked_fill_(~used, 1.0)
        inverse = torch.cholesky_inverse(root(block))
        reach = beside @ inverse
        pivot = diagonal_blocks(gram, width)[owner] - _own_blocks(reach, beside, width)
        weight = (linear.gather(-1, _for_rows(columns, linear)) * used.unsqueeze(1)) @ inverse
        residual = linear - weight @ beside.mT
        inside = kept.flatten(1).repeat_interleave(width, dim=-1).unsqueeze(1)
        rows = _for_rows(columns, reach.mT).mT
        own = torch.where(
            used.unsqueeze(-1), torch.eye(used.shape[-1], dtype=reach.dtype, device=reach.device), reach.gather(1, rows)
        )
        return Fit(
            gram,
            owner,
            unit,
            taken,
            inverse,
            reach.scatter_(1, rows, own),
            pivot.masked_fill_(kept.flatten(1)[..., None, None], 0.0),
            weight,
            residual.masked_fill_(inside, 0.0),
        )

    @property
    def width(self) -> int:
        """Columns of a unit."""
        return self.pivot.shape[-1]

    @property
    def kept(self) -> Bool[Tensor, "b u"]:
        """Units on the support."""
        slots = self.unit.new_zeros(self.pivot.shape[:2])
        return slots.scatter_add_(-1, self.unit.flatten(1), self.taken.flatten(1).long()) > 0

    def of_bands(self, chosen: Int[Tensor, " c"] | Bool[Tensor, " b"]) -> Fit:
        """A copy of some of the bands."""
        return replace(self, **{f.name: getattr(self, f.name)[chosen] for f in fields(self) if f.name != "gram"})

    def explained(self, linear: Float[Tensor, "b h d"]) -> Float[Tensor, " b"]:
        r"""$\langle w, b \rangle$: twice the decrease of the objective below that of the zero weight."""
        columns = _columns(self.unit.flatten(1), self.width)
        return (self.weight * linear.gather(-1, _for_rows(columns, linear))).sum((-2, -1))

    def removal_costs(self) -> Float[Tensor, "b groups slots"]:
        r"""$\tfrac12 \operatorname{tr} M_{ii}^{-1} w_i^\top w_i$: how much the objective grows without the unit."""
        weight = self._by_slot(self.weight)
        cost = 0.5 * ratio(self._inverse_blocks(), torch.einsum("bhgsp,bhgsq->bgspq", weight, weight))
        return cost.masked_fill_(~self.taken, torch.inf)

    def entry_gains(self) -> Float[Tensor, "b u"]:
        r"""$\tfrac12 \operatorname{tr} S_{jj}^{-1} r_j^\top r_j$: how much it falls with the unit; 0 for those kept."""
        residual = self.residual.unflatten(-1, (-1, self.width))
        return 0.5 * ratio(self._open_pivots(), torch.einsum("bhup,bhuq->bupq", residual, residual))

    def exchange_gains(self) -> tuple[Float[Tensor, "b groups slots"], Int[Tensor, "b groups slots"]]:
        r"""How much the objective falls when the unit in a slot makes way for the best one of its group.

        With $L L^\top = M_{ii}$, $E = C_{ji} L^{-\top}$ and $t = L^{-1} w_i^\top$, the exchange of $i$ for $j$ gains

        $$\tfrac12 \operatorname{tr} (S_{jj} + E E^\top)^{-1} (r_j^\top + E t)(r_j^\top + E t)^\top
          - \tfrac12 \operatorname{tr} t t^\top.$$

        Returns:
            The gain, minus infinity in free slots, and the unit that would enter.
        """
        groups, slots = self.unit.shape[1:]
        width = self.width
        factor = root(self._inverse_blocks())
        unit = torch.eye(width, dtype=factor.dtype, device=factor.device).expand_as(factor)
        fitted = self._by_slot(self.weight).permute(0, 2, 3, 4, 1)
        fitted = divided(factor, fitted).unsqueeze(2)  # (b, groups, 1, slots, w, h)
        reach = self.reach.unflatten(1, (groups, -1, width)).unflatten(-1, (groups, slots, width))
        reach = reach.diagonal(dim1=1, dim2=4).permute(0, 5, 1, 3, 2, 4)  # (b, groups, units, slots, w, w)
        reach = times(reach, divided(factor, unit).mT.unsqueeze(2))
        residual = self.residual.unflatten(-1, (groups, -1, width))
        own = torch.einsum("bhgop,bhgoq->bgopq", residual, residual).unsqueeze(3)
        energy = fitted @ fitted.mT if width > 1 else fitted.square().sum(-1, keepdim=True)
        # In place where the comparison holds one number per pair: its time is that of the memory.
        above = torch.einsum("bhgop,bgxsqh->bgospq", residual, fitted).mul_(2).add_(times(reach, energy))
        above = times(above, reach.mT).add_(own)
        pivot = self._open_pivots().unflatten(1, (groups, -1)).unsqueeze(3)
        enters = ratio(times(reach, reach.mT).add_(pivot), above)
        best, place = enters.max(2)
        gain = 0.5 * (best - energy.diagonal(dim1=-2, dim2=-1).sum(-1).squeeze(2))
        size = enters.shape[2]
        return gain.masked_fill_(~self.taken, -torch.inf), place + self.unit // size * size

    def remove(self, slot: Int[Tensor, " b"]) -> None:
        """Take the unit out of one slot of each band, and refit."""
        columns = _columns(slot.unsqueeze(-1), self.width)
        band = torch.arange(len(slot), device=slot.device).unsqueeze(-1)
        rows = self.inverse[band, columns]
        factor = root(rows.gather(-1, _for_rows(columns, rows)))
        along = divided(factor, rows)
        across = divided(factor, self.reach.gather(-1, _for_rows(columns, self.reach)).mT)
        fitted = divided(factor, self.weight.gather(-1, _for_rows(columns, self.weight)).mT)
        self._update(along, across, fitted, sign=-1)
        self._clear(columns)
        self.inverse[band, columns, columns] = 1.0
        self.taken.flatten(1)[band, slot.unsqueeze(-1)] = False

    def enter(self, slot: Int[Tensor, " b"], unit: Int[Tensor, " b"]) -> None:
        """Put a unit into a free slot of each band, and refit."""
        columns = _columns(slot.unsqueeze(-1), self.width)
        new = _columns(unit.unsqueeze(-1), self.width)
        band = torch.arange(len(slot), device=slot.device).unsqueeze(-1)
        used = self.taken.flatten(1).repeat_interleave(self.width, dim=-1)
        gram = self.gram[self.owner.unsqueeze(-1), new]
        beside = gram.gather(-1, _for_rows(_columns(self.unit.flatten(1), self.width), gram)) * used.unsqueeze(1)
        schur = gram - beside @ self.reach.mT
        factor = root(schur.gather(-1, _for_rows(new, schur)))
        along = self.reach[band, new].clone()
        along[band, :, columns] = -torch.eye(self.width, dtype=along.dtype, device=along.device)
        along = divided(factor, along)
        across = divided(factor, schur)
        fitted = divided(factor, self.residual.gather(-1, _for_rows(new, self.residual)).mT)
        self.inverse[band, columns, columns] = 0.0
        self._update(along, across, fitted, sign=1)
        self.reach[band, new] = 0.0
        self.reach[band, new, columns] = 1.0
        self.pivot[band.squeeze(-1), unit] = 0.0
        self.residual.scatter_(-1, _for_rows(new, self.residual), 0.0)
        self.unit.flatten(1)[band, slot.unsqueeze(-1)] = unit.unsqueeze(-1)
        self.taken.flatten(1)[band, slot.unsqueeze(-1)] = True

    def _update(self, along: Tensor, across: Tensor, fitted: Tensor, sign: int) -> None:
        self.inverse.baddbmm_(along.mT, along, alpha=sign)
        self.reach.baddbmm_(across.mT, along, alpha=-1)
        self.weight.baddbmm_(fitted.mT, along, alpha=-1)
        self.residual.baddbmm_(fitted.mT, across, alpha=-sign)
        tiles = across.unflatten(-1, (-1, self.width))
        self.pivot.sub_(torch.einsum("bkup,bkuq->bupq", tiles, tiles), alpha=sign)

    def _clear(self, columns: Int[Tensor, "b w"]) -> None:
        for tensor in (self.inverse, self.reach, self.weight):
            tensor.scatter_(-1, _for_rows(columns, tensor), 0.0)
        self.inverse.scatter_(1, _for_rows(columns, self.inverse).mT, 0.0)

    def _by_slot(self, tensor: Float[Tensor, "b h s"]) -> Float[Tensor, "b h groups slots w"]:
        return tensor.unflatten(-1, (*self.unit.shape[1:], self.width))

    def _inverse_blocks(self) -> Float[Tensor, "b groups slots w w"]:
        return diagonal_blocks(self.inverse, self.width).unflatten(1, self.unit.shape[1:])

    def _open_pivots(self) -> Float[Tensor, "b u w w"]:
        closed = CLOSED * torch.eye(self.width, dtype=self.pivot.dtype, device=self.pivot.device)
        return torch.where(self.kept[..., None, None], closed, self.pivot)


def _columns(unit: Int[Tensor, "b k"], width: int) -> Int[Tensor, "b kw"]:
    return (unit.unsqueeze(-1) * width + torch.arange(width, device=unit.device)).flatten(1)


def _for_rows(columns: Int[Tensor, "b c"], tensor: Float[Tensor, "b r d"]) -> Int[Tensor, "b r c"]:
    """The same columns for every row of the tensor, as `gather` and `scatter` want them."""
    return columns.unsqueeze(1).expand(-1, tensor.shape[1], -1)


def _own_blocks(left: Float[Tensor, "b d s"], right: Float[Tensor, "b d s"], width: int) -> Float[Tensor, "b u w w"]:
    """Diagonal blocks of the product of the one with the other's transpose."""
    left, right = (x.unflatten(1, (-1, width)) for x in (left, right))
    return torch.einsum("bups,buqs->bupq", left, right)
