"""Certificates on held-out points: their coverage over many splits, their claims, their misuse."""

import copy
import json
import math

import pytest
import torch
from scipy.stats import binom
from torch import Tensor, nn

import optprune as op
from optprune.bounds.conformal import conditional_rank, conformal_rank, order_bound
from optprune.errors import InvalidInputError, UnsupportedError
from optprune.network.held_out import certified_candidates, held_out


def network(rng: torch.Generator) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng, dtype=torch.float64))
    return model


def points(rng: torch.Generator, n: int) -> Tensor:
    return torch.randn(n, 6, generator=rng, dtype=torch.float64)


def pruned_to(model: nn.Module, density: float, rng: torch.Generator) -> nn.Module:
    plan = op.plan.uniform(model, density)
    return op.prune(model, points(rng, 100), plan, op.PivotalEdges(derandomise=True), certified=False, bound=False)[0]


def scores(dense: nn.Module, pruned: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return (pruned(x) - dense(x)).norm(dim=-1) / dense(x).norm(dim=-1)


def test_claims_are_order_statistics(rng):
    dense = network(rng)
    pruned = pruned_to(dense, 0.5, rng)
    x = points(rng, 120)
    found = held_out(dense, pruned, [x[:50], x[50:]], layers=["2"])
    expected = scores(dense, pruned, x)
    assert found.points == 120
    assert found.claim("output", "conformal").bound == order_bound(expected, conformal_rank(120, 0.1))
    assert found.claim("output", "conditional").bound == order_bound(expected, conditional_rank(120, 0.1, 0.025))
    with torch.no_grad():
        hidden, last = dense[1](dense[0](x)), pruned.get_submodule("2")
        layer = ((last(hidden) - dense(x)).norm(dim=-1) / dense(x).norm(dim=-1)).sort().values
    assert found.claim("layer 2", "conformal").bound == pytest.approx(float(layer[conformal_rank(120, 0.1) - 1]))
    assert json.loads(json.dumps(found.to_json()))["claims"][0]["about"] == "layer 2"
    assert "conditional bound" in str(found)
    with pytest.raises(InvalidInputError, match="no claim"):
        found.claim("input", "mean")


def test_coverage_over_300_splits(rng):
    dense = network(rng)
    pruned = pruned_to(dense, 0.4, rng)
    truth = scores(dense, pruned, points(rng, 50_000)).sort().values
    alpha, delta, splits = 0.1, 0.05, 300
    covered = {"conformal": [], "conditional": []}
    for _ in range(splits):
        found = held_out(dense, pruned, points(rng, 150), alpha=alpha, delta=delta)
        for kind, shares in covered.items():
            bound = found.claim("output", kind).bound
            shares.append(float(torch.searchsorted(truth, torch.tensor(bound).double(), right=True)) / len(truth))
    mean = torch.tensor(covered["conformal"])
    assert float(mean.mean()) >= 1 - alpha - 2 * float(mean.std()) / splits**0.5
    missed = sum(share < 1 - alpha for share in covered["conditional"])
    assert missed <= binom.isf(1e-3, splits, delta)


def test_decisions_are_compared_with_labels(rng):
    dense = network(rng)
    x = points(rng, 400)
    labels = dense(x).argmax(-1)
    same = held_out(dense, copy.deepcopy(dense), [x], labels=[labels])
    assert same.claim("output", "conformal").bound == 0.0
    assert 0 <= same.claim("disagreement", "mean").bound < 0.05
    assert -0.05 < same.claim("accuracy loss", "mean").bound < 0.1
    other = network(rng)
    worse = held_out(dense, other, [x], labels=[labels])
    lost = float((other(x).argmax(-1) != labels).double().mean())
    assert lost < worse.claim("accuracy loss", "mean").bound < lost + 0.15
    # Each of four claims gets its share of delta.
    assert worse.claim("disagreement", "mean").delta == pytest.approx(0.05 / 3)


def test_too_few_points_are_told_to_be_too_few(rng):
    dense = network(rng)
    found = held_out(dense, dense, points(rng, 20)).claim("output", "conditional")
    assert found.bound == math.inf
    assert found.vacuous
    assert "vacuous" in str(held_out(dense, dense, points(rng, 20)))


def test_candidates_are_certified_in_their_order(rng):
    dense = network(rng)
    candidates = [pruned_to(dense, density, rng) for density in (1.0, 0.9, 0.8, 0.5, 0.2)]
    x = points(rng, 300)
    quantiles = [float(scores(dense, candidate, x).quantile(0.9)) for candidate in candidates]
    assert quantiles == sorted(quantiles)
    limit = (quantiles[2] + quantiles[3]) / 2
    assert 1 <= certified_candidates(dense, candidates, x, limit) <= 3
    assert certified_candidates(dense, candidates[::-1], x, limit) == 0
    assert certified_candidates(dense, candidates, x, math.inf) == 5


def test_misuse_is_refused(rng):
    dense = network(rng)
    with pytest.raises(InvalidInputError, match="labels"):
        held_out(dense, dense, [points(rng, 5)], labels=[torch.zeros(4, dtype=torch.long)])
    with pytest.raises(InvalidInputError, match="no held-out point"):
        held_out(dense, dense, [])
    with pytest.raises(UnsupportedError, match="tensor to compare"):
        held_out(dense, dense, points(rng, 5), forward=lambda model, batch: (model(batch),))
    with pytest.raises(InvalidInputError, match="alpha"):
        held_out(dense, dense, points(rng, 5), alpha=1.0)
