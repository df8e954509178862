"""The exact top-k mask: exactly k True per group, the lowest index first among equal scores."""

import numpy as np
import torch
from jaxtyping import Bool, Int, Num
from torch import Tensor

from optprune.errors import InvalidInputError, NonFiniteError

COUNTED = 8
"""Largest groups whose members are compared one by one, in `COUNTED**2` passes over the scores."""


def top_k(
    scores: Num[Tensor, "..."], k: int | Int[Tensor, "..."], dim: int = -1, *, checked: bool = True
) -> Bool[Tensor, "..."]:
    r"""Mark the $k$ largest scores along `dim`; among equal scores the lowest index wins.

    The mask equals the first $k$ places of a stable descending sort. It is found without that sort: the
    $k$-th largest value $\tau$ splits the scores, everything above $\tau$ is kept, and the places left over
    go to the entries equal to $\tau$ in the order of their index. With one $k$ for all groups the work is
    linear in the number of scores. In small groups (n of m) the scores that go before each are counted.

    Args:
        scores: Any real dtype; infinities are ordered as usual, NaN is refused.
        k: How many to keep in each group: one number, or an integer tensor that broadcasts to the shape of
            `scores` without `dim` (a budget per group). 0 and the group's size are allowed.
        dim: The dimension that holds a group.
        checked: Look for NaN, for which the host waits for the device. Without it the mask of a group with a
            NaN means nothing: for loops that look at their numbers every so many steps, and then with one `k` for
            all groups nothing here waits.

    Raises:
        InvalidInputError: `k` lies outside [0, size of a group], is no integer, or does not broadcast.
        NonFiniteError: a score is NaN.
    """
    _require_comparable(scores)
    if checked:
        _require_no_nan(scores)
    rows = scores.movedim(dim, -1)
    size = rows.shape[-1]
    wanted = _budgets(k, size, rows.shape[:-1], scores.device)
    if rows.numel() == 0:
        return torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    flat = rows.reshape(-1, size)
    mask = _by_counting(flat, wanted) if size <= COUNTED else _by_threshold(flat, wanted)
    return mask.reshape(rows.shape).movedim(-1, dim)


def _by_counting(flat: Num[Tensor, "groups size"], wanted: int | Int[Tensor, " groups"]) -> Bool[Tensor, "groups size"]:
    columns = flat.mT.contiguous().unbind()
    before = [torch.zeros(len(flat), dtype=torch.int8, device=flat.device) for _ in columns]
    for later in range(1, len(columns)):
        for earlier in range(later):
            first = columns[earlier] >= columns[later]
            before[later] += first
            before[earlier] += ~first
    return torch.stack([count < wanted for count in before], -1)


def _by_threshold(
    flat: Num[Tensor, "groups size"], wanted: int | Int[Tensor, " groups"]
) -> Bool[Tensor, "groups size"]:
    threshold = _kth_largest(flat, wanted)
    if flat.device.type != "cpu":
        return _first_of_the_tied(flat, threshold, wanted)  # to ask which groups need it would be to wait
    mask = flat >= threshold
    index = (mask.sum(-1) > wanted).nonzero().squeeze(-1)
    if len(index):
        # Only groups where equal scores compete for the last places pay for a running count.
        few = wanted if isinstance(wanted, int) else wanted[index]
        mask[index] = _first_of_the_tied(flat[index], threshold[index], few)
    return mask


def _first_of_the_tied(
    flat: Num[Tensor, "groups size"], threshold: Num[Tensor, "groups 1"], wanted: int | Int[Tensor, " groups"]
) -> Bool[Tensor, "groups size"]:
    above, tied = flat > threshold, flat == threshold
    missing = wanted - above.sum(-1)
    return above | (tied & (tied.cumsum(-1, dtype=torch.int32) <= missing.unsqueeze(-1)))


def _require_comparable(scores: Tensor) -> None:
    if scores.dim() == 0 or scores.dtype == torch.bool or scores.is_complex():
        raise InvalidInputError(
            f"top_k was given scores of shape {tuple(scores.shape)} and dtype {scores.dtype}; it accepts "
            "real numbers with at least one dimension. Reshape or convert the scores."
        )


def _require_no_nan(scores: Tensor) -> None:
    # A sum of numbers is NaN only if one of them is, or if infinities of both signs meet.
    if scores.is_floating_point() and bool(scores.sum().isnan()):
        nans = int(scores.isnan().sum())
        if nans:
            raise NonFiniteError(
                f"top_k was given {nans} NaN among {scores.numel()} scores, which have no order. "
                "Find the criterion or the data that produced them."
            )


def _budgets(k: int | Tensor, size: int, groups: torch.Size, device: torch.device) -> int | Int[Tensor, " groups"]:
    """The budget of all groups, or one for each."""
    if isinstance(k, bool) or not isinstance(k, (int, Tensor)):
        raise InvalidInputError(
            f"top_k was given k = {k!r}; it accepts an int or an integer tensor. Round the budget first."
        )
    if isinstance(k, int):
        _require_within(k, k, size)
        return k
    if k.is_floating_point() or k.is_complex() or k.dtype == torch.bool:
        raise InvalidInputError(f"top_k was given k of dtype {k.dtype}; it accepts integers. Round the budgets first.")
    try:
        budget = k.to(device, torch.int64).expand(groups).reshape(-1)
    except RuntimeError:
        raise InvalidInputError(
            f"top_k was given k of shape {tuple(k.shape)} for groups of shape {tuple(groups)}; "
            "it accepts one number or a shape that broadcasts to the groups."
        ) from None
    if len(budget):
        low, high = torch.stack(budget.aminmax()).tolist()
        _require_within(low, high, size)
        if low == high:
            return int(low)
    return budget


def _require_within(low: int, high: int, size: int) -> None:
    if low < 0 or high > size:
        raise InvalidInputError(
            f"top_k was given k between {low} and {high} for groups of {size}; "
            f"it accepts 0 to {size}. Reduce the budget or enlarge the groups."
        )


def _kth_largest(flat: Num[Tensor, "groups size"], wanted: int | Int[Tensor, " groups"]) -> Num[Tensor, "groups 1"]:
    """Each group's `wanted`-th largest score; its largest, which nothing exceeds, where nothing is wanted."""
    size = flat.shape[-1]
    # NumPy's selection and sort are some ten times as fast.
    numpy = flat.device.type == "cpu" and flat.dtype != torch.bfloat16
    if isinstance(wanted, int):
        rank = max(wanted, 1)
        if numpy:
            return torch.from_numpy(np.partition(flat.detach().numpy(), size - rank, axis=-1)[:, [size - rank]])
        return flat.topk(rank, dim=-1, sorted=False).values.amin(-1, keepdim=True)
    place = wanted.clamp(min=1).unsqueeze(-1) - 1
    if numpy:
        return torch.from_numpy(np.sort(flat.detach().numpy(), axis=-1)).gather(-1, size - 1 - place)
    return flat.sort(dim=-1, descending=True).values.gather(-1, place)
