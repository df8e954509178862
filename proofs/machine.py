"""The part of the proofs that Coq checks: the files of `coq/`, compiled, with the axioms that each theorem rests on.

A proof's front matter names what was machine-checked in entries `<file> <theorem>: <part of the statement>`. What Coq
checks is the mathematics over the real numbers; the code computes in floating point, and no tool here relates the two.
"""

import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from proofs.index import FOLDER, Proof

SOURCES = FOLDER / "coq"
RECORD = SOURCES / "assumptions.txt"
PACKAGES = "coq libcoq-coquelicot libcoq-flocq"
MISSING = f"coqc is not on the PATH: nothing was machine-checked (Debian 12: apt install {PACKAGES})"

# Coq's real numbers are built from these; a theorem about them cannot rest on less.
REALS = frozenset(
    {
        "ClassicalDedekindReals.sig_forall_dec",
        "ClassicalDedekindReals.sig_not_dec",
        "FunctionalExtensionality.functional_extensionality_dep",
        "Classical_Prop.classic",
    }
)
_ASSUMING = re.compile(
    r"\b(Admitted|admit|give_up|Axioms?|Parameters?|Conjectures?|bypass_check|Unset\s+Guard|Unset\s+Positivity"
    r"|Unset\s+Universe|type-in-type)\b"
)


class MachineCheckError(RuntimeError):
    """A file does not compile, assumes what it should prove, or rests on an axiom beyond the reals."""


def available() -> bool:
    """Whether Coq's compiler is on the PATH."""
    return shutil.which("coqc") is not None


def sources() -> list[Path]:
    """The Coq files, each behind those that it requires."""
    paths = {path.stem: path for path in sorted(SOURCES.glob("*.v"))}
    needs = {name: _required(path.read_text(encoding="utf-8")) & set(paths) for name, path in paths.items()}
    order: list[str] = []
    while len(order) < len(paths):
        ready = [name for name in paths if name not in order and needs[name] <= set(order)]
        if not ready:
            raise MachineCheckError(f"the files of {SOURCES} require each other in a circle")
        order += ready
    return [paths[name] for name in order]


def assuming(text: str) -> list[str]:
    """What a Coq file takes for granted or turns off, its comments left aside."""
    while (stripped := re.sub(r"\(\*(?:(?!\(\*|\*\)).)*\*\)", " ", text, flags=re.DOTALL)) != text:
        text = stripped
    return [found.group() for found in _ASSUMING.finditer(text)]


def compile_all(build: Path) -> None:
    """Compile every file in the folder `build`, and have Coq's independent checker go through what came out.

    Raises:
        MachineCheckError: a file takes something for granted, does not compile, or is refused by the checker.
    """
    build.mkdir(parents=True, exist_ok=True)
    for path in sources():
        if found := assuming(path.read_text(encoding="utf-8")):
            raise MachineCheckError(f"{path.name} contains {', '.join(found)}: prove it, or state it as a hypothesis")
        shutil.copy(path, build)
        _coqc(build, path.name)
    modules = [word for path in sources() for word in ("-norec", f"OptPrune.{path.stem}")]
    _run(build, ["coqchk", "-silent", "-R", ".", "OptPrune", *modules])


def theorems(proofs: list[Proof]) -> list[str]:
    """`<file stem>.<theorem>` for every theorem that a page names."""
    return [f"{file.removesuffix('.v')}.{name}" for proof in proofs for file, name in proof.coq]


def axioms_of_each(names: list[str], build: Path) -> dict[str, tuple[str, ...]]:
    """Ask Coq what each theorem rests on; a second or two each, as Coq walks through its real numbers every time.

    Raises:
        MachineCheckError: there is no such theorem, or it rests on an axiom beyond those of the real numbers.
    """
    # Without the marker between two answers, an answer could not be told from the next.
    answers = _query(build, names, [f'Eval compute in "{name}"%string.\nPrint Assumptions {name}.' for name in names])
    return {name: _axioms(answer) for name, answer in zip(names, answers.split('= "')[1:], strict=True)}


def axioms_of_all(names: list[str], build: Path) -> tuple[str, ...]:
    """What the theorems rest on together: one walk.

    Raises:
        MachineCheckError: see `axioms_of_each`.
    """
    together = ", ".join(f"@{name}" for name in names)
    return _axioms(_query(build, names, [f"Definition all := ({together}).\nPrint Assumptions all."]))


def recorded(below: Mapping[str, tuple[str, ...]]) -> str:
    """The text of `assumptions.txt`: axioms without the name of their file, which `REALS` has."""
    short = {name: ", ".join(axiom.rpartition(".")[2] for axiom in axioms) for name, axioms in below.items()}
    return "".join(f"{name}: {short[name] or 'none'}\n" for name in sorted(short))


def _required(text: str) -> set[str]:
    found = re.findall(r"From OptPrune Require (?:Import |Export )?([\w\s]+)\.", text)
    return {name for names in found for name in names.split()}


def _coqc(build: Path, name: str) -> str:
    return _run(build, ["coqc", "-q", "-R", ".", "OptPrune", name])


def _run(build: Path, command: list[str]) -> str:
    done = subprocess.run(command, cwd=build, capture_output=True, text=True, check=False)
    if done.returncode:
        raise MachineCheckError(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")
    return done.stdout


def _query(build: Path, names: list[str], lines: list[str]) -> str:
    files = " ".join(sorted({name.partition(".")[0] for name in names}))
    head = f"From Coq Require Import String.\nFrom OptPrune Require {files}.\n"
    (build / "Query.v").write_text(head + "\n".join(lines) + "\n", encoding="utf-8")
    return _coqc(build, "Query.v")


def _axioms(answer: str) -> tuple[str, ...]:
    """The names in one answer to Print Assumptions; each stands at the beginning of a line, before its type."""
    if "Closed under the global context" in answer:
        return ()
    _, found, listed = answer.partition("Axioms:\n")
    if not found:
        raise MachineCheckError(f"Print Assumptions answered {answer!r}")
    axioms = tuple(sorted(re.findall(r"^(\S+)(?= *:|$)", listed, re.MULTILINE)))
    if foreign := set(axioms) - REALS:
        raise MachineCheckError(f"axioms beyond those of the real numbers: {', '.join(sorted(foreign))}")
    return axioms
