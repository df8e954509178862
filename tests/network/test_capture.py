"""Statistics by hooks: what the layers saw, in how much memory, and the model given back as it was."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from optprune.errors import InvalidInputError, NonFiniteError, OptPruneError, UnsupportedError
from optprune.network.calibration import calibration, device_of, evaluating, survey
from optprune.network.capture import call_counts, capture, capture_cascade, passes, require_called_once, require_untied
from optprune.network.layers import adapter_for, named_adapters
from tests.network.networks import data, layer


def net() -> nn.Sequential:
    torch_state = torch.get_rng_state()
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4, bias=False), nn.Dropout(0.5), nn.Linear(4, 3))
    torch.set_rng_state(torch_state)
    for index, parameter in enumerate(model.parameters()):
        parameter.data = data(*parameter.shape, seed=index)
    return model


def conv() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, groups=2), nn.ReLU(), nn.Conv2d(4, 3, 2, stride=2))


def test_statistics_are_those_of_the_inputs():
    model, x = net().double(), data(40, 5).double()
    found = capture(model, [x[:15], x[15:]], ["4", "0"])
    assert list(found) == ["4", "0"]
    with torch.no_grad():
        hidden = model[2](model[1](model[0](x))).double()
    rows = torch.cat([hidden, torch.ones(40, 1).double()], 1)
    statistics = found["4"].statistics
    torch.testing.assert_close(statistics.gram[0], rows.mT @ rows / 40, rtol=1e-12, atol=1e-12)
    assert torch.equal(statistics.reference[0, :, :-1], layer(model, "4").weight.detach().double())
    assert torch.equal(statistics.reference[0, :, -1], layer(model, "4").bias.detach().double())
    assert statistics.count == 40
    assert not statistics.cross.any()
    assert not statistics.energy.any()
    assert found["0"].inputs is None


def test_groups_of_a_convolution_have_their_own_statistics():
    model, x = conv(), data(6, 2, 4, 4)
    found = capture(model, [x], ["0"])["0"].statistics
    for g in range(2):
        own = adapter_for(nn.Conv2d(1, 2, 3, padding=1)).rows(x[:, g : g + 1])[0].double()
        torch.testing.assert_close(found.gram[g, :-1, :-1], own.mT @ own / len(own))
    assert found.count == 6 * 16


@pytest.mark.parametrize("kind", ["tensor", "pair", "mapping", "loader", "iterator", "one tensor", "function"])
def test_batches_of_every_kind(kind):
    model, x = net(), data(12, 5)
    halves = [x[:6], x[6:]]
    batches, forward = {
        "tensor": (halves, None),
        "pair": ([(half, torch.zeros(6)) for half in halves], None),
        "mapping": ([{"input": half} for half in halves], None),
        "loader": (DataLoader(TensorDataset(x), batch_size=5, shuffle=True), None),
        "iterator": (iter(halves), None),
        "one tensor": (x, None),
        "function": ([{"a": half} for half in halves], lambda m, batch: m(batch["a"])),
    }[kind]
    found = capture(model, batches, ["0"], forward=forward)["0"].statistics
    reference = capture(model, [x], ["0"])["0"].statistics
    torch.testing.assert_close(found.gram, reference.gram, rtol=1e-12, atol=1e-12)


def test_rows_are_subsampled_with_a_generator():
    model, x = net(), data(100, 5)
    first, second = (capture(model, x.split(30), ["0"], samples=16, seed=3)["0"].inputs for _ in range(2))
    other = capture(model, x.split(30), ["0"], samples=16, seed=4)["0"].inputs
    assert first is not None
    assert second is not None
    assert other is not None
    assert first.shape == (1, 16, 5)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert all((row == x).all(1).any() for row in first[0])


def test_a_layer_called_twice_pools_its_calls():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x):
            return self.fc(torch.relu(self.fc(x)))

    model, x = Twice(), data(8, 3)
    with torch.no_grad():
        rows = torch.cat([x, torch.relu(model.fc(x))]).double()
    statistics = capture(model, [x], ["fc"])["fc"].statistics
    torch.testing.assert_close(statistics.gram[0, :-1, :-1], rows.mT @ rows / 16)
    assert statistics.count == 16
    counts = counted(model, x)
    assert counts == {"fc": 2}
    with pytest.raises(UnsupportedError, match=r"layer 'fc': it is called 2 times.*parallel"):
        require_called_once(counts)


def counted(model: nn.Module, x: torch.Tensor) -> dict[str, int]:
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    with evaluating(model):
        return call_counts(model, named_adapters(model, names), prepared(model, [x]))


def prepared(model, batches):
    return calibration(model, batches, None, torch.device("cpu"), 2**30)


def test_the_order_is_that_of_execution():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.first = nn.Linear(3, 2), nn.Linear(4, 3)

        def forward(self, x):
            return self.last(self.first(x))

    assert list(counted(Backwards(), data(2, 4))) == ["first", "last"]


def test_the_cascade_reads_pruned_inputs_and_dense_targets():
    dense, pruned, x = net().double(), net().double(), data(30, 5).double()
    with torch.no_grad():
        layer(pruned, "0").weight.mul_(0.5)
        with evaluating(dense, pruned):
            found = capture_cascade(dense, pruned, "4", prepared(dense, x.split(7)), 8, 0)
            inputs = pruned[:4](x).double()
            targets = dense(x).double()
    full = torch.cat([inputs, torch.ones(30, 1).double()], 1)
    left = targets - full @ found.statistics.reference[0].mT
    torch.testing.assert_close(found.statistics.gram[0], full.mT @ full / 30)
    torch.testing.assert_close(found.statistics.cross[0], full.mT @ left / 30, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.statistics.energy[0], left.square().mean(0), rtol=1e-9, atol=1e-9)
    assert found.inputs is not None
    assert found.targets is not None
    for row, target in zip(found.inputs[0].double(), found.targets[0].double(), strict=True):
        match = (row - inputs).abs().sum(1).argmin()
        torch.testing.assert_close(target, targets[match], rtol=1e-12, atol=1e-12)


def test_passes_are_as_few_as_memory_allows():
    model = nn.Sequential(*(nn.Linear(10, 10, bias=False) for _ in range(6)))
    adapters = named_adapters(model, [str(i) for i in range(6)])
    none = dict.fromkeys(adapters, 0)
    need = 8 * 4 * 100
    assert [len(piece) for piece in passes(adapters, none, 10**9)] == [6]
    assert [len(piece) for piece in passes(adapters, none, 4 * need)] == [4, 2]
    assert [len(piece) for piece in passes(adapters, none, 1)] == [1] * 6
    x = data(20, 10)
    small, large = (capture(model, [x], list(adapters), memory=memory) for memory in (4 * need, 10**9))
    for name in adapters:
        assert torch.equal(small[name].statistics.gram, large[name].statistics.gram)


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


class BrokenError(Exception):
    pass


@pytest.mark.parametrize("failing", [None, BrokenError, KeyboardInterrupt])
def test_the_model_comes_back_as_it_was(failing):
    model = net().train()
    model[2].eval()
    model[0].weight.requires_grad_(False)
    flags = [module.training for module in model.modules()]
    grads = [parameter.requires_grad for parameter in model.parameters()]
    weights = [parameter.clone() for parameter in model.parameters()]
    state = torch.get_rng_state()
    calls = []

    def forward(m, batch):
        assert not any(module.training for module in m.modules())
        assert not torch.is_grad_enabled()
        torch.rand(3)
        calls.append(1)
        if failing is not None and len(calls) == 3:
            raise failing
        return m(batch)

    batches = data(40, 5).split(10)
    if failing is None:
        capture(model, batches, ["0", "4"], forward=forward)
    else:
        with pytest.raises(failing):
            capture(model, batches, ["0", "4"], forward=forward)
    assert [module.training for module in model.modules()] == flags
    assert [parameter.requires_grad for parameter in model.parameters()] == grads
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert hooks(model) == 0
    assert torch.is_grad_enabled()


def test_the_cascade_removes_its_hooks_when_the_model_raises():
    dense = net()

    def forward(m, batch):
        raise BrokenError

    calibrated = calibration(dense, [data(4, 5)], forward, torch.device("cpu"), 2**30)
    with pytest.raises(BrokenError), evaluating(dense):
        capture_cascade(dense, dense, "4", calibrated, 0, 0)
    assert hooks(dense) == 0


def test_a_model_that_catches_everything_does_not_hold_the_cascade_up():
    class Careful(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x):
            try:
                return self.fc(x)
            except Exception:  # noqa: BLE001
                return x

    model = Careful()
    with evaluating(model):
        found = capture_cascade(model, model, "fc", prepared(model, [data(4, 3)]), 0, 0)
    assert found.statistics.count == 4


class Forgotten(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused, self.spare = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        return self.used(x)


def test_a_layer_that_is_never_reached_is_named():
    with pytest.raises(InvalidInputError, match=r"layer 'unused': it is never reached.*'spare'.*skip it"):
        capture(Forgotten(), [data(2, 3)], ["used", "unused", "spare"])
    attention = nn.MultiheadAttention(4, 2, batch_first=True)
    with pytest.raises(InvalidInputError, match=r"layer 'out_proj': it is never reached"):
        capture(attention, [data(2, 3, 4)], ["out_proj"], forward=lambda m, x: m(x, x, x))


def test_a_layer_reached_by_a_later_batch_is_found():
    class Routed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            return self.a(x) if x.sum() > 0 else self.b(x)

    found = capture(Routed(), [torch.ones(2, 2), -torch.ones(3, 2)], ["a", "b"])
    assert (found["a"].statistics.count, found["b"].statistics.count) == (2, 3)


@pytest.mark.parametrize(
    "batches", [[], iter([]), DataLoader(TensorDataset(torch.zeros(0, 5)))], ids=lambda batches: type(batches).__name__
)
def test_no_data_is_an_error(batches):
    with pytest.raises(InvalidInputError, match="no sample"):
        capture(net(), batches, ["0"])


def test_an_iterator_that_is_too_large_is_refused():
    with pytest.raises(InvalidInputError, match="read only once"):
        capture(net(), (data(10, 5) for _ in range(100)), ["0"], memory=3 * 10 * 5 * 4)


@pytest.mark.parametrize("batch", [3, "text", (), ("text", torch.zeros(2))], ids=str)
def test_an_unknown_batch_asks_for_a_forward(batch):
    with pytest.raises(InvalidInputError, match=r"forward=|no sample"):
        capture(net(), [batch], ["0"])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_activations_that_are_not_finite_name_the_layer(value):
    model, x = net(), data(20, 5)
    x[7, 3] = value
    with pytest.raises(NonFiniteError, match="layer '0'"):
        capture(model, [x], ["0"])
    with torch.no_grad():
        layer(model, "0").bias.fill_(3e38)
        layer(model, "2").weight.fill_(10.0)
    with pytest.raises(NonFiniteError, match="layer '4'"):
        capture(model, [data(20, 5)], ["0", "4"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_are_widened(dtype):
    model, x = net().to(dtype), data(16, 5)
    found = capture(model, [x], ["4"])["4"].statistics
    assert found.gram.dtype == torch.float64
    with torch.no_grad(), evaluating(model):
        hidden = model[:4](x.to(dtype)).double()
    torch.testing.assert_close(found.gram[0, :-1, :-1], hidden.mT @ hidden / 16)


def test_devices_that_hold_no_numbers_are_refused():
    with pytest.raises(InvalidInputError, match="'meta' and holds no numbers"):
        capture(nn.Linear(2, 2, device="meta"), [data(2, 2)], [""])
    for missing in ("cuda:9", "nonsense", "meta"):
        with pytest.raises(InvalidInputError, match=r"cannot be used.*cpu"):
            device_of(nn.Linear(2, 2), missing)
    assert device_of(nn.ReLU(), None) == torch.device("cpu")


def test_tied_weights_are_refused_with_both_names():
    tied = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 4, bias=False))
    tied[1].weight = tied[0].weight
    with pytest.raises(UnsupportedError, match=r"layer '1': its weight is the same parameter as that of '0'"):
        require_untied(tied, ["1"])
    require_untied(net(), ["0", "2", "4"])


def test_the_survey_depends_on_every_bit_and_on_the_order():
    model, x = net(), data(10, 5)
    with evaluating(model):
        first = survey(prepared(model, [x[:5], x[5:]]))
        assert (first.batches, first.samples) == (2, 10)
        assert survey(prepared(model, [x[:5].clone(), x[5:]])) == first
        assert survey(prepared(model, [x[5:], x[:5]])).sha256 != first.sha256
        x[0, 0] = torch.nextafter(x[0, 0], torch.tensor(9.0))
        assert survey(prepared(model, [x[:5], x[5:]])).sha256 != first.sha256


def test_errors_are_ours():
    for error in (InvalidInputError, NonFiniteError, UnsupportedError):
        assert issubclass(error, OptPruneError)
