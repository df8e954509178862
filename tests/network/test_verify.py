"""A sound run verifies; one altered bit anywhere is found and put down to its layer, with or without new hashes."""

import copy
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from optprune.errors import FileFormatError, VerificationError
from optprune.network import files, plan
from optprune.network.examination import Finding
from optprune.network.export import export, export_index
from optprune.network.prune import prune
from optprune.network.runs import WEIGHTS, fingerprints, sealed
from optprune.network.verify import examine, verify
from optprune.solvers import NetTrimADMM
from tests.network.example_runs import conv_net, mlp, pruned_run

POSITIONS = 25


def samples(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    """A conv net with a grouped layer of two parts."""
    return export(*pruned_run(conv_net(), samples(16, 2, 6, 6)), tmp_path_factory.mktemp("runs") / "conv")


@pytest.fixture
def run(original, tmp_path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "run"))


def rewritten(run: Path, document: dict) -> None:
    """What a forger does: change what is stated, and write hashes that fit."""
    document |= fingerprints(run)
    (run / files.REPORT).write_bytes(files.canonical(sealed(document)))


def with_tensor(path: Path, name: str, change) -> None:
    """Replace a tensor of a file."""
    tensors, header = files.read_tensors(path)
    tensors[name] = change(tensors[name].clone())
    files.write_tensors(path, tensors, header)


def flipped(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def tensor_spans(path: Path) -> list[tuple[str, int, int]]:
    """Name, first and last byte of every tensor in a safetensors file."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    start = 8 + size
    return [
        (name, start + entry["data_offsets"][0], start + entry["data_offsets"][1])
        for name, entry in header.items()
        if name != "__metadata__"
    ]


def test_a_sound_run_passes(original):
    verification = verify(original)
    assert verification.ok
    assert (verification.layers, verification.certificates) == (3, 4)
    assert verification.notes == ()
    assert json.loads(json.dumps(verification.to_json()))["ok"] is True


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_every_dtype_passes(tmp_path, dtype):
    verify(export(*pruned_run(mlp(dtype), samples(64, 8).to(dtype)), tmp_path / "run"))


@pytest.mark.parametrize("name", ["weights.safetensors", "sparse.safetensors", "masks.safetensors"])
def test_a_flipped_bit_of_any_tensor_is_put_down_to_its_layer(run, name):
    content = (run / name).read_bytes()
    chance = random.Random(name)
    for tensor, start, stop in tensor_spans(run / name):
        for bit in (8 * start, 8 * stop - 1, chance.randrange(8 * start, 8 * stop)):
            flipped(run / name, bit)
            findings = examine(run).findings
            layer = tensor.partition(".")[0]
            expected = layer if layer in {"0", "3", "6"} else None
            assert any(f.layer == expected and f.file == name and f"'{tensor}'" in f.message for f in findings), tensor
            (run / name).write_bytes(content)


def test_a_flipped_bit_of_any_evidence_is_put_down_to_its_layer(run):
    chance = random.Random(0)
    for path in sorted(run.glob("evidence/*")):
        content = path.read_bytes()
        for tensor, start, stop in tensor_spans(path):
            flipped(path, chance.randrange(8 * start, 8 * stop))
            with pytest.raises(
                VerificationError, match=rf"layer '{path.stem}' \(evidence/{path.name}\): tensor '{tensor}'"
            ):
                verify(run)
            path.write_bytes(content)


@pytest.mark.parametrize(
    "name",
    ["weights.safetensors", "sparse.safetensors", "masks.safetensors", "evidence/3.safetensors", "report.json"],
)
def test_a_flipped_bit_anywhere_in_a_file_is_found(run, name):
    content = (run / name).read_bytes()
    chance = random.Random(name)
    for _ in range(POSITIONS):
        flipped(run / name, chance.randrange(8 * len(content)))
        findings = examine(run).findings
        assert any(f.file == name for f in findings)
        (run / name).write_bytes(content)
    assert verify(run).ok


def numbers(value, path=()):
    """Where the numbers of a document stand."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from numbers(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from numbers(item, (*path, index))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path


def edited(document, path, change):
    document = copy.deepcopy(document)
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = change(place[path[-1]])
    return document


def test_an_edited_number_of_the_report_is_found_and_named(run):
    document = json.loads((run / files.REPORT).read_bytes())
    places = list(numbers(document))
    assert len(places) > 100
    names = [record["name"] for record in document["report"]["layers"]]
    for path in random.Random(0).sample(places, POSITIONS):
        altered = edited(
            document, path, lambda number: number + 1 if isinstance(number, int) else number * 1.0001 + 1e-9
        )
        (run / files.REPORT).write_bytes(files.canonical(altered))
        findings = examine(run).findings
        if path[:2] == ("report", "layers"):
            assert Finding(names[path[2]], files.REPORT, "its record was edited") in findings
        elif path[0] == "layers":
            assert Finding(path[1], files.REPORT, "its record was edited") in findings
        else:
            section = path[0] if path[0] != "report" else f"report.{path[1]}"
            assert any(f"section '{section}'" in f.message for f in findings) or path[0] == "version", path


def test_the_smallest_edit_of_a_number_is_found(run):
    text = (run / files.REPORT).read_text()
    objective = json.loads(text)["layers"]["3"]["parts"][1]["certificate"]["objective"]
    for replacement in (repr(objective) + "0", repr(objective * (1 + 3e-16))):
        assert replacement != repr(objective)
        (run / files.REPORT).write_text(text.replace(repr(objective), replacement))
        with pytest.raises(VerificationError, match=files.REPORT):
            verify(run)


def test_a_forged_certificate_disagrees_with_the_weights(run):
    document = json.loads((run / files.REPORT).read_bytes())
    forged = 0
    for name, layer in document["layers"].items():
        for index, part in enumerate(layer["parts"]):
            for path in numbers(part["certificate"]):
                where = ("layers", name, "parts", index, "certificate", *path)
                rewritten(run, edited(document, where, lambda number: number * (1 - 1e-6) + 1e-9))
                assert any(f.layer == name and path[-1] in f.message for f in examine(run).findings), where
                forged += 1
    assert forged >= 4 * 6


def test_a_forged_record_disagrees_with_its_parts_and_its_weight(run):
    document = json.loads((run / files.REPORT).read_bytes())
    for index, record in enumerate(document["report"]["layers"]):
        places = [("kept",), ("density",), ("discrepancy",), ("shape", 0)]
        places += [("certificate", *path) for path in numbers(record["certificate"])]
        for path in places:
            where = ("report", "layers", index, *path)
            rewritten(
                run,
                edited(
                    document, where, lambda number: number + 1 if isinstance(number, int) else number * 0.999 + 1e-9
                ),
            )
            assert any(f.layer == record["name"] for f in examine(run).findings), where


def test_a_forged_weight_disagrees_with_its_certificate(run):
    document = json.loads((run / files.REPORT).read_bytes())
    for name, layer in document["layers"].items():
        key = layer["weight"]
        originals = {path: path.read_bytes() for path in run.glob("*.safetensors")}

        def change(weight):
            flat = weight.view(-1)
            flat[flat.nonzero()[0]] *= 1.01
            return weight

        with_tensor(run / WEIGHTS, key, change)
        values = f"{key}:values"
        with_tensor(run / "sparse.safetensors", values, lambda v: torch.cat((v[:1] * 1.01, v[1:])))
        rewritten(run, document)
        messages = [f.message for f in examine(run).findings if f.layer == name]
        assert any("objective" in message for message in messages), name
        for path, content in originals.items():
            path.write_bytes(content)


def test_a_forged_mask_disagrees_with_the_weights(run):
    document = json.loads((run / files.REPORT).read_bytes())
    with_tensor(run / "masks.safetensors", "3.weight", lambda bits: bits ^ 1)
    rewritten(run, document)
    with pytest.raises(VerificationError, match=r"layer '3' \(masks\.safetensors\)"):
        verify(run)


def test_forged_evidence_gives_another_bound(run):
    document = json.loads((run / files.REPORT).read_bytes())
    with_tensor(run / "evidence/3.safetensors", "1.evidence.point", lambda point: point + 0.5)
    rewritten(run, document)
    with pytest.raises(VerificationError, match=r"layer '3'.*part 1: lower_bound"):
        verify(run)


def test_missing_and_additional_files(run):
    (run / "notes.txt").write_text("mine")
    verification = verify(run)
    assert any("notes.txt" in note for note in verification.notes)
    (run / "evidence/6.safetensors").unlink()
    with pytest.raises(VerificationError, match=r"layer '6'.*cannot be read"):
        verify(run)


@pytest.mark.parametrize("keep", [0, 7, 60, 0.5, 0.99])
@pytest.mark.parametrize("name", ["weights.safetensors", "sparse.safetensors", "masks.safetensors", "report.json"])
def test_truncated_files_are_findings(run, name, keep):
    content = (run / name).read_bytes()
    (run / name).write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    with pytest.raises(VerificationError, match=name):
        verify(run)


def test_a_report_of_nonsense_is_a_finding(run):
    document = json.loads((run / files.REPORT).read_bytes())
    for key in ("report", "layers", "files", "tensors", "digests"):
        for nonsense in (None, [], {}, 3, "x"):
            (run / files.REPORT).write_bytes(files.canonical({**document, key: nonsense}))
            assert not examine(run).ok, (key, nonsense)


def test_several_runs_are_verified_together(original, run, tmp_path):
    shutil.copytree(original, tmp_path / "second")
    export_index(tmp_path, {"accuracy": 0.9})
    assert verify(tmp_path).certificates == 8
    flipped(run / WEIGHTS, 8 * (run / WEIGHTS).stat().st_size - 1)
    with pytest.raises(VerificationError, match=r"layer '6' \(run/weights\.safetensors\)"):
        verify(tmp_path)
    assert not any(f.file.startswith("second") for f in examine(tmp_path).findings)


def test_the_list_of_runs_is_verified(original, run, tmp_path):
    export_index(tmp_path, {"accuracy": 0.9})
    text = (tmp_path / files.REPORT).read_text()
    (tmp_path / files.REPORT).write_text(text.replace("0.9", "0.91"))
    with pytest.raises(VerificationError, match="edited"):
        verify(tmp_path)
    (tmp_path / files.REPORT).write_text(text)
    verify(tmp_path)
    shutil.rmtree(run)
    with pytest.raises(VerificationError, match=r"run/report\.json"):
        verify(tmp_path)


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(FileFormatError, match=r"no report\.json"):
        verify(tmp_path)
    with pytest.raises(FileFormatError, match=r"no report\.json"):
        verify(tmp_path / "nowhere")


def test_a_run_without_evidence_says_so(tmp_path):
    model, report = pruned_run(mlp(), samples(64, 8))
    bare = type(report).from_json(report.to_json())
    verification = verify(export(model, bare, tmp_path / "run"))
    assert verification.certificates == 0
    assert len(verification.notes) == 3


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run of the main job: Net-Trim, with biases among the variables, and a bound of the network."""
    model = mlp()
    inputs = samples(48, 8)
    pruned, report = prune(model, inputs, plan.radius(model, 0.2), NetTrimADMM())
    return export(pruned, report, tmp_path_factory.mktemp("runs") / "whole")


def test_a_run_of_net_trim_passes(whole):
    verification = verify(whole)
    assert verification.certificates == 3
    document = json.loads((whole / files.REPORT).read_bytes())
    assert [layer["bias"] for layer in document["layers"].values()] == ["0.bias", "2.bias", "4.bias"]
    assert document["report"]["network"]["bound"] is not None


def test_a_forged_bias_disagrees_with_its_certificate(whole, tmp_path):
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    document = json.loads((run / files.REPORT).read_bytes())
    for name in (WEIGHTS, "sparse.safetensors"):
        with_tensor(run / name, "2.bias", lambda bias: bias + 0.01)
    rewritten(run, document)
    findings = examine(run).findings
    assert {finding.layer for finding in findings} == {"2"}
    assert any("primal_residual" in finding.message for finding in findings)


@pytest.mark.parametrize(
    ("path", "change", "message"),
    [
        (("bound",), lambda number: 1e-3 * number, "exceeds its bound"),
        (("measured",), lambda number: 1e6 * number, "exceeds its bound"),
        (("terms", "2", "gain"), lambda number: 0.5 * number, "layer '2'.*the norm is"),
        (("terms", "4", "local"), lambda number: 1e6 * number, "layer '4'.*below the layer's own error"),
        (("terms", "2", "behind"), lambda number: 0.9 * number, "closed form.*spectral .* recomputed"),
        (("chain", "frobenius"), lambda number: 0.9 * number, "closed form.*frobenius .* recomputed"),
        (("chain", "printed"), lambda number: 1e-3 * number, "closed form.*below that of l1"),
    ],
)
def test_a_forged_network_bound_contradicts_itself(whole, tmp_path, path, change, message):
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    document = json.loads((run / files.REPORT).read_bytes())
    rewritten(run, edited(document, ("report", "network", *path), change))
    with pytest.raises(VerificationError, match=message):
        verify(run)


VERIFIER = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.startswith("optprune.solvers") or name.partition(".")[0] in "cvxpy sklearn osqp clarabel scs".split():
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Blocked())
from optprune.network.verify import verify
print(verify(sys.argv[1]))
"""


def test_verification_needs_no_solver(original):
    done = subprocess.run([sys.executable, "-c", VERIFIER, original], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "4 certificates of 3 layers recomputed, all as recorded" in done.stdout


def test_plain_safetensors_tools_are_caught_too(run):
    path = run / WEIGHTS
    save_file(load_file(path), path)  # same tensors, another header
    with pytest.raises(VerificationError, match="header was altered"):
        verify(run)
