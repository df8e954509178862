"""Plans: exact counts, overrides by name, and errors that say what the layers are."""

import pytest
import torch
from torch import nn

from optprune.errors import InvalidInputError, UnsupportedError
from optprune.network import plan
from optprune.network.plan import Plan, Radius
from optprune.patterns import Columns, Fixed, NOfM, PerLayer, PerRow, Rows


def model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.Flatten(), nn.Linear(15, 7), nn.ReLU(), nn.Linear(7, 3))


def test_a_density_is_an_exact_count_rounded_half_up():
    made = plan.uniform(model(), density=0.5)
    assert dict(made) == {"0": PerLayer(54), "2": PerLayer(53), "4": PerLayer(11)}
    assert (made.count("2"), made.count(), made.total()) == (53, 54 + 53 + 11, 108 + 105 + 21)


@pytest.mark.parametrize("density", [0.0, 0.01, 1 / 3, 0.5, 0.999, 1.0])
def test_the_count_is_what_the_groups_add_up_to(density):
    made = plan.uniform(model(), density=density, skip=["2", "4"])
    target = made["0"]
    assert isinstance(target, PerLayer)
    parts = target.split(2, (6, 18))
    assert sum(part.count((3, 18)) for part in parts) == made.count() == int(density * 108 + 0.5)


def test_patterns_types_and_functions():
    assert plan.uniform(model(), pattern=NOfM(1, 3), skip="[24]")["0"] == NOfM(1, 3)
    assert plan.uniform(model(), density=0.4, pattern=PerRow)["2"] == PerRow(6)
    assert plan.uniform(model(), density=0.5, pattern=Rows)["4"] == Rows(2)
    assert plan.uniform(model(), pattern=lambda shape: Columns(shape[1] // 2))["4"] == Columns(3)


def test_the_last_matching_override_wins_and_skips_win_over_all():
    override = {"*": 0.25, "2": PerRow(3), "4": None}
    made = plan.uniform(model(), density=0.9, override=override)
    assert dict(made) == {"0": PerLayer(27), "2": PerRow(3)}
    made = plan.uniform(model(), density=0.9, override=override, skip="2")
    assert list(made) == ["0"]
    made = plan.uniform(model(), density=0.9, override={"4": lambda shape: Rows(shape[0])})
    assert made["4"] == Rows(3)


def test_a_radius_has_no_count():
    made = plan.radius(model(), 0.1, override={"4": 0.5})
    assert made["2"] == Radius(0.1)
    assert made.count("4") == 11
    with pytest.raises(InvalidInputError, match=r"layer '0': Radius.* has no count"):
        made.count()
    assert "when solved" in str(made)


def test_printing_shows_counts():
    lines = str(plan.uniform(model(), density=0.5)).splitlines()
    assert lines[0].split() == ["layer", "matrix", "target", "kept", "density"]
    assert lines[2].split() == ["2", "7", "x", "15", "PerLayer(k=53)", "53", "0.5048"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "give a density"),
        ({"density": 0.5, "pattern": PerRow(2)}, "not both"),
        ({"density": 1.5}, r"layer '0': density 1\.5"),
        ({"density": -0.1}, r"density -0\.1"),
        ({"density": 0.5, "skip": ["fc*"]}, r"'fc\*' matches no layer; the layers are '0', '2', '4'"),
        ({"density": 0.5, "override": {"1": 0.2}}, "'1' matches no layer"),
        ({"pattern": NOfM(2, 4)}, r"layer '0': NOfM\(2, 4\) given for 18 inputs"),
        ({"pattern": PerRow(16), "skip": ["0", "2"]}, r"layer '4': .*keeps 16 of 7 units"),
        ({"density": 0.5, "pattern": NOfM}, "any other pattern is given as an instance"),
        ({"pattern": PerRow}, "density=None"),
        ({"pattern": Fixed(torch.ones(3, 7, dtype=torch.bool))}, "layer '0': Fixed mask of shape"),
        ({"density": 0.5, "override": {"4": lambda shape: 0.3}}, "layer '4': 0.3 given as a target"),
    ],
)
def test_misuse_is_refused_with_the_layer(arguments, words):
    with pytest.raises(InvalidInputError, match=words):
        plan.uniform(model(), **arguments)


@pytest.mark.parametrize("relative", [-0.1, float("inf"), float("nan")])
def test_a_radius_is_a_fraction(relative):
    with pytest.raises(InvalidInputError, match="fraction"):
        Radius(relative)
    with pytest.raises(InvalidInputError, match="factor"):
        Radius(0.1, gamma=0.5)


def test_nothing_to_prune():
    with pytest.raises(InvalidInputError, match="nothing to prune"):
        plan.uniform(nn.Sequential(nn.ReLU()), density=0.5)


class Scaled(nn.Linear):
    def forward(self, input):
        return 2 * super().forward(input)


def test_a_layer_that_cannot_be_pruned_may_be_skipped():
    odd = nn.Sequential(nn.Linear(2, 2), Scaled(2, 2))
    with pytest.raises(UnsupportedError, match="layer '1'"):
        plan.uniform(odd, density=0.5)
    assert list(plan.uniform(odd, density=0.5, skip="1")) == ["0"]


def test_a_plan_is_checked_against_the_model():
    made = plan.uniform(model(), density=0.5)
    made.validate(model())
    with pytest.raises(InvalidInputError, match="layer '0': the plan was made for a 6 x 18 matrix in 2 groups"):
        made.validate(nn.Sequential(nn.Conv2d(4, 6, 3), nn.Flatten(), nn.Linear(15, 7), nn.ReLU(), nn.Linear(7, 3)))
    with pytest.raises(InvalidInputError, match="'0' is no module"):
        made.validate(nn.Linear(2, 2))
    wrong = Plan({"4": NOfM(2, 4)}, {"4": (3, 7)}, {"4": 1})
    with pytest.raises(InvalidInputError, match="layer '4': NOfM"):
        wrong.validate(model())
