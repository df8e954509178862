"""`python -m proofs` writes the table of the README; `--accept T03` records a re-reading; `--check` checks everything.

Everything is: the Coq files, with the axioms below each theorem; the digests of the code; the numerical checks. The
last lines are a table of the theorems, with what was checked and what was not.
"""

import argparse
import subprocess
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

from proofs import machine
from proofs.index import FOLDER, Proof, accept, digest, proofs, table

START, END = "<!-- table: python -m proofs -->", "<!-- end of table -->"
BUILD = FOLDER.parent / "build" / "proofs"
# What holds code and proofs together; the other checklists are about other things.
FORM = (
    "tests/test_proofs.py",
    "tests/test_checklists.py::test_bound_names_its_theorem",
    "tests/test_checklists.py::test_every_theorem_that_code_names_has_a_proof_that_names_it_back",
    "tests/test_checklists.py::test_text_cites_theorems_that_exist",
    "tests/test_checklists.py::test_proof_is_complete",
    "tests/test_checklists.py::test_proofs_name_what_they_depend_on_and_not_in_a_circle",
    "tests/test_checklists.py::test_proof_was_read_against_the_code_as_it_is",
    "tests/test_checklists.py::test_table_of_proofs_is_current",
    "tests/test_checklists.py::test_digest_sees_the_program_and_not_its_dress",
)


def readme_with_table() -> str:
    """The README as it should stand."""
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n\n{table()}\n{END}{after}"


def stale(proof: Proof) -> list[str]:
    """Names of the code that changed since the proof was read."""
    return [name for name, old in proof.code.items() if digest(name) != old]


def check_in_coq() -> bool | None:
    """Compile, print what each theorem rests on, record it; None where there is no Coq."""
    if not machine.available():
        print(f"\n*** {machine.MISSING} ***\n")
        return None
    try:
        machine.compile_all(BUILD / "coq")
        below = machine.axioms_of_each(machine.theorems(proofs()), BUILD / "coq")
    except machine.MachineCheckError as error:
        print(f"\n*** {error} ***\n")
        return False
    machine.RECORD.write_text(machine.recorded(below), encoding="utf-8")
    print(f"{len(below)} theorems checked by Coq; below each, the axioms of Coq's real numbers that it uses:")
    print(machine.recorded(below))
    return True


def check_in_numbers() -> dict[str, Counter[str]]:
    """Run the numerical checks and the tests of the proofs' form; count outcomes by test file."""
    report = BUILD / "checks.xml"
    report.parent.mkdir(parents=True, exist_ok=True)
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", "proofs/checks", *FORM]
    subprocess.run(command, cwd=FOLDER.parent, check=False)
    counts: dict[str, Counter[str]] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        outcome = next((child.tag for child in case if child.tag in ("failure", "error", "skipped")), "passed")
        counts.setdefault(case.attrib["classname"].rpartition(".")[2], Counter())[outcome] += 1
    return counts


def check() -> bool:
    """All checks, and the table of what they say about each theorem."""
    in_coq = check_in_coq()
    counts = check_in_numbers()
    print(f"\n{'theorem':8} {'numerical checks':20} {'code':8} machine-checked")
    unchecked = []
    for proof in proofs():
        found = sum((counts.get(Path(test).stem, Counter()) for test in proof.tests), Counter())
        parts = "; ".join(proof.coq.values())
        coq = {True: parts, False: "FAILED", None: f"NOT CHECKED ({parts})"}[in_coq] if parts else "none of it"
        numbers = ", ".join(f"{number} {outcome}" for outcome, number in sorted(found.items())) or "NOT RUN"
        print(f"{proof.id:8} {numbers:20} {'CHANGED' if stale(proof) else 'as read':8} {coq}")
        unchecked += [proof.id] if parts and in_coq is None else []
    if unchecked:
        print(f"\nnot machine-checked here: {', '.join(unchecked)}. {machine.MISSING}")
    outcomes = sum(counts.values(), Counter())
    print(f"tests: {dict(outcomes)}; tests marked slow were not selected, see pytest's last lines")
    return in_coq is not False and not outcomes["failure"] and not outcomes["error"] and outcomes["passed"] > 0


def main() -> None:
    """Accept the proofs that were named, write the table, and say which proofs wait to be re-read."""
    parser = argparse.ArgumentParser(prog="python -m proofs", description=__doc__)
    parser.add_argument("--accept", nargs="+", default=[], metavar="ID", help="proofs re-read against the present code")
    parser.add_argument("--check", action="store_true", help="compile the Coq files and run the numerical checks")
    given = parser.parse_args()
    unknown = set(given.accept) - {proof.id for proof in proofs()}
    if unknown:
        parser.error(f"no proof named {', '.join(sorted(unknown))}")
    for proof in proofs():
        if proof.id in given.accept:
            accept(proof)
    (FOLDER / "README.md").write_text(readme_with_table(), encoding="utf-8")
    checked = check() if given.check else True
    waiting = [(proof.id, name) for proof in proofs() for name in stale(proof)]
    for identifier, name in waiting:
        print(f"{identifier}: {name} changed since the proof was read; re-read it, then --accept {identifier}")
    raise SystemExit(0 if checked and not waiting else 1)


if __name__ == "__main__":
    main()
