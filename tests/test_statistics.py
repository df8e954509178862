import jaxtyping
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optprune import statistics as module
from optprune.errors import InvalidInputError, NonFiniteError
from optprune.numerics.sampling import generator
from optprune.statistics import Accumulator, Samples, Statistics

F64 = torch.float64


def data(n, d_in, d_out, *, batch=(), seed=0, dtype=F64, scale=1.0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(*batch, n, d_in, generator=g, dtype=dtype) * scale
    weight = torch.randn(*batch, d_out, d_in, generator=g, dtype=dtype)
    noise = torch.randn(*batch, n, d_out, generator=g, dtype=dtype) * scale
    return x, weight, x @ weight.mT + noise


def half_mean_square(x, weight, targets):
    return (x.double() @ weight.double().mT - targets.double()).square().mean(-2) / 2


# --- samples ----------------------------------------------------------------------------------------------------------


def test_samples_merge_split_and_subsample():
    x, _, t = data(10, 3, 2)
    whole = Samples(x, t)
    assert len(whole) == 10
    parts = list(whole.chunks(4))
    assert [len(part) for part in parts] == [4, 4, 2]
    back = parts[0].merge(parts[1]).merge(parts[2])
    assert torch.equal(back.inputs, x)
    assert torch.equal(back.targets, t)
    few = whole.subsample(4, generator(0))
    rows = [int((x == row).all(-1).nonzero()) for row in few.inputs]
    assert rows == sorted(set(rows))
    assert torch.equal(few.targets, t[rows])
    assert whole.subsample(10, generator(0)) is whole
    batched = Samples(*data(10, 3, 2, batch=(4,))[::2])
    assert batched.subsample(6, generator(1)).targets.shape == (4, 6, 2)


def test_samples_of_a_layer():
    x, weight, _ = data(6, 3, 2, dtype=torch.float32)
    samples = Samples.from_layer(weight.double(), x)
    assert torch.equal(samples.targets, x.double() @ weight.double().mT)
    assert samples.inputs.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(dtype):
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    samples = Samples(x, x)
    assert samples.inputs.dtype == samples.targets.dtype == torch.float32
    assert torch.equal(samples.inputs, x.float())
    assert torch.equal(Statistics.from_samples(x, x).gram, Statistics.from_samples(x.double(), x.double()).gram)


def test_samples_say_what_is_wrong():
    x, _, t = data(6, 3, 2)
    with pytest.raises(InvalidInputError, match=r"\(6, 3\).*\(5, 2\)"):
        Samples(x, t[:5])
    with pytest.raises(InvalidInputError, match="without rows"):
        Samples(x[:0], t[:0])
    with pytest.raises(InvalidInputError, match="int64"):
        Samples(x.long(), t)
    with pytest.raises(InvalidInputError, match="at least one column"):
        Samples(x[:, :0], t)
    with pytest.raises(InvalidInputError, match="cpu"):
        Samples(x, t.to("meta"))
    x[4, 1], x[4, 2], x[5, 0] = float("nan"), float("inf"), float("-inf")
    with pytest.raises(NonFiniteError, match=r"inputs.* 3 NaN or infinite.*\(4, 1\)"):
        Samples(x, t)
    with pytest.raises(InvalidInputError, match="merged"):
        Samples(t, t).merge(Samples(t, t[:, :1]))
    with pytest.raises(InvalidInputError, match="0 rows"):
        list(Samples(t, t).chunks(0))


# --- statistics -------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(1, 20),
    d_in=st.integers(1, 8),
    d_out=st.integers(1, 5),
    batch=st.sampled_from([(), (1,), (3,), (2, 2)]),
    centred=st.booleans(),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
)
def test_error_is_half_the_mean_square(n, d_in, d_out, batch, centred, scale):
    x, weight, t = data(n, d_in, d_out, batch=batch, scale=scale)
    statistics = Statistics.from_samples(x, t, weight if centred else None)
    assert statistics.shape == weight.shape
    assert statistics.count == n
    assert torch.equal(statistics.gram, statistics.gram.mT)
    other = weight * (weight.abs() > 0.5)
    torch.testing.assert_close(
        statistics.error(other), half_mean_square(x, other, t), rtol=1e-10, atol=1e-13 * scale**2
    )
    torch.testing.assert_close(statistics.target_energy, t.square().mean(-2), rtol=1e-10, atol=1e-13 * scale**2)
    relative = torch.linalg.matrix_norm(x @ other.mT - t) / torch.linalg.matrix_norm(t)
    torch.testing.assert_close(statistics.relative_error(other), relative, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, F64])
def test_a_layer_centred_at_its_weight_has_no_residual(dtype):
    x, weight, _ = data(50, 6, 4, dtype=torch.float32)
    x, weight = x.to(dtype), weight.to(dtype)
    statistics = Statistics.from_layer(weight, x)
    assert not statistics.cross.any()
    assert not statistics.energy.any()
    assert not statistics.error(weight).any()
    assert torch.equal(statistics.reference, weight.double())
    torch.testing.assert_close(statistics.gram, x.double().mT @ x.double() / 50, rtol=1e-14, atol=1e-14)


def test_centring_keeps_the_digits_of_a_small_error():
    x, weight, _ = data(200, 30, 5)
    near = weight + 1e-9 * torch.randn(5, 30, generator=torch.Generator().manual_seed(9), dtype=F64)
    exact = (x @ (near - weight).mT).square().mean(-2) / 2
    centred = Statistics.from_layer(weight, x)
    torch.testing.assert_close(centred.error(near), exact, rtol=1e-12, atol=0)
    uncentred = Statistics.from_samples(x, x @ weight.mT)
    assert not torch.allclose(uncentred.error(near), exact, rtol=1e-2, atol=0)


@pytest.mark.parametrize("accumulate", ["float64", "float32"])
@pytest.mark.parametrize("cut", [1, 7, 100])
def test_streaming_does_not_depend_on_the_cut(accumulate, cut, monkeypatch):
    x, weight, t = data(100, 5, 3, batch=(2,), dtype=torch.float32)
    whole = Statistics.from_samples(x, t, weight)
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 2 * 8 * 9)  # chunks of nine rows
    accumulator = Accumulator(weight, accumulate=accumulate)
    for rows, targets in zip(x.split(cut, dim=-2), t.split(cut, dim=-2), strict=True):
        accumulator.add(rows, targets)
    assert len(accumulator) == 100
    streamed = accumulator.finish()
    tolerance = 1e-13 if accumulate == "float64" else 1e-6
    for name in ("gram", "cross", "energy"):
        torch.testing.assert_close(getattr(streamed, name), getattr(whole, name), rtol=tolerance, atol=tolerance)
        assert getattr(streamed, name).dtype == F64


def test_float32_products_join_float64_sums():
    """A float32 sum of so many equal squares would stall; float64 sums of short float32 sums do not."""
    x = torch.full((200_000, 1), 0.1)
    gram = Statistics.from_layer(torch.ones(1, 1), x, accumulate="float32").gram
    torch.testing.assert_close(gram, x[:1].double().square(), rtol=6.2e-5, atol=0)


def test_more_batches_may_follow_a_finish():
    x, weight, t = data(20, 4, 3)
    accumulator = Accumulator(weight)
    accumulator.add(x[:5], t[:5])
    first = accumulator.finish()
    before = first.gram.clone(), first.reference.clone()
    accumulator.add(x[5:], t[5:])
    accumulator.add(x[:0], t[:0])
    torch.testing.assert_close(accumulator.finish().gram, x.mT @ x / 20)
    assert torch.equal(first.gram, before[0])
    weight += 1
    assert torch.equal(first.reference, before[1])


def test_merge_is_commutative_associative_and_exact_in_counts():
    x, weight, t = data(60, 4, 3)
    parts = [Statistics.from_samples(x[a:b], t[a:b], weight) for a, b in ((0, 1), (1, 20), (20, 60))]
    whole = Statistics.from_samples(x, t, weight)
    left = parts[0].merge(parts[1]).merge(parts[2])
    right = parts[2].merge(parts[1].merge(parts[0]))
    assert left.count == right.count == 60
    for name in ("gram", "cross", "energy"):
        torch.testing.assert_close(getattr(left, name), getattr(right, name), rtol=1e-14, atol=1e-15)
        torch.testing.assert_close(getattr(left, name), getattr(whole, name), rtol=1e-13, atol=1e-14)
    assert torch.equal(parts[0].merge(parts[1]).gram, parts[1].merge(parts[0]).gram)
    with pytest.raises(InvalidInputError, match="different reference"):
        whole.merge(Statistics.from_samples(x, t))
    with pytest.raises(InvalidInputError, match="different reference"):
        whole.merge(Statistics.from_samples(x, t[:, :1], weight[:1]))


def test_dead_inputs_and_silent_targets():
    x, weight, _ = data(20, 4, 3)
    x[:, 2] = 0
    statistics = Statistics.from_layer(weight, x)
    assert statistics.dead.tolist() == [False, False, True, False]
    silent = Statistics.from_samples(x, torch.zeros(20, 3, dtype=F64))
    assert float(silent.relative_error(torch.zeros(3, 4))) == 0
    assert float(silent.relative_error(weight)) == float("inf")


def test_parameters_carry_no_graph():
    x, weight, _ = data(20, 4, 3, dtype=torch.float32)
    layer = torch.nn.Parameter(weight)
    statistics = Statistics.from_layer(layer, x.requires_grad_())
    assert not statistics.gram.requires_grad
    assert not statistics.reference.requires_grad
    assert not statistics.error(layer).requires_grad


def test_statistics_say_what_is_wrong():
    x, weight, t = data(6, 3, 2)
    for call, message in [
        (lambda: Accumulator(weight).finish(), "never reached"),
        (lambda: Statistics.from_layer(weight, x[:0]), "no rows"),
        (lambda: Statistics.from_layer(weight, x[:, :2]), "2 columns.*3 inputs"),
        (lambda: Statistics.from_samples(x, t, weight[:1]), "2 columns.*1 outputs"),
        (lambda: Statistics.from_samples(x, t[:4]), r"\(6, 3\).*\(4, 2\)"),
        (lambda: Statistics.from_samples(x, t.long()), "int64"),
        (lambda: Statistics.from_layer(weight.expand(2, 2, 3), x), "leading dimensions"),
        (lambda: Statistics.from_layer(weight[0], x), r"\(3,\)"),
        (lambda: Statistics.from_layer(weight, x).error(weight[:1]), r"\(1, 3\).*\(2, 3\)"),
    ]:
        with pytest.raises(InvalidInputError, match=message):
            call()
    with pytest.raises(NonFiniteError, match="reference weight"):
        Accumulator(weight / 0)
    with pytest.raises(NonFiniteError, match="overflow"):
        Statistics.from_layer(weight, x * 1e200)
    accumulator = Accumulator(weight)
    with pytest.raises(NonFiniteError, match="18 NaN"):
        accumulator.add(x * float("nan"))
    assert len(accumulator) == 0
    accumulator.add(x)
    assert accumulator.finish().gram.isfinite().all()


def test_fields_are_validated():
    s = Statistics.from_layer(torch.ones(2, 3, dtype=F64), torch.ones(4, 3, dtype=F64))
    # A wrong shape is refused by the types already where they are checked, as in this suite.
    with pytest.raises((InvalidInputError, jaxtyping.TypeCheckError)):
        Statistics(s.gram, s.gram, s.energy, 4, s.reference)
    with pytest.raises(InvalidInputError, match="float32"):
        Statistics(s.gram.float(), s.cross, s.energy, 4, s.reference)
    with pytest.raises(InvalidInputError, match="0 samples"):
        Statistics(s.gram, s.cross, s.energy, 0, s.reference)
    moved = s.to("cpu")
    assert torch.equal(moved.gram, s.gram)


def test_on_a_device(device):
    x, weight, t = data(5000, 64, 32, dtype=torch.float32)
    here = Statistics.from_samples(x, t, weight)
    there = Statistics.from_samples(x.to(device), t.to(device), weight.to(device)).to("cpu")
    for name in ("gram", "cross", "energy"):
        torch.testing.assert_close(getattr(there, name), getattr(here, name), rtol=1e-12, atol=1e-12)
    with pytest.raises(InvalidInputError, match=device):
        Statistics.from_layer(weight.to(device), x)
