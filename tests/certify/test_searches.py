"""What the two searches for minorants of the rows' own have in common, and which of them is asked first."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

import optprune as op
from optprune.certify import _tighten, certify, least_squares, recheck
from optprune.certify._by_moments import by_moments
from optprune.certify._by_newton import by_newton
from optprune.certify._perspective import scaled_minorant
from optprune.problems import L0LeastSquares
from tests.certify.test_by_moments import spectrum
from tests.certify.test_by_newton import correlated

WELL = 48
"""Inputs of the layers for sweeps."""


@dataclass(frozen=True)
class Search:
    """One of the two, a layer that is for it, and what is asked of it: Newton's steps end earlier than sweeps do."""

    find: Callable
    weight: torch.Tensor
    inputs: torch.Tensor
    kept: int
    repeated: float
    """Relative difference between the bounds of one layer in two scalings."""
    poor: float
    """Share of the bound from a good start that one from a poor start reaches."""
    too_little: float
    """Effort that is not enough."""

    def problem(self, pattern: op.Pattern, weight: torch.Tensor | None = None) -> L0LeastSquares:
        return L0LeastSquares.from_layer(self.weight if weight is None else weight, self.inputs, pattern)


@pytest.fixture(params=["sweeps", "newton"])
def search(request, monkeypatch) -> Search:
    """With layers that are otherwise too small for sweeps."""
    if request.param == "newton":
        return Search(by_newton, *correlated(20, 6), kept=40, repeated=1e-4, poor=0.95, too_little=1e4)
    monkeypatch.setattr(_tighten, "WORTHWHILE", WELL - 1)
    monkeypatch.setattr(least_squares, "SMALL", 0)
    return Search(by_moments, *spectrum(WELL, 6), kept=60, repeated=1e-6, poor=0.97, too_little=1e6)


def test_rows_that_are_zero_or_alike_and_badly_scaled_inputs_are_no_trouble(search):
    weight = search.weight.clone()
    weight[2], weight[4], weight[5] = 0.0, weight[3], 1e-9 * weight[5]
    plain = search.problem(op.PerLayer(search.kept), weight)
    scales = torch.ones(weight.shape[1], dtype=torch.float64)
    scales[::2] = 2.0**40
    scaled = L0LeastSquares.from_layer(weight / scales, search.inputs * scales, op.PerLayer(search.kept))
    start = op.Portfolio().run(plain).matrix
    bounds = [certify(p, m)[0].lower_bound for p, m in ((plain, start), (scaled, start / scales))]
    assert 0.7 * float(plain.objective(start)) < bounds[0] <= float(plain.objective(start))
    assert bounds[1] == pytest.approx(bounds[0], rel=search.repeated)
    rows = search.problem(op.PerRow(weight.shape[1] // 4), weight)
    start = op.Portfolio().run(rows).matrix
    certificate, _ = certify(rows, start)
    assert 0.6 * certificate.objective < certificate.lower_bound <= certificate.objective


@pytest.mark.parametrize("kept", [0, 1, -1])
def test_budgets_near_their_ends(search, kept):
    """None, one, and all but one."""
    problem = search.problem(op.PerRow(kept % search.weight.shape[1]))
    start = op.Portfolio().run(problem).matrix
    certificate, _ = certify(problem, start)
    assert 0.4 * certificate.objective < certificate.lower_bound <= certificate.objective


def test_a_poor_start_costs_little(search):
    problem = search.problem(op.PerLayer(search.kept))
    minorant, good = scaled_minorant(problem.gram), op.Portfolio().run(problem).matrix
    bounds = []
    for start in (good, op.Magnitude().run(problem).matrix, torch.zeros_like(good)):
        evidence = search.find(problem, minorant, start, 1e13)
        assert evidence is not None
        bounds.append(recheck(problem, good, evidence).lower_bound)
    assert min(bounds) > search.poor * max(bounds)


def test_others_take_what_is_not_for_it(search):
    weight, inputs = search.weight, search.inputs
    start = torch.zeros_like(weight)

    def found(problem: L0LeastSquares, effort: float = 1e13) -> bool:
        return search.find(problem, scaled_minorant(problem.gram), start, effort) is not None

    problem = search.problem(op.PerRow(8))
    assert found(problem)
    assert not found(problem, effort=search.too_little)
    assert not found(search.problem(op.NOfM(2, 4)))
    assert not found(search.problem(op.Columns(8)))
    assert not found(L0LeastSquares.from_layer(weight, inputs[: weight.shape[1] * 5 // 8], op.PerRow(8)))  # singular


def test_sweeps_are_not_for_what_is_ill_conditioned_and_newton_is_not_for_what_is_not_linked(monkeypatch):
    monkeypatch.setattr(_tighten, "WORTHWHILE", WELL - 1)
    weight, inputs = spectrum(WELL, 4)
    alike = L0LeastSquares.from_layer(weight, inputs + 30 * inputs[:, :1], op.PerRow(10))
    assert by_moments(alike, scaled_minorant(alike.gram), torch.zeros_like(weight), 1e13) is None
    alone = L0LeastSquares.from_layer(weight, torch.eye(WELL, dtype=torch.float64).repeat(2, 1), op.PerRow(10))
    assert by_newton(alone, scaled_minorant(alone.gram), torch.zeros_like(weight), 1e13) is None


@pytest.mark.parametrize(("small", "first"), [(4 * WELL**2, by_newton), (4 * WELL**2 - 1, by_moments)])
def test_newtons_method_is_asked_first_where_rows_are_few(small, first, monkeypatch):
    monkeypatch.setattr(_tighten, "WORTHWHILE", WELL - 1)
    monkeypatch.setattr(least_squares, "SMALL", small)
    problem = L0LeastSquares.from_layer(*spectrum(WELL, 4), op.PerRow(10))
    start = op.Portfolio().run(problem).matrix
    certificate, evidence = certify(problem, start)
    expected = first(problem, scaled_minorant(problem.gram), start, 3e12)
    assert expected is not None
    torch.testing.assert_close(evidence["minorant"], expected["minorant"], rtol=0.0, atol=0.0)
    assert 0 < certificate.lower_bound <= certificate.objective


def test_less_effort_buys_fewer_pairs_or_fewer_steps():
    problem = L0LeastSquares.from_layer(*correlated(24, 6), op.PerLayer(48))
    minorant, start = scaled_minorant(problem.gram), op.Portfolio().run(problem).matrix
    found = [by_newton(problem, minorant, start, effort) for effort in (2e6, 3e6, 5e6, 1e13)]
    evidence = [one for one in found if one is not None]
    assert ["pairs" in one for one in evidence] == [False, False, True, True]
    assert evidence[2]["pairs"].numel() < evidence[3]["pairs"].numel()
    bounds = [recheck(problem, start, one).lower_bound for one in evidence]
    assert 0 < bounds[0] < bounds[1] < bounds[2] < bounds[3] <= float(problem.objective(start))
    assert by_newton(problem, minorant, start, 1e6) is None
