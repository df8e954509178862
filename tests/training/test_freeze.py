"""Frozen masks hold through optimizers, copies, files, compilation, and go to and fro with torch.nn.utils.prune."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from optprune.errors import InvalidInputError, UnsupportedError
from optprune.training import freeze, from_torch_prune, frozen_masks, thaw, to_torch_prune
from tests.training.loops import OPTIMIZERS, cnn, data, plain

pytestmark = pytest.mark.usefixtures("unchecked")  # thousands of steps
NAMES = ("0", "2", "5")


def masks(model: nn.Module, density: float = 0.3, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(model.get_parameter(f"{name}.weight").shape, generator=generator) < density for name in NAMES
    }


def outside(model: nn.Module, held: dict[str, Tensor]) -> float:
    """The largest weight where there should be none."""
    return max(float(model.get_parameter(f"{name}.weight").detach()[~mask].abs().max()) for name, mask in held.items())


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_mask_holds_through_a_thousand_steps(kind):
    model, (inputs, targets) = cnn(), data(1, 8, 8)
    optimizer = OPTIMIZERS[kind](model)
    plain(model, optimizer, 3, inputs[:16], targets[:16])  # the optimizer remembers weights that are pruned now
    held = masks(model)
    freeze(model, held, optimizer)
    before = copy.deepcopy(model.state_dict())
    for _ in range(1000):
        plain(model, optimizer, 1, inputs[:4], targets[:4])
        assert outside(model, held) == 0.0
    for name, mask in held.items():
        weight = model.get_parameter(f"{name}.weight")
        states = [s for s in optimizer.state[weight].values() if isinstance(s, Tensor) and s.shape == weight.shape]
        assert states
        assert all(bool((state[~mask] == 0).all()) for state in states)
        assert bool((weight.detach() != before[f"{name}.weight"])[mask].any()), "what is kept is trained"


def test_an_optimizer_that_nobody_told_of_cannot_undo_it_either():
    model, (inputs, targets) = cnn(), data(1, 8, 8)
    held = masks(model)
    freeze(model, held)
    optimizer = OPTIMIZERS["adam"](model)
    plain(model, optimizer, 2, inputs, targets)
    assert outside(model, held) > 0.0, "the optimizer did move them"
    state = model.state_dict()
    assert all(bool((state[f"{name}.weight"][~mask] == 0).all()) for name, mask in held.items())
    plain(model, optimizer, 1, inputs, targets)
    model(inputs)
    assert outside(model, held) == 0.0


def test_state_dict_has_the_same_names_and_loads_anywhere():
    model = cnn()
    names = list(model.state_dict())
    freeze(model, masks(model))
    assert list(model.state_dict()) == names
    other = cnn()
    other.load_state_dict(model.state_dict())
    assert outside(other, frozen_masks(model)) == 0.0


def test_a_deep_copy_is_as_frozen_and_on_its_own():
    model, (inputs, targets) = cnn(), data(1, 8, 8)
    held = masks(model)
    frozen = freeze(model, held)
    twin = copy.deepcopy(model)
    plain(twin, OPTIMIZERS["adam"](twin), 3, inputs, targets)
    twin(inputs)
    assert outside(twin, held) == 0.0
    frozen.remove()
    assert frozen_masks(model) == {}
    assert same(frozen_masks(twin), held)
    thaw(twin)
    assert not any(module._forward_pre_hooks or module._state_dict_pre_hooks for module in twin.modules())
    plain(twin, OPTIMIZERS["adam"](twin), 1, inputs, targets)
    assert outside(twin, held) > 0.0, "thawed means free"


def test_a_compiled_model_is_held_and_computes_the_same():
    inputs, targets = data(1, 8, 8)
    states = []
    for compiled in (False, True):
        model = cnn()
        freeze(model, masks(model))
        run = torch.compile(model, backend="aot_eager", fullgraph=True) if compiled else model
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-2)
        for _ in range(4):
            optimizer.zero_grad()
            nn.functional.cross_entropy(run(inputs), targets).backward()
            optimizer.step()
        run(inputs)
        assert outside(model, masks(model)) == 0.0
        states.append(model.state_dict())
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_model_that_is_cast_stays_frozen(dtype):
    model = cnn()
    held = masks(model)
    frozen = freeze(model, held)
    model.to(dtype)
    with torch.no_grad():
        for name in NAMES:
            model.get_parameter(f"{name}.weight").fill_(float("nan"))
    frozen.apply()
    assert outside(model, held) == 0.0, "whatever stood there"
    assert all(bool(model.get_parameter(f"{n}.weight").detach()[m].isnan().all()) for n, m in held.items())
    assert same(frozen.masks, held)


def test_pruned_weights_are_positive_zeros():
    model = cnn()
    with torch.no_grad():
        model.get_parameter("5.weight").fill_(-1.0)
    freeze(model, {"5": torch.zeros(4, 64, dtype=torch.bool)})
    assert not bool(model.get_parameter("5.weight").detach().signbit().any())


def test_two_forwards_before_one_backward():
    model, (inputs, _) = cnn(), data(1, 8, 8)
    freeze(model, masks(model))
    (model(inputs[:8]).square().mean() + model(inputs[8:16]).square().mean()).backward()
    assert model.get_parameter("0.weight").grad is not None


def test_masks_can_be_replaced_and_released():
    model, first, second = cnn(), masks(cnn()), masks(cnn(), seed=1)
    frozen = freeze(model, first)
    assert same(frozen.masks, first)
    frozen.set(second)
    assert same(frozen_masks(model), second)
    assert outside(model, second) == 0.0
    frozen.release()
    assert all(bool(mask.all()) for mask in frozen.masks.values())
    assert outside(model, second) == 0.0, "released weights stay as they are"


def test_without_masks_the_present_zeros_are_kept():
    model, held = cnn(), masks(cnn())
    freeze(model, held)
    thaw(model)
    assert same(freeze(model).masks, held)
    assert same(freeze(model).masks, held), "frozen again, the masks stay"


def test_matrices_are_masks_too():
    model = cnn()
    held = masks(model)
    matrix = held["0"].reshape(6, 9)
    assert same(freeze(model, held | {"0": matrix}).masks, held)


def test_to_and_from_torch_prune():
    model, (inputs, targets) = cnn(), data(1, 8, 8)
    held = masks(model)
    optimizer = OPTIMIZERS["momentum"](model)
    freeze(model, held)
    want = model(inputs).detach()
    to_torch_prune(model)
    assert torch_prune.is_pruned(model)
    assert same({name: model.get_buffer(f"{name}.weight_mask").bool() for name in NAMES}, held)
    torch.testing.assert_close(model(inputs), want, rtol=0, atol=0)
    plain(model, optimizer, 2, inputs, targets)  # weight_orig drifts at pruned places
    frozen = from_torch_prune(model, optimizer)
    assert not torch_prune.is_pruned(model)
    assert same(frozen.masks, held)
    plain(model, optimizer, 2, inputs, targets)  # the optimizer still holds the very parameters
    assert outside(model, held) == 0.0


def test_masks_that_cannot_be_taken_over_are_not_lost():
    model = nn.Sequential(nn.Linear(4, 4), nn.ConvTranspose2d(1, 2, 3))
    for module in model:
        torch_prune.random_unstructured(module, "weight", 3)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with pytest.raises(UnsupportedError, match="layer '1'"):
        from_torch_prune(model)
    assert same(dict(model.named_buffers()), before)
    assert all(torch_prune.is_pruned(module) for module in model)


def test_wrong_use_says_what_is_right():
    model = cnn()
    held = masks(model)
    with pytest.raises(InvalidInputError, match=r"layer '0'.*boolean one is needed"):
        freeze(model, {"0": held["0"].float()})
    with pytest.raises(InvalidInputError, match=r"layer '0'.*shape"):
        freeze(model, {"0": held["2"]})
    with pytest.raises(InvalidInputError, match="holds none of the frozen weights"):
        freeze(model, held, OPTIMIZERS["adam"](cnn()))
    with pytest.raises(InvalidInputError, match="not frozen"):
        to_torch_prune(cnn())
    with pytest.raises(InvalidInputError, match="has not pruned it"):
        from_torch_prune(cnn())
    torch_prune.l1_unstructured(model[5], "bias", 2)
    with pytest.raises(UnsupportedError, match=r"layer '5'.*'bias' is pruned"):
        from_torch_prune(model)
    frozen = freeze(cnn(), held)
    frozen.remove()
    with pytest.raises(InvalidInputError, match="thawed"):
        frozen.apply()
