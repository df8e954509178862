"""The closed forms of a chain in a report: what they are, where they exist, and that they hold."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import optprune as op
from optprune.bounds.net_trim import ParallelBounds, parallel_bounds
from optprune.network.prune import Mode
from optprune.network.report import NetworkBound


def chain(activation: nn.Module | None = None) -> nn.Sequential:
    act = activation or nn.ReLU()
    model = nn.Sequential(nn.Linear(8, 12), act, nn.Dropout(0.3), nn.Linear(12, 9, bias=False), act, nn.Linear(9, 4))
    return model.double()


def batches() -> list[Tensor]:
    rng = torch.Generator().manual_seed(1)
    return [torch.randn(20, 8, generator=rng, dtype=torch.float64) for _ in range(2)]


def network_of(
    model: Any, data: list[Tensor], mode: Mode = "parallel", **options
) -> tuple[NetworkBound, nn.Sequential]:
    made = op.plan.uniform(model, density=0.6, **options)
    pruned, report = op.prune(model, data, made, op.Magnitude(refit=False), mode=mode, certified=False)
    assert report.network is not None
    return report.network, pruned


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def test_they_are_the_theorem_on_the_errors_behind_the_activations():
    model, data = chain(), batches()
    found, pruned = network_of(model, data)
    x, errors = torch.cat(data), []
    for start, stop in ((0, 3), (3, 5), (5, 6)):
        with torch.no_grad():
            dense, alone = model.eval()[start:stop](x), pruned.eval()[start:stop](x)
        errors.append(float((alone - dense).norm()))
        x = dense
    before, after = (
        [net.get_submodule(name).get_parameter("weight").detach() for name in "035"] for net in (model, pruned)
    )
    by_hand = parallel_bounds(errors, before, after, float(x.norm()))
    assert found.chain is not None
    for name in ("spectral", "frobenius", "l1", "printed"):
        assert getattr(found.chain, name) == pytest.approx(getattr(by_hand, name), rel=1e-9)
    assert [found.terms[name]["behind"] for name in "035"] == pytest.approx(errors, rel=1e-9)
    assert found.measured is not None
    assert found.measured <= found.chain.spectral <= found.chain.frobenius <= found.chain.l1
    assert found.bound == pytest.approx(found.chain.spectral, rel=1e-9)
    assert "l1 of the dense, as printed" in str(found)
    assert str(found).count(", vacuous") >= 2


class TwoOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = chain()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.body[0](x)
        return self.body[3](hidden.relu()), hidden


class Shortcut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8).double(), nn.Linear(8, 4).double()

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x).relu()
        return self.second(hidden + hidden.tanh())


@pytest.mark.parametrize(
    ("model", "options"),
    [
        (chain(nn.LeakyReLU(1.5)), {}),
        (chain(), {"mode": "cascade"}),
        (chain(), {"skip": ["3"]}),
        (TwoOutputs(), {"skip": ["body.5"]}),
        (Shortcut(), {}),
        (
            nn.Sequential(
                nn.Unflatten(1, (2, 4)), nn.Conv1d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6, 2)
            ).double(),
            {},
        ),
    ],
    ids=["expanding", "cascade", "a dense layer between", "two outputs", "branches", "convolution"],
)
def test_where_there_is_no_chain_there_are_none(model, options):
    found, _ = network_of(model, batches(), **options)
    assert found.bound is not None
    assert found.chain is None
    assert all("behind" not in term for term in found.terms.values())
    assert "closed forms" not in str(found)


def test_what_stands_before_the_first_pruned_layer_does_not_matter():
    found, _ = network_of(chain(nn.Tanh()), batches(), skip=["0"])
    assert found.chain is not None
    assert list(found.terms) == ["3", "5"]
    assert found.measured is not None
    assert found.measured <= found.chain.spectral


def test_the_printed_form_needs_smaller_layers():
    found = NetworkBound(1.0, 1.0, 2.0, 1, "float64", chain=ParallelBounds(None, 4.0, 3.0, 1.0, 2.0))
    assert "spectral 1 (50 % of the output); Frobenius 3 (150 % of the output), vacuous" in str(found)
    assert "as printed does not apply" in str(found)
    assert NetworkBound.from_json(found.to_json()) == found
