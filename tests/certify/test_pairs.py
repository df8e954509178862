"""Pairs as evidence: refused where they are malformed or too large, at every scale, from the file as from memory."""

import math
from dataclasses import replace
from fractions import Fraction

import pytest
import torch

import optprune as op
from optprune.bounds.pair_minorant import Pairs, pair_minorant_parts
from optprune.certify import LeastSquaresChecker, certify, certify_exact, recheck
from optprune.certify._exact_pairs import exact_pair_bound, proves_pairs_exactly
from optprune.certify._perspective import scaled_minorant
from optprune.certify.least_squares import proves_minorant, proves_pairs, strengthen
from optprune.network import files
from optprune.network.export import export
from optprune.network.verify import examine, verify
from optprune.problems import L0LeastSquares
from tests.certify.test_least_squares import PATTERNS, layer, optimum
from tests.network.example_runs import mlp, pruned_run


def evidence_of(problem, count=6, share=0.2, seed=0):
    """The evidence of diagonals, a part of each diagonal given up for random pairs, and some padding."""
    rng = torch.Generator().manual_seed(seed)
    rows = problem.shape[0]
    shared = scaled_minorant(problem.gram)
    minorant, point = strengthen(problem, shared, problem.pattern.project(problem.dense), 1e9)
    minorant = minorant.expand(problem.shape)
    live = (problem.gram.diagonal() > 0).nonzero().squeeze(-1)
    places = live[torch.rand(rows, count, len(live), generator=rng).topk(2, -1).indices]
    # Less of the diagonal than each pair can take: half of what its two inputs have, divided by all pairs.
    room = minorant.gather(1, places.flatten(1)).view(places.shape) * share / (2 * count)
    weights = room.sqrt() * torch.randn(rows, count, 2, generator=rng, dtype=torch.float64).clamp(-1, 1)
    weights[:, -1] = 0.0
    pairs = Pairs(places, weights, weights[..., 0])
    offsets = 0.5 * pairs.along(point)
    found = {"minorant": minorant * (1 - share), "point": point, "pairs": places}
    return found | {"pair_weights": weights, "pair_offsets": offsets}


def read(evidence):
    return evidence["minorant"], Pairs(*(evidence[name] for name in ("pairs", "pair_weights", "pair_offsets")))


@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
def test_the_certificate_is_below_the_exact_one_and_the_optimum(pattern):
    problem = L0LeastSquares.from_layer(*layer(0), pattern, damping=0.01)
    matrix, evidence = problem.pattern.project(problem.dense), evidence_of(problem)
    certificate, exact = recheck(problem, matrix, evidence), certify_exact(problem, matrix, evidence)
    assert certificate.theorem == exact.theorem == "T25"
    assert {"proved_pruned", "proved_kept"} <= set(certificate.details)
    assert 0 < certificate.lower_bound <= exact.lower_bound.low
    assert exact.lower_bound.low - Fraction(certificate.lower_bound) <= Fraction(1, 10**10) * exact.objective.high
    assert exact.lower_bound.high <= optimum(problem) * (1 + 1e-12)
    assert exact.width <= 1e-60


def test_masks_are_bounded_beside_pairs():
    problem = L0LeastSquares.from_layer(*layer(0), op.PerRow(3), damping=0.01)
    matrix = problem.pattern.project(problem.dense)
    _, diagonal = certify(problem, matrix)
    assert "mask_point" in diagonal
    certificate = recheck(problem, matrix, evidence_of(problem) | {"mask_point": diagonal["mask_point"]})
    assert certificate.details["mask_only_lower_bound"] >= certificate.lower_bound > 0


def changed(name, change):
    def forge(evidence):
        forged = evidence[name].clone()
        return evidence | {name: change(forged)}

    return forge


def put(index, value):
    def change(tensor):
        tensor[index] = value
        return tensor

    return change


FORGED = {
    "a place too high": changed("pairs", put((0, 0, 0), 8)),
    "a negative place": changed("pairs", put((0, 0, 0), -1)),
    "twice the same place": changed("pairs", lambda x: put((1, 2, 0), int(x[1, 2, 1]))(x)),
    "the same place in padding": changed("pairs", lambda x: put((1, -1, 0), int(x[1, -1, 1]))(x)),
    "places as int32": changed("pairs", lambda x: x.int()),
    "places as floats": changed("pairs", lambda x: x.double()),
    "weights in float32": changed("pair_weights", lambda x: x.float()),
    "whole weights": changed("pair_weights", lambda x: x.long()),
    "offsets in float32": changed("pair_offsets", lambda x: x.float()),
    "a weight that is no number": changed("pair_weights", put((0, 1, 0), math.nan)),
    "an infinite weight": changed("pair_weights", put((0, 1, 0), math.inf)),
    "an offset that is no number": changed("pair_offsets", put((1, 1), math.nan)),
    "an infinite offset": changed("pair_offsets", put((1, 1), -math.inf)),
    "a point that is no number": changed("point", put((1, 1), math.nan)),
    "a minorant that is no number": changed("minorant", put((1, 1), math.nan)),
    "a row less of places": changed("pairs", lambda x: x[:1]),
    "a pair less of weights": changed("pair_weights", lambda x: x[:, 1:]),
    "a pair less of offsets": changed("pair_offsets", lambda x: x[:, 1:]),
    "three places": changed("pairs", lambda x: torch.cat([x, x[..., :1]], -1)),
    "flat places": changed("pairs", lambda x: x.flatten()),
    "a number for places": changed("pairs", lambda x: x[0, 0, 0]),
    "a minorant of another shape": changed("minorant", lambda x: x[:, 1:]),
    "a point of another shape": changed("point", lambda x: x[:1]),
    "no weights": lambda evidence: {name: x for name, x in evidence.items() if name != "pair_weights"},
    "no offsets": lambda evidence: {name: x for name, x in evidence.items() if name != "pair_offsets"},
    "weights too large": changed("pair_weights", lambda x: 1e3 * x),
    "a huge weight": changed("pair_weights", put((0, 1, 0), 1e308)),
    "a huge minorant": changed("minorant", put((0, 1), 1e308)),
    "a negative minorant": changed("minorant", lambda x: -x),
    "a minorant of 0": changed("minorant", put((0, 1), 0.0)),
}


@pytest.mark.parametrize("forge", FORGED.values(), ids=FORGED.keys())
def test_malformed_evidence_claims_nothing(forge):
    problem = L0LeastSquares.from_layer(*layer(0), op.PerRow(3), damping=0.01)
    matrix, evidence = problem.pattern.project(problem.dense), evidence_of(problem)
    assert recheck(problem, matrix, evidence).lower_bound > 0
    assert recheck(problem, matrix, forge(evidence)).lower_bound == 0.0
    assert certify_exact(problem, matrix, forge(evidence)).lower_bound.high == 0


def test_huge_offsets_give_a_weak_bound_and_no_error():
    problem = L0LeastSquares.from_layer(*layer(0), op.PerRow(3), damping=0.01)
    matrix, evidence = problem.pattern.project(problem.dense), evidence_of(problem)
    for offset in (1e3, 1e150, 1e200, 1.7e308):
        huge = evidence | {"pair_offsets": evidence["pair_offsets"] + offset}
        assert recheck(problem, matrix, huge).lower_bound == 0.0
        assert certify_exact(problem, matrix, huge).lower_bound.high == 0


def test_pairs_on_dead_inputs_are_refused_unless_they_have_no_weight():
    weight, inputs = layer(5)
    inputs[:, 3] = 0
    problem = L0LeastSquares.from_layer(weight, inputs, op.PerRow(3))
    matrix, evidence = problem.pattern.project(problem.dense), evidence_of(problem)
    honest = recheck(problem, matrix, evidence).lower_bound
    assert honest > 0
    padded = evidence | {"pairs": evidence["pairs"].clone(), "pair_offsets": evidence["pair_offsets"].clone()}
    padded["pairs"][:, -1] = torch.tensor([3, 0])
    assert recheck(problem, matrix, padded).lower_bound == pytest.approx(honest, rel=1e-12)
    padded["pair_offsets"][:, -1] = 0.1  # charged to nobody
    assert recheck(problem, matrix, padded).lower_bound == pytest.approx(honest, rel=1e-12)
    for tiny in (1e-9, 5e-324):
        touching = padded | {"pair_weights": evidence["pair_weights"].clone()}
        touching["pair_weights"][1, -1, 0] = tiny
        assert recheck(problem, matrix, touching).lower_bound == 0.0
        assert certify_exact(problem, matrix, touching).lower_bound.high == 0
    dead = evidence | {"minorant": evidence["minorant"].clone()}
    dead["minorant"][0, 3] = 1e-300
    assert recheck(problem, matrix, dead).lower_bound == 0.0


def test_semidefiniteness_is_decided_near_the_boundary():
    """[[1, c], [c, 1]] less d I less (1, 1)(1, 1)^T / 4 is semidefinite exactly when d is at most 1 - c."""
    c, root = 0.5625, 0.5
    gram = torch.tensor([[1, c], [c, 1]], dtype=torch.float64)
    pairs = Pairs(
        torch.tensor([[[0, 1]]]),
        torch.full((1, 1, 2), root, dtype=torch.float64),
        torch.zeros(1, 1, dtype=torch.float64),
    )
    flipped = replace(pairs, places=pairs.places.flip(-1))
    halves = Pairs(pairs.places.repeat(1, 4, 1), pairs.weights.repeat(1, 4, 1) / 2, pairs.offsets.repeat(1, 4))
    for margin, holds in ((2.0**-40, True), (2.0**-45, True), (-(2.0**-52), False), (-(2.0**-40), False)):
        delta = torch.full((1, 2), 1 - c - margin, dtype=torch.float64)
        for same in (pairs, flipped, halves):
            assert proves_pairs(gram, delta, same) is holds
            assert proves_pairs_exactly(gram, delta, same) is holds
    delta = torch.full((1, 2), 0.25, dtype=torch.float64)
    longest = math.sqrt((1 + c - 0.25) / 2)  # along (1, 1); the other direction has room
    for factor, holds in ((1 - 1e-12, True), (1 + 1e-12, False), (1 + 1e-9, False)):
        other = replace(pairs, weights=pairs.weights / root * longest * factor)
        assert proves_pairs(gram, delta, other) is holds
        assert proves_pairs_exactly(gram, delta, other) is holds
    skew = gram.clone()
    skew[0, 1] += 2.0**-40
    assert not proves_pairs(skew, delta, pairs)
    assert not proves_pairs_exactly(skew, delta, pairs)


def test_rows_are_proved_one_by_one_whatever_the_memory():
    problem = L0LeastSquares.from_layer(*layer(0, rows=5), op.PerRow(3), damping=0.01)
    minorant, pairs = read(evidence_of(problem))
    for memory in (0, 1, 48 * 64 * 2, 2**30):
        assert proves_pairs(problem.gram, minorant, pairs, memory=memory)
    for row in range(5):
        forged = pairs.weights.clone()
        forged[row] *= 30
        assert not proves_pairs(problem.gram, minorant, replace(pairs, weights=forged), memory=48 * 64 * 2)
        assert not proves_pairs_exactly(problem.gram, minorant, replace(pairs, weights=forged))


def test_without_pairs_it_proves_what_is_proved_of_a_diagonal():
    for seed in range(5):
        problem = L0LeastSquares.from_layer(*layer(seed), op.PerRow(3))
        evidence = evidence_of(problem, seed=seed)
        _, pairs = read(evidence)
        none = Pairs(pairs.places[:, :0], pairs.weights[:, :0], pairs.offsets[:, :0])
        for factor in (0.5, 0.999999, 1.0, 1.001):
            minorant = scaled_minorant(problem.gram) * factor
            assert proves_pairs(problem.gram, minorant, none) is proves_minorant(problem.gram, minorant)


@pytest.mark.parametrize("pattern", [op.PerRow(3), op.PerLayer(7), op.Columns(4)], ids=repr)
def test_the_bound_is_below_the_exact_one_at_every_scale(pattern, rng):
    base = L0LeastSquares.from_layer(*layer(1), pattern, 0.01)
    evidence, s, told = evidence_of(base), base.statistics, 0
    minorant, pairs = read(evidence)
    for gram in (2.0**k for k in (-1040, -1000, -600, -40, 0, 600, 1000)):
        for weight in (2.0**k for k in (-500, -60, 0, 300, 500)):
            if not gram <= 2.0**1000 / weight**2:
                continue
            statistics = replace(s, gram=s.gram * gram, reference=s.reference * weight)
            problem = L0LeastSquares(statistics, pattern, 0.01)
            noise = 1e-3 * torch.randn(2, 8, generator=rng, dtype=torch.float64)
            point = (evidence["point"] + noise) * weight
            delta = minorant * gram * (1 - 1e-9)
            a = pairs.weights * (2.0 ** (math.log2(gram) / 2)) * (1 - 1e-9)
            t = pairs.offsets * (2.0 ** (math.log2(gram) / 2)) * weight
            scaled = Pairs(pairs.places, a, t)
            value, gains = pair_minorant_parts(
                problem.gram, s.cross, s.energy, statistics.reference, delta, scaled, point, pattern.support
            )
            if not proves_pairs(problem.gram, delta, scaled):
                assert gram <= 2.0**-1000, "only subnormal numbers spoil the proof"
                continue
            assert value < math.inf
            assert bool((gains >= 0).all())
            assert max(0.0, value) <= exact_pair_bound(problem, delta, scaled, point).low
            told += value > 0
    assert told >= 10


def test_evidence_with_pairs_survives_files_and_verification(tmp_path, monkeypatch):
    """int64 places come back as they were, and a forged one is found."""
    monkeypatch.setattr(LeastSquaresChecker, "evidence", lambda self, problem, matrix, hint: evidence_of(problem))
    samples = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))
    model, report = pruned_run(mlp(), samples)
    (first, *_) = report.layers
    run = export(model, report, tmp_path / "run")
    verification = verify(run, exact=True)
    assert str(verification).count("theorem T25") == 3
    path = run / "evidence/0.safetensors"
    stored, header = files.read_tensors(path)
    for name, tensor in first.parts[0].evidence.items():
        assert stored[f"0.evidence.{name}"].dtype == tensor.dtype
        assert torch.equal(stored[f"0.evidence.{name}"], tensor)
    assert stored["0.evidence.pairs"].dtype == torch.int64
    stored["0.evidence.pairs"][0, 0, 0] = 8
    files.write_tensors(path, stored, header)
    assert any("lower_bound" in finding.message for finding in examine(run).findings)
