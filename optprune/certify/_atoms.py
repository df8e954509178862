r"""Minorants of the rows' own by an interior point method: squares of one or two weights each, split off at once.

An atom is a vector $v_f$ with one or two entries that are not 0, and an offset $t_f$. Where the Hessian less all
$v_f v_f^\top$ is positive definite, $(v_f \cdot u)^2 \ge 2 t_f v_f \cdot u - t_f^2$, and the $t_f^2$ is charged to each
weight of the atom that is kept. If every weight is charged $\lambda$ in all, twice the objective of a weight with a
support of the budget $k$ is at least $c - k \lambda$ less

$$(b - V t)^\top N (b - V t), \qquad N = (H - V V^\top)^{-1},$$

which is convex in $(t_f v_f, t_f^2)$: the best minorants for a price are found by minimising a smooth function without
constraints. With the barrier $-\mu \log\det(H - V V^\top)$ and $w = N (b - V t)$, optimality says that
$v_f = t_f M_f^{-1} w_f$ for the second moments $M = w w^\top + \mu N$ of a random weight. Half the Hessian in the
entries $e$ of V, weight $i$ of atom $f$, is

$$h_e^\top N h_{e'} + \mu \bigl(N_{ii'} (V^\top N V)_{ff'} + (N V)_{if'} (N V)_{i'f} \bigr)
  + [f = f'] (w_i w_{i'} + \mu N_{ii'}), \qquad h_e = w_i v_f - (t_f - v_f \cdot w) e_i .$$

Each step costs about what one round of `tighten` does. On the third layer of LeNet-300-100, a quarter of the weights
kept, six steps come within half a point of the gap to the best diagonal minorants, and twenty such rounds within a
point and a half; and a step bears pairs, which take two to five points more.

References:
    The relaxation: Dong, Chen & Linderoth 2015; pairs: Atamturk & Gomez 2019. The form without inner variables, its
    convexity and its derivatives are derived here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from optprune.numerics.factors import solve

TRIALS, HALVINGS = 9, 5
"""Most lengths of a step, and most parts of a change of what pairs are charged, each half the one before."""

BARRIER = 0.25
"""What a change of charges may cost, in units of the barrier's weight for every weight of a row."""

COLUMNS = 128
"""Of a Hessian that are computed together."""

TINY = 1e-150
"""Below every number that matters; its square is still a number."""


@dataclass(frozen=True, eq=False)
class Atoms:
    """Those of some rows: one for every weight, then the same number of pairs in each row, by their entries.

    Attributes:
        inputs: how many weights a row has.
        places: the weight of every entry: all weights, the first of every pair, the second of every pair.
        values: V.
        offsets: t, the same for both entries of a pair.
    """

    inputs: int
    places: Int[Tensor, "rows entries"]
    values: Float[Tensor, "rows entries"]
    offsets: Float[Tensor, "rows entries"]

    @property
    def many(self) -> int:
        """Pairs in a row."""
        return (self.places.shape[1] - self.inputs) // 2

    def with_pairs(self, first: Int[Tensor, "rows pairs"], second: Int[Tensor, "rows pairs"]) -> Atoms:
        """These, which are single, and pairs that are 0."""
        none = self.values.new_zeros(len(first), 2 * first.shape[1])
        values, offsets = (torch.cat([x, none], 1) for x in (self.values, self.offsets))
        return Atoms(self.inputs, torch.cat([self.places, first, second], 1), values, offsets)

    def take(self, x: Float[Tensor, "rows inputs"]) -> Float[Tensor, "rows entries"]:
        """The entries of a vector per row."""
        return x.gather(1, self.places)

    def give(self, x: Float[Tensor, "rows entries"]) -> Float[Tensor, "rows inputs"]:
        """Sums over the entries of every weight."""
        return x.new_zeros(len(x), self.inputs).scatter_add(1, self.places, x)

    def halves(self, x: Shaped[Tensor, "rows entries *more"]) -> tuple[Tensor, Tensor]:
        """Views of the first and the second entries of the pairs."""
        return x[:, self.inputs : self.inputs + self.many], x[:, self.inputs + self.many :]

    def of_pairs(self, x: Float[Tensor, "rows inputs"]) -> tuple[Tensor, Tensor]:
        """The two entries of every pair."""
        i, j = self.halves(self.places)
        return x.gather(1, i), x.gather(1, j)

    def over_pairs(self, x: Float[Tensor, "rows pairs"]) -> Float[Tensor, "rows inputs"]:
        """Sums over the pairs of every weight."""
        return self.give(torch.cat([x.new_zeros(len(x), self.inputs), x, x], 1))

    def summed(self, x: Float[Tensor, "rows entries *more"]) -> Float[Tensor, "rows entries *more"]:
        """Sums over the entries of every atom, in place and at each of its entries."""
        first, second = self.halves(x)
        first += second
        second.copy_(first)
        return x

    def products(self, w: Float[Tensor, "rows inputs"]) -> Float[Tensor, "rows entries"]:
        r"""$v_f \cdot w$ at each entry."""
        return self.summed(self.values * self.take(w))

    def of_rows(self, index: Tensor) -> Atoms:
        """Those of some of the rows."""
        return replace(self, places=self.places[index], values=self.values[index], offsets=self.offsets[index])

    def rest(self, gram: Float[Tensor, "inputs inputs"]) -> Float[Tensor, "rows inputs inputs"]:
        r"""$H - V V^\top$."""
        matrix = gram.repeat(len(self.values), 1, 1)
        matrix.diagonal(dim1=1, dim2=2).sub_(self.give(self.values.square()))
        if self.many:
            (i, j), (a, b) = self.halves(self.places), self.halves(self.values)
            cells = matrix.view(len(matrix), -1)
            cells.scatter_add_(1, i * self.inputs + j, -a * b).scatter_add_(1, j * self.inputs + i, -a * b)
        return matrix


@dataclass(frozen=True, eq=False)
class Centre:
    r"""Where rows are.

    Attributes:
        atoms: of the rows.
        factor: of the Hessian less the atoms.
        w: the mean of the random weight.
        lost: $(b - V t)^\top N (b - V t)$.
        log_det: of the Hessian less the atoms.
        feasible: whether the factor exists.
    """

    atoms: Atoms
    factor: Float[Tensor, "rows inputs inputs"]
    w: Float[Tensor, "rows inputs"]
    lost: Float[Tensor, " rows"]
    log_det: Float[Tensor, " rows"]
    feasible: Bool[Tensor, " rows"]

    @classmethod
    def of(cls, gram: Float[Tensor, "inputs inputs"], b: Float[Tensor, "rows inputs"], atoms: Atoms) -> Centre:
        """The place that belongs to atoms."""
        factor, failed = torch.linalg.cholesky_ex(atoms.rest(gram))
        free = b - atoms.give(atoms.values * atoms.offsets)
        w = solve(factor, free)
        feasible = (failed == 0) & w.isfinite().all(-1)
        log_det = 2 * factor.diagonal(dim1=1, dim2=2).log().sum(-1)
        return cls(atoms, factor, w, (free * w).sum(-1), log_det, feasible)

    def value(self, weight: Float[Tensor, " rows"]) -> Float[Tensor, " rows"]:
        """What is maximised, for a barrier of this weight."""
        return torch.where(self.feasible, weight * self.log_det - self.lost, -torch.inf)

    def shares(self) -> Float[Tensor, "rows entries"]:
        r"""$v_f \cdot w / t_f$, at each entry: what an atom would add to the bound if it were charged more."""
        atoms = self.atoms
        return atoms.products(self.w) / atoms.offsets.clamp_min(TINY)

    def of_rows(self, index: Tensor) -> Centre:
        """Those of some of the rows."""
        return Centre(self.atoms.of_rows(index), *(x[index] for x in self._numbers()))

    def put(self, rows: Tensor, new: Centre) -> None:
        """Move some rows, in place; the atoms' places stay."""
        self.atoms.values[rows], self.atoms.offsets[rows] = new.atoms.values, new.atoms.offsets
        for mine, other in zip(self._numbers(), new._numbers(), strict=True):
            mine[rows] = other

    def _numbers(self) -> tuple[Tensor, ...]:
        return self.factor, self.w, self.lost, self.log_det, self.feasible


def newton(
    gram: Float[Tensor, "inputs inputs"],
    b: Float[Tensor, "rows inputs"],
    centre: Centre,
    weight: Float[Tensor, " rows"],
    room: Float[Tensor, "4 rows entries entries"],
    length: float = 1.0,
) -> Float[Tensor, " rows"]:
    """One step for every row, in place, with a line search of its own; the lengths taken, 0 where none was good.

    Args:
        gram: H.
        b: b.
        centre: where the rows are, feasible.
        weight: of the barrier.
        room: for matrices in the precision in which the direction is sought; fresh memory at every step would take as
            long as the arithmetic.
        length: of the step that is tried first.
    """
    direction, slope = _direction(centre, weight, room)
    before, atoms = centre.value(weight), centre.atoms
    start, lengths = atoms.values.clone(), torch.zeros_like(slope)
    rows = (slope > 0).nonzero().squeeze(-1)
    for _ in range(TRIALS):
        if not len(rows):
            break
        values = start[rows] + length * direction[rows]
        new = Centre.of(gram, b[rows], replace(atoms.of_rows(rows), values=values))
        good = new.value(weight[rows]) >= before[rows] + 0.2 * length * slope[rows] - 1e-12 * before[rows].abs()
        centre.put(rows[good], new.of_rows(good))
        lengths[rows[good]] = length
        rows, length = rows[~good], length / 2
    return lengths


def _direction(
    centre: Centre, weight: Float[Tensor, " rows"], room: Float[Tensor, "4 rows entries entries"]
) -> tuple[Float[Tensor, "rows entries"], Float[Tensor, " rows"]]:
    """Newton's direction, and half the slope of the value in it; no direction where the system has no factor."""
    atoms, mu, dtype = centre.atoms, weight[:, None], room.dtype
    inverse = torch.cholesky_inverse(centre.factor.to(dtype))
    w, short = atoms.take(centre.w), atoms.offsets - atoms.products(centre.w)
    (i, j), (first, second) = atoms.halves(atoms.places), atoms.halves(atoms.values)
    own, cross = atoms.take(inverse.diagonal(dim1=1, dim2=2)), inverse.flatten(1).gather(1, i * atoms.inputs + j)
    through = own * atoms.values
    for half, other in zip(atoms.halves(through), (second, first), strict=True):
        half += cross * other
    slope = w * short - mu * through
    diagonal = w.square() + mu * own
    beside = torch.mul(*atoms.halves(w)) + mu * cross

    mu = mu.sqrt()  # of which each of two vectors takes a half
    values, scaled, off = (x.to(dtype) for x in (mu * atoms.values, w / mu, short))
    system = _hessian(atoms, inverse, values, scaled, off, room)
    system.diagonal(dim1=1, dim2=2).add_(diagonal)
    system[:, atoms.inputs + atoms.many :, atoms.inputs :].diagonal(dim1=1, dim2=2).add_(beside)
    factor, failed = torch.linalg.cholesky_ex(system)
    direction = solve(factor, slope.to(dtype)).to(slope.dtype)
    sound = (failed == 0) & direction.isfinite().all(-1)
    direction = torch.where(sound[:, None], direction, 0.0)
    return direction, (direction * slope).sum(-1)


def _hessian(
    atoms: Atoms,
    inverse: Float[Tensor, "rows inputs inputs"],
    values: Float[Tensor, "rows entries"],
    w: Float[Tensor, "rows entries"],
    short: Float[Tensor, "rows entries"],
    room: Float[Tensor, "4 rows entries entries"],
) -> Float[Tensor, "rows entries entries"]:
    """Half the negative Hessian, its lower triangle, without what only the entries of one atom have; by columns that
    fit into a cache.
    """
    near, ahead, both, result = room
    rows = inverse.gather(1, atoms.places[:, :, None].expand(-1, -1, atoms.inputs))
    torch.gather(rows, 2, atoms.places[:, None, :].expand(-1, atoms.places.shape[1], -1), out=near)
    atoms.summed(torch.mul(near, values[:, :, None], out=ahead))  # N V, transposed
    atoms.summed(torch.mul(ahead.mT, values[:, :, None], out=both))  # V'NV
    for start in range(0, near.shape[1], COLUMNS):
        below, own = slice(start, None), slice(start, start + COLUMNS)
        part, n = result[:, below, own], near[:, below, own]
        above, through = ahead[:, below, own], ahead[:, own, below].mT
        w_row, short_row = w[:, below, None], short[:, below, None]
        w_column, short_column = w[:, None, own], short[:, None, own]
        torch.mul(both[:, below, own], torch.addcmul(n, w_row, w_column), out=part)
        part.addcmul_(n, short_row * short_column)
        part.addcmul_(above, torch.addcmul(through, w_row, short_column, value=-1.0))
        part.addcmul_(through, short_row * w_column, value=-1.0)
    return result


def charged(
    gram: Float[Tensor, "inputs inputs"],
    b: Float[Tensor, "rows inputs"],
    centre: Centre,
    charge: Float[Tensor, "rows pairs"],
    weight: Float[Tensor, " rows"],
) -> Centre:
    """Charge the pairs this instead, in place, or a part of the way there where that costs a row more than its barrier
    is worth: a step of Newton's would not find back from next to the boundary.
    """
    atoms = centre.atoms
    least = centre.value(weight) - BARRIER * weight * atoms.inputs
    change = charge - atoms.halves(atoms.offsets)[0].square()
    rows = torch.arange(len(change), device=change.device)
    for part in range(HALVINGS):
        new = Centre.of(gram, b[rows], _shifted(atoms.of_rows(rows), change[rows] / 2**part))
        good = new.value(weight[rows]) >= least[rows]
        centre.put(rows[good], new.of_rows(good))
        rows = rows[~good]
        if not len(rows):
            break
    return centre


def _shifted(atoms: Atoms, change: Float[Tensor, "rows pairs"]) -> Atoms:
    r"""Charges moved from single weights to pairs, or back, and with them the same share of $t_f v_f$, so that $V t$
    stays: $V V^\top$ then grows by no more than what is off the diagonal in the parts that are moved.
    """
    mass, load = atoms.offsets.square(), atoms.values * atoms.offsets
    rate = atoms.of_pairs(load[:, : atoms.inputs] / mass[:, : atoms.inputs].clamp_min(TINY))
    back = (-change).clamp_min(0.0) / atoms.halves(mass)[0].clamp_min(TINY)
    moved = [change.clamp_min(0.0) * r - back * own for r, own in zip(rate, atoms.halves(load), strict=True)]
    none = torch.zeros_like(load[:, : atoms.inputs])

    def shift(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        pairs = torch.cat([none, first, second], 1)
        return x + pairs - torch.cat([atoms.give(pairs), torch.zeros_like(pairs[:, atoms.inputs :])], 1)

    offsets = shift(mass, change, change).clamp_min(0.0).sqrt()
    return replace(atoms, values=shift(load, *moved) / offsets.clamp_min(TINY), offsets=offsets)
