"""`python -m proofs` writes the README's table; `python -m proofs --accept T03` records a re-reading of T03."""

import argparse

from proofs.index import FOLDER, accept, digest, proofs, table

START, END = "<!-- table: python -m proofs -->", "<!-- end of table -->"


def readme_with_table() -> str:
    """The README as it should stand."""
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n\n{table()}\n{END}{after}"


def main() -> None:
    """Accept the proofs that were named, write the table, and say which proofs wait to be re-read."""
    parser = argparse.ArgumentParser(prog="python -m proofs", description=__doc__)
    parser.add_argument("--accept", nargs="+", default=[], metavar="ID", help="proofs re-read against the present code")
    accepted = parser.parse_args().accept
    unknown = set(accepted) - {proof.id for proof in proofs()}
    if unknown:
        parser.error(f"no proof named {', '.join(sorted(unknown))}")
    for proof in proofs():
        if proof.id in accepted:
            accept(proof)
    (FOLDER / "README.md").write_text(readme_with_table(), encoding="utf-8")
    stale = [(proof.id, name) for proof in proofs() for name, old in proof.code.items() if digest(name) != old]
    for identifier, name in stale:
        print(f"{identifier}: {name} changed since the proof was read; re-read it, then --accept {identifier}")
    raise SystemExit(1 if stale else 0)


if __name__ == "__main__":
    main()
