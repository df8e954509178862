"""The proofs as data: front matter, the table of the README, and the digest of the code that a proof was read
against.

A proof is a Markdown file `T<nn>-<name>.md` that begins with front matter between two lines of three dashes. `id`,
`title`, `statement`, `status`, `source` hold one line each; the others are lists, left out where they are empty:

- `assumes`: who sees to the hypotheses, `caller: ...` or `code: ...`;
- `depends`: the theorems that statement and proof rest on;
- `code`: `<qualified name> <digest>`, where the digest changes with the program text and not with comments,
  docstrings, error messages or layout;
- `tests`: the numerical checks;
- `coq`: `<file> <theorem>: <part of the statement>`, what is machine-checked.
"""

import ast
import hashlib
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent
LINE_FIELDS = ("id", "title", "statement", "status", "source")
LIST_FIELDS = ("assumes", "depends", "code", "tests", "coq")
STATUSES = ("proved", "proved, numerically checked", "machine-checked, numerically checked")
SECTIONS = (
    "Statement",
    "Hypotheses",
    "Proof",
    "Where the code relies on it",
    "Difference from the source",
    "Numerical check",
    "What it does not say",
)


class ProofFormatError(ValueError):
    """A proof file is not in the form that the module's docstring describes."""


@dataclass(frozen=True)
class Proof:
    """One proof file.

    Attributes:
        path: the file.
        lines: the front matter's single lines, by name.
        assumes: (`caller` or `code`, what it sees to).
        depends: identifiers of other theorems.
        code: qualified name -> digest of the code that the proof was last read against.
        tests: `path::test` of the tests that compare theory with numbers.
        coq: (file in `coq/`, theorem in it) -> the part of the statement that it proves.
        sections: the text below each heading, in order.
    """

    path: Path
    lines: dict[str, str]
    assumes: tuple[tuple[str, str], ...]
    depends: tuple[str, ...]
    code: dict[str, str]
    tests: tuple[str, ...]
    coq: dict[tuple[str, str], str]
    sections: dict[str, str]

    @property
    def id(self) -> str:
        """The theorem's identifier."""
        return self.lines["id"]


def read(path: Path) -> Proof:
    """Read one proof file.

    Raises:
        ProofFormatError: the front matter is missing, or a field is missing or unknown.
    """
    head, found, body = path.read_text(encoding="utf-8").removeprefix("---\n").partition("\n---\n")
    if not found:
        raise ProofFormatError(f"{path.name}: front matter between two lines of three dashes expected")
    fields: dict[str, list[str]] = {}
    name = ""
    for line in head.splitlines():
        if line.startswith("  - "):
            fields[name].append(line.removeprefix("  - ").strip())
        else:
            name, _, value = line.partition(":")
            fields[name] = [value.strip()] if value.strip() else []
    if missing := set(LINE_FIELDS) - set(fields):
        raise ProofFormatError(f"{path.name}: fields missing from the front matter: {sorted(missing)}")
    if unknown := set(fields) - {*LINE_FIELDS, *LIST_FIELDS}:
        raise ProofFormatError(f"{path.name}: fields {sorted(unknown)}; known are {[*LINE_FIELDS, *LIST_FIELDS]}")
    return Proof(
        path=path,
        lines={name: " ".join(fields[name]) for name in LINE_FIELDS},
        assumes=tuple(_who_and_what(path, entry) for entry in fields.get("assumes", [])),
        depends=tuple(fields.get("depends", [])),
        code=dict(_name_and_digest(path, entry) for entry in fields.get("code", [])),
        tests=tuple(fields.get("tests", [])),
        coq=dict(_theorem_and_part(path, entry) for entry in fields.get("coq", [])),
        sections={part.partition("\n")[0]: part.partition("\n")[2] for part in f"\n{body}".split("\n## ")[1:]},
    )


def proofs() -> list[Proof]:
    """All proofs, by identifier."""
    return [read(path) for path in sorted(FOLDER.glob("T[0-9][0-9]-*.md"))]


def digest(qualified_name: str) -> str:
    """Digest of the definition of a function, method or class, as it stands in the source file.

    Raises:
        LookupError: no module of that name, or no such definition in it.
    """
    parts = qualified_name.split(".")
    for split in range(len(parts) - 1, 0, -1):
        # Below a module that is no package, importlib raises instead of returning None.
        try:
            spec = importlib.util.find_spec(".".join(parts[:split]))
        except ModuleNotFoundError:
            continue
        if spec is not None and spec.origin is not None:
            node: ast.AST = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
            for name in parts[split:]:
                node = _definition(node, name, qualified_name)
            return hashlib.sha256("\n".join(_tokens(node)).encode()).hexdigest()[:12]
    raise LookupError(f"{qualified_name}: no module holds this name")


def accept(proof: Proof) -> None:
    """Write the present digests into a proof file: its reader states that it proves the code as it stands."""
    fresh = {f"  - {name} {old}".rstrip(): f"  - {name} {digest(name)}" for name, old in proof.code.items()}
    lines = proof.path.read_text(encoding="utf-8").split("\n")
    proof.path.write_text("\n".join(fresh.get(line.rstrip(), line) for line in lines), encoding="utf-8")


def table() -> str:
    """The README's table, one row per theorem."""
    rows = ["| theorem | statement | status | code | checked by |", "|---|---|---|---|---|"]
    for proof in proofs():
        code = "<br>".join(f"`{name.removeprefix('optprune.')}`" for name in proof.code)
        tests = "<br>".join(f"`{test.rpartition('/')[2].partition('::')[0]}`" for test in proof.tests)
        link = f"[{proof.id}]({proof.path.name}) {proof.lines['title']}"
        status = proof.lines["status"]
        if proof.coq:
            status = status.replace("machine-checked", f"machine-checked ({'; '.join(proof.coq.values())})")
        rows.append(f"| {link} | {proof.lines['statement']} | {status} | {code} | {tests} |")
    return "\n".join(rows) + "\n"


def _who_and_what(path: Path, entry: str) -> tuple[str, str]:
    who, found, what = entry.partition(": ")
    if who not in ("caller", "code") or not found:
        raise ProofFormatError(f"{path.name}: assumes {entry!r}; expected `caller: ...` or `code: ...`")
    return who, what


def _name_and_digest(path: Path, entry: str) -> tuple[str, str]:
    name, _, value = entry.partition(" ")
    if not name.startswith("optprune."):
        raise ProofFormatError(f"{path.name}: code entry {entry!r}; expected `optprune.<name> <digest>`")
    return name, value


def _theorem_and_part(path: Path, entry: str) -> tuple[tuple[str, str], str]:
    found = re.fullmatch(r"(\w+\.v) (\w+): (\S.*)", entry)
    if found is None:
        raise ProofFormatError(f"{path.name}: coq entry {entry!r}; expected `<file>.v <theorem>: <part proved>`")
    file, theorem, part = found.groups()
    return (file, theorem), part


def _definition(parent: ast.AST, name: str, qualified_name: str) -> ast.AST:
    for node in ast.iter_child_nodes(parent):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return node
    raise LookupError(f"{qualified_name}: {name!r} is not defined in its module")


def _tokens(node: ast.AST | list | object) -> Iterator[str]:
    """The program below a node, without docstrings, messages, positions, and what differs between Python versions."""
    if isinstance(node, list):
        for item in node:
            yield from _tokens(item)
    elif isinstance(node, ast.AST):
        yield type(node).__name__
        if isinstance(node, ast.Raise):  # what an error says proves nothing
            return
        for field, value in ast.iter_fields(node):
            if field in ("ctx", "kind", "type_comment", "type_params") or value in (None, []):
                continue
            if field == "body" and isinstance(value, list) and _is_docstring(value[0]):
                value = value[1:]
            yield field
            yield from _tokens(value)
    else:
        yield repr(node)


def _is_docstring(node: object) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
