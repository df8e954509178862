"""The machine-checked part of the proofs, and that a wrong constant does not pass unseen."""

import pytest

from proofs import machine
from proofs.index import proofs

needs_coq = pytest.mark.skipif(not machine.available(), reason=machine.MISSING)


@needs_coq
@pytest.mark.timeout(600)
def test_proofs_in_coq_compile_and_rest_on_what_is_recorded(tmp_path):
    below = machine.check(proofs(), tmp_path)
    assert below
    assert machine.recorded(below) == machine.RECORD.read_text(), "run: make proofs"


@needs_coq
@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("Theorem t : 1 = 2. Admitted.", "Admitted"),
        ("Axiom a : 1 = 2. Theorem t : 1 = 2. exact a. Qed.", "Axiom"),
        ("Theorem t : 1 = 2. reflexivity. Qed.", "Unable to unify"),
        ("Theorem other : 1 = 1. reflexivity. Qed.", "t was not found"),
        # A variable outside of a section is an axiom by another name, which Coq tells and a search for words does not.
        ("Hypothesis h : 1 = 2. Theorem t : 1 = 2. exact h. Qed.", "beyond those of the real numbers"),
        ("(* Admitted, in a comment. *) Theorem t : 1 = 1. reflexivity. Qed.", None),
    ],
)
def test_false_proofs_in_coq_are_refused(text, complaint, tmp_path, monkeypatch):
    sources = tmp_path / "sources"
    sources.mkdir()
    (sources / "Stated.v").write_text(text)
    monkeypatch.setattr(machine, "SOURCES", sources)
    page = proofs()[0]
    monkeypatch.setitem(page.__dict__, "coq", {("Stated.v", "t"): "all"})
    if complaint is None:
        assert machine.check([page], tmp_path / "build") == {"Stated.t": ()}
    else:
        with pytest.raises(machine.MachineCheckError, match=complaint):
            machine.check([page], tmp_path / "build")


def test_pages_of_machine_checked_proofs_name_theorems_that_are_stated():
    stated = {path.name: path.read_text() for path in machine.sources()}
    named = [entry for proof in proofs() for entry in proof.coq]
    assert named
    for file, theorem in named:
        assert f"Theorem {theorem} " in stated[file]
    # The other way round: a theorem in Coq that no page names is not shown to anyone.
    theorems = {
        (file, line.split()[1]) for file, text in stated.items() for line in text.split("\n") if "Theorem " in line
    }
    assert theorems == set(named)
