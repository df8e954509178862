"""Damping chosen on held-out samples: the division, the choice, and what is reported of it."""

import math

import pytest
import torch
from torch import nn

from optprune.errors import InvalidInputError
from optprune.network import files, plan
from optprune.network.calibration import calibration, evaluating
from optprune.network.capture import Captured, capture_parallel
from optprune.network.choose_damping import choose_dampings
from optprune.network.damping import DampingChoice, HeldOut
from optprune.network.export import export
from optprune.network.layers import named_adapters
from optprune.network.prune import prune
from optprune.network.report import Report
from optprune.network.runs import sealed
from optprune.network.verify import examine, verify
from optprune.numerics.sampling import Divider, generator
from optprune.patterns import PerLayer
from optprune.problems import L0LeastSquares
from optprune.solvers import Magnitude, NetTrimADMM, solve
from optprune.statistics import Statistics
from tests.network.networks import cnn, data, filled, mlp


def correlated(rows: int, seed: int = 0) -> torch.Tensor:
    """Eight inputs that three hidden ones nearly determine."""
    return data(rows, 3, seed=seed) @ data(3, 8, seed=50) + 0.01 * data(rows, 8, seed=seed + 1)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_every_beginning_is_divided_exactly(share):
    divider, taken, seen = Divider(share, generator(0)), 0, 0
    for count in (1, 1, 7, 0, 30, 2, 1):
        taken += int(divider.take(count).sum())
        seen += count
        assert (divider.seen, taken) == (seen, math.floor(share * seen + 0.5))


def test_divisions_are_at_random_and_repeatable():
    first, again, other = (Divider(0.5, generator(seed)).take(64) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    counts = sum(Divider(0.5, generator(seed)).take(10).int() for seed in range(400))
    assert isinstance(counts, torch.Tensor)
    assert int(counts.min()) > 150
    assert int(counts.max()) < 250


def captured(model: nn.Module, names: list[str], batches: list[torch.Tensor], share: float) -> dict[str, Captured]:
    with evaluating(model):
        prepared = calibration(model, batches, None, torch.device("cpu"), 2**30)
        adapters = named_adapters(model, names)
        return capture_parallel(model, adapters, prepared, dict.fromkeys(names, 0), 3, held_out=share)


def test_the_halves_are_samples_and_together_all():
    model, x = cnn(), data(20, 3, 6, 6)
    found = captured(model, ["0", "2", "4"], [x[:7], x[7:]], 0.4)
    whole = captured(model, ["0", "2", "4"], [x], 0.0)
    divider = Divider(0.4, generator(3))
    aside = torch.cat([divider.take(7), divider.take(13)])
    for name, layer in found.items():
        assert layer.halves is not None
        rows = whole[name].statistics.count // 20
        assert [half.count for half in layer.halves] == [12 * rows, 8 * rows]
        assert layer.statistics.count == 20 * rows
        assert torch.allclose(layer.statistics.gram, whole[name].statistics.gram)
        alone = captured(model, [name], [x[aside]], 0.0)[name]
        assert torch.allclose(layer.halves[1].gram, alone.statistics.gram)
    assert whole["0"].halves is None


def test_a_sequence_is_one_sample():
    model, x = nn.Sequential(nn.Linear(8, 4)), data(10, 5, 8)
    layer = captured(model, ["0"], [x], 0.5)["0"]
    assert layer.halves is not None
    aside = Divider(0.5, generator(3)).take(10)
    inputs = torch.cat([x[aside], torch.ones(5, 5, 1)], -1).reshape(-1, 9).double()
    assert torch.allclose(layer.halves[1].gram, inputs.mT @ inputs / 25)


def test_the_least_held_out_error_is_chosen_and_the_numbers_are_what_they_say():
    model, x = mlp(), correlated(24)
    setting = HeldOut((0.1, 0.0, 1e-3), share=0.5)
    name, target = "0", PerLayer(30)
    adapters = named_adapters(model, [name])
    layer = captured(model, [name], [x], 0.5)
    choice = choose_dampings(layer, {name: target}, adapters, Magnitude(), setting)[name]
    assert choice.dampings == (0.0, 1e-3, 0.1)
    assert choice.errors(choice.chosen)[1] == min(choice.held_out)
    aside = Divider(0.5, generator(3)).take(24)
    weight = model.get_submodule(name).get_parameter("weight").detach().double()
    for damping in choice.dampings:
        fitted = Statistics.from_layer(weight, x[~aside].double())
        own = solve(L0LeastSquares(fitted, target, damping), Magnitude(), certified=False).weight
        held = float(Statistics.from_layer(weight, x[aside].double()).relative_error(own))
        assert choice.errors(damping) == pytest.approx((float(fitted.relative_error(own)), held), rel=1e-6)
    assert list(choice.fitted) == sorted(choice.fitted)  # what fits these samples best has no damping


def test_few_samples_ask_for_damping():
    model, x = filled(nn.Sequential(nn.Linear(40, 30))), data(50, 40)
    _, report = prune(model, [x], plan.uniform(model, 0.5), Magnitude(), damping=HeldOut(), bound=False)
    found = report.layer("0").held_out
    assert found is not None
    assert found.chosen > 0
    assert found.errors(found.chosen)[1] < found.errors(0.0)[1]


@pytest.mark.parametrize("mode", ["parallel", "cascade"])
def test_a_run_records_the_choice(mode, tmp_path):
    model, x = cnn(), data(16, 3, 6, 6)
    pruned, report = prune(
        model, [x[:9], x[9:]], plan.uniform(model, 0.4), Magnitude(), mode=mode, damping=HeldOut((0, 0.01))
    )
    for record in report.layers:
        assert record.held_out is not None
        assert record.damping == record.held_out.chosen
        assert all(part.problem.settings()["damping"] == record.damping for part in record.parts)
    assert str(report).count("on held-out samples") == 3
    again = Report.from_json(report.to_json())
    assert [record.held_out for record in again.layers] == [record.held_out for record in report.layers]
    assert report.provenance["damping"] == {"dampings": (0, 0.01), "share": 0.5}
    folder = export(pruned, report, tmp_path / "run")
    verify(folder)
    document = files.read_json(folder / files.REPORT)
    document["report"]["layers"][0]["damping"] = 0.5
    (folder / files.REPORT).write_bytes(files.canonical(sealed(document)))
    assert any("damping 0.5 recorded" in finding.message for finding in examine(folder).findings)


def test_net_trim_has_no_damping():
    model = mlp()
    made = plan.radius(model, 0.2)
    _, report = prune(model, [data(32, 8)], made, NetTrimADMM(), damping=HeldOut(), samples=20, bound=False)
    assert all(record.held_out is None and record.damping == 0 for record in report.layers)


def test_text_and_json_of_a_choice():
    choice = DampingChoice((0.0, 0.1), (0.2, 0.25), (0.5, math.inf), 0.0)
    assert DampingChoice.from_json(choice.to_json()) == choice
    assert str(choice) == "damping 0: error 0.5 on held-out samples (0.5 without), 0.2 on the fitted (0.2 without)"


def test_misuse():
    with pytest.raises(InvalidInputError, match="with 0 among them"):
        HeldOut((0.1, 0.2))
    with pytest.raises(InvalidInputError, match="finite"):
        HeldOut((0.0, math.nan))
    with pytest.raises(InvalidInputError, match="share=1"):
        HeldOut(share=1)
    model = mlp()
    with pytest.raises(InvalidInputError, match="layer '0': 1 samples reach it"):
        prune(model, [data(1, 8)], plan.uniform(model, 0.5), Magnitude(), damping=HeldOut())
