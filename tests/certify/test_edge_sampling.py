"""Certificates of sampled edges: what they hold, and what they cannot be talked into."""

import math

import pytest
import torch

import optprune as op
from optprune.certify import certify
from optprune.certify.edge_sampling import drawn_errors, promised_errors


@pytest.fixture
def problem(rng):
    weight = torch.randn(5, 16, generator=rng, dtype=torch.float64)
    return op.EdgeSampling(weight, torch.rand(60, 16, generator=rng, dtype=torch.float64), op.PerLayer(40))


def certificate(problem: op.EdgeSampling, solver: op.Solver) -> op.Certificate:
    found = op.solve(problem, solver).certificate
    assert found is not None
    return found


def test_a_lower_bound_that_says_something(problem):
    found = certificate(problem, op.PivotalEdges())
    assert 0 < found.lower_bound < found.objective < 0.5
    assert found.theorem == "T16"
    assert found.details["worst"] ** 2 / 10 <= found.objective <= found.details["worst"] ** 2 / 2
    assert found.details["below_one"] == 1.0
    assert found.details["kept"] == 40.0


def test_an_inadmissible_matrix_is_told(problem):
    found, _ = certify(problem, problem.weight)
    assert found.primal_residual > 0.1
    assert found.objective == 0.0


def test_what_a_procedure_promised(problem):
    drawn = certificate(problem, op.SiPPRand(constant=1.0)).details
    chosen = certificate(problem, op.PivotalEdges(derandomise=False)).details
    kept = certificate(problem, op.SiPPDet()).details
    assert drawn["draws_median"] > 1 > drawn["draws_below_one"]
    # Exact variances promise less error than constants and sums of sensitivities.
    assert chosen["variance_median"] < drawn["draws_median"]
    assert chosen["worst"] < chosen["variance_median"] * 3
    assert not {"draws_median", "variance_median"} & kept.keys()
    assert kept["median"] <= kept["printed_median"] * 2


def test_promises_of_certain_choices_are_exact(problem):
    certain = (problem.weight != 0).double()
    assert bool((promised_errors(problem, certain, 0.01) == 0).all())
    assert bool((promised_errors(problem, 0 * certain, 0.01) == math.inf).all())
    draws = torch.full((5, 2), math.inf, dtype=torch.float64)
    assert bool((drawn_errors(problem, draws, 0.01) == 0).all())
    more = drawn_errors(problem, torch.full((5, 2), 100.0).double(), 0.01)
    fewer = drawn_errors(problem, torch.full((5, 2), 50.0).double(), 0.01)
    assert bool((more < fewer).all())


def test_the_bound_is_vacuous_where_points_do_not_span(rng):
    weight = torch.randn(3, 16, generator=rng, dtype=torch.float64)
    problem = op.EdgeSampling(weight, torch.rand(4, 16, generator=rng, dtype=torch.float64), op.PerLayer(20))
    assert certificate(problem, op.SiPPDet()).vacuous
