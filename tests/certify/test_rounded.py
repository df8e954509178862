"""`rounded` means it: float64 against rational arithmetic, also where squares overflow or vanish."""

import math
from dataclasses import replace
from fractions import Fraction

import pytest
import torch

import optprune as op
from optprune.bounds.minorant import minorant_bound
from optprune.certify import LeastSquaresChecker, certify, recheck
from optprune.certify._exact_least_squares import exact_minorant_bound
from optprune.certify._exact_least_squares import exact_objective as exact_l0_objective
from optprune.certify._exact_net_trim import exact_dual_bound, exact_objective, exact_residual, exact_violation
from optprune.certify._perspective import scaled_minorant
from optprune.certify.least_squares import objective_error, strengthen
from optprune.certify.net_trim import admissible, dual_bound
from optprune.solvers.net_trim_admm import NetTrimADMM
from tests.certify.test_least_squares import PATTERNS, layer
from tests.certify.test_net_trim import FORMS, make

TARGETS = [2.0**k for k in (-1040, -600, -400, 0, 400, 900)]
INPUTS = [2.0**k for k in (-600, 0, 600)]
MULTIPLIERS = [2.0**k for k in (-900, 0, 900)]


def scaled(problem, inputs=1.0, targets=1.0):
    return replace(
        problem,
        inputs=problem.inputs * inputs,
        targets=problem.targets * targets,
        ceiling=None if problem.ceiling is None else problem.ceiling * targets,
        radius=None if problem.radius is None else problem.radius * targets,
    )


@pytest.mark.parametrize("form", FORMS)
def test_the_dual_bound_is_below_the_exact_one_at_every_scale(form):
    base = make(form)
    multipliers = NetTrimADMM().run(base).hint["multipliers"]
    told = 0
    for inputs in INPUTS if "bias" not in form else (1.0,):
        for targets in TARGETS:
            problem = scaled(base, inputs, targets)
            for factor in MULTIPLIERS:
                trial = multipliers / inputs * factor
                if not bool(trial.isfinite().all()):
                    continue
                value = float(dual_bound(problem, trial).value)
                assert 0 <= value < math.inf
                assert value <= exact_dual_bound(problem, admissible(problem, trial)).low
                told += value > 0
    assert told >= len(TARGETS) / 2


@pytest.mark.parametrize("form", FORMS)
def test_objective_and_violation_err_by_no_more_than_stated(form, rng):
    for targets in TARGETS[1:]:
        problem = scaled(make(form), targets=targets)
        good = torch.linalg.lstsq(problem.inputs, problem.targets).solution.mT
        for noise in (0.0, 1e-9, 1.0):
            matrix = good + targets * noise * torch.randn(problem.shape, generator=rng, dtype=torch.float64)
            certificate = recheck(problem, matrix, {"multipliers": torch.zeros_like(problem.targets)})
            if math.isinf(certificate.objective):
                assert problem.penalty is not None, "only squares overflow"
                continue
            residual = exact_residual(problem, matrix)
            exact = exact_objective(problem, matrix, residual)
            assert certificate.objective_error is not None
            assert exact.high - Fraction(certificate.objective) <= Fraction(certificate.objective_error)
            assert Fraction(certificate.objective) - exact.low <= Fraction(certificate.objective_error)
            assert certificate.upper_bound >= exact.high
            assert certificate.objective_error <= 1e-11 * certificate.objective
            if not problem.per_neuron:
                scales = {"sign": problem.scale}
                if problem.radius is not None:
                    scales["ball"] = torch.maximum(problem.radius, problem.size)
                violation = exact_violation(problem, residual)
                largest = max(violation[name].high / Fraction(float(scale)) for name, scale in scales.items())
                assert abs(largest - Fraction(certificate.primal_residual)) <= certificate.details["violation_error"]


def l0(pattern, seed, gram, weight, damping=0.01):
    s = op.L0LeastSquares.from_layer(*layer(seed), pattern).statistics
    statistics = replace(s, gram=s.gram * gram, energy=s.energy, cross=s.cross, reference=s.reference * weight)
    return op.L0LeastSquares(statistics, pattern, damping)


@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
def test_the_minorant_bound_is_below_the_exact_one_at_every_scale(pattern, rng):
    base = l0(pattern, 1, 1.0, 1.0)
    shared, good = strengthen(base, scaled_minorant(base.gram), pattern.project(base.dense), 1e7)
    told = 0
    for gram in (2.0**k for k in (-1040, -1000, -600, 0, 600, 1000)):
        for weight in (2.0**k for k in (-500, -60, 0, 300, 500)):
            if not 2.0**-1074 <= gram <= 2.0**1000 / weight**2:
                continue
            problem = l0(pattern, 1, gram, weight)
            noise = 1e-3 * torch.randn(2, 8, generator=rng, dtype=torch.float64)
            minorant, point = shared * gram * (1 - 1e-9), (good + noise) * weight
            s = problem.statistics
            value = minorant_bound(problem.gram, s.cross, s.energy, s.reference, minorant, point, pattern.support)
            exact = exact_minorant_bound(problem, minorant, point)
            assert value < math.inf
            assert max(0.0, value) <= exact.low
            told += value > 0
    assert told >= 10


def test_underflow_in_the_minorant_bound_is_paid_for():
    """One weight whose objective is a few times 2^-1074, where a relative bound of rounding says nothing."""
    gram = torch.tensor([[2.0**-1020]], dtype=torch.float64)
    for reference in (0.7 * 2.0**-26, 1.3 * 2.0**-26, 3.9 * 2.0**-26):
        dense, none = torch.full((1, 1), reference, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
        problem = op.L0LeastSquares(op.Statistics(gram, none, none[0], 1, dense), op.PerLayer(0))
        value = minorant_bound(gram, none, none[0], dense, gram[0], dense, problem.pattern.support)
        assert Fraction(value) <= Fraction(2) ** -1021 * Fraction(reference) ** 2


@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
def test_the_l0_objective_errs_by_no_more_than_stated(pattern, rng):
    for gram, weight in ((1.0, 1.0), (2.0**-1060, 1.0), (2.0**-600, 2.0**-400), (2.0**300, 2.0**100)):
        for noise in (0.0, 1e-9, 1e-2, 1.0):
            problem = l0(pattern, 2, gram, weight)
            step = noise * weight * torch.randn(2, 8, generator=rng, dtype=torch.float64)
            matrix = pattern.project(problem.dense + step)
            certificate = LeastSquaresChecker().check(
                problem, matrix, {"minorant": torch.zeros(8, dtype=torch.float64), "point": problem.dense}
            )
            exact = exact_l0_objective(problem, matrix).low
            assert certificate.objective_error is not None
            assert certificate.objective_error == objective_error(problem, matrix)
            assert abs(Fraction(certificate.objective) - exact) <= Fraction(certificate.objective_error)
            assert certificate.upper_bound >= exact
            assert certificate.objective_error <= 1e-12 * certificate.objective + 1e-300


def test_an_asymmetric_gram_matrix_proves_nothing():
    problem = l0(op.PerRow(3), 3, 1.0, 1.0)
    certificate, evidence = certify(problem, problem.pattern.project(problem.dense))
    assert certificate.lower_bound > 0
    s = problem.statistics
    skew = s.gram.clone()
    skew[0, 1] *= 1 + 1e-12
    other = op.L0LeastSquares(replace(s, gram=skew), problem.pattern, 0.01)
    assert recheck(other, problem.pattern.project(problem.dense), evidence).lower_bound == 0
