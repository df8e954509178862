"""The checklists of CONTRIBUTING.md: each item that can be forgotten has a test here that fails when it is."""

import dataclasses
import importlib
import importlib.util
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jaxtyping
import pytest
import torch

import optprune
import optprune.bounds
import optprune.certify
import optprune.problems
import optprune.solvers
from optprune.bounds._theorem import THEOREMS, theorem_of
from optprune.certify import checker_for
from optprune.network.layers import Adapter, adapter_for
from optprune.problems import Problem
from optprune.solvers import Promise, Solver
from optprune.testing import all_instances, check_solver
from proofs.__main__ import readme_with_table
from proofs.index import FOLDER, SECTIONS, STATUSES, digest, proofs

ROOT = Path(__file__).parents[1]


def modules(package: ModuleType) -> list[ModuleType]:
    """Every module below a package, itself included."""
    found = pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    return [package, *(importlib.import_module(info.name) for info in found if not info.name.endswith("__main__"))]


def concrete(package: ModuleType, base: type) -> list[Any]:
    """Classes that a package exports and that can be instantiated."""
    exported = [getattr(package, name) for name in package.__all__]
    return [c for c in exported if isinstance(c, type) and issubclass(c, base) and not inspect.isabstract(c)]


SOLVERS = concrete(optprune.solvers, Solver)
PROBLEMS = concrete(optprune.problems, Problem)
GOLDEN = all_instances()


# --- every file ------------------------------------------------------------------------------------------------------


def test_no_file_holds_more_than_one_idea():
    files = [f for folder in ("optprune", "tests", "proofs", "examples") for f in (ROOT / folder).rglob("*.py")]
    lengths = {str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in files}
    assert {name: length for name, length in lengths.items() if length > 400} == {}


def public(module: ModuleType) -> Iterator[tuple[str, object]]:
    """What a module defines under a public name, and the public members of its classes."""
    for name, value in vars(module).items():
        defined = getattr(value, "__module__", None) == module.__name__ and getattr(value, "__name__", None) == name
        if name.startswith("_") or not defined:
            continue
        if inspect.isfunction(value) or inspect.isclass(value):
            yield f"{module.__name__}.{name}", value
        for member, method in vars(value).items() if inspect.isclass(value) else ():
            if not member.startswith("_") and (inspect.isfunction(method) or isinstance(method, property)):
                yield f"{module.__name__}.{name}.{member}", method


def test_everything_public_is_documented():
    found = modules(optprune)
    missing = [module.__name__ for module in found if not module.__doc__]
    # A method without text of its own inherits that of the base which it overrides.
    missing += [name for module in found for name, value in public(module) if not inspect.getdoc(value)]
    assert missing == []


# --- a solver --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", sorted((ROOT / "optprune/solvers").glob("[!_]*.py")), ids=lambda f: f.stem)
def test_solver_is_exported(file):
    module = importlib.import_module(f"optprune.solvers.{file.stem}")
    defined = {c.__name__ for _, c in public(module) if inspect.isclass(c) and issubclass(c, Solver)}
    drivers = {f.__name__ for _, f in public(module) if inspect.isfunction(f) and "." not in f.__qualname__}
    assert defined | drivers, "what solvers share stands in a file with a leading underscore"
    assert defined | drivers <= set(optprune.solvers.__all__)
    assert defined <= set(optprune.__all__)


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda c: c.__name__)
def test_solver_declares_itself(solver):
    with pytest.raises(dataclasses.FrozenInstanceError):
        solver().some_setting = 1
    assert solver.accepts, "accepts names at least one problem type"
    assert set(solver.accepts) <= set(PROBLEMS)
    assert re.fullmatch(r"\S[^\n]{10,119}", solver.summary), "one line that says what it does"
    assert solver.source.strip()


THIRD_PARTY = {
    "Cvxpy": "ends at the tolerances of other people's solvers, which are absolute in part and so not scale-free"
}


@pytest.mark.parametrize("solver", [s for s in SOLVERS if s.__name__ not in THIRD_PARTY], ids=lambda c: c.__name__)
def test_solver_conforms(solver, monkeypatch):
    # Shapes are checked where a solver runs on few instances; here that would take most of the time.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    report = check_solver(solver())
    assert report.faults == ()
    assert report.refused == {}
    assert len(report.instances) == sum(isinstance(golden.problem, solver.accepts) for golden in GOLDEN)


# --- a problem -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda c: c.__name__)
def test_problem_is_exported(problem):
    assert problem.__name__ in optprune.__all__
    assert dataclasses.is_dataclass(problem)


def test_no_problem_is_left_out_of_the_package():
    defined = {
        value
        for module in modules(optprune.problems)
        for _, value in public(module)
        if inspect.isclass(value) and issubclass(value, Problem) and not inspect.isabstract(value)
    }
    assert defined == set(PROBLEMS)


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda c: c.__name__)
def test_problem_has_golden_instances(problem):
    assert any(type(golden.problem) is problem for golden in GOLDEN)


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda g: g.name)
def test_problem_survives_a_file(golden):
    problem = golden.problem
    again = problem.restore(problem.tensors(), problem.settings())
    assert again.settings() == problem.settings()
    assert again.tensors().keys() == problem.tensors().keys()
    for name, tensor in problem.tensors().items():
        assert torch.equal(again.tensors()[name], tensor)


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda c: c.__name__)
def test_problem_has_a_checker_with_a_proof(problem):
    golden = next(golden for golden in GOLDEN if type(golden.problem) is problem)
    checker = checker_for(golden.problem)
    assert checker.problem is problem
    assert checker.theorem in {proof.id for proof in proofs()}


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda c: c.__name__)
def test_problem_has_a_reference_solver(problem):
    assert any(problem in solver.accepts and Promise.OPTIMAL in solver().promises for solver in SOLVERS)


# --- a bound ---------------------------------------------------------------------------------------------------------


# They propose evidence, of which every value gives a valid bound, or return a certificate, which holds its theorem.
NO_BOUNDS = {"strengthen", "admissible", "certify_exact"}


def test_bound_names_its_theorem():
    bounds = [
        (name, value)
        for module in (*modules(optprune.bounds), *modules(optprune.certify))
        if not module.__name__.rpartition(".")[2].startswith("_")
        for name, value in public(module)
        if inspect.isfunction(value) and "." not in value.__qualname__ and value.__name__ not in NO_BOUNDS
    ]
    code = {proof.id: set(proof.code) for proof in proofs()}
    assert {"optprune.bounds", "optprune.certify"} <= {name.rpartition(".")[0].rpartition(".")[0] for name, _ in bounds}
    for name, bound in bounds:
        theorem = theorem_of(bound)
        assert theorem is not None, f"{name} has no @theorem"
        assert name in code.get(theorem, set()), f"no proof {theorem} names {name}"


def test_every_theorem_that_code_names_has_a_proof_that_names_it_back():
    modules(optprune)
    code = {proof.id: set(proof.code) for proof in proofs()}
    assert THEOREMS
    for theorem, names in THEOREMS.items():
        assert set(names) <= code.get(theorem, set()), f"{theorem} does not name all of {names}"


def test_text_cites_theorems_that_exist():
    known = {proof.id for proof in proofs()}
    texts = [f for folder in ("optprune", "proofs") for f in (ROOT / folder).rglob("*") if f.suffix in (".py", ".md")]
    cited = {(f.name, t) for f in texts for t in re.findall(r"\bT\d\d\b", f.read_text(encoding="utf-8"))}
    assert {pair for pair in cited if pair[1] not in known} == set()


@pytest.mark.parametrize("proof", proofs(), ids=lambda p: p.id)
def test_proof_is_complete(proof):
    assert proof.path.name.startswith(f"{proof.id}-")
    assert tuple(proof.sections) == SECTIONS
    assert {who for who, _ in proof.assumes} == {"caller", "code"}, "assumes: what the caller and the code see to"
    assert proof.lines["status"] in STATUSES
    assert ("machine-checked" in proof.lines["status"]) == bool(proof.coq)
    assert proof.code
    assert proof.tests
    for test in proof.tests:
        assert (ROOT / test).name.startswith(f"test_{proof.id.lower()}_")
        assert "def test_" in (ROOT / test).read_text()
    assert all(re.search(rf"^{n}\. ", proof.path.read_text(), re.MULTILINE) for n in (1, 2)), "numbered steps"


def test_proofs_name_what_they_depend_on_and_not_in_a_circle():
    depends = {proof.id: set(proof.depends) for proof in proofs()}
    for proof in proofs():
        cited = set(re.findall(r"\bT\d\d\b", proof.sections["Statement"] + proof.sections["Proof"])) - {proof.id}
        assert cited <= depends[proof.id] <= set(depends), f"{proof.id}: depends on {sorted(cited)}"
    while ready := {name for name, others in depends.items() if not others & set(depends)}:
        depends = {name: others for name, others in depends.items() if name not in ready}
    assert depends == {}


@pytest.mark.parametrize("proof", proofs(), ids=lambda p: p.id)
def test_proof_was_read_against_the_code_as_it_is(proof):
    changed = [name for name, old in proof.code.items() if digest(name) != old]
    assert changed == [], f"read {proof.path.name} again, then: python -m proofs --accept {proof.id}"


def test_table_of_proofs_is_current():
    assert (FOLDER / "README.md").read_text(encoding="utf-8") == readme_with_table(), "run: python -m proofs"


def test_digest_sees_the_program_and_not_its_dress(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    texts = {
        "plain": "def f(x):\n    if x < 0: raise ValueError(1)\n    return 2 * x + 1\n",
        "dressed": 'def f(x):\n    """Text."""\n    if x < 0: raise ValueError("no")\n    return (2 * x\n + 1)  # w\n',
        "changed": "def f(x):\n    if x < 0: raise ValueError(1)\n    return 2 * x + 1.001\n",
    }
    for name, text in texts.items():
        (tmp_path / f"digested_{name}.py").write_text(text)
    assert digest("digested_plain.f") == digest("digested_dressed.f") != digest("digested_changed.f")


# --- a layer type ----------------------------------------------------------------------------------------------------


def test_layer_type_is_tried():
    path = ROOT / "tests/network/test_layers.py"
    spec = importlib.util.spec_from_file_location("layer_tests", path)
    assert spec is not None
    assert spec.loader is not None
    tests = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tests)
    tried = {type(adapter_for(module)) for module in tests.test_matrix_and_back.pytestmark[0].args[1]}
    leaves = [c for c in subclasses(Adapter) if not inspect.isabstract(c) and not c.__subclasses__()]
    assert set(leaves) == tried


def subclasses(base: type) -> list[type]:
    """All classes below one."""
    return [c for child in base.__subclasses__() for c in (child, *subclasses(child))]


# --- the guide itself ------------------------------------------------------------------------------------------------


def test_the_guide_names_tests_that_exist():
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "CONTRIBUTING.md").read_text()))
    texts = [file.read_text() for file in (ROOT / "tests").rglob("*.py")]
    defined = {name for text in texts for name in re.findall(r"^def (test_\w+)", text, re.MULTILINE)}
    assert len(named) > 10
    assert named <= defined


def test_readme_names_every_solver_and_problem():
    rows = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("|")]
    named = set(re.findall(r"`(\w+)", "\n".join(rows)))
    assert {c.__name__ for c in (*SOLVERS, *PROBLEMS)} <= named
