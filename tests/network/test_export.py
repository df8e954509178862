"""Runs come back as they were written, whole or not at all, and need no solver to be read."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from optprune.errors import FileFormatError, InvalidInputError, OptPruneError, UnsupportedError
from optprune.network.export import export, load
from optprune.network.files import new_folder
from optprune.network.report import Report
from optprune.network.runs import read_packed
from tests.network.example_runs import conv_net, mlp, pruned_run

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def samples(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    model, report = pruned_run(mlp(), samples(64, 8))
    folder = export(model, report, tmp_path_factory.mktemp("runs") / "mlp")
    return model, report, folder


def same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    def raw(tensor):
        return tensor.contiguous().reshape(-1).view(torch.uint8)

    return a.keys() == b.keys() and all(
        a[key].dtype == b[key].dtype and a[key].shape == b[key].shape and torch.equal(raw(a[key]), raw(b[key]))
        for key in a
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("make", "shape"), [(mlp, (64, 8)), (conv_net, (16, 2, 6, 6))])
def test_state_masks_and_report_come_back(tmp_path, make, shape, dtype):
    model, report = pruned_run(make(dtype), samples(*shape).to(dtype))
    folder = export(model, report, tmp_path / "run")
    for packed in (False, True):
        back = load(folder, packed=packed)
        assert same_bits(back.state_dict, model.state_dict())
        assert back.masks.keys() == {f"{record.name}.weight" for record in report.layers}
        for name, mask in back.masks.items():
            assert torch.equal(mask, model.state_dict()[name] != 0)
        assert back.report.to_json() == report.to_json()


def test_the_weights_file_is_plain_safetensors(run):
    model, _, folder = run
    assert same_bits(load_file(folder / "weights.safetensors"), model.state_dict())


def test_the_packed_file_is_enough_and_smaller(run):
    model, report, folder = run
    assert same_bits(read_packed(folder / "sparse.safetensors"), model.state_dict())
    sizes = json.loads((folder / "report.json").read_text())["sizes"]
    for record in report.layers:
        weight = model.state_dict()[f"{record.name}.weight"]
        expected = {"dense": 4 * weight.numel(), "packed": -(-weight.numel() // 8) + 4 * record.kept}
        assert sizes["pruned"][f"{record.name}.weight"] == expected
    assert sizes["state_dict"]["packed"] < 0.6 * sizes["state_dict"]["dense"]


def test_tied_tensors_are_written_once_and_tied_again(tmp_path):
    model, report = pruned_run(mlp(), samples(64, 8))
    tied = nn.Linear(8, 12)
    tied.weight = model.get_submodule("0").get_parameter("weight")
    model.add_module("tied", tied)
    folder = export(model, report, tmp_path / "run")
    assert "tied.weight" not in load_file(folder / "weights.safetensors")
    for packed in (False, True):
        state = load(folder, packed=packed).state_dict
        assert state["tied.weight"] is state["0.weight"]
        assert same_bits(state, model.state_dict())


def test_negative_zeros_ship_as_zeros(tmp_path):
    model, report = pruned_run(mlp(), samples(64, 8))
    with torch.no_grad():
        weight = model.get_parameter("0.weight")
        weight[weight == 0] = -0.0
    state = load(export(model, report, tmp_path / "run")).state_dict
    zeros = state["0.weight"][state["0.weight"] == 0]
    assert len(zeros)
    assert not zeros.signbit().any()


def test_equal_runs_are_equal_files(tmp_path):
    folders = [export(*pruned_run(mlp(), samples(64, 8)), tmp_path / name) for name in "ab"]
    contents = [{p.relative_to(f): p.read_bytes() for p in f.rglob("*") if p.is_file()} for f in folders]
    assert contents[0] == contents[1]


def test_nothing_is_replaced_unasked(tmp_path, run):
    model, report, _ = run
    folder = tmp_path / "run"
    folder.mkdir()
    export(model, report, folder)  # an empty folder is free
    with pytest.raises(InvalidInputError, match="holds a run"):
        export(model, report, folder)
    (folder / "report.json").write_text(json.dumps({}))
    export(model, report, folder, overwrite=True)
    assert load(folder).report.kept == report.kept
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    with pytest.raises(InvalidInputError, match="not the folder of a run"):
        export(model, report, other, overwrite=True)
    assert (other / "thesis.txt").read_text() == "mine"


def test_a_failure_leaves_nothing_behind(tmp_path, run):
    _, report, _ = run
    model = mlp()
    folder = tmp_path / "deep" / "run"
    with pytest.raises(InvalidInputError, match="other weights"):
        export(model, report, folder)
    assert not (tmp_path / "deep").exists()

    def interrupted():
        with new_folder(folder) as fresh:
            (fresh / "half").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list((tmp_path / "deep").iterdir()) == []


def test_a_failed_replacement_leaves_the_old_run(tmp_path, run):
    model, report, _ = run
    folder = export(model, report, tmp_path / "run")

    def interrupted():
        with new_folder(folder, overwrite=True):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert load(folder).report.kept == report.kept
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_what_files_cannot_hold_is_refused(tmp_path, run):
    _, report, _ = run
    model, report = pruned_run(mlp(), samples(64, 8))
    model.register_buffer("table", torch.eye(3).to_sparse())
    with pytest.raises(UnsupportedError, match="'table'"):
        export(model, report, tmp_path / "run")


def test_a_report_of_another_model_is_refused(tmp_path, run):
    _, report, _ = run
    with pytest.raises(InvalidInputError, match="layer '0'"):
        export(pruned_run(mlp(seed=3), samples(64, 8))[0], report, tmp_path / "run")
    with pytest.raises(InvalidInputError, match=r"no tensor '0\.weight'"):
        export(nn.Sequential(nn.ReLU(), nn.Linear(2, 2)), report, tmp_path / "run")


@pytest.mark.parametrize("name", ["weights.safetensors", "sparse.safetensors", "masks.safetensors", "report.json"])
@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_named(tmp_path, run, name, keep):
    model, report, _ = run
    folder = export(model, report, tmp_path / "run")
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: int(keep * len(content))])
    with pytest.raises(FileFormatError, match=name):
        load(folder, packed=name == "sparse.safetensors")


@pytest.mark.parametrize("name", ["weights.safetensors", "sparse.safetensors", "masks.safetensors", "report.json"])
def test_a_missing_file_is_named(tmp_path, run, name):
    model, report, _ = run
    folder = export(model, report, tmp_path / "run")
    (folder / name).unlink()
    with pytest.raises(FileFormatError, match=name):
        load(folder, packed=name == "sparse.safetensors")


@pytest.mark.parametrize("content", ["[]", "{}", "null", "{", '{"format": "optprune run", "version": 99}', "\udcff"])
def test_a_malformed_report_is_named(tmp_path, content):
    (tmp_path / "report.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(FileFormatError, match=r"report\.json"):
        load(tmp_path)


def test_a_report_without_evidence_is_written(tmp_path, run):
    model, report, _ = run
    bare = Report.from_json(report.to_json())
    folder = export(model, bare, tmp_path / "run")
    assert load(folder).report.to_json() == report.to_json()
    assert not (folder / "evidence").exists()


READER = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in "cvxpy scipy sklearn osqp clarabel scs matplotlib rich typer".split():
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Blocked())
from optprune.network.export import load
run = load(sys.argv[1])
print(sum(int(mask.sum()) for mask in run.masks.values()), run.report.kept)
"""


def test_reading_needs_torch_and_safetensors_only(run):
    _, report, folder = run
    done = subprocess.run([sys.executable, "-c", READER, folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(report.kept)] * 2


def test_errors_are_of_this_library(tmp_path):
    with pytest.raises(OptPruneError):
        load(tmp_path / "nowhere")
