"""The minorant-split bound: below the optimum for any evidence, and refused when the evidence is wrong."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import optprune as op
from optprune.bounds.minorant import minorant_bound
from optprune.certify import LeastSquaresChecker, _by_blocks, _tighten, certify, least_squares, recheck
from optprune.certify._accelerate import accelerate
from optprune.certify._perspective import Perspective, scaled_minorant
from optprune.certify.least_squares import proves_minorant, strengthen
from optprune.errors import InvalidInputError
from optprune.problems import L0LeastSquares
from optprune.testing.instances import data

PATTERNS = [
    op.PerRow(3),
    op.PerLayer(7),
    op.NOfM(2, 4),
    op.NOfM(1, 2),
    op.Blocks(1, 2, 4),
    op.Rows(1),
    op.Columns(4),
    op.Fixed(torch.arange(16).reshape(2, 8) % 2 == 0),
]


def layer(seed, rows=2, inputs=8, samples=40, scales=1.0):
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, inputs, generator=rng, dtype=torch.float64)
    mix = torch.randn(inputs, inputs, generator=rng, dtype=torch.float64) * 0.15 + torch.eye(
        inputs, dtype=torch.float64
    )
    return torch.randn(rows, inputs, generator=rng, dtype=torch.float64), x @ mix * scales


def optimum(problem):
    return float(problem.objective(op.Exhaustive().run(problem).matrix))


@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
@pytest.mark.parametrize("seed", range(3))
def test_bound_is_below_the_optimum_and_close(pattern, seed):
    problem = L0LeastSquares.from_layer(*layer(seed), pattern)
    best = optimum(problem)
    certificate, evidence = certify(problem, op.ADMM().run(problem).matrix)
    assert certificate.lower_bound <= best
    assert certificate.lower_bound >= 0.25 * best  # diagonal minorants reach this on well-conditioned inputs
    assert recheck(problem, problem.pattern.project(problem.dense), evidence).lower_bound == certificate.lower_bound


@given(st.integers(0, 10**6), st.sampled_from(PATTERNS), st.floats(0.01, 1.0))
def test_any_point_and_any_smaller_minorant_bound_the_optimum(seed, pattern, shrink):
    problem = L0LeastSquares.from_layer(*layer(seed), pattern)
    rng = torch.Generator().manual_seed(seed)
    evidence = {
        "minorant": scaled_minorant(problem.gram) * shrink,
        "point": problem.dense + torch.randn(2, 8, generator=rng, dtype=torch.float64),
    }
    assert recheck(problem, problem.dense, evidence).lower_bound <= optimum(problem)


def test_a_minorant_that_is_too_large_proves_nothing():
    problem = L0LeastSquares.from_layer(*layer(0), op.PerRow(3))
    minorant = scaled_minorant(problem.gram)
    assert proves_minorant(problem.gram, minorant)
    assert not proves_minorant(problem.gram, minorant * 1.001)
    honest = recheck(problem, problem.dense, {"minorant": minorant, "point": problem.dense * 0.5})
    forged = recheck(problem, problem.dense, {"minorant": minorant * 1.001, "point": problem.dense * 0.5})
    assert forged.lower_bound == 0.0 <= honest.lower_bound


def test_rows_with_minorants_of_their_own_are_proved_one_by_one():
    problem = L0LeastSquares.from_layer(*layer(0, rows=3), op.PerRow(3))
    _, evidence = certify(problem, problem.pattern.project(problem.dense))
    assert evidence["minorant"].shape == problem.shape
    honest = recheck(problem, problem.dense, evidence)
    assert 0 < honest.lower_bound <= optimum(problem)
    forged = evidence["minorant"].clone()
    forged[1] *= 3
    assert recheck(problem, problem.dense, evidence | {"minorant": forged}).lower_bound == 0.0


def correlated(rng, size, neighbour):
    """200 normal samples whose inputs j and k have the correlation neighbour ** |j - k|."""
    correlation = neighbour ** (torch.arange(size)[:, None] - torch.arange(size)).abs().double()
    return torch.randn(200, size, generator=rng, dtype=torch.float64) @ torch.linalg.cholesky(correlation).mT


@pytest.mark.parametrize("pattern", [op.PerRow(4), op.PerLayer(48), op.NOfM(2, 4), op.Columns(8)], ids=repr)
def test_minorants_of_the_rows_own_tighten_the_bound(pattern):
    """Correlated inputs: the shared scaled minorant leaves a gap that the rows' own close by a good part."""
    rng = torch.Generator().manual_seed(3)
    inputs = correlated(rng, 16, 0.7)
    weight = torch.randn(12, 16, generator=rng, dtype=torch.float64)
    problem = L0LeastSquares.from_layer(weight, inputs, pattern)
    start = op.ADMM().run(problem).matrix
    shared = scaled_minorant(problem.gram)
    relaxation = Perspective.of(problem, shared)
    growth = 1e-5 * float(problem.objective(start))
    point = relaxation.leave(accelerate(relaxation, relaxation.enter(start), growth))
    plain = recheck(problem, start, {"minorant": shared, "point": point})
    own, _ = certify(problem, start)
    assert plain.lower_bound < own.lower_bound <= own.objective
    assert own.objective - own.lower_bound < 0.8 * (plain.objective - plain.lower_bound)


def test_every_effort_gives_a_valid_bound_and_more_effort_a_better_one():
    weight, inputs = layer(9, rows=6, inputs=8)
    problem = L0LeastSquares.from_layer(weight, inputs, op.PerRow(3))
    start = op.ADMM().run(problem).matrix
    work = 6 * 8**3
    bounds = [
        certify(problem, start, checker=LeastSquaresChecker(effort))[0].lower_bound
        for effort in (1.0, 20 * work, 3 * 14 * work)
    ]
    assert 0 < bounds[0] <= bounds[1] <= bounds[2] <= optimum(problem)


def test_outputs_without_weights_do_not_spoil_the_proof_of_the_others():
    """In single precision their minorant never moves from the first one, which lies on the boundary."""
    rng = torch.Generator().manual_seed(5)
    inputs = torch.randn(640, 160, generator=rng, dtype=torch.float64)
    weight = torch.randn(12, 160, generator=rng, dtype=torch.float64)
    weight[[2, 7]] = 0.0
    for pattern in (op.PerRow(40), op.NOfM(4, 8), op.NOfM(2, 4)):
        problem = L0LeastSquares.from_layer(weight, inputs, pattern)
        certificate, _ = certify(problem, op.ADMM().run(problem).matrix)
        assert certificate.lower_bound > 0.5 * certificate.objective


@pytest.mark.parametrize("pattern", [op.PerRow(40), op.NOfM(2, 4)], ids=repr)
@pytest.mark.parametrize("scale", [1e-50, 1e50])
def test_inputs_beyond_single_precision_have_the_same_gap(pattern, scale):
    rng = torch.Generator().manual_seed(5)
    inputs = torch.randn(640, 160, generator=rng, dtype=torch.float64)
    weight = torch.randn(12, 160, generator=rng, dtype=torch.float64)
    gaps = []
    for factor in (1.0, scale):
        problem = L0LeastSquares.from_layer(weight, inputs * factor, pattern)
        gaps.append(certify(problem, op.ADMM().run(problem).matrix)[0].relative_gap)
    assert gaps[0] < 0.2
    assert gaps[1] == pytest.approx(gaps[0], abs=1e-3)


def test_an_objective_below_the_rounding_of_single_precision_is_searched_in_double():
    """Five weights pruned of the whole layer: a few billionths of what pruning everything costs."""
    rng = torch.Generator().manual_seed(0)
    inputs = torch.randn(640, 160, generator=rng, dtype=torch.float64)
    weight = torch.randn(16, 160, generator=rng, dtype=torch.float64)
    problem = L0LeastSquares.from_layer(weight, inputs, op.PerLayer(16 * 160 - 5))
    certificate, _ = certify(problem, op.ADMM().run(problem).matrix)
    assert certificate.objective < 1e-7 * float(problem.energy.sum())
    assert certificate.relative_gap < 0.01


@pytest.mark.parametrize("pattern", [op.PerRow(10), op.NOfM(2, 4)], ids=repr)
def test_more_rounds_give_a_better_bound(pattern):
    rng = torch.Generator().manual_seed(3)
    weight = torch.randn(12, 40, generator=rng, dtype=torch.float64)
    problem = L0LeastSquares.from_layer(weight, correlated(rng, 40, 0.8), pattern)
    start = op.ADMM().run(problem).matrix
    gaps = [
        certify(problem, start, checker=LeastSquaresChecker(1e15, 0.0, rounds))[0].relative_gap for rounds in (1, 7, 30)
    ]
    assert gaps[0] > gaps[1] > gaps[2] > 0


@pytest.mark.parametrize("wrong", [{"effort": -1.0}, {"tolerance": float("nan")}, {"max_rounds": 0}], ids=str)
def test_settings_out_of_range(wrong):
    with pytest.raises(InvalidInputError, match=next(iter(wrong))):
        LeastSquaresChecker(**wrong)


def test_enough_gradient_steps_are_made_where_the_effort_allows_none():
    """Eigenvalues 1/j: the bound ends near where the gradient method leads, which 50 steps do not reach."""
    rng = torch.Generator().manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(128, 128, generator=rng, dtype=torch.float64)).Q
    inputs = torch.randn(512, 128, generator=rng, dtype=torch.float64)
    inputs = inputs * torch.arange(1, 129, dtype=torch.float64).rsqrt() @ rotation
    weight = torch.randn(16, 128, generator=rng, dtype=torch.float64)
    problem = L0LeastSquares.from_layer(weight, inputs, op.PerLayer.at_density(0.3, (16, 128)))
    start = op.ADMM().run(problem).matrix
    relaxation = Perspective.of(problem, scaled_minorant(problem.gram))
    few, many = (
        relaxation.leave(accelerate(relaxation, relaxation.enter(start), 0.0, max_steps=steps)) for steps in (50, 2000)
    )
    none, _ = certify(problem, start, checker=LeastSquaresChecker(effort=1.0))
    short, best = (
        recheck(problem, start, {"minorant": scaled_minorant(problem.gram), "point": point}).lower_bound
        for point in (few, many)
    )
    assert short < 0.9 * best
    assert 0.98 * best < none.lower_bound <= best * (1 + 1e-6)


def test_groups_get_blocks_that_tighten_the_bound():
    """Correlated inputs, 2:4: blocks close a good part of the gap that diagonal minorants of the rows' own leave."""
    rng = torch.Generator().manual_seed(3)
    inputs = correlated(rng, 16, 0.7)
    inputs[:, 5] = 0.0
    problem = L0LeastSquares.from_layer(torch.randn(12, 16, generator=rng, dtype=torch.float64), inputs, op.NOfM(2, 4))
    start = op.Portfolio().run(problem).matrix
    certificate, evidence = certify(problem, start)
    assert certificate.theorem == "T10"
    assert evidence["blocks"].shape == (12, 2, 8, 8)
    assert sorted(evidence["groups"].flatten().tolist()) == [0, 1, 2, 3]
    minorant, point = strengthen(problem, scaled_minorant(problem.gram), start, 1e12)
    single = recheck(problem, start, {"minorant": minorant, "point": point})
    assert single.theorem == "T03"
    assert single.lower_bound < certificate.lower_bound <= optimum(problem)
    assert certificate.gap < 0.8 * single.gap
    for forged in (evidence["blocks"] * 1.5, evidence["blocks"][:, :, :2, :2], -evidence["blocks"]):
        assert recheck(problem, start, evidence | {"blocks": forged}).lower_bound == 0.0
    shared = {"blocks": 0.5 * evidence["blocks"].amin(0) * torch.eye(8)}
    assert recheck(problem, start, evidence | shared).lower_bound <= optimum(problem)


@pytest.mark.parametrize("pattern", [op.PerRow(40), op.PerLayer(240), op.NOfM(2, 4)], ids=repr)
def test_a_search_in_single_precision_loses_next_to_nothing(pattern, monkeypatch):
    """Well-conditioned inputs, which are searched in float32; the evidence is proved in float64 either way."""
    rng = torch.Generator().manual_seed(5)
    inputs = torch.randn(600, 132, generator=rng, dtype=torch.float64)
    inputs[:, 17] = 0.0
    weight = torch.randn(6, 132, generator=rng, dtype=torch.float64)
    problem = L0LeastSquares.from_layer(weight, inputs, pattern)
    start = op.ADMM().run(problem).matrix
    for search in ("by_moments", "by_newton"):
        monkeypatch.setattr(least_squares, search, lambda *_, **__: None)
    single, evidence = certify(problem, start)
    assert all(tensor.dtype == torch.float64 for name, tensor in evidence.items() if name != "groups")
    for module in (_tighten, _by_blocks):
        monkeypatch.setattr(module, "WORTHWHILE", 10**9)
    double, _ = certify(problem, start)
    assert single.lower_bound == pytest.approx(double.lower_bound, rel=5e-3)
    assert single.lower_bound != double.lower_bound
    assert single.relative_gap < 0.2


@pytest.mark.parametrize("decay", [2.0, 4.0])
@pytest.mark.parametrize("pattern", [op.PerRow(20), op.NOfM(2, 4)], ids=repr)
def test_a_search_too_rough_for_its_layer_ends_with_a_valid_bound(pattern, decay, monkeypatch):
    """Float32 forced upon layers whose condition it is not chosen for."""
    rng = torch.Generator().manual_seed(6)
    turn = torch.linalg.qr(torch.randn(40, 40, generator=rng, dtype=torch.float64)).Q
    inputs = torch.randn(200, 40, generator=rng, dtype=torch.float64) * torch.logspace(0, -decay, 40) @ turn
    weight = torch.randn(4, 40, generator=rng, dtype=torch.float64)
    problem = L0LeastSquares.from_layer(weight, inputs, pattern)
    start = op.ADMM().run(problem).matrix
    for module in (_by_blocks, least_squares):
        monkeypatch.setattr(module, "search_precision", lambda *_: (torch.float32, 0.4))
    certificate, _ = certify(problem, start)
    assert 0 <= certificate.lower_bound <= certificate.objective


def test_the_bound_without_its_minorant_proof_would_be_wrong():
    """The proof of the minorant matters: with a minorant too large, the formula passes the optimum."""
    problem = L0LeastSquares.from_layer(*layer(1), op.PerRow(3))
    s = problem.statistics
    minorant = scaled_minorant(problem.gram) * 1.05
    smallest, vectors = torch.linalg.eigh(problem.gram - torch.diag(minorant))
    assert smallest[0] < 0
    point = problem.dense + 1e3 * vectors[:, 0]
    claimed = minorant_bound(problem.gram, s.cross, s.energy, s.reference, minorant, point, problem.pattern.support)
    assert claimed > optimum(problem)


def test_whole_support_gives_zero_and_empty_support_gives_the_energy():
    weight, inputs = layer(2)
    full = L0LeastSquares.from_layer(weight, inputs, op.PerRow(8))
    assert certify(full, weight)[0].objective == 0.0 == certify(full, weight)[0].relative_gap
    empty = L0LeastSquares.from_layer(weight, inputs, op.PerRow(0))
    certificate, _ = certify(empty, torch.zeros_like(weight))
    assert certificate.relative_gap <= 1e-4
    assert certificate.lower_bound <= certificate.objective


def test_cascade_targets_are_bounded_too():
    weight, inputs = layer(3)
    noisy = inputs + 0.1 * torch.randn(inputs.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    problem = L0LeastSquares(op.Statistics.from_samples(noisy, inputs @ weight.T, weight), op.PerRow(3), 0.01)
    certificate, _ = certify(problem, op.ADMM().run(problem).matrix)
    assert 0.25 * optimum(problem) <= certificate.lower_bound <= optimum(problem)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_badly_scaled_inputs_do_not_weaken_the_bound(scale):
    weight, inputs = layer(4)
    scales = torch.ones(8, dtype=torch.float64)
    scales[::2] = scale
    plain = L0LeastSquares.from_layer(weight, inputs, op.PerRow(3))
    scaled = L0LeastSquares.from_layer(weight / scales, inputs * scales, op.PerRow(3))
    assert certify(scaled, scaled.dense * 0)[0].lower_bound == pytest.approx(
        certify(plain, plain.dense * 0)[0].lower_bound, rel=1e-2
    )


def test_dead_inputs_are_left_out():
    weight, inputs = layer(5)
    alive = certify(L0LeastSquares.from_layer(weight, inputs, op.PerRow(3)), weight * 0)[0]
    dead_inputs = torch.cat([inputs, torch.zeros(len(inputs), 2, dtype=torch.float64)], 1)
    dead_weight = torch.cat([weight, torch.ones(2, 2, dtype=torch.float64)], 1)
    dead = certify(L0LeastSquares.from_layer(dead_weight, dead_inputs, op.PerRow(3)), dead_weight * 0)[0]
    assert dead.lower_bound == pytest.approx(alive.lower_bound, rel=1e-3)


def test_a_group_of_dead_inputs_takes_no_part_in_the_blocks():
    """Nor does a dead input beside live ones change what they are worth."""
    weight, inputs = data(4, inputs=28, samples=200)
    inputs[:, 5] = 0
    alive = L0LeastSquares.from_layer(weight, inputs, op.NOfM(2, 4))
    # Two groups of four in front, none of whose inputs is ever seen.
    wide = torch.cat([torch.zeros(len(inputs), 8, dtype=torch.float64), inputs], 1)
    dense = torch.cat([torch.ones(len(weight), 8, dtype=torch.float64), weight], 1)
    dead = L0LeastSquares.from_layer(dense, wide, op.NOfM(2, 4))
    matrix = op.Portfolio().run(alive).matrix
    padded = torch.cat([torch.zeros(len(weight), 8, dtype=torch.float64), matrix], 1)
    here, _ = certify(alive, matrix)
    there, evidence = certify(dead, padded)
    assert set(evidence) == {"blocks", "groups", "point"}
    assert evidence["groups"][-1].tolist() == [0, 1]
    assert bool((evidence["blocks"][:, -1] == 0).all())
    assert bool((evidence["point"][:, :8] == 0).all())
    assert there.lower_bound == pytest.approx(here.lower_bound, rel=1e-6)
    assert 0.5 * here.objective < here.lower_bound <= here.objective


def test_a_singular_gram_gives_a_vacuous_bound_in_plain_sight():
    weight, inputs = layer(6, samples=4)
    problem = L0LeastSquares.from_layer(weight, inputs, op.PerRow(3))
    certificate, _ = certify(problem, problem.pattern.project(weight))
    assert certificate.lower_bound == 0.0
    assert certificate.vacuous
    assert "vacuous" in str(certificate)
    damped = L0LeastSquares.from_layer(weight, inputs, op.PerRow(3), damping=0.1)
    assert not certify(damped, damped.pattern.project(weight))[0].vacuous


def test_rounding_is_subtracted(monkeypatch):
    """In exact rational arithmetic the bound of the same evidence is at least the reported one."""
    from fractions import Fraction

    monkeypatch.setattr(least_squares, "by_newton", lambda *_, **__: None)  # a minorant without pairs
    weight, inputs = layer(7, rows=1, inputs=4)
    problem = L0LeastSquares.from_layer(weight, inputs, op.PerRow(2))
    _, evidence = certify(problem, problem.pattern.project(weight))

    def exact(t):
        return [[Fraction(float(v)) for v in row] for row in t.reshape(-1, t.shape[-1])]

    gram, cross = exact(problem.gram), [r[0] for r in exact(problem.statistics.cross)]
    (r,), (v,), (delta,) = exact(weight), exact(evidence["point"]), exact(evidence["minorant"])
    p = [a - b for a, b in zip(v, r, strict=True)]
    pa = [sum(p[i] * gram[i][j] for i in range(4)) - p[j] * delta[j] for j in range(4)]
    g = [cross[j] - pa[j] for j in range(4)]
    gains = sorted(((g[j] + delta[j] * r[j]) ** 2 / delta[j] for j in range(4)), reverse=True)
    value = Fraction(float(problem.statistics.energy[0])) - sum(p[j] * pa[j] for j in range(4))
    value += sum(delta[j] * r[j] ** 2 + 2 * g[j] * r[j] for j in range(4)) - sum(gains[:2])
    reported = recheck(problem, weight, evidence).lower_bound
    assert Fraction(reported) <= value / 2
    assert float(value / 2) - reported <= 1e-10 * reported


def test_checker_declares_its_theorem():
    assert LeastSquaresChecker.theorem == "T03"


def test_a_target_on_a_dead_input_voids_the_bound():
    """No data has such statistics; made by hand they leave the objective without a lower end."""
    weight, inputs = layer(8)
    inputs[:, 0] = 0.0
    honest = L0LeastSquares.from_layer(weight, inputs, op.PerRow(3))
    s = honest.statistics
    cross = s.cross.clone()
    cross[0] = 1.0
    forged = L0LeastSquares(op.Statistics(s.gram, cross, s.energy, s.count, s.reference), honest.pattern)
    _, evidence = certify(honest, honest.pattern.project(weight))
    assert recheck(honest, weight, evidence).lower_bound > 0
    assert recheck(forged, weight, evidence).lower_bound == 0.0
