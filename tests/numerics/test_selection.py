import time
from typing import Any

import hypothesis.extra.numpy as npst
import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optprune.errors import InvalidInputError, NonFiniteError
from optprune.numerics.selection import top_k


def by_stable_sort(scores, k, dim=-1):
    """The definition: the first k places of a stable descending sort."""
    order = scores.sort(dim=dim, descending=True, stable=True).indices
    rank = torch.empty_like(order)
    places = torch.arange(scores.shape[dim]).reshape(
        [-1 if i == dim % scores.dim() else 1 for i in range(scores.dim())]
    )
    rank.scatter_(dim, order, places.expand_as(order).contiguous())
    return rank < torch.as_tensor(k).unsqueeze(dim) if isinstance(k, torch.Tensor) else rank < k


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_equals_a_stable_sort(data):
    shape = data.draw(npst.array_shapes(min_dims=1, max_dims=3, max_side=11))
    dtype = data.draw(st.sampled_from([np.float32, np.float64, np.int64]))
    few = (
        st.sampled_from([-2, -1, 0, 1, 3])
        if dtype == np.int64
        else st.sampled_from([-np.inf, -1.5, -0.0, 0.0, 2.0, np.inf])
    )
    scores = torch.from_numpy(data.draw(npst.arrays(dtype, shape, elements=few)))
    dim = data.draw(st.integers(-len(shape), len(shape) - 1))
    size = scores.shape[dim]
    if data.draw(st.booleans()):
        k = data.draw(st.integers(0, size))
    else:
        groups = tuple(s for i, s in enumerate(shape) if i != dim % len(shape))
        k = torch.from_numpy(data.draw(npst.arrays(np.int64, groups, elements=st.integers(0, size))))
    assert torch.equal(top_k(scores, k, dim), by_stable_sort(scores, k, dim))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32])
@pytest.mark.parametrize("distinct", [1, 3, 1000])
def test_counts_are_exact_at_size_with_ties(dtype, distinct):
    g = torch.Generator().manual_seed(distinct)
    scores = torch.randint(distinct, (37, 513), generator=g).to(dtype)
    k = torch.randint(514, (37,), generator=g)
    mask = top_k(scores, k)
    assert torch.equal(mask.sum(-1), k)
    assert torch.equal(mask, by_stable_sort(scores, k))
    assert torch.equal(top_k(scores, 100).sum(-1), torch.full((37,), 100))


def test_budget_broadcasts_over_the_groups():
    scores = torch.arange(24.0).reshape(2, 3, 4)
    mask = top_k(scores, torch.tensor([[1], [3]]))
    assert mask.sum(-1).tolist() == [[1, 1, 1], [3, 3, 3]]
    assert top_k(scores, torch.tensor(2), dim=0).all()


def test_equal_scores_keep_the_lowest_indices():
    assert top_k(torch.zeros(5), 2).tolist() == [True, True, False, False, False]
    assert top_k(torch.tensor([1.0, 3.0, 1.0, 1.0]), 2).tolist() == [True, True, False, False]


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0,), (2, 0, 3)])
def test_empty_shapes(shape):
    assert top_k(torch.zeros(shape), 0).shape == shape
    assert not top_k(torch.zeros(shape), 0).any()


def test_is_a_view_of_no_input_and_leaves_scores_alone():
    scores = torch.tensor([[3.0, 1.0], [2.0, 5.0]]).T
    before = scores.clone()
    top_k(scores, 1, dim=0)
    assert torch.equal(scores, before)


def test_misuse():
    scores = torch.zeros(2, 3)
    for k in (-1, 4, torch.tensor([1, 4]), torch.tensor([1, 1, 1])):
        with pytest.raises(InvalidInputError):
            top_k(scores, k)
    # The types say so already where they are checked, as in this suite.
    wrong: list[Any] = [1.5, True, None, torch.tensor([1.0, 2.0])]
    for k in wrong:
        with pytest.raises((InvalidInputError, jaxtyping.TypeCheckError)):
            top_k(scores, k)
    with pytest.raises(NonFiniteError, match="2 NaN"):
        top_k(torch.tensor([[0.0, float("nan"), float("nan")]]), 1)
    with pytest.raises(InvalidInputError, match="at least one dimension"):
        top_k(torch.tensor(1.0), 1)


def seconds(act, *arguments):
    """Best of three."""
    times = []
    for _ in range(3):
        start = time.process_time()
        act(*arguments)
        times.append(time.process_time() - start)
    return min(times)


@pytest.mark.parametrize(("shape", "k"), [((1, 10**6), 300_000), ((10**5, 4), 2)])
def test_fast_on_one_long_row_and_on_many_short_ones(shape, k):
    scores = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    # Some hundredths of a second; a loop over groups takes seconds.
    assert seconds(top_k, scores, k) < 0.5
