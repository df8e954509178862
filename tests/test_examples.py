"""Every example runs as it is written, with settings that make it short."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(script: str, *arguments: object, code: int = 0, timeout: float = 280, **environment: str) -> str:
    command = [sys.executable, EXAMPLES / script, *map(str, arguments)]
    path = {"PYTHONPATH": str(EXAMPLES.parent)}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | path | environment, timeout=timeout
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_every_example_is_run_here():
    here = Path(__file__).read_text()
    assert [path.name for path in EXAMPLES.glob("*.py") if f'"{path.name}"' not in here] == []


def test_one_layer():
    printed = run("one_layer.py")
    assert "ADMM: converged" in printed
    assert "No 2:4 pruning of this layer can have an error below" in printed


def test_whole_network(tmp_path):
    printed = run("whole_network.py", "--epochs", 3, "--hidden", 24, 16, "--output", tmp_path / "run")
    assert "4 certificates of 3 layers recomputed, all as recorded" in printed
    assert printed.count("% of the test images right") == 2


def test_error_against_density(tmp_path):
    run("error_against_density.py", "--hidden", 24, 16, "--densities", 0.6, 0.3, 0.1, "--output", tmp_path)
    curves = json.loads((tmp_path / "curves.json").read_text())
    assert curves["found"] == sorted(curves["found"])
    assert curves["proved"] == sorted(curves["proved"])
    assert all(0 < low <= high for low, high in zip(curves["proved"], curves["found"], strict=True))
    assert (tmp_path / "curves.png").stat().st_size > 0


def test_sampled_edges():
    printed = run("sampled_edges.py", "--epochs", 4, "--hidden", 24, 16, "--density", 0.5)
    assert printed.count("conditional bound") == 6
    shares = [
        float(line.split(" for ")[1].split()[0]) for line in printed.splitlines() if " of the other images" in line
    ]
    assert len(shares) == 3
    assert min(shares) > 0.8


def test_prune_and_retrain():
    short = ("--hidden", 24, 16, "--epochs", 8, "--retrain", 5, "--densities", 0.5, 0.25)
    rounds = run("prune_and_retrain.py", *short, "--method", "sipp-det")
    assert [line.split(" of ")[0] for line in rounds.splitlines() if "retrained" in line] == ["1040", "520"]
    assert float(rounds.split()[-1]) > 0.8
    at_once = run("prune_and_retrain.py", *short, "--at-initialisation")
    assert at_once.count("520 of 2080 weights") == at_once.count("retrained") == 1
    assert float(at_once.split()[-1]) > 0.7


def test_training(tmp_path):
    short = ("--hidden", 24, 16, "--epochs", 4, "--retrain", 1, "--density", 0.2, "--output", tmp_path)
    printed = run("training.py", *short)
    assert printed.count("% of the test images right") == 3
    assert "3 certificates of 3 layers recomputed, all as recorded" in printed
    assert (tmp_path / "history.png").stat().st_size > 0


@pytest.mark.parametrize("script", ["lenet300_mnist.py", "net_trim_mnist.py"])
def test_what_needs_data_says_so(tmp_path, script):
    environment = {key: value for key, value in os.environ.items() if key != "OPTPRUNE_DATA"}
    command = [sys.executable, EXAMPLES / script, "--output", tmp_path]
    environment["PYTHONPATH"] = str(EXAMPLES.parent)
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode != 0
    assert "OPTPRUNE_DATA" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("method", ["l0", "net-trim"])
def test_lenet300_mnist(tmp_path, data_dir, method):
    arguments = ("--methods", method, "--densities", 0.3, "--samples", 1000, "--epochs", 2, "--output", tmp_path)
    printed = run("lenet300_mnist.py", *arguments, timeout=850)
    document = json.loads((tmp_path / "results.json").read_text())
    assert document["dense"] > 0.95
    assert len(document["rows"]) == 2
    for row in document["rows"]:
        assert row["holds"]
        assert row["kept"] <= 0.3005
        assert row["error"] <= row["bound"]
    assert (tmp_path / "results.md").read_text().count(f"| {method} | 0.3 |") == 2
    assert "FAILS" not in printed


@pytest.mark.slow
@pytest.mark.parametrize("network", ["fc", "lenet5"])
def test_net_trim_mnist(tmp_path, data_dir, network):
    small = ("--images", 3000, "--epochs", 2, "--tuning", 1, "--rows", 60, "--gains", 0.3)
    run("net_trim_mnist.py", "--network", network, *small, "--output", tmp_path)
    document = json.loads((tmp_path / network / "results.json").read_text())
    (row,) = document["rows"]
    assert document["dense"] > 0.85
    assert row["stopped"] == ["converged"]
    assert row["gap"] <= 1e-6
    assert row["density"] < 0.3
    assert row["after"] > row["before"] - 0.02
    assert row["error"] <= row["spectral"] <= row["printed"]
    assert (tmp_path / network / "curve.png").stat().st_size > 0


NOTEBOOKS = ("verify_net_trim", "verify_l0_gap", "verify_sipp", "verify_network_bound")
REFUTED = {
    "verify_net_trim": "no ball: a 'bound'",
    "verify_l0_gap": "a larger minorant: refused",
    "verify_sipp": "half the radius: refuted at [10, 100] draws",
    "verify_network_bound": "gains 0.1 % smaller: refuted by",
}


def test_every_notebook_is_run_here():
    assert {path.stem for path in (EXAMPLES / "notebooks").glob("*.py")} == set(NOTEBOOKS)


def notebook(name: str, folder: Path, *arguments: str) -> None:
    """A notebook as a script: its assertions hold, it says what it refuted, and its picture is there."""
    printed = run(f"notebooks/{name}.py", *arguments, "--output", folder, timeout=850, MPLBACKEND="Agg")
    assert REFUTED[name] in printed.replace("[10, 30, 100, 300, 1000]", "[10, 100]")
    assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook(tmp_path, name):
    notebook(name, tmp_path, "--small")


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_is_made_of_cells(name):
    """Percent format, as jupytext reads it: a header, cells, text first; links lead to pages that exist."""
    path = EXAMPLES / "notebooks" / f"{name}.py"
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# ---\n# jupyter:\n#   jupytext:\n")
    cells = re.split(r"^# %%", text, flags=re.MULTILINE)[1:]
    assert cells[0].startswith(" [markdown]\n# # ")
    assert sum(cell.startswith(" [markdown]") for cell in cells) >= 5
    linked = re.findall(r"\]\((\.\./[^)]+)\)", text)
    assert linked
    assert all((path.parent / link).is_file() for link in linked)
    for cell in cells:
        if cell.startswith(" [markdown]"):
            assert all(line.startswith("#") or not line for line in cell.split("\n")[1:])


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_in_full(tmp_path, name):
    notebook(name, tmp_path)
