"""Evidence from Newton's method over all atoms of a row at once, for one budget for the layer or one for each row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from optprune.certify._atoms import HALVINGS, TINY, Atoms, Centre, charged, newton
from optprune.certify._majorise import fill, fit, level
from optprune.certify._moment_minorants import Minorants, Settled, best_point, evidence_of
from optprune.certify._moments import Prices
from optprune.certify._perspective import Perspective
from optprune.certify._priced_pairs import PricedPairs, most_violated
from optprune.certify._tighten import FLOORS, margin, outputs
from optprune.numerics.working_memory import working_memory
from optprune.patterns import PerLayer, PerRow
from optprune.problems.least_squares import L0LeastSquares

FITS = 3
"""Majorisation steps for the first point and price, with one minorant for all rows."""

HIGHER = 1.15
"""What minorants of the rows' own do to the price, about: counted on LeNet-300-100's layers."""

ALONE = 4
"""Newton steps without pairs, after which pairs are chosen."""

MORE = 5
"""Most times that these are made, while the barrier weighs more than the bound: the objective at a poor start is far
above.
"""

FIRST = 0.5
"""Length that is tried first in these: longer steps mostly fail."""

EVERY, LAST = 2, 2
"""Steps between two moves of the price and of what pairs are charged, and steps at the end without."""

POWER = 0.4
"""Of the ratio of what is asked for to the budget, by which a price moves."""

FALL = 0.03
"""Most that the logarithm of a row's determinant may fall with a price, for every weight of the row."""

COOL, WARM, LEFT = 0.6, 2.0, 0.28
"""Factors of the barrier's weight: after a step of half the length or more without pairs, when pairs come in, and,
divided by the number of steps with them, after all of these.
"""

HALF = 0.45
"""Length of a step from which on the barrier's weight falls."""

PAIRS, MOST_PAIRS = 40, 2
"""Pairs in a row for every round, where all weights are kept, else times the root of the share that is; and the most
for every input. In double precision half as many, which take half the time and lose half a point of the gap.
"""

CHARGE = 0.4
"""Share of a weight's price that its pairs are charged at first, together."""

CLEAR = 0.01
"""Excess from which on a pair is split off."""

OWN = 0.05
"""Least share of its price that a weight is charged alone."""

WIDE = 0.05
"""Gap without pairs from which on they are used."""

CHUNK = 2**25
"""Bytes of a chunk of rows on the CPU."""

LEAST = 1e-9
"""Share of a minorant that is the common one, so that none is 0. More would take the point away from its best place."""

POINTS = 15
"""Sweeps for the point."""

WELL, LEAST_WELL = 1e-4, 1e-9
"""Least minorants, at unit diagonal, from which on directions are sought in float32, and at all."""


def by_newton(
    problem: L0LeastSquares,
    minorant: Float[Tensor, " in"],
    start: Float[Tensor, "out in"],
    effort: float,
    max_rounds: int = 12,
    memory: int | None = None,
) -> dict[str, Tensor] | None:
    """Minorants of the rows' own with pairs, and a point; None for other patterns, or where the effort does not allow
    it.

    Args:
        problem: the problem.
        minorant: as `scaled_minorant` gives it.
        start: a good weight.
        effort: floating-point operations that may be spent.
        max_rounds: Newton steps with pairs where a third of the weights is kept or more, fewer where few are; and of
            pairs there are the more, the more rounds.
        memory: bytes for the temporaries of a chunk of rows; see `working_memory`.
    """
    objective = 2 * float(problem.objective(start))
    if not isinstance(problem.pattern, PerLayer | PerRow) or not bool((minorant > 0).any()) or not objective > 0:
        return None
    exact = Perspective.of(problem, minorant)
    size, _ = outputs(exact.energy, objective)
    exact, objective = exact.per(size), objective / size**2
    linked = (exact.gram != 0).sum(-1) > 1
    least = float(exact.root[linked].square().amin()) if bool(linked.any()) else 1.0
    if least < LEAST_WELL:
        return None
    dtype, time = (torch.float32, 1.0) if least >= WELL else (torch.float64, 2.0)
    kept = torch.as_tensor(problem.pattern.kept(problem.shape), device=exact.live.device).double().mean()
    share = min(1.0, float(kept / (problem.pattern.layout(problem.shape)[1] * exact.live.double().mean())))
    fewer = min(1.0, (3.5 * share) ** 0.25)  # a sparse weight is found sooner, and its bound should be too
    steps = max(LAST, round(max_rounds * fewer))
    wanted, rows, inputs = int(PAIRS / time * max_rounds * share**0.5), len(exact.b), int(linked.sum())
    found = _affordable(rows, inputs, effort / time, steps, wanted)
    if found is None:
        return None
    steps, pairs = found
    search = _Search(exact, linked, exact.enter(start) / size, objective, dtype, memory)
    bound = -torch.inf
    for _ in range(MORE):
        if search.barrier() <= bound:
            break
        bound = search.approach(ALONE, COOL)
    if bound < (1 - WIDE) * objective:
        search.add(pairs)
    cool = (LEFT / steps) ** (1 / steps)
    search.approach(steps - LAST, cool)
    search.climb(LAST, cool)
    settled = search.settle()
    return evidence_of(exact, settled, size) if settled.value > max(search.least, 0.0) else None


def _affordable(rows: int, inputs: int, effort: float, steps: int, wanted: int) -> tuple[int, int] | None:
    """The steps with pairs, and pairs in a row, that keep to the effort: as many as are wanted, or else fewer pairs, or
    else half the steps, which cost less of the bound than to do without pairs. None where nothing does.

    A step inverts a matrix and factorises two or three for the line search, and one of all entries in half the time.
    """
    half = max(LAST, steps // 2)
    most = min(wanted, MOST_PAIRS * inputs, inputs * (inputs - 1) // 2)
    choices = ((steps, 1), (steps, 2), (steps, 4), (half, 2), (half, 4), (steps, 0), (half, 0))
    for number, part in choices if inputs else ():
        pairs = most // part if part else 0
        entries = inputs + 2 * pairs
        singles = inputs**3 * (FITS / 3 + 1.8 * (ALONE + number))
        if rows * (singles + number * (entries**3 / 6 + 20 * entries**2) * (pairs > 0)) <= effort:
            return number, pairs
    return None


class _Search:
    """The rows' atoms, moved a chunk of rows at a time; only a price that they share needs all of them.

    Inputs that are linked with no other have the minorant that is the whole of the Hessian there, and are kept where
    that pays.
    """

    def __init__(
        self,
        exact: Perspective,
        linked: Bool[Tensor, " live"],
        start: Float[Tensor, "out live"],
        objective: float,
        dtype: torch.dtype,
        memory: int | None,
    ) -> None:
        self.exact, self.linked, self.dtype, self.memory = exact, linked, dtype, memory
        self.relaxation = relaxation = exact.part(linked)
        self.lone = (exact.b * exact.root)[:, ~linked].square()
        start = start[:, linked]
        self.b, self.gram = relaxation.b * relaxation.root, relaxation.gram.clone()
        self.gram.diagonal().sub_(2 * margin(len(self.gram), self.gram.dtype))
        common = relaxation.root.square()
        self.w, self.prices, self.least = self._first(start)
        places = torch.arange(start.shape[1], device=start.device).expand(start.shape).contiguous()
        towards = torch.where(self.w != 0, self.w, self.b)
        values = torch.where(towards < 0, -1.0, 1.0) * (0.5 * common).sqrt()
        self.atoms = Atoms(start.shape[1], places, values, self._price().sqrt())
        self.weight = self.b.new_full((len(start),), objective / start.numel())
        self.log_det = torch.zeros_like(self.weight)
        self.best, self.record = -torch.inf, (self.atoms, self.prices, self.w)

    def _first(self, start: Float[Tensor, "out live"]) -> tuple[Float[Tensor, "out live"], Prices, float]:
        """A point and prices, from the relaxation with one minorant for all rows, and twice its bound."""
        relaxation = self.relaxation.moved(0.98 * self.relaxation.root.square())
        x, shares = start, torch.where(start != 0, 1.0, FLOORS[0]).to(start.dtype)
        for _ in range(FITS):
            x = fit(relaxation, shares, self.memory)
            shares = fill(relaxation, x, shares).clamp_min(0.1 * FLOORS[0])
        norms, most, kept = relaxation.norms(x), relaxation.energy.amax(), relaxation.kept()
        taken = torch.zeros_like(norms[:, :1])
        prices = Prices(self.exact, taken)
        for _ in range(FITS):
            # No kept weight is worth more than everything, which is the price where none may be kept.
            worth = torch.minimum(HIGHER * level(norms, kept - taken).square(), most)
            prices = Prices(self.exact, worth.clamp_min(torch.finfo(worth.dtype).eps * most))
            taken = prices.sums(self._shares(torch.zeros_like(x), prices))
        everywhere, point = self.exact.moved(0.98 * self.exact.root.square()), self.exact.b * self.exact.root
        point[:, self.linked] = x / relaxation.root
        whole = point * everywhere.root
        return point[:, self.linked], prices, float(everywhere.value(whole, everywhere.product(whole)).sum())

    def _shares(self, of_linked: Float[Tensor, "out linked"], prices: Prices) -> Float[Tensor, "live out"]:
        """Of all inputs: a weight that is linked with no other is kept where that saves more than it costs."""
        shares = prices.spread()
        kept = self.lone.mT > shares[~self.linked]
        shares[~self.linked], shares[self.linked] = kept.to(shares.dtype), of_linked.mT
        return shares

    def _price(self) -> Float[Tensor, "out live"]:
        return self.prices.spread()[self.linked].mT.contiguous()

    def _chunks(self, pairs: int) -> Iterator[Tensor]:
        live = len(self.gram)
        taken = 6 * (8 * live**2 + self.dtype.itemsize * (live + 2 * pairs) ** 2)
        at_once = max(1, working_memory(self.memory, self.gram.device, CHUNK) // taken)
        yield from torch.arange(len(self.w), device=self.gram.device).split(at_once)

    def approach(self, steps: int, cool: float) -> float:
        """Newton steps, between which the price moves and what pairs are charged; twice the bound, about."""
        bound = -torch.inf
        for done in range(0, steps, EVERY):
            bound = self.climb(min(EVERY, steps - done), cool, charging=True)
            if self.barrier() <= bound:  # before, shares say little
                self.reprice()
        return bound

    def climb(self, steps: int, cool: float, charging: bool = False) -> float:
        """Newton steps, after the first of which what pairs are charged may move; twice the bound, about."""
        lost = torch.zeros_like(self.weight)
        for rows in self._chunks(self.atoms.many):
            b, weight = self.b[rows], self.weight[rows]
            centre = Centre.of(self.gram, b, self.atoms.of_rows(rows))
            entries = centre.atoms.places.shape[1]
            room = torch.empty(4, len(rows), entries, entries, dtype=self.dtype, device=b.device)
            for count in range(steps):
                length = newton(self.gram, b, centre, weight, room, 1.0 if self.atoms.many else FIRST)
                weight = torch.where(length > HALF, cool * weight, weight)
                if charging and count == 0 and centre.atoms.many:
                    centre = charged(self.gram, b, centre, _demand(centre), weight)
            self.weight[rows], self.w[rows], lost[rows] = weight, centre.w, centre.lost
            self.log_det[rows] = centre.log_det
            self.atoms.values[rows], self.atoms.offsets[rows] = centre.atoms.values, centre.atoms.offsets
        budgets = self.prices.level * self.relaxation.kept()
        saved = (self.lone.mT - self.prices.spread()[~self.linked]).clamp_min(0.0)
        bound = float(self.relaxation.energy.sum() - lost.sum() - budgets.sum() - saved.sum())
        if bound > self.best:
            atoms = replace(self.atoms, values=self.atoms.values.clone(), offsets=self.atoms.offsets.clone())
            self.best, self.record = bound, (atoms, self.prices, self.w.clone())
        return bound

    def barrier(self) -> float:
        """About what the barrier still costs."""
        return float(self.weight.sum()) * len(self.gram)

    def reprice(self) -> None:
        r"""Prices at which the shares come nearer to the budgets, or a part of the way there where a row would come too
        near to the boundary. $V t$ stays: with V itself, where the Hessian is nearly singular, the point would go far.
        """
        shares = (self.atoms.products(self.w) / self.atoms.offsets)[:, : self.atoms.inputs]
        asked = self.prices.sums(self._shares(shares, self.prices)) / self.relaxation.kept()
        factor = asked.nan_to_num(1.0).clamp(0.5, 2.0) ** POWER  # NaN is nothing of a budget of nothing
        for _ in range(HALVINGS):
            refused = self._refused(factor)
            if not bool(refused.any()):
                break
            factor = torch.where(refused, factor.sqrt(), factor)
        else:
            factor = torch.where(refused, 1.0, factor)
        root = self._by_row(factor.sqrt())
        self.atoms = replace(self.atoms, values=self.atoms.values / root, offsets=self.atoms.offsets * root)
        self.prices = Prices(self.exact, self.prices.level * factor)

    def _by_row(self, of_budgets: Float[Tensor, "budgets 1"]) -> Float[Tensor, "out 1"]:
        return Prices(self.exact, of_budgets).spread()[:1].mT

    def _refused(self, factor: Float[Tensor, "budgets 1"]) -> Bool[Tensor, "budgets 1"]:
        """In which budgets a price that is so many times as high brings a row too near to the boundary."""
        root, near = self._by_row(factor.sqrt()), torch.zeros_like(self.weight)
        for rows in self._chunks(0):
            rows = rows[root[rows, 0] < 1]
            if len(rows):
                atoms = self.atoms.of_rows(rows)
                new = Centre.of(self.gram, self.b[rows], replace(atoms, values=atoms.values / root[rows]))
                far = new.feasible & (new.log_det >= self.log_det[rows] - FALL * atoms.inputs)
                near[rows] = (~far).to(near.dtype)
        return self.prices.sums(near.expand_as(self.exact.b.mT)) > 0

    def add(self, pairs: int) -> None:
        """Split off pairs of weights that ask for more than the two alone."""
        alone, price, self.weight = self.atoms, self._price(), WARM * self.weight
        found = []
        for rows in self._chunks(pairs):
            b, weight = self.b[rows], self.weight[rows, None, None]
            centre = Centre.of(self.gram, b, alone.of_rows(rows))
            moments = torch.cholesky_inverse(centre.factor).mul_(weight)
            moments.addcmul_(centre.w[:, :, None], centre.w[:, None, :])
            index, excess = most_violated(moments, centre.w, price[rows], pairs, CLEAR)
            atoms = centre.atoms.with_pairs(index // alone.inputs, index % alone.inputs)
            share = excess / torch.maximum(*atoms.of_pairs(atoms.over_pairs(excess))).clamp_min(TINY)
            charge = CHARGE * share * torch.minimum(*atoms.of_pairs(price[rows]))
            found.append(charged(self.gram, b, replace(centre, atoms=atoms), charge, self.weight[rows]).atoms)
        self.atoms = Atoms(
            alone.inputs, *(torch.cat([getattr(a, name) for a in found]) for name in ("places", "values", "offsets"))
        )

    def settle(self) -> Settled:
        """The best minorants so far and a point for them, of all inputs. The last may be worse, after more steps than
        the precision bears.
        """
        (atoms, prices, w), exact, inputs = self.record, self.exact, self.linked.nonzero().squeeze(-1)
        (i, j), (a, c), (t, _) = (atoms.halves(x) for x in (atoms.places, atoms.values, atoms.offsets))
        pairs = PricedPairs((inputs[i], inputs[j]), (t > 0).flatten(), len(self.linked), t.dtype)
        delta, point = torch.ones_like(exact.b.mT), (exact.b * exact.root).mT.contiguous()
        delta[inputs], point[inputs] = atoms.values[:, : atoms.inputs].square().mT, w.mT
        minorants = Minorants(delta, pairs, (a.flatten(), c.flatten()), t.flatten())
        minorants = minorants.mixed(LEAST, exact.root.square()[:, None])
        return Settled(minorants, *best_point(exact, minorants, prices, point, POINTS))


def _demand(centre: Centre) -> Float[Tensor, "rows pairs"]:
    """What pairs should be charged: more where a pair's share exceeds those of its two weights, within their prices."""
    atoms, shares = centre.atoms, centre.shares()
    single = torch.add(*atoms.of_pairs(shares[:, : atoms.inputs]))
    charge, pair = (atoms.halves(x)[0] for x in (atoms.offsets.square(), shares))
    wanted = charge * (pair / single.clamp_min(1e-3)).clamp(0.0, 2.0).square().clamp(0.4, 2.5)
    price = atoms.offsets[:, : atoms.inputs].square() + atoms.over_pairs(charge)
    room = (1 - OWN) * price / atoms.over_pairs(wanted).clamp_min(TINY)
    return wanted * torch.minimum(*atoms.of_pairs(room)).clamp_max(1.0)
