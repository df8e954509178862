"""The machine-checked part of the proofs, and that a wrong constant does not pass unseen."""

import dataclasses
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest

import optprune.bounds
import optprune.bounds._theorem
from proofs import machine
from proofs.__main__ import check_in_coq, stale
from proofs.index import FOLDER, proofs

needs_coq = pytest.mark.skipif(not machine.available(), reason=machine.MISSING)


@needs_coq
def test_proofs_in_coq_compile_and_rest_on_what_is_recorded(tmp_path):
    names = machine.theorems(proofs())
    machine.compile_all(tmp_path)
    recorded = dict(line.split(": ") for line in machine.RECORD.read_text().splitlines())
    assert sorted(recorded) == sorted(names), "run: make proofs"
    found = {axiom.rpartition(".")[2] for axiom in machine.axioms_of_all(names, tmp_path)}
    assert found == {axiom for axioms in recorded.values() for axiom in axioms.split(", ")}


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

    def examine() -> tuple[str, ...]:
        machine.compile_all(tmp_path / "build")
        return machine.axioms_of_all(["Stated.t"], tmp_path / "build")

    if complaint is None:
        assert examine() == ()
        assert machine.axioms_of_each(["Stated.t"], tmp_path / "build") == {"Stated.t": ()}
    else:
        with pytest.raises(machine.MachineCheckError, match=complaint):
            examine()


def test_missing_coq_is_said_aloud(monkeypatch, capsys):
    monkeypatch.setattr(machine, "available", lambda: False)
    assert check_in_coq() is None
    assert machine.MISSING in capsys.readouterr().out


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


def loaded(spec: ModuleSpec | None, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # where a dataclass looks for its module
    spec.loader.exec_module(module)
    return module


# page -> file, function, its text, with a wrong constant; the check of the page that tries it, and the line that fails
PLANTED = {
    "T14": (
        ("bernstein", "bernstein_radius", "2 * v *", "0.4 * v *"),
        ("test_draws_do_not_refute_it", "not tried.refuted"),
    ),
    "T21": (
        ("evidence", "clopper_pearson", "= (1 - confidence) / 2", "= 1 - confidence"),
        ("test_true_claims_are_rarely_refuted", "binom.pmf(refuting, 200, truth)"),
    ),
}


@pytest.mark.parametrize("page", PLANTED)
@pytest.mark.parametrize("planted", [False, True])
def test_a_planted_constant_is_seen(page, planted, tmp_path, monkeypatch, rng):
    """A copy of a bound with a wrong constant fails the digest and the trials; a copy as it is passes both."""
    (module, function, right, wrong), (check, line) = PLANTED[page]
    source = (Path(optprune.bounds.__path__[0]) / f"{module}.py").read_text()
    assert source.count(right) == 1
    name = f"copy_of_{module}_{planted}"
    (tmp_path / f"{name}.py").write_text(source.replace(right, wrong) if planted else source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(optprune.bounds._theorem, "_registry", {})  # the copy is no bound of the package
    copy = loaded(importlib.util.find_spec(name), monkeypatch)

    proof = next(proof for proof in proofs() if proof.id == page)
    original = f"optprune.bounds.{module}."
    code = {n.replace(original, f"{name}."): old for n, old in proof.code.items() if n.startswith(original)}
    assert stale(dataclasses.replace(proof, code=code)) == ([f"{name}.{function}"] if planted else [])

    path = FOLDER.parent / proof.tests[0]
    checks = loaded(importlib.util.spec_from_file_location(path.stem, path), monkeypatch)
    for qualified in proof.code:
        if hasattr(checks, member := qualified.rpartition(".")[2]):
            monkeypatch.setattr(checks, member, getattr(copy, member))
    given = {"T14": {"delta": 0.1, "signed": True, "rng": rng}, "T21": {"confidence": 0.9}}[page]
    if planted:
        with pytest.raises(AssertionError) as failure:
            getattr(checks, check)(**given)
        assert line in str(failure.traceback[-1].statement)
    else:
        getattr(checks, check)(**given)
