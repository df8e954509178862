"""Finding block-diagonal minorants for N:M sparsity. Nothing here needs to be right: `check` decides."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from optprune.certify._room import room
from optprune.certify._tighten import INSIDE, margin, outputs, search_precision
from optprune.numerics.blocked import blocked_cholesky, solve
from optprune.numerics.linalg import diagonal_blocks
from optprune.numerics.working_memory import working_memory
from optprune.patterns import NOfM
from optprune.problems.least_squares import L0LeastSquares

MOST_CHOICES = 20
"""Supports of a group up to which blocks are sought. With more, as the 70 of 4:8, the shares need so many steps that
single weights' minorants of the same cost are better (digits layer, 1 % damping: gaps of 11 and 24 % after 10 rounds).
"""

FLOORS = (0.05, 1e-4)
"""First and least part of the shares that is spread evenly over the choices."""

COOLING = 0.7
"""Factor of that part from round to round."""

SHRINK = 0.4
"""Factor of the barrier's weight once a row is near its central path."""

CONJUGATE_STEPS = 8
"""Steps for a Newton direction; 20 gain little, 3 lose much."""

FEWEST_ROUNDS = 5
"""With fewer rounds single weights' minorants are better."""

FITS = 4
"""Majorisation steps per round."""

RELAXED = 1.8
"""Over-relaxation of the shares: with 1 a step is exact, with 1.8 they converge about twice as fast."""


def choices_of(pattern: NOfM, device: torch.device | None = None) -> Int[Tensor, "choices kept"]:
    """The supports of one group, by places."""
    places = list(itertools.combinations(range(pattern.m), pattern.n))
    return torch.tensor(places, dtype=torch.long, device=device).view(len(places), pattern.n)


def enumerable(pattern: object) -> bool:
    """Whether blocks are worth while: few supports in a group, and neither none nor all of its weights kept."""
    return isinstance(pattern, NOfM) and 0 < pattern.n < pattern.m and math.comb(pattern.m, pattern.n) <= MOST_CHOICES


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
        spots: the choices as matrices with a 1 for each kept weight.
        choices: the same, by places.
        size: inputs in a group.
    """

    gram: Float[Tensor, "in in"]
    b: Float[Tensor, "rows in"]
    energy: Float[Tensor, " rows"]
    spots: Float[Tensor, "choices size kept"]
    choices: Int[Tensor, "choices kept"]
    size: int

    def cut(self, x: Float[Tensor, "rows in"]) -> Float[Tensor, "rows groups size"]:
        """A row as its groups."""
        return x.view(len(x), -1, self.size)

    def rest(self, d: Float[Tensor, "rows groups size size"]) -> Float[Tensor, "rows in in"]:
        """$H - D$."""
        result = self.gram.expand(len(d), *self.gram.shape).clone()
        diagonal_blocks(result, self.size).sub_(d)
        return result

    def sandwich(
        self, f: Float[Tensor, "rows groups size size"], matrix: Float[Tensor, "rows in in"]
    ) -> Float[Tensor, "rows in in"]:
        r"""$F^\top M F$ for symmetric matrices."""
        shape = (len(f), *matrix.shape[-2:])
        half = (f.mT @ matrix.view(len(matrix), -1, self.size, matrix.shape[-1])).view(shape)
        return (f.mT @ half.mT.contiguous().view(len(f), -1, self.size, shape[-1])).view(shape)

    def pieces(self, d: Float[Tensor, "rows groups size size"]) -> Float[Tensor, "rows groups choices size size"]:
        """$D_{SS}^{-1}$ for every choice, in its places."""
        inner = d[..., self.choices[:, :, None], self.choices[:, None, :]]
        return self.spots @ torch.linalg.inv(inner) @ self.spots.mT

    def fit(
        self,
        d: Float[Tensor, "rows groups size size"],
        pieces: Float[Tensor, "rows groups choices size size"],
        shares: Float[Tensor, "rows groups choices"],
    ) -> tuple[
        Float[Tensor, "rows in"], Float[Tensor, "rows groups choices size"], Float[Tensor, "rows groups choices"]
    ]:
        """The best point for given shares, its parts $z_S / p_S$, and the shares that are best for it."""
        k = (pieces * shares[..., None, None]).sum(-3)
        f = torch.linalg.cholesky(k)
        matrix = self.sandwich(f, self.rest(d))
        matrix.diagonal(dim1=-2, dim2=-1).add_(1.0)
        target = (f.mT @ self.cut(self.b).unsqueeze(-1)).view(len(d), -1)
        y = solve(blocked_cholesky(matrix), target).view(*f.shape[:-1], 1)
        u = (f @ y).view_as(self.b)
        slope = torch.linalg.solve_triangular(f.mT, y, upper=True).squeeze(-1)  # $K^{-1} u$
        parts = (pieces @ slope[:, :, None, :, None]).squeeze(-1)
        norms = (parts * slope.unsqueeze(-2)).sum(-1).clamp_min(0) ** (RELAXED / 2) * shares
        return u, parts, norms / norms.sum(-1, keepdim=True).clamp_min(torch.finfo(norms.dtype).tiny)

    def value(
        self,
        d: Float[Tensor, "rows groups size size"],
        pieces: Float[Tensor, "rows groups choices size size"],
        u: Float[Tensor, "rows in"],
    ) -> Float[Tensor, " rows"]:
        """Twice the bound of each row, without rounding terms."""
        ua = u @ self.gram - (d @ self.cut(u).unsqueeze(-1)).view_as(u)
        g = self.cut(self.b - ua)[:, :, None, :, None]
        best = (g.mT @ pieces @ g).squeeze((-1, -2)).amax(-1)
        return self.energy - (u * ua).sum(-1) - best.sum(-1)

    def ascend(
        self,
        d: Float[Tensor, "rows groups size size"],
        gain: Float[Tensor, "rows groups size size"],
        weight: Float[Tensor, " rows"],
    ) -> tuple[Float[Tensor, "rows groups size size"], Bool[Tensor, " rows"]]:
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
        factor = blocked_cholesky(safe)
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
            factor = blocked_cholesky(trial)
            inner, wrong = torch.linalg.cholesky_ex(eye + change)
            rise = (c * (change - change @ change / 4)).sum((-3, -2, -1))
            rise = rise + weight * (_log_det(factor) - before + _log_det(inner).sum(-1))
            accepted |= (wrong == 0).all(-1) & (rise >= 0.2 * length * promise)  # not where the factor is NaN
            if bool(accepted.all()):
                break
            length = torch.where(accepted, length, 0.6 * length)
        length = torch.where(accepted, length, 0.0)
        return d + length[:, None, None, None] * move, (length > 0.5) | (promise < 4 * weight)

    def _newton(
        self,
        n: Float[Tensor, "rows in in"],
        c: Float[Tensor, "rows groups size size"],
        mu: Float[Tensor, "rows 1 1 1"],
        slope: Float[Tensor, "rows groups size size"],
    ) -> Float[Tensor, "rows groups size size"]:
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


def _log_det(factor: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch"]:
    return 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def tighten_blocks(
    blocks: Blocks,
    d: Float[Tensor, "rows groups size size"],
    start: Float[Tensor, "rows in"],
    growth: float,
    rounds: int,
) -> tuple[Float[Tensor, "rows groups size size"], Float[Tensor, "rows in"]]:
    """Alternate majorisation steps for the point with a Newton step for the minorants, as `tighten` does.

    Args:
        blocks: the relaxation.
        d: minorants that are strictly feasible.
        start: a good weight.
        growth: stop when a round raises twice the bound by less than this.
        rounds: most rounds.

    Returns:
        The best minorants found, and the points that go with them.
    """
    choices = len(blocks.choices)
    covered = (blocks.cut((start != 0).to(start)).unsqueeze(-2) @ blocks.spots.sum(-1).mT).squeeze(-2)
    shares = torch.nn.functional.one_hot(covered.argmax(-1), choices).to(start)
    best = torch.full_like(blocks.energy, -torch.inf)
    record, point = d, start
    weight = torch.ones_like(best)
    floor, history = FLOORS[0], []
    for count in range(rounds):
        pieces = blocks.pieces(d)
        for _ in range(FITS):
            shares = (shares + floor / choices) / (1 + floor)
            u, parts, new = blocks.fit(d, pieces, shares)
            # Where the precision was not enough for a fit the shares stay, and the value below is NaN.
            used, shares = shares, torch.where(new.isfinite(), new, shares)
        value = blocks.value(d, pieces, u)
        better = value > best
        best = torch.where(better, value, best)
        record = torch.where(better[:, None, None, None], d, record)
        point = torch.where(better[:, None], u, point)
        history.append(float(best.sum()))
        if count + 1 == rounds or (count > 1 and history[-1] - history[-2] < growth):
            break
        second = (parts * used.unsqueeze(-1)).mT @ parts
        cut = blocks.cut(u)
        d, close = blocks.ascend(d, second - cut.unsqueeze(-1) * cut.unsqueeze(-2), weight)
        weight = torch.where(close, weight * SHRINK, weight)
        floor = max(COOLING * floor, FLOORS[1])
    return record, point


def strengthen_groups(
    problem: L0LeastSquares,
    minorant: Float[Tensor, " in"],
    start: Float[Tensor, "out in"],
    effort: float,
    tolerance: float = 0.01,
    max_rounds: int = 7,
    memory: int | None = None,
) -> tuple[Float[Tensor, "out groups size size"], Float[Tensor, "out in"]] | None:
    r"""Block-diagonal minorants for each row, and a point of linearisation, whose bound is near the best; None where
    the effort does not allow enough rounds to make them better than diagonal ones.

    Args:
        problem: with an n of m pattern.
        minorant: as `scaled_minorant` gives it, positive on the live inputs.
        start: a good weight.
        effort: floating-point operations that may be spent; a round takes about `4 * out * in**3`.
        tolerance: stop when a round raises the bound by less than this fraction of the objective at `start`.
        max_rounds: most rounds.
        memory: bytes for the matrices of a chunk of rows; see `working_memory`.
    """
    pattern, rows = problem.pattern, problem.shape[0]
    assert isinstance(pattern, NOfM)
    # Groups of dead inputs alone are left out; a dead input beside live ones costs nothing and gains nothing.
    groups = (problem.gram.diagonal() > 0).view(-1, pattern.m).any(-1)
    taken = groups.repeat_interleave(pattern.m).nonzero().squeeze(-1)
    gram, minorant = problem.gram[taken][:, taken], minorant[taken]
    live = gram.diagonal() > 0
    gram.diagonal().masked_fill_(~live, 1.0)
    unit = gram.diagonal().rsqrt()
    gram, b = gram * unit[:, None] * unit, torch.where(live, problem.linear[:, taken], 0.0) * unit
    feasible = minorant[live] * unit[live].square()
    objective = 2 * float(problem.objective(start))
    size, share = outputs(problem.energy, objective)
    dtype, time = search_precision(feasible, share)
    rounds = int(min(max_rounds, effort / (time * 4.0 * rows * len(gram) ** 3)))
    if rounds < min(FEWEST_ROUNDS, max_rounds):
        return None
    delta = torch.where(live, 0.6 * minorant * unit.square(), 0.5).to(dtype).view(-1, pattern.m)
    choices = choices_of(pattern, gram.device)
    spots = torch.nn.functional.one_hot(choices, pattern.m).to(delta).mT.contiguous()
    b, energy, growth = b / size, problem.energy / size**2, tolerance * objective / size**2
    found = []
    at_once = working_memory(memory, gram.device, 2**24) // (5 * dtype.itemsize * len(gram) ** 2)
    for part in torch.arange(rows, device=gram.device).split(max(1, at_once)):
        blocks = Blocks(gram.to(dtype), b[part].to(dtype), energy[part].to(dtype), spots, choices, pattern.m)
        d = torch.diag_embed(delta).expand(len(part), -1, -1, -1)
        first = (torch.where(live, start[part][:, taken], 0.0) / unit / size).to(dtype)
        found.append(tighten_blocks(blocks, d, first, growth * len(part) / rows, rounds))
    d, u = (torch.cat(tensors).double() for tensors in zip(*found, strict=True))
    d = d / diagonal_blocks(unit[:, None] * unit, pattern.m)
    alive = live.view(-1, pattern.m)
    minorants = d.new_zeros(rows, len(groups), pattern.m, pattern.m)
    minorants[:, groups] = torch.where(alive[:, :, None] & alive[:, None, :], (d + d.mT) / 2, 0.0)
    point = torch.zeros_like(start)
    point[:, taken] = u * size * torch.where(live, unit, 0.0)
    return minorants, point
