"""The checker of Net-Trim trusts nothing: right multipliers give the optimum, wrong ones a weaker but true bound."""

from dataclasses import replace
from fractions import Fraction

import pytest
import torch

from optprune.certify import certify, recheck
from optprune.certify.net_trim import dual_bound
from optprune.errors import InvalidInputError, NonFiniteError
from optprune.problems.net_trim import NetTrim
from optprune.solution import Rigor
from optprune.solvers.net_trim_admm import NetTrimADMM

FORMS = ("joint", "per neuron", "penalised", "linear", "cascade", "bias", "bias cascade")


def make(form: str, seed: int = 0) -> NetTrim:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(4, 9, generator=generator, dtype=torch.float64)
    inputs = torch.randn(40, 9, generator=generator, dtype=torch.float64)
    seen = inputs + 0.1 * torch.randn(40, 9, generator=generator, dtype=torch.float64)
    bias = torch.randn(4, generator=generator, dtype=torch.float64) if "bias" in form else None
    outputs = inputs @ weight.mT + (0 if bias is None else bias)
    norms = outputs.clamp(min=0).norm(dim=0)
    if "cascade" in form:
        return NetTrim.cascade(weight, seen, outputs, 1.1, 0.0, bias)
    if form == "per neuron":
        return NetTrim.from_layer(weight, inputs, 0.2 * norms)
    if form == "penalised":
        return NetTrim.from_layer(weight, inputs, penalty=3.0)
    return NetTrim.from_layer(weight, inputs, 0.2 * norms.norm(), bias, relu=form != "linear")


@pytest.fixture(params=FORMS)
def solved(request):
    problem = make(request.param)
    return problem, NetTrimADMM().run(problem)


def test_the_bound_meets_the_objective_at_the_optimum(solved):
    problem, answer = solved
    certificate, _ = certify(problem, answer.matrix, answer.hint)
    assert certificate.relative_gap <= 1e-8
    assert certificate.lower_bound <= certificate.objective * (1 + 1e-12)
    assert certificate.primal_residual <= 1e-9
    assert certificate.rigor is Rigor.ROUNDED
    assert certificate.theorem == "T01"


def test_no_multipliers_give_more_than_the_optimum(solved):
    """Scaled, shifted, sign-flipped and random ones: always a bound, and a wrong scale is seen in the gap."""
    problem, answer = solved
    optimum = float(problem.objective(answer.matrix))
    true = answer.hint["multipliers"]
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(true.shape, generator=generator, dtype=torch.float64)
    trials = [true * c for c in (0.0, 0.5, 0.999, 1.001, 2.0, 1e6, -1.0)]
    trials += [true + c * true.abs().max() * noise for c in (1e-6, 1e-3, 1.0)] + [noise * 1e-3, noise * 1e3]
    for trial in trials:
        assert float(dual_bound(problem, trial).value) <= optimum * (1 + 1e-12)
    assert float(dual_bound(problem, 0.999 * true).value) < optimum * (1 - 1e-7)


def test_a_radius_or_multipliers_off_by_a_thousandth_are_seen(solved):
    """The constants of the theorem: with the ball's term 1e-3 smaller the bound would pass the optimum."""
    problem, answer = solved
    certificate, evidence = certify(problem, answer.matrix, answer.hint)
    gap = certificate.gap / certificate.objective
    worse = recheck(problem, answer.matrix, {"multipliers": evidence["multipliers"] * 0.999})
    assert worse.gap / worse.objective > max(1e-7, 10 * abs(gap))
    if problem.radius is not None:
        smaller = replace(problem, radius=problem.radius * (1 - 1e-3))
        assert recheck(smaller, answer.matrix, evidence).lower_bound > certificate.objective * (1 + 1e-7)


@pytest.mark.parametrize("form", FORMS)
def test_a_matrix_alone_has_a_bound_that_is_true(form):
    problem = make(form)
    matrix = NetTrimADMM().run(problem).matrix
    optimum = float(problem.objective(matrix))
    certificate, _ = certify(problem, matrix)
    assert certificate.lower_bound <= optimum * (1 + 1e-12)
    if form in ("linear", "per neuron", "joint"):
        assert certificate.lower_bound >= 0.5 * optimum


def test_with_a_bias_the_multipliers_sum_to_zero_in_exact_arithmetic():
    from optprune.certify.net_trim import _balanced

    problem = make("bias", 3)
    generator = torch.Generator().manual_seed(2)
    for scale in (1e-100, 1e-6, 1.0, 1e12):
        rough = scale * torch.randn(problem.targets.shape, generator=generator, dtype=torch.float64)
        rough = torch.where(problem.active, rough, rough.clamp(min=0))
        even = _balanced(rough, problem.active)
        for column, active, before in zip(even.mT, problem.active.mT, rough.mT, strict=True):
            assert sum((Fraction(float(v)) for v in column), Fraction(0)) == 0
            assert float(column[~active].min()) >= 0
            mean = before.sum() / active.sum()
            expected = torch.where(active, before - mean, before)
            torch.testing.assert_close(column, expected, rtol=0, atol=1e-12 * scale)


def test_a_neuron_that_never_fires_adds_nothing_with_a_bias():
    problem = make("bias")
    quiet = replace(problem, active=problem.active & torch.tensor([False, True, True, True]))
    multipliers = torch.ones_like(problem.targets)
    assert float(dual_bound(quiet, multipliers).gain[0]) == 0.0


def test_rounding_is_added_against_us():
    """At the optimum of a program without slack the bound is below the exact value, which is 1."""
    one = torch.ones(1, 1, dtype=torch.float64)
    problem = NetTrim.from_layer(2 * one, 3 * one, 3.0)  # |3u - 6| <= 3: the least |u| is 1
    bound = dual_bound(problem, torch.full((1, 1), -1 / 3, dtype=torch.float64))
    assert 1 - 1e-14 <= float(bound.value) <= 1
    exact = Fraction(float(bound.value))
    assert exact <= 1


def test_negligible_weights_are_negligible():
    problem = make("joint")
    answer = NetTrimADMM().run(problem)
    certificate, _ = certify(problem, answer.matrix, answer.hint)
    zeros = int((answer.matrix == 0).sum())
    assert 0 < certificate.details["negligible"] <= zeros


def test_evidence_of_another_form_is_refused():
    problem = make("joint")
    matrix = torch.zeros(problem.shape, dtype=torch.float64)
    with pytest.raises(InvalidInputError, match="needs `multipliers`"):
        recheck(problem, matrix, {})
    with pytest.raises(InvalidInputError, match="fits the problem"):
        recheck(problem, matrix, {"multipliers": matrix})
    with pytest.raises(NonFiniteError):
        recheck(problem, matrix, {"multipliers": torch.full_like(problem.targets, float("nan"))})
