"""Which arithmetic a run's certificates stand on, and what rational arithmetic finds in a run."""

import json
import sys

import pytest
import torch
from torch import nn

import optprune as op
from optprune.errors import MissingDependencyError
from optprune.network import files
from optprune.network.verify import examine, verify
from optprune.solution import Rigor
from tests.network.test_verify import conv_net, mlp, pruned_run, rewritten, samples


@pytest.fixture
def run(tmp_path):
    return op.export(*pruned_run(conv_net(), samples(16, 2, 6, 6)), tmp_path / "run")


def test_the_default_run_is_rounded_in_every_layer(tmp_path):
    model = mlp()
    pruned, report = op.prune(model, [samples(64, 8)], op.plan.uniform(model, density=0.5))
    verification = verify(op.export(pruned, report, tmp_path / "run"))
    assert verification.arithmetic == dict.fromkeys(("0", "2", "4"), Rigor.ROUNDED)
    assert "rounded (float64 with a proved bound of its rounding error): 0, 2, 4" in str(verification)
    assert json.loads(json.dumps(verification.to_json()))["arithmetic"]["2"] == "rounded"


def test_exact_certificates_of_every_layer(run):
    verification = verify(run, exact=True)
    assert verification.arithmetic == dict.fromkeys(("0", "3", "6"), Rigor.EXACT)
    assert {name: len(parts) for name, parts in verification.exact.items()} == {"0": 1, "3": 2, "6": 1}
    text = str(verification)
    assert "exact (rational arithmetic): 0, 3, 6" in text
    assert sum(text.count(f"· exact · theorem {theorem} ·") for theorem in ("T03", "T25")) == 4
    assert all(part["width"] < 1e-60 for parts in verification.to_json()["exact"].values() for part in parts)
    assert examine(run).exact == {}


def test_a_run_of_net_trim_exactly(tmp_path):
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    pruned, report = op.prune(model, [samples(64, 8)], op.plan.radius(model, 0.2), op.NetTrimADMM())
    verification = verify(op.export(pruned, report, tmp_path / "run"), exact=True)
    assert str(verification).count("· exact · theorem T01 ·") == 2


def test_edges_have_no_exact_certificate_and_say_so(tmp_path):
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    pruned, report = op.prune(model, [samples(64, 8)], op.plan.uniform(model, density=0.5), op.SiPPDet())
    verification = verify(op.export(pruned, report, tmp_path / "run"), exact=True)
    assert set(verification.arithmetic.values()) == {Rigor.FLOAT}
    assert len(verification.notes) == 2
    assert "float (float64, its rounding error not bounded): 0, 2" in str(verification)


@pytest.mark.parametrize("field", ["lower_bound", "objective_error"])
def test_a_claim_too_good_by_less_than_the_tolerance_is_found_exactly(run, field):
    """Recomputed numbers may differ by 1e-9, since machines sum in other orders; the exact ones leave no such room."""
    document = files.read_json(run / files.REPORT)
    record = document["layers"]["0"]["parts"][0]["certificate"]
    for certificate in (record, document["report"]["layers"][0]["certificate"]):
        if field == "lower_bound":
            certificate["lower_bound"] *= 1 + 9e-10
        else:
            certificate["objective"] *= 1 - 9e-10
    rewritten(run, document)
    assert not [f for f in examine(run).findings if "certificate" in f.message or "recorded" in f.message]
    (finding,) = examine(run, exact=True).findings
    assert finding.layer == "0"
    assert "in exact arithmetic" in finding.message


def test_without_flint_it_is_an_error_and_not_a_finding(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "flint", None)
    assert verify(run).ok
    with pytest.raises(MissingDependencyError, match=r"optprune\[proofs\]"):
        verify(run, exact=True)


def test_an_error_that_is_not_proved_is_recorded_as_such():
    one = op.Certificate(2.0, 1.0, 0.0, 0.0, Rigor.ROUNDED, "T03", {}, 1e-16)
    other = op.Certificate(2.0, 1.0, 0.0, 0.0, Rigor.FLOAT, "T16")
    from optprune.network.total import total

    both = total([one, one])
    assert both.objective_error is not None
    assert both.upper_bound > both.objective + 2e-16
    assert total([one, other]).objective_error is None
    assert total([one, other]).upper_bound == torch.inf
