"""Exported programs become modules with layers again, and nothing in them is unpickled."""

import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from optprune.cli import app, output
from optprune.cli.program import read_program
from optprune.errors import FileFormatError
from optprune.network.export import load

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


class Net(nn.Module):
    """A grouped convolution, a nested block and a layer without bias, the functions in between written out."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.conv = nn.Conv2d(2, 4, 3, padding=1, groups=2)
        self.block = nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))
        self.last = nn.Linear(5, 3, bias=False)
        for parameter in self.parameters():
            nn.init.normal_(parameter, generator=generator)

    def forward(self, x):
        return self.last(torch.relu(self.block(self.conv(x))))


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("program") / "net.pt2"
    shapes = ({0: torch.export.Dim("batch", min=1)},)
    torch.export.save(torch.export.export(Net().eval(), (torch.zeros(3, 2, 4, 4),), dynamic_shapes=shapes), path)
    return path


def samples(count: int) -> torch.Tensor:
    return torch.randn(count, 2, 4, 4, generator=torch.Generator().manual_seed(1))


def test_layers_come_back_under_their_names(program):
    model, original = read_program(program), Net()
    assert torch.equal(model(samples(7)), original(samples(7)))
    assert model.state_dict().keys() == original.state_dict().keys()
    assert isinstance(model.get_submodule("conv"), nn.Conv2d)
    assert model.get_submodule("conv").groups == 2
    assert isinstance(model.get_submodule("block.2"), nn.Linear)
    assert model.get_submodule("last").bias is None


def test_a_program_is_pruned_as_the_model_it_was_exported_from(program, tmp_path):
    import numpy as np

    np.savez(tmp_path / "data.npz", inputs=samples(64).numpy())
    common = ("--data", str(tmp_path / "data.npz"), "--method", "magnitude", "--density", "0.5")
    for model, name in ((str(program), "program"), ("tests.cli.test_program:Net", "module")):
        done = CliRunner().invoke(app, ["prune", *common, "--model", model, "--out", str(tmp_path / name)])
        assert done.exit_code == 0, done.output
    runs = [load(tmp_path / name / "magnitude") for name in ("program", "module")]
    for name, tensor in runs[0].state_dict.items():
        assert torch.equal(tensor, runs[1].state_dict[name])
    networks = [run.report.network for run in runs]
    bounds = [network.bound for network in networks if network is not None]
    assert len(bounds) == 2
    assert bounds[0] is not None
    assert bounds[0] == pytest.approx(bounds[1])


def test_a_pickle_inside_is_refused(program, tmp_path):
    path = tmp_path / "evil.pt2"
    with zipfile.ZipFile(program) as archive, zipfile.ZipFile(path, "w") as copy:
        for name in archive.namelist():
            content = archive.read(name)
            if name.endswith("weights_config.json"):
                content = content.replace(b'"use_pickle": false', b'"use_pickle": true', 1)
            copy.writestr(name, content)
    with pytest.raises(FileFormatError, match="pickled"):
        read_program(path)


@pytest.mark.parametrize(
    ("called", "shown"),
    [(".venv/bin/optprune", ".venv/bin/optprune"), ("/usr/lib/python/optprune/cli/__main__.py", "optprune")],
)
def test_the_next_command_can_be_run_as_it_is_printed(monkeypatch, called, shown):
    monkeypatch.setattr("sys.argv", [called, "prune"])
    assert output.program() == shown
