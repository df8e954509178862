"""Exact Net-Trim certificates against the definition in fractions, and against the certificate in float64."""

import sys
from dataclasses import replace
from fractions import Fraction

import pytest
import torch

import optprune as op
from optprune.certify import certify, certify_exact
from optprune.certify._exact_net_trim import exact_dual_bound
from optprune.certify.net_trim import admissible, dual_bound
from optprune.errors import InvalidInputError, MissingDependencyError, NonFiniteError, UnsupportedError
from optprune.numerics.linear import DenseMap
from optprune.problems import NetTrim
from optprune.solution import Rigor
from optprune.testing import edge_instances
from tests.certify.test_net_trim import FORMS, make


def rational(matrix):
    return [[Fraction(v) for v in row] for row in matrix.tolist()]


def dual_value(problem, multipliers):
    """The display of T01 entry by entry: everything in fractions but the final roots, which are floats."""
    x, y, lam = rational(problem.inputs), rational(problem.targets), rational(multipliers)
    v = [[Fraction(0)] * len(y[0])] * len(y) if problem.ceiling is None else rational(problem.ceiling)
    active, penalised = problem.active.tolist(), problem.penalised.tolist()
    gains, norms = [], []
    for m in range(len(y[0])):
        column = [row[m] for row in lam]
        moved = [sum(x[p][j] * column[p] for p in range(len(x))) for j in range(len(x[0]))]
        assert all(value == 0 for value, counts in zip(moved, penalised, strict=True) if not counts)
        stretch = max(Fraction(1), *(abs(value) for value, counts in zip(moved, penalised, strict=True) if counts))
        gains.append(-sum(column[p] * (y[p][m] if active[p][m] else v[p][m]) for p in range(len(x))) / stretch)
        norms.append(sum(column[p] ** 2 for p in range(len(x)) if active[p][m]) / stretch**2)
    if problem.penalty is not None:
        cost = float(problem.penalty) * float(sum(norms)) / 2
    elif problem.per_neuron:
        cost = sum(float(e) * float(n) ** 0.5 for e, n in zip(problem.radius, norms, strict=True))
    else:
        cost = float(problem.radius) * float(sum(norms)) ** 0.5
    return max(0.0, float(sum(gains)) - cost)


@pytest.fixture(params=FORMS, scope="module")
def solved(request):
    problem = make(request.param)
    solution = op.solve(problem, op.NetTrimADMM())
    return problem, solution, certify_exact(problem, solution.matrix, solution.evidence)


def test_the_bound_is_the_theorems(solved):
    problem, solution, exact = solved
    expected = dual_value(problem, admissible(problem, solution.evidence["multipliers"]))
    assert float(exact.lower_bound.low) == pytest.approx(expected, rel=1e-13)
    assert exact.lower_bound.width <= 1e-60 * expected
    assert exact.rigor is Rigor.EXACT
    assert exact.theorem == "T01"


def test_the_certificate_in_float64_is_outside_of_the_exact_one(solved):
    _, solution, exact = solved
    rounded = solution.certificate
    assert rounded.lower_bound <= exact.lower_bound.low
    assert exact.lower_bound.low - Fraction(rounded.lower_bound) <= Fraction(1, 10**10) * exact.lower_bound.low
    assert exact.gap.low <= 1e-8 * exact.objective.high


def test_objective_and_violations_are_their_definitions(solved):
    problem, solution, exact = solved
    x, u, y = rational(problem.inputs), rational(solution.matrix), rational(problem.targets)
    v = [[Fraction(0)] * len(y[0])] * len(y) if problem.ceiling is None else rational(problem.ceiling)
    active, counted = problem.active.tolist(), problem.penalised.tolist()
    off, squares = Fraction(0), [Fraction(0)] * len(u)
    for p, m in ((p, m) for p in range(len(x)) for m in range(len(u))):
        output = sum(a * b for a, b in zip(x[p], u[m], strict=True))
        if active[p][m]:
            squares[m] += (output - y[p][m]) ** 2
        else:
            off = max(off, output - v[p][m])
    norm = sum(abs(w) for row in u for w, counts in zip(row, counted, strict=True) if counts)
    assert exact.violation["sign"].low == exact.violation["sign"].high == off
    if problem.penalty is not None:
        assert norm + sum(squares) / (2 * Fraction(float(problem.penalty))) in exact.objective
        assert set(exact.violation) == {"sign"}
        return
    assert exact.objective.low == exact.objective.high == norm
    sums = squares if problem.per_neuron else [sum(squares)]
    excess = exact.violation["ball"]
    for square, radius in zip(sums, problem.radius.reshape(-1).tolist(), strict=True):
        assert (excess.high + Fraction(radius)) ** 2 >= square
    tight = [
        (excess.low + Fraction(r)) ** 2 <= s for s, r in zip(sums, problem.radius.reshape(-1).tolist(), strict=True)
    ]
    assert any(tight) or excess.low == 0


def test_hostile_multipliers_stay_below_the_optimum_and_above_float64(solved):
    problem, solution, exact = solved
    generator = torch.Generator().manual_seed(4)
    true = solution.evidence["multipliers"]
    noise = torch.randn(true.shape, generator=generator, dtype=torch.float64)
    highest = exact.lower_bound.high * (1 + Fraction(1, 10**8))
    trials = [true * c for c in (0.5, 1.001, 1e6, 1e-300)] + [true + c * noise for c in (1e-12, 1e-3)] + [noise * 1e3]
    for trial in trials:
        lam = admissible(problem, trial)
        value = exact_dual_bound(problem, lam)
        assert Fraction(float(dual_bound(problem, trial).value)) <= value.low
        assert value.high <= highest


def test_multipliers_that_break_a_condition_count_as_zero():
    problem = make("bias")
    multipliers = admissible(problem, op.solve(problem, op.NetTrimADMM()).evidence["multipliers"])
    whole = exact_dual_bound(problem, multipliers)
    unbalanced = multipliers.clone()
    unbalanced[problem.active[:, 1].nonzero()[0, 0], 1] *= 1 + 2**-50
    negative = multipliers.clone()
    negative[(~problem.active[:, 2]).nonzero()[0, 0], 2] = -1e-300
    for broken, m in ((unbalanced, 1), (negative, 2)):
        without = multipliers.clone()
        without[:, m] = 0
        assert exact_dual_bound(problem, broken) == exact_dual_bound(problem, without)
        assert exact_dual_bound(problem, broken).high < whole.low


def test_a_smaller_radius_breaks_the_bound_exactly():
    """One weight, where the bound is the optimum: with the radius one in 2^50 smaller it would exceed it."""
    one = torch.ones(1, 1, dtype=torch.float64)
    problem = NetTrim.from_layer(4 * one, 2 * one, 4.0)  # |2u - 8| <= 4: the least |u| is 2
    multipliers = -one / 2
    assert exact_dual_bound(problem, multipliers).low == exact_dual_bound(problem, multipliers).high == 2
    assert problem.radius is not None
    wrong = replace(problem, radius=problem.radius * (1 - 2.0**-50))
    assert exact_dual_bound(wrong, multipliers).low > 2


def test_a_map_in_blocks_is_the_same():
    class Halves(DenseMap):
        def rows(self):
            yield slice(0, 15), self.matrix[:15]
            yield slice(15, 40), self.matrix[15:]

        def to(self, dtype):
            return self

    problem = make("cascade")
    solution = op.solve(problem, op.NetTrimADMM())
    assert isinstance(problem.inputs, torch.Tensor)
    blocked = replace(problem, inputs=Halves(problem.inputs))
    one, other = (certify_exact(p, solution.matrix, solution.evidence) for p in (problem, blocked))
    assert replace(one, seconds=0.0) == replace(other, seconds=0.0)


def test_what_cannot_be_certified_is_refused(monkeypatch):
    problem = make("joint")
    matrix = torch.zeros(problem.shape, dtype=torch.float64)
    multipliers = torch.zeros_like(problem.targets)
    with pytest.raises(InvalidInputError, match="needs `multipliers`"):
        certify_exact(problem, matrix, {})
    with pytest.raises(InvalidInputError, match="given to certify"):
        certify_exact(problem, matrix[:1], {"multipliers": multipliers})
    with pytest.raises(NonFiniteError):
        certify_exact(problem, matrix, {"multipliers": multipliers + torch.nan})
    edges = edge_instances()[0].problem
    with pytest.raises(UnsupportedError, match="exact certificate of EdgeSampling"):
        certify_exact(edges, torch.zeros(edges.shape, dtype=torch.float64), {})
    monkeypatch.setitem(sys.modules, "flint", None)
    with pytest.raises(MissingDependencyError, match=r"optprune\[proofs\]"):
        certify_exact(problem, matrix, {"multipliers": multipliers})


def test_text_and_record(solved):
    _, _, exact = solved
    record = exact.to_json()
    assert record["rigor"] == "exact"
    assert (
        record["lower_bound"]["low"] <= exact.lower_bound.low <= exact.lower_bound.high <= record["lower_bound"]["high"]
    )
    assert record["width"] == max(exact.objective.width, exact.lower_bound.width)
    assert "exact · theorem T01" in str(exact)
    assert ("constraints hold" in str(exact)) == exact.admissible


def test_a_real_layer_of_300_by_100(data_dir, unchecked):
    import numpy as np

    arrays = np.load(data_dir / "layers/nettrim_300x100.npz")
    weight, inputs = torch.from_numpy(arrays["W"]), torch.from_numpy(arrays["X"])
    norm = (inputs.double() @ weight.double().mT).clamp(min=0).norm()
    problem = NetTrim.from_layer(weight, inputs, 0.05 * float(norm))
    solution = op.solve(problem, op.NetTrimADMM())
    exact = certify_exact(problem, solution.matrix, solution.evidence)
    assert solution.certificate is not None
    assert solution.certificate.lower_bound <= exact.lower_bound.low
    assert exact.gap.high <= 1e-8 * exact.objective.low
    assert exact.width <= 1e-60 * float(exact.objective.low)
    rounded, _ = certify(problem, solution.matrix, solution.evidence)
    assert rounded.lower_bound <= exact.lower_bound.low
