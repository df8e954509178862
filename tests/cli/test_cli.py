"""The commands from outside: what they print, what they write, what their exit code says."""

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

import optprune
from optprune.cli import app, embedded
from optprune.cli.codes import Code
from optprune.network.export import load

SMALL = ("--data", "small.npz", "--model", "tests.cli.factories:small")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working directory with a data set of 96 rows in it."""
    monkeypatch.chdir(tmp_path)
    chance = np.random.default_rng(0)
    inputs = chance.standard_normal((96, 8)).astype(np.float32)
    np.savez("small.npz", inputs=inputs, targets=chance.integers(0, 3, 96), test_inputs=inputs[:32])
    return tmp_path


def run(*arguments: str):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_prune_writes_runs_that_verify(folder):
    done = run("prune", *SMALL, "--method", "admm", "--method", "magnitude", "--density", "0.5", "--out", "run")
    assert done.exit_code == Code.OK, done.output
    for text in ("admm", "magnitude", "lower bound", "gap", "first", "last", "optprune verify run"):
        assert text in done.stdout
    assert load("run/admm").report.kept == 20 + 8  # of 40, and of 15, rounded half up
    checked = run("verify", "run")
    assert checked.exit_code == Code.OK
    assert "4 certificates of 4 layers recomputed, all as recorded" in checked.stdout


def test_prune_prints_one_json_document(folder):
    done = run("prune", *SMALL, "--method", "admm", "--json", "--output", "run")
    assert done.exit_code == Code.OK, done.output
    document = json.loads(done.stdout)
    assert document["ok"] is True
    assert document["methods"][0]["report"]["layers"][0]["name"] == "first"
    assert document["dense_accuracy"] is None  # the test rows have no classes
    checked = run("verify", "run", "--json")
    assert json.loads(checked.stdout)["certificates"] == 2


def test_verify_fails_on_one_flipped_bit_and_names_the_layer(folder):
    run("prune", *SMALL, "--method", "magnitude", "--out", "run")
    path = folder / "run/magnitude/weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    done = run("verify", "run")
    assert done.exit_code == Code.FAILED_VERIFICATION
    assert "layer 'last' (magnitude/weights.safetensors)" in done.stdout


def test_the_same_seed_gives_the_same_files(folder):
    for name in "ab":
        assert run("prune", *SMALL, "--method", "admm", "--out", name).exit_code == Code.OK
    assert (folder / "a/admm/weights.safetensors").read_bytes() == (folder / "b/admm/weights.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("target", "kept"),
    [
        (("--pattern", "2:4", "--override", "last=per-row:3"), (20, 9)),
        (("--pattern", "per-layer:6"), (6, 6)),
        (("--pattern", "rows:0.5"), (24, 10)),
        (("--pattern", "columns:2"), (10, 6)),
        (("--pattern", "blocks:1x5:0.67", "--skip", "first"), (10,)),
        (("--pattern", "0.2"), (8, 3)),
    ],
)
def test_patterns(folder, target, kept):
    done = run("prune", *SMALL, "--method", "magnitude", *target, "--out", "run")
    assert done.exit_code == Code.OK, done.output
    assert tuple(record.kept for record in load("run/magnitude").report.layers) == kept


@pytest.mark.parametrize("allocation", ["erk", "magnitude", "sensitivity", "bounds", "owl", "optimal"])
def test_one_density_is_shared_among_the_layers(folder, allocation):
    arguments = ("--allocation", allocation, "--budget", "macs", "--density", "0.3", "--out", "run")
    done = run("prune", *SMALL, "--method", "magnitude", *arguments)
    assert done.exit_code == Code.OK, done.output
    report = load("run/magnitude").report
    assert report.allocation is not None
    assert report.allocation.method == allocation
    assert report.kept <= 17 == report.allocation.budget  # of 55
    assert f"allocation '{allocation}': 17 of 17 weights" in done.stdout
    assert run("verify", "run").exit_code == Code.OK
    done = run("prune", *SMALL, "--allocation", allocation, "--pattern", "2:4")
    assert done.exit_code == Code.BAD_INPUT
    assert "what is shared among layers is a density" in done.stderr


def test_new_rows_are_spoken_of_by_held_out_ones(folder):
    chance = np.random.default_rng(1)
    inputs, labels = chance.standard_normal((400, 8)).astype(np.float32), chance.integers(0, 3, 400)
    np.savez("more.npz", inputs=inputs[:96], test_inputs=inputs[96:], test_targets=labels[96:])
    arguments = ("--data", "more.npz", *SMALL[2:], "--density", "0.8", "--held-out", "--out", "run")
    done = run("prune", *arguments, "--method", "sipp-det", "--method", "magnitude")
    assert done.exit_code == Code.OK, done.output
    assert done.stdout.count("304 held-out points · alpha 0.1 · delta 0.025 · theorem T15") == 2
    methods = json.loads((folder / "run/report.json").read_text())["summary"]["methods"]
    about = [claim["about"] for claim in methods[0]["held_out"]["claims"]]
    assert about == ["output", "output", "disagreement", "accuracy loss"]
    assert run("verify", "run").exit_code == Code.OK
    np.savez("bare.npz", inputs=inputs)
    done = run("prune", "--data", "bare.npz", *SMALL[2:], "--held-out")
    assert done.exit_code == Code.BAD_INPUT
    assert "has no rows of its own for it" in done.stderr


def test_damping_is_chosen_on_held_out_samples(folder):
    done = run("prune", *SMALL, "--method", "magnitude", "--damping", "held-out", "--out", "run")
    assert done.exit_code == Code.OK, done.output
    assert done.stdout.count("on held-out samples") == 2
    record = load("run/magnitude").report.layer("first")
    assert record.held_out is not None
    assert record.damping == record.held_out.chosen
    assert run("verify", "run").exit_code == Code.OK
    assert run("prune", *SMALL, "--damping", "some").exit_code == Code.BAD_INPUT


def test_a_pattern_that_does_not_fit_names_the_layer(folder):
    done = run("prune", *SMALL, "--method", "magnitude", "--pattern", "blocks:1x2:0.25", "--out", "run")
    assert done.exit_code == Code.BAD_INPUT
    assert "layer 'last'" in done.stderr  # 5 inputs are no multiple of 2


def test_skip_override_and_options(folder):
    done = run(
        *("prune", *SMALL, "--method", "admm", "--density", "0.3", "--skip", "last", "--override", "f*=0.5"),
        *(
            "--option",
            "rho=1e-3",
            "--option",
            "admm.max_steps=400",
            "--dtype",
            "float64",
            "--mode",
            "cascade",
            "--out",
            "run",
        ),
    )
    assert done.exit_code == Code.OK, done.output
    back = load("run/admm")
    assert [(record.name, record.kept) for record in back.report.layers] == [("first", 20)]
    assert "rho=0.001" in back.report.layers[0].solver
    assert "max_steps=400" in back.report.layers[0].solver
    assert back.state_dict["first.weight"].dtype == torch.float64
    assert back.report.provenance["mode"] == "cascade"


def test_a_layer_that_is_not_solved_has_its_exit_code(folder):
    done = run("prune", *SMALL, "--method", "admm", "--option", "max_steps=1", "--out", "run")
    assert done.exit_code == Code.NOT_SOLVED
    assert "layer 'first' stopped: step limit" in done.stdout
    assert run("verify", "run").exit_code == Code.OK  # what is recorded is true all the same


def test_weights_from_a_file(folder):
    from tests.cli.factories import small

    state = {name: torch.full_like(tensor, 0.5) for name, tensor in small().state_dict().items()}
    save_file(state, "weights.safetensors")
    done = run("prune", *SMALL, "--weights", "weights.safetensors", "--method", "wanda", "--out", "run")
    assert done.exit_code == Code.OK, done.output
    weight = load("run/wanda").state_dict["first.weight"]
    assert set(weight.flatten().tolist()) == {0.0, 0.5}


def test_rounds_with_training_of_ones_own_in_between(folder):
    """What a run wrote is pruned further after training; what it had zeroed stays zero."""
    from tests.cli.factories import small

    weights: tuple[str, ...] = ()
    before: dict[str, torch.Tensor] = {}
    for number, (density, kept) in enumerate([("0.6", 33), ("0.3", 17)]):
        out = f"round{number}"
        done = run("prune", *SMALL, *weights, "--method", "sipp-det", "--density", density, "--out", out)
        assert done.exit_code == Code.OK, done.output
        model = small()
        model.load_state_dict(load(f"{out}/sipp-det").state_dict)
        masks = {name: model.get_parameter(f"{name}.weight").detach() != 0 for name in ("first", "last")}
        assert sum(int(mask.sum()) for mask in masks.values()) <= kept
        assert all(bool((before.get(name, mask) | ~mask).all()) for name, mask in masks.items())
        before = masks
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        optprune.training.freeze(model, None, optimizer)
        for _ in range(3):
            model(torch.ones(4, 8)).square().sum().backward()
            optimizer.step()
        save_file(model.state_dict(), "retrained.safetensors")
        weights = ("--weights", "retrained.safetensors")


def test_a_network_is_pruned_at_initialisation(folder):
    chance = np.random.default_rng(0)
    np.savez("classes.npz", inputs=chance.random((40, 6)).astype(np.float32), targets=chance.integers(0, 3, 40))
    arguments = ("prune", "--data", "classes.npz", "--method", "magnitude", "--option", "refit=false", "--out", "run")
    assert run(*arguments, "--epochs", "0", "--density", "1.0").exit_code == Code.OK
    expected = embedded.mlp((6, 300, 100, 3), 0).state_dict()
    found = load("run/magnitude").state_dict
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert run(*arguments, "--epochs", "-1").exit_code == Code.BAD_INPUT


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", "nowhere.npz"), "nowhere.npz"),
        (("--data", "broken.npz"), "broken.npz"),
        (("--data", "bare.npz"), "an array 'inputs' is needed"),
        (("--model", "tests.cli.factories"), "module:function"),
        (("--model", "tests.cli.factories:missing"), "missing"),
        (("--model", "tests.cli.factories:number"), "gave a int"),
        (("--model", "nowhere.pt2"), "nowhere.pt2"),
        (("--model", "broken.pt2"), "broken.pt2"),
        (("--weights", "nowhere.safetensors"), "nowhere.safetensors"),
        (("--method", "obs"), "method 'obs' given; there are admm"),
        (("--method", "admm", "--option", "speed=3"), "option 'speed=3' given"),
        (("--method", "admm", "--option", "rho=fast"), "admm.rho=fast given; float is needed"),
        (("--method", "admm", "--option", "rho=-1"), "rho"),
        (("--method", "admm", "--radius", "0.1"), "needs a pattern"),
        (("--method", "admm", "--density", "1.5"), "density 1.5"),
        (("--method", "admm", "--pattern", "3of4"), "accepted are a density"),
        (("--method", "admm", "--pattern", "3:5"), "layer 'first'"),
        (("--method", "admm", "--skip", "fc9"), "'fc9' matches no layer"),
        (("--method", "admm", "--override", "first"), "layer=target"),
        (("--method", "admm", "--device", "cuda:77"), "cuda:77"),
        (("--method", "admm", "--device", "nonsense"), "nonsense"),
    ],
)
def test_bad_input_is_one_readable_message(folder, arguments, message):
    for name in ("broken.npz", "broken.pt2"):
        (folder / name).write_bytes(b"PK\x03\x04 not an archive")
    np.savez("bare.npz", rows=np.zeros(3))
    done = run("prune", *SMALL, *arguments, "--out", "run")
    assert done.exit_code == Code.BAD_INPUT, done.output
    assert message in done.stderr
    assert "Traceback" not in done.output
    assert done.stdout == ""
    assert not (folder / "run").exists()


def test_targets_exclude_one_another(folder):
    done = run("prune", *SMALL, "--density", "0.5", "--pattern", "2:4", "--out", "run")
    assert done.exit_code == Code.BAD_INPUT
    assert "exclude one another" in done.stderr


def test_debug_keeps_the_traceback(folder):
    done = run("prune", *SMALL, "--method", "obs", "--debug")
    assert isinstance(done.exception, optprune.errors.InvalidInputError)


def test_a_run_is_replaced_only_on_request(folder):
    arguments = ("prune", *SMALL, "--method", "magnitude", "--out", "run")
    assert run(*arguments).exit_code == Code.OK
    done = run(*arguments)
    assert done.exit_code == Code.BAD_INPUT
    assert "holds a run" in done.stderr
    assert run(*arguments, "--overwrite").exit_code == Code.OK


def test_verify_of_nothing(folder):
    done = run("verify", "nowhere")
    assert done.exit_code == Code.BAD_INPUT
    assert "nowhere" in done.stderr


def test_compare_shows_layers_side_by_side(folder):
    run("prune", *SMALL, "--method", "admm", "--method", "magnitude", "--out", "run")
    done = run("compare", "run")
    assert done.exit_code == Code.OK
    rows = [line.split()[:2] for line in done.stdout.splitlines() if "%" in line or "vacuous" in line]
    assert rows == [["first", "run/admm"], ["first", "run/magnitude"], ["last", "run/admm"], ["last", "run/magnitude"]]
    assert set(json.loads(run("compare", "run", "--json").stdout)["runs"]) == {"run/admm", "run/magnitude"}


def test_methods_lists_every_solver():
    records = json.loads(run("methods", "--json").stdout)["methods"]
    solvers = {record["solver"] for record in records}
    assert {"ADMM", "Magnitude", "Wanda", "Exhaustive"} <= solvers
    for record in records:
        assert record["summary"]
        assert record["source"]
        assert record["problems"]
    table = run("methods")
    assert table.exit_code == Code.OK
    assert all(record["name"] in table.stdout for record in records)


def test_version():
    assert run("--version").stdout == f"optprune {optprune.__version__}\n"


@pytest.mark.parametrize("arguments", [(), ("prune",), ("verify",)])
def test_help_names_the_exit_codes_and_loads_nothing_heavy(arguments):
    probe = (
        "import sys\nfrom optprune.cli import app\n"
        f"try: app({[*arguments, '--help']!r})\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "print(sorted({'torch', 'numpy', 'scipy', 'sklearn', 'cvxpy'} & sys.modules.keys()))"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "Exit codes: 0 done; 1 verification" in done.stdout
    assert time.perf_counter() - start < 5  # half a second on an idle machine


def shell(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "optprune.cli", *arguments]
    path = {"PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=os.environ | path)


def test_a_default_job_on_other_data_from_a_shell(folder):
    done = shell(folder, "prune", *SMALL)
    assert done.returncode == Code.OK, done.stderr
    assert done.stderr == ""
    for text in (
        "net-trim",
        "portfolio",
        "first",
        "last",
        "lower bound",
        "accuracy before",
        "optprune verify runs/digits",
    ):
        assert text in done.stdout
    assert "4 certificates of 4 layers" in shell(folder, "verify", "runs/digits").stdout
    assert load(folder / "runs/digits/net-trim").report.layer("first").kept <= 8
    missing = shell(folder, "verify", "runs/elsewhere")
    assert missing.returncode == Code.BAD_INPUT
    assert missing.stderr.startswith("optprune: runs/elsewhere")


@pytest.mark.slow
def test_the_default_run_from_a_shell(tmp_path):
    """`optprune prune` as a newcomer types it: two methods, three layers each, a run that verifies."""
    done = shell(tmp_path, "prune")
    assert done.returncode == Code.OK, done.stderr
    assert done.stderr == ""
    for text in ("net-trim", "portfolio", "fc1", "fc2", "fc3", "lower bound", "accuracy before"):
        assert text in done.stdout
    checked = shell(tmp_path, "verify", "runs/digits")
    assert checked.returncode == Code.OK, checked.stdout
    assert "6 certificates of 6 layers" in checked.stdout
    runs = [load(tmp_path / "runs/digits" / method) for method in ("net-trim", "portfolio")]
    assert [run.report.total for run in runs] == [50200, 50200]
    assert all(record.kept <= 0.2 * math.prod(record.shape) for run in runs for record in run.report.layers)
