"""The l0 problem as bands of rows that choose units, as elimination and exchange see it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from optprune.numerics.linalg import factorize
from optprune.problems import L0LeastSquares

FLOOR = 1e-10
"""Damping of the Hessian, relative to its unit diagonal, on which supports are compared.

Differences of objectives are then right to six digits even where inputs depend on each other; the weights of the
support that is found are fitted to the problem as it was stated."""


@dataclass(frozen=True, eq=False)
class Bands:
    r"""Bands of rows with one support each, in the coordinates where every input has a unit diagonal.

    Attributes:
        gram: $H$ of each problem, at unit diagonal and with `FLOOR` (or what its factorisation took) added.
        inverse: $H^{-1}$.
        damping: what was added, relative to the unit diagonal.
        owner: the problem of each band.
        linear: the linear term, one band after the other.
        groups: budgets in a band; 1 where the budget spans the bands.
        slots: units that a group keeps; None where the budget spans the bands.
        budget: units that a problem keeps in all.
        width: columns of a unit.
    """

    gram: Float[Tensor, "n d d"]
    inverse: Float[Tensor, "n d d"]
    damping: float
    owner: Int[Tensor, " b"]
    linear: Float[Tensor, "b h d"]
    groups: int
    slots: int | None
    budget: int
    width: int

    @classmethod
    def of(cls, problem: L0LeastSquares) -> Bands:
        """Cut a problem, or a stack, into bands."""
        pattern, (out, d) = problem.pattern, problem.shape
        budgets, _, _ = pattern.layout((out, d))
        height, width = pattern.tile((out, d))
        bands, kept = out // height, pattern.kept((out, d))
        gram = problem.gram.reshape(-1, d, d)
        diagonal = gram.diagonal(dim1=-2, dim2=-1)
        scale = torch.where(diagonal > 0, diagonal.rsqrt(), 0.0)
        gram = gram * scale.unsqueeze(-1) * scale.unsqueeze(-2)
        # An input that no sample uses: nothing depends on its weight, so that it is the first to go.
        gram.diagonal(dim1=-2, dim2=-1).fill_(1.0)
        factor = factorize(gram, FLOOR)
        added = factor.damping.reshape(-1, 1, 1) * torch.eye(d, dtype=gram.dtype, device=gram.device)
        linear = problem.linear.reshape(-1, out, d) * scale.unsqueeze(-2)
        within = budgets % bands == 0
        return cls(
            gram=gram + added,
            inverse=factor.inverse(),
            damping=float(factor.damping.max()),
            owner=torch.arange(len(gram), device=gram.device).repeat_interleave(bands),
            linear=linear.reshape(-1, height, d),
            groups=budgets // bands if within else 1,
            slots=int(kept) if within else None,
            budget=pattern.count((out, d)) // (height * width),
            width=width,
        )

    @property
    def units(self) -> int:
        """Units of a band."""
        return self.linear.shape[-1] // self.width

    def kept(self, mask: Bool[Tensor, "*batch out in"]) -> Bool[Tensor, "b groups units"]:
        """The units that a mask touches."""
        bands, height, d = self.linear.shape
        tiles = mask.reshape(bands, height, d).any(1).unflatten(-1, (-1, self.width)).any(-1)
        return tiles.unflatten(-1, (self.groups, -1))

    def mask(self, kept: Bool[Tensor, "b *units"], problem: L0LeastSquares) -> Bool[Tensor, "*batch out in"]:
        """Inverse of `kept`."""
        columns = kept.flatten(1).repeat_interleave(self.width, dim=-1)
        return columns.unsqueeze(1).expand_as(self.linear).reshape(problem.dense.shape)
