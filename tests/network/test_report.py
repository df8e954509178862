"""Reports survive JSON, and the table says what a reader must see."""

import json
import math
from typing import Any

import pytest
import torch

from optprune.errors import InvalidInputError
from optprune.network.report import LayerRecord, NetworkBound, Part, Report
from optprune.patterns import PerLayer
from optprune.problems import L0LeastSquares
from optprune.solution import Certificate, Rigor, Termination


def record(name: str = "fc1", **changes: Any) -> LayerRecord:
    certificate = Certificate(2.5, 2.0, 0.0, 1e-9, Rigor.ROUNDED, "T03", {"dual norm": math.inf})
    values: dict[str, Any] = {
        "name": name,
        "kind": "Linear",
        "shape": (3, 4),
        "target": "PerLayer(k=6)",
        "pattern": "PerLayer(k=6)",
        "problem": "L0LeastSquares",
        "solver": "ADMM()",
        "kept": 6,
        "density": 0.5,
        "error": 0.125,
        "discrepancy": 1.5,
        "rows": 100,
        "certificate": certificate,
        "termination": Termination.STEP_LIMIT,
        "steps": 200,
        "seconds": 0.25,
    }
    return LayerRecord(**(values | changes))


def bound(**changes: Any) -> NetworkBound:
    values: dict[str, Any] = {"bound": 4.0, "measured": 1.0, "scale": 8.0, "samples": 10, "dtype": "float64"}
    values["terms"] = {"fc1": {"gain": 1.0, "local": math.nan}}
    return NetworkBound(**(values | changes))


@pytest.mark.parametrize(
    "report",
    [
        Report(
            [record(relu_error=0.25), record("fc2", error=math.inf, certificate=None)],
            bound(),
            {"seed": 0, "x": math.inf},
        ),
        Report([record("inf")], None, {}),
        Report([], bound(bound=None, measured=math.nan, reason="operation 'x' (lstm): no rule"), {"list": [1, "nan"]}),
    ],
)
def test_json_is_finite_and_comes_back(report):
    text = json.dumps(report.to_json(), allow_nan=False)
    again = Report.from_json(json.loads(text))
    assert json.dumps(again.to_json(), allow_nan=False) == text
    assert [layer.name for layer in again.layers] == [layer.name for layer in report.layers]
    for ours, theirs in zip(again.layers, report.layers, strict=True):
        assert (ours.shape, ours.termination, ours.error) == (theirs.shape, theirs.termination, theirs.error)
        assert ours.relu_error == theirs.relu_error
        assert ours.certificate == theirs.certificate
    if report.network is not None and again.network is not None:
        assert again.network.reason == report.network.reason
        assert again.network.bound == report.network.bound


def test_the_parts_stay_in_memory():
    weight = torch.eye(2, dtype=torch.float64)
    problem = L0LeastSquares.from_layer(weight, weight, PerLayer(2))
    part = Part(problem, weight, {}, Certificate(0.0, 0.0, 0.0, 0.0, Rigor.ROUNDED, "T03"))
    whole = record(parts=(part,))
    assert "parts" not in whole.to_json()
    assert LayerRecord.from_json(whole.to_json()).parts == ()


@pytest.mark.parametrize("damage", ["missing", "unknown", "text"])
def test_damaged_records_are_refused(damage):
    document = Report([record()], bound(), {}).to_json()
    layer = document["layers"][0]
    if damage == "missing":
        del layer["kept"]
    elif damage == "unknown":
        layer["extra"] = 1
    else:
        layer["error"] = "small"
    with pytest.raises(InvalidInputError, match="not a layer record"):
        Report.from_json(document)
    with pytest.raises(InvalidInputError, match="not a report"):
        Report.from_json({"layers": []})
    with pytest.raises(InvalidInputError, match="not a network bound"):
        NetworkBound.from_json({"bound": 1.0})


def test_the_table_is_aligned_and_complete():
    vacuous = Certificate(2.5, 0.0, 0.0, 0.0, Rigor.ROUNDED, "T03")
    layers = [record(), record("a.longer.name", certificate=vacuous), record("bare", certificate=None, dead_inputs=2)]
    lines = str(Report(layers, bound(), {})).splitlines()
    head = lines[0].split()
    assert head[:6] == ["layer", "kind", "shape", "kept", "density", "error"]
    assert {line.index("Linear") for line in lines[2:5]} == {lines[0].index("kind")}
    assert "20 %" in lines[2]
    assert "step limit" in lines[2]
    assert "vacuous" in lines[3]
    assert "no certificate" in lines[4]
    assert "3 layers: 18 of 36 weights kept (density 0.5000)" in "\n".join(lines)
    assert "bare: 2 inputs were zero in every sample" in lines
    assert "error 1 (12.5 % of the output) <= bound 4 (50 % of the output)" in lines[-1]


def test_what_is_wrong_with_a_bound_is_in_plain_sight():
    assert "no bound: operation 'lstm'" in str(bound(bound=None, reason="operation 'lstm' has no rule"))
    assert "vacuous" in str(bound(bound=9.0))
    assert "vacuous" not in str(bound())
    assert "EXCEEDS" in str(bound(measured=5.0))
    assert "not measured" in str(bound(measured=None))
    assert "200 times the output" in str(bound(bound=1600.0))
    assert bound(scale=0.0, measured=0.0).relative_measured == 0.0
    assert bound(scale=0.0).relative_bound == math.inf


def test_a_layer_is_found_by_name():
    report = Report([record(), record("fc2")], None, {})
    assert report.layer("fc2").name == "fc2"
    with pytest.raises(InvalidInputError, match="the report holds fc1, fc2"):
        report.layer("fc3")


def test_a_gap_below_zero_is_explained():
    over = Certificate(2.0, 2.5, 3.28e-8, 1e-9, Rigor.ROUNDED, "T01")
    text = str(Report([record(certificate=over), record("fc2")], None, {}))
    assert "fc1: a gap below 0, because the stored weights exceed the constraints by 3.3e-08" in text
    assert "fc2: a gap" not in text
