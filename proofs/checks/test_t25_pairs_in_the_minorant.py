"""T25 against exhaustive search for every pattern, against fractions, and where it is an equality."""

from dataclasses import replace
from fractions import Fraction
from itertools import product

import pytest
import torch

import optprune as op
from optprune.bounds.minorant import minorant_bound
from optprune.bounds.pair_minorant import Pairs, pair_minorant_parts
from optprune.certify import recheck
from optprune.certify._exact_pairs import exact_pair_bound
from optprune.certify.least_squares import proves_pairs
from proofs.checks.tiny import PATTERNS, SHAPE, normal

ROOM = 1 - 1e-9


def uniform(rng: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=rng, dtype=torch.float64)


def layer(rng: torch.Generator, pattern: op.Pattern, damping: float = 0.0, targets: float = 0.1) -> op.L0LeastSquares:
    mix = torch.eye(SHAPE[1], dtype=torch.float64) + 0.2 * normal(rng, SHAPE[1], SHAPE[1])
    weight, inputs = normal(rng, *SHAPE), normal(rng, 30, SHAPE[1]) @ mix
    statistics = op.Statistics.from_samples(inputs, inputs @ weight.mT + targets * normal(rng, 30, SHAPE[0]), weight)
    return op.L0LeastSquares(statistics, pattern, damping)


def best_weight(problem: op.L0LeastSquares) -> torch.Tensor:
    """Over all admissible supports, each fitted by dense linear algebra."""
    best, found = torch.inf, torch.zeros(problem.shape, dtype=torch.float64)
    rows, columns = problem.shape
    live = problem.gram.diagonal() > 0
    for bits in product((False, True), repeat=rows * columns):
        mask = torch.tensor(bits).reshape(rows, columns)
        if problem.pattern.admits(mask):
            weight = torch.zeros(rows, columns, dtype=torch.float64)
            for row in range(rows):
                kept = mask[row] & live
                weight[row, kept] = torch.linalg.solve(problem.gram[kept][:, kept], problem.linear[row, kept])
            if (value := float(problem.objective(weight))) < best:
                best, found = value, weight
    return found


def random_places(rng: torch.Generator, count: int, inputs: torch.Tensor) -> torch.Tensor:
    """Pairs of the given inputs in each row; more than there are must overlap, and some are the same."""
    drawn = torch.rand(SHAPE[0], count, len(inputs), generator=rng).topk(2, -1).indices
    return inputs[drawn]


def matrices(minorant: torch.Tensor, pairs: Pairs) -> torch.Tensor:
    """M of each row."""
    rows, inputs = minorant.shape
    vectors = torch.zeros(rows, pairs.places.shape[1], inputs, dtype=torch.float64).scatter_(
        2, pairs.places, pairs.weights
    )
    return torch.diag_embed(minorant) + vectors.mT @ vectors


def random_evidence(
    problem: op.L0LeastSquares, rng: torch.Generator, count: int, inputs: torch.Tensor | None = None
) -> tuple[torch.Tensor, Pairs]:
    """Random pairs and a diagonal, each row's scaled so that a little room stays below the Hessian."""
    live = torch.arange(SHAPE[1]) if inputs is None else inputs
    places = random_places(rng, count, live)
    weights = 0.5 * normal(rng, SHAPE[0], count, 2)
    weights = weights * (uniform(rng, SHAPE[0], count, 1) > 0.2)  # some are padding
    delta = torch.zeros(SHAPE, dtype=torch.float64)
    delta[:, live] = uniform(rng, SHAPE[0], len(live)) + 0.2
    root = torch.linalg.cholesky(matrices(delta, Pairs(places, weights, weights[..., 0]))[:, live][:, :, live])
    inner = torch.linalg.solve_triangular(root, problem.gram[live][:, live].expand_as(root), upper=False)
    inner = torch.linalg.solve_triangular(root, inner.mT, upper=False)
    most = torch.linalg.eigvalsh((inner + inner.mT) / 2)[:, 0].clamp_min(0) * ROOM
    weights = weights * most.sqrt()[:, None, None]
    pairs = Pairs(places, weights, weights[..., 0])
    share = 0.5 * uniform(rng, SHAPE[0], count)
    return delta * most[:, None], replace(pairs, offsets=share * pairs.along(problem.dense))


def parts(problem: op.L0LeastSquares, minorant: torch.Tensor, pairs: Pairs, point: torch.Tensor):
    s = problem.statistics
    return pair_minorant_parts(
        problem.gram, s.cross, s.energy, s.reference, minorant, pairs, point, problem.pattern.support
    )


def bound(problem: op.L0LeastSquares, minorant: torch.Tensor, pairs: Pairs, point: torch.Tensor) -> float:
    return parts(problem, minorant, pairs, point)[0]


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("damping", [0.0, 0.1])
def test_no_evidence_exceeds_the_optimum(pattern, damping, rng):
    """Pairs that overlap, the same pair several times, pairs without weights."""
    problem = layer(rng, pattern, damping)
    weight = best_weight(problem)
    best, tightest = float(problem.objective(weight)), -torch.inf
    for count in (0, 1, 2, 3, 9) * 4:
        minorant, pairs = random_evidence(problem, rng, count)
        assert proves_pairs(problem.gram, minorant, pairs)
        for centre in (problem.dense, weight):
            for spread in (0.0, 0.1, 1.0, 10.0):
                value = bound(problem, minorant, pairs, centre + spread * normal(rng, *SHAPE))
                assert value <= best * (1 + 1e-12)
                tightest = max(tightest, value)
    assert tightest > 0 or best < 1e-12, "the instance would not notice a wrong bound"


def test_what_a_square_is_bounded_by(rng):
    """Step 2, entry by entry, for weights of all supports; a charge smaller by one in a thousand would be too small."""
    a, r = normal(rng, 1000, 2), normal(rng, 1000, 2)
    t = normal(rng, 1000)
    e = (a * r).sum(-1) - t
    for kept in product((0.0, 1.0), repeat=2):
        u = normal(rng, 1000, 2) * torch.tensor(kept, dtype=torch.float64)
        if any(kept):  # on the line where the square that is dropped vanishes
            share = (a * u).sum(-1)
            u[::2] *= (t / share)[::2, None]
        along = (a * (u - r)).sum(-1)
        below = [-2 * e * along - e**2 + t**2 - factor * t**2 * sum(kept) for factor in (1.0, 0.999)]
        assert bool((along**2 >= below[0] - 1e-9 * (1 + along**2 + e**2 + t**2)).all())
        if sum(kept) == 1:
            assert bool((along**2 < below[1] - 1e-9)[::2].any())
        if not any(kept):
            assert torch.allclose(along**2, below[0])


def equality(rng: torch.Generator, pattern: op.Pattern) -> tuple[op.L0LeastSquares, torch.Tensor, Pairs, torch.Tensor]:
    r"""$H = \operatorname{diag}\delta + a a^\top + b b^\top$, one of each pair is kept, and its best value u has
    $a_j u_j = t$."""
    pairs = Pairs(
        torch.tensor([[[0, 1], [3, 2]]]).expand(SHAPE[0], -1, -1).contiguous(),
        normal(rng, 1, 2, 2).expand(SHAPE[0], -1, -1).contiguous(),
        1 + uniform(rng, SHAPE[0], 2),
    )
    delta = 0.5 + uniform(rng, 1, SHAPE[1])
    gram = matrices(delta, Pairs(pairs.places[:1], pairs.weights[:1], pairs.offsets[:1]))[0]
    reference = normal(rng, *SHAPE)
    e = pairs.along(reference) - pairs.offsets
    ratio = pairs.spread(pairs.offsets.unsqueeze(-1) / pairs.weights, SHAPE[1])
    cross = delta * (ratio - reference) - pairs.spread(pairs.weights * e.unsqueeze(-1), SHAPE[1])
    statistics = op.Statistics(gram, cross.mT.contiguous(), 100 + uniform(rng, SHAPE[0]), 1, reference)
    return op.L0LeastSquares(statistics, pattern), delta.expand(SHAPE).contiguous(), pairs, normal(rng, *SHAPE)


def test_one_of_each_pair_is_an_equality_and_slightly_wrong_constants_break_it(rng):
    problem, delta, pairs, point = equality(rng, op.NOfM(1, 2))
    best = float(problem.objective(best_weight(problem)))
    assert bound(problem, delta, pairs, point) == pytest.approx(best, rel=1e-12)
    assert bound(problem, delta, pairs, point) <= best
    assert float(display(problem, delta, pairs, point)) == pytest.approx(best, rel=1e-13)
    for wrong in ({"charged": Fraction(999, 1000)}, {"lifted": Fraction(1001, 1000)}):
        assert float(display(problem, delta, pairs, point, **wrong)) > best * (1 + 1e-6)
    for larger in ((delta * 1.001, pairs), (delta, replace(pairs, weights=pairs.weights * 1.001))):
        assert not proves_pairs(problem.gram, *larger)
    assert not proves_pairs(problem.gram, delta, pairs), "nothing is left to prove the semidefinite rest with"
    assert proves_pairs(problem.gram, delta * ROOM, pairs)
    for offsets in (pairs.offsets * 1.001, pairs.offsets * 0.999):
        assert bound(problem, delta, replace(pairs, offsets=offsets), point) < best * (1 - 1e-12)


def display(
    problem: op.L0LeastSquares,
    minorant: torch.Tensor,
    pairs: Pairs,
    point: torch.Tensor,
    charged: Fraction = Fraction(1),
    lifted: Fraction = Fraction(1),
) -> Fraction:
    """The theorem's number in fractions, the maximum over all admissible supports one by one."""
    s, (rows, columns) = problem.statistics, problem.shape
    h, c, r, steps, delta = (rational(x) for x in (problem.gram, s.cross, s.reference, point - s.reference, minorant))
    total = sum((Fraction(v) for v in s.energy.tolist()), Fraction(0))
    scores = [[Fraction(0)] * columns for _ in range(rows)]
    for m in range(rows):
        p = steps[m]
        pa = [sum((p[i] * h[i][j] for i in range(columns)), Fraction(0)) - p[j] * delta[m][j] for j in range(columns)]
        g = [c[j][m] for j in range(columns)]
        charge = [Fraction(0)] * columns
        for place, weight, offset in zip(pairs.places[m].tolist(), pairs.weights[m], pairs.offsets[m], strict=True):
            a, t = {j: Fraction(float(w)) for j, w in zip(place, weight, strict=True)}, Fraction(float(offset))
            e = sum((a[j] * r[m][j] for j in place), -t)
            along = sum((a[j] * p[j] for j in place), Fraction(0))
            total += lifted * t**2 - e**2
            for j in place:
                pa[j] -= a[j] * along
                g[j] += e * a[j]
                charge[j] += charged * t**2 if a[j] else 0
        for j in range(columns):
            g[j] -= pa[j]
            total += delta[m][j] * r[m][j] ** 2 + 2 * g[j] * r[m][j] - p[j] * pa[j]
            quotient = (g[j] + delta[m][j] * r[m][j]) ** 2 / delta[m][j] if delta[m][j] else Fraction(0)
            scores[m][j] = quotient + charge[j]
    flat = [score for row in scores for score in row]
    admitted = (bits for bits in product((False, True), repeat=rows * columns) if admits(problem, bits))
    return (
        total - max(sum((f for f, kept in zip(flat, bits, strict=True) if kept), Fraction(0)) for bits in admitted)
    ) / 2


def admits(problem: op.L0LeastSquares, bits: tuple[bool, ...]) -> bool:
    return bool(problem.pattern.admits(torch.tensor(bits).reshape(problem.shape)))


def rational(matrix: torch.Tensor) -> list[list[Fraction]]:
    return [[Fraction(v) for v in row] for row in matrix.tolist()]


@pytest.mark.parametrize("pattern", [op.PerLayer(3), op.PerRow(2), op.NOfM(1, 2), op.Columns(2)], ids=str)
def test_the_computed_bound_is_below_the_display_in_fractions(pattern, rng):
    told = 0
    for count in (1, 2, 5, 8):
        problem = layer(rng, pattern, targets=3.0)
        minorant, pairs = random_evidence(problem, rng, count)
        centre = best_weight(problem)
        for spread in (0.0, 1.0):
            point = centre + spread * normal(rng, *SHAPE)
            value, expected = Fraction(bound(problem, minorant, pairs, point)), display(problem, minorant, pairs, point)
            assert value <= expected
            assert expected - value <= Fraction(1, 10**10) * (abs(expected) + 1)
            exact = exact_pair_bound(problem, minorant, pairs, point)
            assert exact.low <= max(expected, 0) <= exact.high
            assert exact.high - exact.low <= Fraction(1, 10**60) * (exact.high + 1)
            told += exact.low > 0
    assert told, "a bound of 0 would not notice a wrong formula"


@pytest.mark.parametrize("within", ["slope", "product", "sum"])
def test_what_cancels_is_paid_for(within, rng):
    r"""C makes the slope next to nothing, and so small a diagonal makes much of what is left of it.

    What cancels besides are the products of $a \cdot R$, or the terms of two pairs that point the same way.
    """
    off, size = 0, 1e6
    for _ in range(40):
        places = torch.tensor([[0, 1], [2, 3], [0, 1], [2, 3]]).repeat(SHAPE[0], 1, 1)
        half, reference = normal(rng, SHAPE[0], 2, 2), normal(rng, *SHAPE)
        if within == "product":
            reference = (size * torch.stack([half[..., 1], -half[..., 0]], -1)).flatten(1) + reference
        pairs = Pairs(places, torch.cat([half, half], 1), normal(rng, SHAPE[0], 4))
        point = reference + normal(rng, *SHAPE)
        if within == "sum":
            shift = size * normal(rng, SHAPE[0], 2)
            pairs = replace(pairs, offsets=pairs.offsets + torch.cat([shift, -shift], 1))
        e, along = pairs.along(reference) - pairs.offsets, pairs.along(point - reference)
        cross = point - reference - pairs.spread(pairs.weights * (e + along).unsqueeze(-1), SHAPE[1])
        statistics = op.Statistics(
            torch.eye(SHAPE[1], dtype=torch.float64), cross.mT.contiguous(), normal(rng, 2).square(), 1, reference
        )
        problem = op.L0LeastSquares(statistics, op.PerRow(4))
        tiny = torch.full(SHAPE, 1e-50, dtype=torch.float64)
        value, expected = Fraction(bound(problem, tiny, pairs, point)), display(problem, tiny, pairs, point)
        assert value <= expected
        off += expected < -(10**9)
    assert off, "nothing to pay for"


def test_gains_are_no_smaller_than_the_terms_and_no_pairs_give_the_bound_of_diagonals(rng):
    problem = layer(rng, op.PerLayer(3))
    minorant, pairs = random_evidence(problem, rng, 3)
    point, s = best_weight(problem), problem.statistics
    nothing = Pairs(pairs.places[:, :0], pairs.weights[:, :0], pairs.offsets[:, :0])
    padding = replace(pairs, weights=0 * pairs.weights, offsets=0 * pairs.offsets)
    plain = minorant_bound(problem.gram, s.cross, s.energy, s.reference, minorant, point, problem.pattern.support)
    assert bound(problem, minorant, nothing, point) == pytest.approx(plain, rel=1e-12)
    assert bound(problem, minorant, padding, point) == pytest.approx(plain, rel=1e-12)
    # A pair that is charged and has no weights changes nothing either: no weight can make use of it.
    idle = replace(pairs, weights=0 * pairs.weights, offsets=pairs.offsets + 1)
    assert bound(problem, minorant, idle, point) == pytest.approx(plain, rel=1e-12)
    value, gains = parts(problem, minorant, pairs, point)
    charge = pairs.spread((pairs.weights != 0) * pairs.offsets.square().unsqueeze(-1), SHAPE[1])
    assert bool((gains >= charge).all())
    # T12's hypothesis: the bound for any support is the bound plus the difference of the totals.
    best = problem.pattern.support(gains)
    for bits in product((False, True), repeat=8):
        mask = torch.tensor(bits).reshape(SHAPE)
        only = op.L0LeastSquares(problem.statistics, op.Fixed(mask))
        least = float(only.objective(best_weight(only)))
        assert least >= value + 0.5 * float(gains[best].sum() - gains[mask].sum()) - 1e-9


def test_pairs_close_a_gap_that_no_diagonal_closes(rng):
    r"""Remark (b): two correlated pairs, one weight kept of four, all alike; the best diagonal is the symmetric one."""
    rows, root = SHAPE[0], 0.75
    pairs = Pairs(
        torch.tensor([[[0, 1], [2, 3]]]).repeat(rows, 1, 1),
        torch.full((rows, 2, 2), root, dtype=torch.float64),
        torch.full((rows, 2), root, dtype=torch.float64),
    )
    delta = torch.full(SHAPE, 1 - root**2, dtype=torch.float64)
    zero, one = torch.zeros(SHAPE, dtype=torch.float64), torch.ones(SHAPE[1], rows, dtype=torch.float64)
    gram = matrices(delta, pairs)[0]
    problem = op.L0LeastSquares(op.Statistics(gram, one, 4 * one[0], 1, zero), op.PerRow(1))
    best, point = float(problem.objective(best_weight(problem))), torch.full(SHAPE, 0.25, dtype=torch.float64)
    assert best == pytest.approx(1.5 * rows, rel=1e-14)
    assert bound(problem, delta, pairs, point) == pytest.approx(best, rel=1e-13)
    assert display(problem, delta, pairs, point) == Fraction(3 * rows, 2)
    for wrong in ({"charged": Fraction(999, 1000)}, {"lifted": Fraction(1001, 1000)}):
        assert display(problem, delta, pairs, point, **wrong) > Fraction(3 * rows, 2)
    kept_too_much = replace(pairs, weights=1.001 * pairs.weights, offsets=1.001 * pairs.offsets)
    assert not proves_pairs(gram, delta, kept_too_much)
    least, highest = float(torch.linalg.eigvalsh(gram)[0]), 2 * rows - rows / (2 - root**2)
    reached = -torch.inf
    for spread in (0.0, 0.01, 0.1, 0.3):
        for share in (1.0, 0.9, 0.5):
            around = 1 / (4 - 2 * root**2) + spread * normal(rng, *SHAPE)
            flat = torch.full(SHAPE, share * least, dtype=torch.float64)
            s = problem.statistics
            reached = max(
                reached,
                minorant_bound(gram, s.cross, s.energy, s.reference, flat, around, problem.pattern.support),
            )
    assert reached == pytest.approx(highest, rel=1e-9)
    assert highest < 0.9 * best


@pytest.mark.parametrize("scale", [1.0, 2.0**-30, 2.0**30, 1e-150, 1e150])
def test_dead_and_badly_scaled_inputs_change_nothing(scale, rng):
    weight, inputs = normal(rng, *SHAPE), normal(rng, 30, SHAPE[1])
    inputs[:, 1] = 0
    live = torch.tensor([0, 2, 3])
    scales = torch.ones(SHAPE[1], dtype=torch.float64)
    scales[::2] = scale
    targets = inputs @ weight.mT + 3 * normal(rng, 30, SHAPE[0])
    plain, other = (
        op.L0LeastSquares(op.Statistics.from_samples(inputs * by, targets, weight / by), op.PerLayer(3))
        for by in (torch.ones_like(scales), scales)
    )
    minorant, pairs = random_evidence(plain, rng, 4, live)
    minorant, pairs = minorant * ROOM, replace(pairs, weights=pairs.weights * ROOM)
    stretched = minorant * scales * scales
    longer = replace(pairs, weights=pairs.weights * scales[pairs.places])
    assert proves_pairs(plain.gram, minorant, pairs)
    assert proves_pairs(other.gram, stretched, longer)
    point = best_weight(plain)
    value = bound(plain, minorant, pairs, point)
    assert value > 0
    assert bound(other, stretched, longer, point / scales) == pytest.approx(value, rel=1e-9)
    exact = exact_pair_bound(other, stretched, longer, point / scales)
    assert Fraction(bound(other, stretched, longer, point / scales)) <= exact.low
    touching = replace(pairs, places=torch.tensor([0, 1]).expand(2, 4, 2), weights=pairs.weights + 1e-9)
    assert not proves_pairs(plain.gram, minorant, touching)
    assert exact_pair_bound(plain, minorant, touching, point).high == 0


def test_a_gram_matrix_of_less_than_full_rank(rng):
    """More weights than samples: nothing positive lies below the Hessian, and nothing is claimed."""
    problem = op.L0LeastSquares.from_layer(normal(rng, *SHAPE), normal(rng, 3, SHAPE[1]), op.PerRow(2))
    _, pairs = random_evidence(layer(rng, op.PerRow(2)), rng, 3)
    small = torch.full(SHAPE, 1e-9, dtype=torch.float64)
    tiny = replace(pairs, weights=1e-6 * pairs.weights)
    assert not proves_pairs(problem.gram, small, tiny)
    evidence = {"minorant": small, "point": problem.dense, "pairs": pairs.places}
    evidence |= {"pair_weights": tiny.weights, "pair_offsets": tiny.offsets}
    assert recheck(problem, problem.dense, evidence).lower_bound == 0.0
    damped = op.L0LeastSquares(problem.statistics, problem.pattern, 0.1)
    assert proves_pairs(damped.gram, small, tiny)
