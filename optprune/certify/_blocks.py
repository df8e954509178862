"""Finding block-diagonal minorants for N:M sparsity. Nothing here needs to be right: `check` decides."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from optprune.certify._block_evidence import both, choices_of, columns, inputs_of
from optprune.certify._clusters import clustered
from optprune.certify._room import room
from optprune.certify._tighten import INSIDE, WORTHWHILE, margin, outputs, search_precision
from optprune.numerics.factors import cholesky_factors, solve
from optprune.numerics.linalg import diagonal_blocks
from optprune.numerics.working_memory import working_memory
from optprune.patterns import NOfM
from optprune.problems.least_squares import L0LeastSquares

MOST_CHOICES = 70
"""Supports of a block up to which groups are put together, or made blocks at all: one group of 4:8 has 70, two of 2:4
have 36. On ten rows of LeNet-300-100's last layer the gap at 2:4 is 11.2 % after 15 rounds with single groups, 9.9 with
two in a block, 9.5 with three (216), which take six times as long as two; on three rows of the first layer 19.6, 15.8
and 14.5. At 4:8 it is 16 % on six rows of the first layer, and 26 with minorants of single weights.
"""

FLOORS = (0.05, 1e-4)
"""First and least part of the shares that is spread evenly over the choices."""

COOLING = 0.7
"""Factor of that part from round to round."""

FIRST, SHRINK = 16.0, 0.4
"""The barrier's weight at first, and its factor once a row is near its central path. With a weight of 1 at first the
steps have a tenth of their length for five rounds (LeNet-300-100's first layer).
"""

CLOSE = 0.3
"""Length of a step from which on a row is near its central path."""

CONJUGATE_STEPS = 12
"""Steps for a Newton direction; 8 lose up to half a point of the gap, 20 gain little."""

FEWEST_ROUNDS = 5
"""With fewer rounds single weights' minorants are better."""

FITS = 4
"""Majorisation steps per round."""

LOCAL, GENTLE = 8, 1.6
"""Steps of the shares after each of these, for the point that it gives, without a factorisation and in single
precision; and their over-relaxation. Without them about twice as many majorisation steps are needed for the same gap.
"""

RELAXED = 1.8
"""Over-relaxation of the shares: with 1 a step is exact, with 1.8 they converge about twice as fast."""


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


def tighten_blocks(
    blocks: Blocks,
    d: Float[Tensor, "rows blocks size size"],
    start: Float[Tensor, "rows in"],
    growth: float,
    rounds: int,
) -> tuple[Float[Tensor, "rows blocks size size"], Float[Tensor, "rows in"]]:
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
    covered = blocks.cut((start != 0).to(start))[..., blocks.choices].sum(-1)
    shares = torch.nn.functional.one_hot(covered.argmax(-1), choices).to(start)
    best = torch.full_like(blocks.energy, -torch.inf)
    record, point = d, start
    weight = torch.full_like(best, FIRST)
    floor, history = FLOORS[0], []
    for count in range(rounds):
        pieces = blocks.pieces(d)
        light = pieces.float()
        for _ in range(FITS):
            shares = mixed(shares, floor)
            u, slope, new = blocks.fit(d, pieces, shares)
            new = blocks.share(light, u, new)
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
        d, close = blocks.ascend(d, blocks.gain(pieces, used, u, slope), weight)
        weight = torch.where(close, weight * SHRINK, weight)
        floor = max(COOLING * floor, FLOORS[1])
    return record, point


def strengthen_groups(
    problem: L0LeastSquares,
    minorant: Float[Tensor, " in"],
    start: Float[Tensor, "out in"],
    effort: float,
    tolerance: float = 0.005,
    max_rounds: int = 12,
    memory: int | None = None,
) -> dict[str, Tensor] | None:
    r"""Block-diagonal minorants for each row, and a point of linearisation, whose bound is near the best; None where
    the effort does not allow enough rounds to make them better than diagonal ones.

    Args:
        problem: with an n of m pattern.
        minorant: as `scaled_minorant` gives it, positive on the live inputs.
        start: a good weight.
        effort: floating-point operations that may be spent; a round takes about `5 * out * in**3`.
        tolerance: stop when a round raises the bound by less than three quarters of this fraction of the objective at
            `start`.
        max_rounds: most rounds.
        memory: bytes for the matrices of a chunk of rows; see `working_memory`.
    """
    pattern, rows = problem.pattern, problem.shape[0]
    assert isinstance(pattern, NOfM)
    # Groups of dead inputs alone are left out; a dead input beside live ones costs nothing and gains nothing.
    worth = (problem.gram.diagonal() > 0).view(-1, pattern.m).any(-1)
    several = 1
    while math.comb(pattern.m, pattern.n) ** (2 * several) <= MOST_CHOICES:
        several *= 2
    groups, size = clustered(problem.gram, worth, pattern.m, several), several * pattern.m
    used = math.ceil(int(worth.sum()) / several)
    inputs = inputs_of(groups[:used], pattern.m)
    gram = both(problem.gram, inputs)
    live = gram.diagonal() > 0
    gram.diagonal().masked_fill_(~live, 1.0)
    unit = gram.diagonal().rsqrt()
    gram, b = gram * unit[:, None] * unit, columns(problem.linear, inputs) * live * unit
    delta = columns(minorant, inputs) * unit.square()
    objective = 2 * float(problem.objective(start))
    scale, share = outputs(problem.energy, objective)
    dtype, time = search_precision(delta[live], share)
    # Where a large layer is too ill-conditioned for float32 a round takes twice as long, and the solver does not.
    most = 3 * max_rounds // 5 if dtype == torch.float64 and len(gram) >= WORTHWHILE else max_rounds
    rounds = int(min(most, effort / (time * 5.0 * rows * len(gram) ** 3)))
    if rounds < min(FEWEST_ROUNDS, most):
        return None
    delta = torch.where(live, 0.6 * delta, 0.5).to(dtype).view(-1, size)
    choices = choices_of(pattern, several, gram.device)
    b, energy, growth = b / scale, problem.energy / scale**2, 0.75 * tolerance * objective / scale**2
    first = columns(start, inputs) * live / unit / scale
    found = []
    each = 5 * len(gram) ** 2 + 4 * len(choices) * size * len(gram)
    at_once = working_memory(memory, gram.device, 2**24) // (dtype.itemsize * each)
    for part in torch.arange(rows, device=gram.device).split(max(1, at_once)):
        blocks = Blocks(gram.to(dtype), b[part].to(dtype), energy[part].to(dtype), choices, size)
        d = torch.diag_embed(delta).expand(len(part), -1, -1, -1)
        found.append(tighten_blocks(blocks, d, first[part].to(dtype), growth * len(part) / rows, rounds))
    d, u = (torch.cat(tensors).double() for tensors in zip(*found, strict=True))
    d = d / diagonal_blocks(unit[:, None] * unit, size)
    here = live.view(-1, size)
    minorants = d.new_zeros(rows, len(groups), size, size)
    minorants[:, :used] = torch.where(here[:, :, None] & here[:, None, :], (d + d.mT) / 2, 0.0)
    point = d.new_zeros(rows, problem.shape[1] + 1)  # the last column takes what is there of inputs -1: nothing
    point[:, inputs] = u * scale * unit * live
    return {"blocks": minorants, "groups": groups, "point": point[:, :-1].contiguous()}
