"""Certificates as numbers, text and JSON."""

from __future__ import annotations

import json
import math
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

import optprune as op
from optprune.errors import InvalidInputError
from optprune.solution import Certificate, Rigor
from optprune.testing.instances import data


def certificate(objective=2.0, lower_bound=1.5):
    return Certificate(objective, lower_bound, 0.0, 0.0, Rigor.ROUNDED, "T03", {"kept": 5.0})


finite = st.floats(allow_nan=False, allow_infinity=False)


@given(finite, finite, finite, finite, st.sampled_from(Rigor), st.text(), st.dictionaries(st.text(), finite))
def test_json_gives_the_same_certificate(objective, bound, primal, dual, rigor, theorem, details):
    before = Certificate(objective, bound, primal, dual, rigor, theorem, details)
    assert Certificate.from_json(json.loads(json.dumps(before.to_json()))) == before
    assert set(before.to_json()) == {field.name for field in fields(Certificate)}


@pytest.mark.parametrize(
    "damage",
    [
        lambda record: record.pop("rigor"),
        lambda record: record.pop("objective"),
        lambda record: record.update(rigor="certain"),
        lambda record: record.update(optimum=1.0),
    ],
    ids=["no rigor", "no objective", "unknown rigor", "unknown field"],
)
def test_a_damaged_record_is_refused(damage):
    record = certificate().to_json()
    damage(record)
    with pytest.raises(InvalidInputError, match="not a certificate record"):
        Certificate.from_json(record)


@pytest.mark.parametrize(
    ("objective", "bound", "gap", "relative"),
    [
        (2.0, 1.5, 0.5, 0.25),
        (2.0, 2.0, 0.0, 0.0),
        (2.0, 0.0, 2.0, 1.0),
        (0.0, 0.0, 0.0, 0.0),
        (1e-300, 0.0, 1e-300, 1.0),
        (0.0, 1.0, -1.0, -math.inf),  # a weight that violates its constraints
        (1.0, 1.5, -0.5, -0.5),
        (0.0, -1.0, 1.0, math.inf),
    ],
)
def test_gap(objective, bound, gap, relative):
    assert certificate(objective, bound).gap == gap
    assert certificate(objective, bound).relative_gap == relative


@pytest.mark.parametrize(
    ("objective", "bound", "vacuous"),
    [(2.0, 1.5, False), (2.0, 0.0, True), (2.0, -1.0, True), (0.0, 0.0, False)],
)
def test_a_bound_that_says_nothing_is_called_so(objective, bound, vacuous):
    assert certificate(objective, bound).vacuous is vacuous
    assert ("vacuous" in str(certificate(objective, bound))) is vacuous


def test_text():
    assert str(certificate()) == "objective 2 · optimum >= 1.5 · gap 25 % · rounded · theorem T03"


def test_a_solution_says_why_it_stopped_and_what_is_true():
    solution = op.solve(op.L0LeastSquares.from_layer(*data(0), pattern=op.PerRow(3)), op.Magnitude())
    assert str(solution) == f"closed form after 0 steps · {solution.certificate}"


def test_only_two_terminations_are_a_success():
    good = {termination for termination in op.Termination if termination.ok}
    assert good == {op.Termination.CONVERGED, op.Termination.CLOSED_FORM}
