import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optprune.errors import InvalidInputError, NonFiniteError, NotPositiveDefiniteError
from optprune.numerics import masked
from optprune.numerics.linalg import damped
from optprune.numerics.masked import masked_least_squares

F64 = torch.float64


def problem(d_out, d_in, *, samples=None, density=0.5, batch=(), seed=0, dtype=F64):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(*batch, samples or 3 * d_in, d_in, generator=g, dtype=dtype)
    weight = torch.randn(*batch, d_out, d_in, generator=g, dtype=dtype)
    gram = x.mT @ x / x.shape[-2]
    mask = torch.rand(*batch, d_out, d_in, generator=g) < density
    return gram, weight @ gram, mask


def row_by_row(gram, rhs, mask):
    """The definition, one row after the other."""
    weight = torch.zeros_like(rhs)
    for i, support in enumerate(mask):
        if support.any():
            block = gram[support][:, support]
            weight[i, support] = torch.linalg.lstsq(block, rhs[i, support].unsqueeze(-1), driver="gelsd").solution[:, 0]
    return weight


def least_value(gram, rhs, weight):
    return ((weight @ gram) * weight).sum(-1) / 2 - (rhs * weight).sum(-1)


@settings(deadline=None, max_examples=60)
@given(
    d_out=st.integers(1, 9),
    d_in=st.integers(1, 12),
    density=st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
    memory=st.sampled_from([1, 4000, 2**28]),
    seed=st.integers(0, 100),
)
def test_equals_the_definition(d_out, d_in, density, memory, seed):
    gram, rhs, mask = problem(d_out, d_in, samples=6 * d_in + 10, density=density, seed=seed)
    solution = masked_least_squares(gram, rhs, mask, memory=memory)
    torch.testing.assert_close(solution.weight, row_by_row(gram, rhs, mask), rtol=1e-9, atol=1e-10)
    assert not solution.weight[~mask].any()
    assert not solution.rank_deficient.any()


@pytest.mark.parametrize("density", [0.7, 0.9, 0.98, 1.0])
def test_both_forms_agree(density, monkeypatch):
    gram, rhs, mask = problem(50, 40, density=density, samples=400)
    used = []
    inner = masked._by_complement
    monkeypatch.setattr(masked, "_by_complement", lambda *a: used.append(inner(*a)) or used[-1])
    complement = masked_least_squares(gram, rhs, mask)
    assert used[0][1].float().mean() > 0.5, "the complement form was not used"
    monkeypatch.setattr(masked, "MAX_CONDITION", 0.0)
    direct = masked_least_squares(gram, rhs, mask)
    assert not used[1][1].any()
    torch.testing.assert_close(complement.weight, direct.weight, rtol=0, atol=1e-10)
    assert not complement.weight[~mask].any()


@pytest.fixture
def iterated(monkeypatch):
    """What the iterative form returned, call by call."""
    used = []
    inner = masked._by_iteration
    monkeypatch.setattr(masked, "_by_iteration", lambda *a: used.append(inner(*a)) or used[-1])
    return used


def test_conjugate_gradients_agree_with_factors(iterated, monkeypatch):
    gram, rhs, mask = problem(96, 160, samples=640, batch=(2,))
    found = masked_least_squares(gram, rhs, mask)
    assert iterated[0][2].all(), "conjugate gradients were not used"
    assert 0 < float(found.residual.max()) <= 1e-10
    assert not found.weight[~mask].any()
    monkeypatch.setattr(masked, "EASY_CONDITION", 0.0)
    direct = masked_least_squares(gram, rhs, mask)
    assert not iterated[1][2].any()
    assert not direct.residual.any()
    torch.testing.assert_close(found.weight, direct.weight, rtol=0, atol=1e-9)


def test_a_start_may_be_given_where_an_input_is_dead(iterated):
    gram, rhs, mask = problem(96, 160, samples=640)
    gram[3], gram[:, 3], rhs[:, 3], mask[:, 3] = 0.0, 0.0, 0.0, True
    found = masked_least_squares(gram, rhs, mask, start=torch.ones_like(rhs))
    assert iterated[0][2].all()
    assert not found.weight[:, 3].any()
    left = torch.where(mask, rhs - found.weight @ gram, 0.0)
    assert float(left.abs().max()) <= 1e-8


def test_a_good_start_saves_steps(iterated, monkeypatch):
    gram, rhs, mask = problem(96, 160, samples=640)
    units = torch.logspace(-3, 3, 160, dtype=F64)
    gram, rhs = gram * units * units[:, None], rhs * units
    exact = masked_least_squares(gram, rhs, mask).weight
    monkeypatch.setattr(masked, "STEPS_PER_DIGIT", 1)
    monkeypatch.setattr(masked, "PRODUCT_RATE", 8.0)  # about 13 steps
    masked_least_squares(gram, rhs, mask)
    again = masked_least_squares(gram, rhs, mask, start=exact * (1 + 1e-6))
    assert not iterated[1][2].any()
    assert iterated[2][2].all()
    torch.testing.assert_close(again.weight * units, exact * units, rtol=0, atol=1e-6)


def test_rows_that_take_too_many_steps_are_factorised(iterated):
    gram, rhs, mask = problem(96, 160, samples=176)
    found = masked_least_squares(gram, rhs, mask)
    assert len(iterated) == 1
    assert not iterated[0][2].all()
    left = torch.where(mask, rhs - found.weight @ gram, 0.0).norm(dim=-1) / torch.where(mask, rhs, 0.0).norm(dim=-1)
    assert float(left.max()) <= 1e-7
    assert float(left[~iterated[0][2][0]].max()) <= 1e-11


def test_the_complement_form_is_left_to_well_conditioned_matrices(monkeypatch):
    gram, rhs, mask = problem(50, 40, density=0.9, samples=400)
    grading = torch.logspace(0, -5, 40, dtype=F64)
    q, _ = torch.linalg.qr(gram)
    steep = (q * grading.square()) @ q.mT
    steep = (steep + steep.mT) / 2
    used = []
    inner = masked._by_complement
    monkeypatch.setattr(masked, "_by_complement", lambda *a: used.append(inner(*a)) or used[-1])
    masked_least_squares(torch.stack([gram, steep]), torch.stack([rhs, rhs]), torch.stack([mask, mask]))
    assert used[0][1][0].all()
    assert not used[0][1][1].any()


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("density", [0.3, 0.9])
def test_scales_of_the_inputs_do_not_matter(scale, density):
    gram, rhs, mask = problem(30, 20, density=density)
    mixed = torch.logspace(-6, 6, 20, dtype=F64) * scale
    plain = masked_least_squares(gram, rhs, mask)
    scaled = masked_least_squares(gram * mixed * mixed.unsqueeze(-1), rhs * mixed, mask)
    torch.testing.assert_close(scaled.weight * mixed, plain.weight, rtol=1e-9, atol=1e-10)
    assert not scaled.rank_deficient.any()


def test_batches_equal_their_elements():
    gram, rhs, mask = problem(7, 9, batch=(2, 3), density=0.6)
    together = masked_least_squares(gram, rhs, mask)
    for i in range(2):
        for j in range(3):
            alone = masked_least_squares(gram[i, j], rhs[i, j], mask[i, j])
            torch.testing.assert_close(together.weight[i, j], alone.weight, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("memory", [1, 10**4, 2**28])
def test_shared_supports_are_solved_together(memory):
    """Whole columns, whole rows, and a few supports of very different popularity."""
    gram, rhs, mask = problem(40, 16, density=0.5, batch=(2,))
    mask[:, :20] = mask[:, :1]
    mask[:, 20:23] = mask[:, 21:22]
    mask[:, 30] = False
    mask[:, 31:33] = True
    solution = masked_least_squares(gram, rhs, mask, memory=memory)
    expected = torch.stack([row_by_row(*one) for one in zip(gram, rhs, mask, strict=True)])
    torch.testing.assert_close(solution.weight, expected, rtol=1e-9, atol=1e-10)
    assert not solution.weight[:, 30].any()


def test_dead_inputs_get_weight_zero_and_are_no_deficiency():
    gram, rhs, mask = problem(10, 8, density=0.8)
    gram[3], gram[:, 3] = 0, 0
    rhs[:, 3] = 0
    solution = masked_least_squares(gram, rhs, mask)
    assert not solution.weight[:, 3].any()
    assert not solution.rank_deficient.any()
    alive = torch.arange(8) != 3
    rest = masked_least_squares(gram[alive][:, alive], rhs[:, alive], mask[:, alive])
    torch.testing.assert_close(solution.weight[:, alive], rest.weight, rtol=1e-12, atol=1e-13)
    nothing = masked_least_squares(torch.zeros(8, 8, dtype=F64), torch.zeros(4, 8, dtype=F64), mask[:4])
    assert not nothing.weight.any()


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_duplicated_columns_are_reported_and_split_evenly(scale):
    g = torch.Generator().manual_seed(3)
    x = torch.randn(100, 8, generator=g, dtype=F64) * scale
    x[:, 5] = x[:, 2]
    gram = x.mT @ x / 100
    rhs = torch.randn(6, 8, generator=g, dtype=F64) @ gram
    mask = torch.ones(6, 8, dtype=torch.bool)
    mask[1, 5] = mask[3, 2] = False
    solution = masked_least_squares(gram, rhs, mask)
    assert solution.rank_deficient.tolist() == [True, False, True, False, True, True]
    torch.testing.assert_close(solution.weight[0, 2], solution.weight[0, 5], rtol=1e-9, atol=1e-9)
    # All reach the same minimum value that a unique representative reaches.
    mask[:, 5] = False
    unique = masked_least_squares(gram, rhs, mask)
    kept = [0, 1, 2, 4, 5]
    torch.testing.assert_close(
        least_value(gram, rhs, solution.weight)[kept], least_value(gram, rhs, unique.weight)[kept], rtol=1e-11, atol=0
    )


def test_many_rows_that_keep_most_of_inputs_of_which_two_are_the_same():
    gram = torch.eye(40, dtype=F64)
    gram[0, 1] = gram[1, 0] = 1.0  # to the last bit: the second pivot is zero
    g = torch.Generator().manual_seed(5)
    rhs = torch.randn(60, 40, generator=g, dtype=F64) @ gram
    mask = torch.ones(60, 40, dtype=torch.bool)
    mask[:, -2:] = False
    mask[30:, 0] = False
    solution = masked_least_squares(gram, rhs, mask)
    assert solution.rank_deficient.tolist() == [True] * 30 + [False] * 30
    torch.testing.assert_close((solution.weight @ gram)[mask], rhs[mask], rtol=1e-12, atol=1e-12)


def test_fewer_samples_than_inputs():
    gram, rhs, mask = problem(12, 20, samples=8, density=0.9)
    solution = masked_least_squares(gram, rhs, mask)
    assert solution.rank_deficient.all()
    assert solution.weight.isfinite().all()
    residual = (solution.weight @ gram - rhs)[mask]
    assert residual.abs().max() < 1e-11 * rhs.abs().max()
    damped_solution = masked_least_squares(gram, rhs, mask, damping=1e-3)
    assert not damped_solution.rank_deficient.any()
    expected = row_by_row(damped(gram, 1e-3), rhs, mask)
    torch.testing.assert_close(damped_solution.weight, expected, rtol=1e-8, atol=1e-9)


def test_float32_enters_and_float64_leaves():
    gram, rhs, mask = problem(5, 6, dtype=torch.float32)
    solution = masked_least_squares(gram, rhs, mask)
    assert solution.weight.dtype == F64
    expected = masked_least_squares(gram.double(), rhs.double(), mask)
    assert torch.equal(solution.weight, expected.weight)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_empty(shape):
    gram = torch.eye(shape[1], dtype=F64)
    solution = masked_least_squares(gram, torch.zeros(shape, dtype=F64), torch.zeros(shape, dtype=torch.bool))
    assert solution.weight.shape == shape
    assert solution.rank_deficient.shape == shape[:1]


def test_misuse():
    gram, rhs, mask = problem(3, 4)
    with pytest.raises(InvalidInputError, match="damping=-1"):
        masked_least_squares(gram, rhs, mask, damping=-1.0)
    with pytest.raises(InvalidInputError, match="memory=0"):
        masked_least_squares(gram, rhs, mask, memory=0)
    rhs[1, 1] = float("nan")
    with pytest.raises(NonFiniteError, match=r"right-hand side.*\(1, 1\)"):
        masked_least_squares(gram, rhs, mask)
    with pytest.raises(NotPositiveDefiniteError, match="negative diagonal"):
        masked_least_squares(-gram, rhs.nan_to_num(), mask)


def test_gathered_blocks_stay_within_the_memory(monkeypatch):
    gram, rhs, mask = problem(200, 30, density=0.4)
    largest = []
    inner = masked._solve_blocks
    monkeypatch.setattr(
        masked, "_solve_blocks", lambda b, c: largest.append(b.numel() * 8 + c.numel() * 8) or inner(b, c)
    )
    masked_least_squares(gram, rhs, mask, memory=200_000)
    assert len(largest) > 3
    assert max(largest) <= 200_000 / 3


def test_reaches_the_proven_optimum_on_its_support(data_dir):
    """On each support that is proven best, the refit has the error that was proven; 16 rows, 21 budgets."""
    layer = np.load(data_dir / "layers/exact20.npz")
    optimum = np.load(data_dir / "layers/exact20_opt.npz")
    x, weight = (torch.from_numpy(layer[name]).to(F64) for name in ("X", "W"))
    gram = x.mT @ x
    bits = torch.from_numpy(optimum["sup"]).T  # one batch element per budget, one row per neuron
    mask = (bits.unsqueeze(-1) >> torch.arange(20)) & 1 == 1
    rhs = (weight @ gram).expand(21, 16, 20)
    solution = masked_least_squares(gram.expand(21, 20, 20), rhs, mask)
    error = (x @ (weight - solution.weight).mT).square().sum(-2)
    expected = torch.from_numpy(optimum["f"]).T
    scale = torch.from_numpy(optimum["tot"])
    assert ((error - expected).abs() <= 1e-10 * scale).all()
    assert not solution.rank_deficient.any()
