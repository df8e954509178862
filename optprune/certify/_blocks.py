"""The convex relaxation behind block-diagonal minorants for N:M sparsity, and the steps that climb its bound."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from optprune.certify._room import room
from optprune.certify._tighten import INSIDE, margin
from optprune.numerics.factors import cholesky_factors, solve
from optprune.numerics.linalg import diagonal_blocks

FLOORS = (0.05, 1e-4)
"""First and least part of the shares that is spread evenly over the choices."""

CLOSE = 0.3
"""Length of a step from which on a row is near its central path."""

CONJUGATE_STEPS = 12
"""Steps for a Newton direction; 8 lose up to half a point of the gap, 20 gain little."""

LOCAL, GENTLE = 8, 1.6
"""Steps of the shares after each majorisation step, for the point that it gives, without a factorisation and in single
precision; and their over-relaxation. Without them about twice as many majorisation steps are needed for the same gap.
"""

RELAXED = 1.8
"""Over-relaxation of the shares: with 1 a step is exact, with 1.8 they converge about twice as fast."""


@dataclass(frozen=True, eq=False)
class Blocks:
    r"""The convex relaxation whose value is the best bound of given block-diagonal minorants, for a chunk of rows.

    $$\min_{u, p, z} u (H - D) u^\top - 2 b u^\top + \sum_B \sum_S z_S D_{SS} z_S^\top / p_S, \qquad
      u_B = \sum_S z_S, \; \operatorname{supp} z_S \subseteq S, \; p \in \Delta$$

    in the scaling that gives $H$ a unit diagonal; dead inputs stand as inputs of their own with $b = 0$. For given
    shares $p$ the last term is $u_B K_B^{-1} u_B^\top$ with $K_B = \sum_S p_S D_{SS}^{-1}$; for given $u$ the shares
    are proportional to $\sqrt{z_S D_{SS} z_S^\top} / p_S$: both steps of the majorisation are exact.

    Attributes:
        gram: $H$.
        b: $b$ per row.
        energy: $c$ per row.
        choices: the supports of a block, by places.
        size: inputs in a block.
    """

    gram: Float[Tensor, "in in"]
    b: Float[Tensor, "rows in"]
    energy: Float[Tensor, " rows"]
    choices: Int[Tensor, "choices kept"]
    size: int

    def cut(self, x: Float[Tensor, "rows in"]) -> Float[Tensor, "rows blocks size"]:
        """A row as its blocks."""
        return x.view(len(x), -1, self.size)

    def rest(self, d: Float[Tensor, "rows blocks size size"]) -> Float[Tensor, "rows in in"]:
        """$H - D$."""
        result = self.gram.expand(len(d), *self.gram.shape).clone()
        diagonal_blocks(result, self.size).sub_(d)
        return result

    def sandwich(
        self, f: Float[Tensor, "rows blocks size size"], matrix: Float[Tensor, "rows in in"]
    ) -> Float[Tensor, "rows in in"]:
        r"""$F^\top M F$ for symmetric matrices."""
        shape = (len(f), *matrix.shape[-2:])
        half = (f.mT @ matrix.view(len(matrix), -1, self.size, matrix.shape[-1])).view(shape)
        return (f.mT @ half.mT.contiguous().view(len(f), -1, self.size, shape[-1])).view(shape)

    def pieces(self, d: Float[Tensor, "rows blocks size size"]) -> Float[Tensor, "rows blocks choices size size"]:
        """$D_{SS}^{-1}$ for every choice, in its places."""
        row, column = self.choices[:, :, None], self.choices[:, None, :]
        number = torch.arange(len(self.choices), device=d.device)[:, None, None]
        result = d.new_zeros(*d.shape[:2], len(self.choices), self.size, self.size)
        result[..., number, row, column] = torch.linalg.inv(d[..., row, column])
        return result

    def fit(
        self,
        d: Float[Tensor, "rows blocks size size"],
        pieces: Float[Tensor, "rows blocks choices size size"],
        shares: Float[Tensor, "rows blocks choices"],
    ) -> tuple[Float[Tensor, "rows in"], Float[Tensor, "rows blocks size"], Float[Tensor, "rows blocks choices"]]:
        """The best point $u$ for given shares, its slope $K^{-1} u$, and shares that are better for it."""
        k = _averaged(pieces, shares)
        f = torch.linalg.cholesky(k)
        matrix = self.sandwich(f, self.rest(d))
        matrix.diagonal(dim1=-2, dim2=-1).add_(1.0)
        target = (f.mT @ self.cut(self.b).unsqueeze(-1)).view(len(d), -1)
        y = solve(cholesky_factors(matrix), target).view(*f.shape[:-1], 1)
        u = (f @ y).view_as(self.b)
        slope = torch.linalg.solve_triangular(f.mT, y, upper=True).squeeze(-1)
        return u, slope, _better(pieces, slope, shares, RELAXED)

    def share(
        self,
        pieces: Float[Tensor, "rows blocks choices size size"],
        u: Float[Tensor, "rows in"],
        shares: Float[Tensor, "rows blocks choices"],
    ) -> Float[Tensor, "rows blocks choices"]:
        """Shares that are better still for the same point, in the precision of the pieces; the given ones of blocks for
        which that is not enough.
        """
        cut, new = self.cut(u).unsqueeze(-1).to(pieces.dtype), shares.to(pieces.dtype)
        for _ in range(LOCAL):
            new = mixed(new, FLOORS[1])
            factor, _ = torch.linalg.cholesky_ex(_averaged(pieces, new))
            slope = torch.cholesky_solve(cut, factor).squeeze(-1)
            new = _better(pieces, slope, new, GENTLE)
        return torch.where(new.isfinite().all(-1, keepdim=True), new.to(shares.dtype), shares)

    def value(
        self,
        d: Float[Tensor, "rows blocks size size"],
        pieces: Float[Tensor, "rows blocks choices size size"],
        u: Float[Tensor, "rows in"],
    ) -> Float[Tensor, " rows"]:
        """Twice the bound of each row, without rounding terms."""
        ua = u @ self.gram - (d @ self.cut(u).unsqueeze(-1)).view_as(u)
        best = _squares(pieces, self.cut(self.b - ua)).amax(-1)
        return self.energy - (u * ua).sum(-1) - best.sum(-1)

    def gain(
        self,
        pieces: Float[Tensor, "rows blocks choices size size"],
        shares: Float[Tensor, "rows blocks choices"],
        u: Float[Tensor, "rows in"],
        slope: Float[Tensor, "rows blocks size"],
    ) -> Float[Tensor, "rows blocks size size"]:
        r"""The bound's slope in $D$, for a point that fits the shares: $\sum_S z_S^\top z_S / p_S - u_B^\top u_B$."""
        parts = (slope.unsqueeze(-2) @ pieces.flatten(2, 3).mT).view(pieces.shape[:-1])  # $z_S / p_S$
        cut = self.cut(u)
        return (parts * shares.unsqueeze(-1)).mT @ parts - cut.unsqueeze(-1) * cut.unsqueeze(-2)

    def ascend(
        self,
        d: Float[Tensor, "rows blocks size size"],
        gain: Float[Tensor, "rows blocks size size"],
        weight: Float[Tensor, " rows"],
    ) -> tuple[Float[Tensor, "rows blocks size size"], Bool[Tensor, " rows"]]:
        r"""One truncated Newton step for each minorant; and whether it may lower its barrier.

        In the coordinates $D = L (I + \Theta) L^\top$ and with $C = L^\top \mathrm{gain}\, L$ the step ascends

        $$\langle C, \Theta\rangle - \tfrac14 \langle \Theta, C \Theta\rangle
          + \mu (\log\det(H - D) + \log\det(I + \Theta)),$$

        whose second term stands for the curvature of the bound; conjugate gradients solve for $\Theta$.
        """
        l = torch.linalg.cholesky(d)
        c = l.mT @ gain @ l
        mean = c.diagonal(dim1=-2, dim2=-1).mean((-2, -1))
        c = torch.where(mean > 0, 1 / mean.clamp_min(torch.finfo(c.dtype).tiny), 0.0)[:, None, None, None] * c
        safe = self.rest(d)
        safe.diagonal(dim1=-2, dim2=-1).sub_(margin(len(self.gram), d.dtype))
        factor = cholesky_factors(safe)
        n = self.sandwich(l, torch.cholesky_inverse(factor))
        mu = weight[:, None, None, None]
        blocks = diagonal_blocks(n, self.size)
        eye = torch.eye(self.size, dtype=d.dtype, device=d.device)
        slope = c - mu * (blocks - eye)
        theta = self._newton(n, c, mu, slope)
        # A row whose barrier has become too weak for the precision stays where it is.
        possible = theta.isfinite().flatten(1).all(-1)
        theta = torch.where(possible[:, None, None, None], theta, 0.0)
        promise = (theta * slope).sum((-3, -2, -1))
        before = _log_det(factor)
        move = l @ theta @ l.mT
        length = INSIDE * room(factor, lambda x: (move @ self.cut(x).unsqueeze(-1)).view_as(x))
        length = length.clamp_max(1.0).nan_to_num()
        accepted = torch.zeros_like(weight, dtype=torch.bool)
        for _ in range(15):
            change = length[:, None, None, None] * theta
            trial = safe.clone()
            diagonal_blocks(trial, self.size).sub_(length[:, None, None, None] * move)
            factor = cholesky_factors(trial)
            inner, wrong = torch.linalg.cholesky_ex(eye + change)
            rise = (c * (change - change @ change / 4)).sum((-3, -2, -1))
            rise = rise + weight * (_log_det(factor) - before + _log_det(inner).sum(-1))
            accepted |= (wrong == 0).all(-1) & (rise >= 0.2 * length * promise)  # not where the factor is NaN
            if bool(accepted.all()):
                break
            length = torch.where(accepted, length, 0.6 * length)
        length = torch.where(accepted, length, 0.0)
        return d + length[:, None, None, None] * move, (length > CLOSE) | (promise < 4 * weight)

    def _newton(
        self,
        n: Float[Tensor, "rows in in"],
        c: Float[Tensor, "rows blocks size size"],
        mu: Float[Tensor, "rows 1 1 1"],
        slope: Float[Tensor, "rows blocks size size"],
    ) -> Float[Tensor, "rows blocks size size"]:
        """Preconditioned conjugate gradients for the step; the preconditioner is the diagonal of the Hessian."""
        wide = n.view(len(n), -1, self.size, n.shape[-1])
        columns = n.view(len(n), -1, *c.shape[1:3]).transpose(1, 2).contiguous()
        nd, cd = n.diagonal(dim1=-2, dim2=-1).view(c.shape[:-1]), c.diagonal(dim1=-2, dim2=-1)
        scale = 1 / (mu * (1 + nd.unsqueeze(-1) * nd.unsqueeze(-2)) + 0.25 * (cd.unsqueeze(-1) + cd.unsqueeze(-2)))
        theta, tiny = torch.zeros_like(slope), torch.finfo(slope.dtype).tiny
        residual, direction = slope, scale * slope
        size = (residual * direction).sum((-3, -2, -1), keepdim=True)
        for _ in range(CONJUGATE_STEPS):
            moved = (direction @ wide).view(len(n), -1, *c.shape[1:3]).transpose(1, 2)
            image = columns.mT @ moved
            image = 0.5 * (image + image.mT)
            image = mu * (direction + image) + 0.25 * (c @ direction + direction @ c)
            length = size / (direction * image).sum((-3, -2, -1), keepdim=True).clamp_min(tiny)
            theta = theta + length * direction
            residual = residual - length * image
            ahead = scale * residual
            new = (residual * ahead).sum((-3, -2, -1), keepdim=True)
            direction, size = ahead + new / size.clamp_min(tiny) * direction, new
        return theta


def mixed(shares: Float[Tensor, "*batch choices"], floor: float) -> Float[Tensor, "*batch choices"]:
    """With so much of all choices that none has none."""
    return (shares + floor / shares.shape[-1]) / (1 + floor)


def _squares(
    pieces: Float[Tensor, "rows blocks choices size size"], x: Float[Tensor, "rows blocks size"]
) -> Float[Tensor, "rows blocks choices"]:
    """The forms of all choices at a vector: a row times one matrix for each block, which takes a seventh of the time of
    the matrix times a column, and less than one small product for each choice.
    """
    outer = x.unsqueeze(-1) * x.unsqueeze(-2)
    return (outer.flatten(2).unsqueeze(-2) @ pieces.flatten(3).mT).squeeze(-2)


def _averaged(
    pieces: Float[Tensor, "rows blocks choices size size"], shares: Float[Tensor, "rows blocks choices"]
) -> Float[Tensor, "rows blocks size size"]:
    """The sum over the choices by their shares."""
    return (shares.unsqueeze(-2) @ pieces.flatten(3)).view(*pieces.shape[:2], *pieces.shape[3:])


def _better(
    pieces: Float[Tensor, "rows blocks choices size size"],
    slope: Float[Tensor, "rows blocks size"],
    shares: Float[Tensor, "rows blocks choices"],
    relaxed: float,
) -> Float[Tensor, "rows blocks choices"]:
    """Shares that are better for the point with that slope."""
    norms = _squares(pieces, slope).clamp_min(0) ** (relaxed / 2) * shares
    return norms / norms.sum(-1, keepdim=True).clamp_min(torch.finfo(norms.dtype).tiny)


def _log_det(factor: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch"]:
    return 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
