"""Better minorants for the least-squares bound, for all rows or one for each, by a barrier method."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from optprune.certify._majorise import fill, fit
from optprune.certify._perspective import Perspective
from optprune.certify._room import room
from optprune.numerics.factors import cholesky_factors, solve
from optprune.numerics.rounding import SMALLEST, UNIT
from optprune.numerics.working_memory import working_memory

FLOORS = (0.1, 1e-3)
"""First and least floor of the shares in a fit: a share of 0 would stay 0 although the minorant has changed."""

COOLING = 0.7
"""Factor of the floor from round to round."""

SHRINK = 0.6
"""Factor of the barrier's weight once a row is near its central path."""

FITS = 4
"""Majorisation steps per round."""

INSIDE = 0.85
"""Share of the way to the boundary that a step may take."""

POLISH = 8
"""Most majorisation steps at the end, when the minorants no longer move."""

WORTHWHILE = 128
"""Inputs from which on a search in float32 saves time."""

LEAST_SHARE = 32 * torch.finfo(torch.float32).eps
"""Least objective, as a share of that of the zero weight, for a search in float32."""


def margin(size: int, dtype: torch.dtype) -> float:
    """What is kept free below the smallest eigenvalue, at a unit diagonal: for the proof in float64, and for the
    rounding of a search in float32, whose factors of `size` columns are right to about half of it.
    """
    return 16 * (size + 4) ** 2 * UNIT if dtype == torch.float64 else 2 * size * torch.finfo(dtype).eps


def outputs(energy: Float[Tensor, " out"], objective: float) -> tuple[float, float]:
    """The norm of the largest row of outputs, as the unit of a search: squares in other units may be beyond single
    precision. And the objective as a share of what pruning everything costs; both are twice the problem's.
    """
    return float(energy.amax().sqrt()) or 1.0, objective / max(float(energy.sum()), SMALLEST)


def search_precision(delta: Float[Tensor, " live"], share: float) -> tuple[torch.dtype, float]:
    """float32 where that pays, and its rounding is small beside what is sought; and the share of the time in float64
    that a step takes.

    The margin is at most a percent of the median of a feasible minorant, given at unit diagonal, and a tenth of the
    least; the bound then loses up to two thousandths. The objective's share of what pruning everything costs is well
    above the rounding of the whole.
    """
    kept = margin(len(delta), torch.float32)
    rough = len(delta) >= WORTHWHILE and kept <= 0.01 * float(delta.median()) and kept <= 0.1 * float(delta.amin())
    return (torch.float32, 0.4) if rough and share >= LEAST_SHARE else (torch.float64, 1.0)


def tighten(
    relaxation: Perspective,
    start: Float[Tensor, "out live"],
    growth: float,
    *,
    rounds: int,
    own: bool,
    memory: int | None = None,
) -> tuple[Perspective, Float[Tensor, "out live"]]:
    r"""Alternate a few majorisation steps for the point with one Newton step for the minorants.

    The best bound $v(\delta)$ of a minorant is concave in it, with the supergradient
    $a_j = \sum_r u_{rj}^2 (1/z_{rj} - 1)$ over the rows that share it. Each round takes one Newton step on

    $$\langle a, \delta\rangle - \tfrac14 \sum_j a_j (\delta_j - \delta_j^0)^2 / \delta_j^0
      + \mu \, (\log\det(H - \operatorname{diag}\delta) + \textstyle\sum_j \log \delta_j),$$

    whose second term stands for the curvature of $v$, and lowers $\mu$. With one minorant for all rows a round takes
    about `out * in**3` operations, with one for each three times as many; a dozen rounds come within about a point
    of the gap that the best such minorants leave.

    Args:
        relaxation: with one minorant that is feasible.
        start: a good weight; its zeros start with a small share.
        growth: stop when two rounds raise twice the bound by less than this each.
        rounds: most rounds.
        own: whether each row gets a minorant of its own.
        memory: bytes for the matrices of a chunk of rows; see `working_memory`.

    Returns:
        The relaxation with the best minorants found and the point that goes with them.

    References:
        The dual of Dong, Chen & Linderoth 2015, for one row and |S| <= k.
    """
    size = relaxation.gram.shape[0]
    safe = relaxation.gram.clone()
    safe.diagonal().sub_(margin(size, safe.dtype))
    groups = len(start) if own else 1
    delta = (0.6 * relaxation.root.square()).expand(groups, size)
    weight = torch.ones(groups, dtype=start.dtype, device=start.device)
    # The given minorant may lie on the boundary, and rounding to this precision have moved it across.
    inside = relaxation.moved((1 - 16 * torch.finfo(start.dtype).eps) * relaxation.root.square())
    record = _Record(inside, start * inside.root / relaxation.root)
    floor = FLOORS[0]
    shares = torch.where(start != 0, 1.0, floor).to(start.dtype)
    history: list[float] = []
    for count in range(rounds):
        current = relaxation.moved(delta)
        for _ in range(FITS):
            x = fit(current, shares, memory)
            shares = fill(current, x, shares).clamp_min(floor)
        history.append(max([record.offer(current, x), *history[-1:]]))
        if count + 1 == rounds or (count > 2 and history[-1] - history[-3] < 2 * growth):
            break
        gain = x.square() * (1 / fill(current, x).clamp_min(floor) - 1)
        delta, close = _ascend(safe, delta, gain if own else gain.sum(0, keepdim=True), weight, memory)
        weight = torch.where(close, weight * SHRINK, weight)
        floor = max(COOLING * floor, FLOORS[1])
    return _polish(relaxation.moved(record.delta), record, growth, memory)


def _polish(
    relaxation: Perspective, record: _Record, growth: float, memory: int | None
) -> tuple[Perspective, Float[Tensor, "out live"]]:
    """Majorisation steps for minorants that stay."""
    x = record.x
    shares = fill(relaxation, x)
    for _ in range(POLISH):
        before = float(record.value.sum())
        x = fit(relaxation, shares.clamp_min(0.1 * FLOORS[1]), memory)
        shares = fill(relaxation, x, shares.clamp_min(0.1 * FLOORS[1]))
        record.offer(relaxation, x)
        if float(record.value.sum()) - before < growth:
            break
    return relaxation, record.x


class _Record:
    """The best minorants and the points that go with them: row by row where the pattern allows it."""

    def __init__(self, relaxation: Perspective, x: Float[Tensor, "out live"]) -> None:
        self.separable = relaxation.pattern.row_separable
        self.delta, self.x = relaxation.root.square().expand_as(x), x
        self.value = relaxation.value(x, relaxation.product(x))

    def offer(self, relaxation: Perspective, x: Float[Tensor, "out live"]) -> float:
        """Keep what is better; returns twice the bound of this offer alone."""
        value = relaxation.value(x, relaxation.product(x))
        better = value > self.value if self.separable else (value.sum() > self.value.sum()).expand_as(value)
        self.value = torch.where(better, value, self.value)
        self.x = torch.where(better[:, None], x, self.x)
        self.delta = torch.where(better[:, None], relaxation.root.square(), self.delta)
        return float(value.sum())


def _ascend(
    gram: Float[Tensor, "live live"],
    delta: Float[Tensor, "out live"],
    gain: Float[Tensor, "out live"],
    weight: Float[Tensor, " out"],
    memory: int | None,
) -> tuple[Float[Tensor, "out live"], Bool[Tensor, " out"]]:
    """One Newton step for each minorant, a chunk at a time; and whether it may lower its barrier."""
    mean = gain.mean(-1, keepdim=True)
    # A row without any gain (all its weights are 0) has nothing to optimise; equal gains keep it in the interior.
    gain = torch.where(mean > 0, gain / mean, 1.0).clamp_min(1e-6)
    rows = max(1, working_memory(memory, gram.device, 2**24) // (5 * gram.dtype.itemsize * gram.shape[0] ** 2))
    parts = [_newton(gram, *chunk) for chunk in zip(*(x.split(rows) for x in (delta, gain, weight)), strict=True)]
    deltas, close = zip(*parts, strict=True)
    return torch.cat(deltas), torch.cat(close)


def _newton(
    gram: Float[Tensor, "live live"],
    delta: Float[Tensor, "rows live"],
    gain: Float[Tensor, "rows live"],
    weight: Float[Tensor, " rows"],
) -> tuple[Float[Tensor, "rows live"], Bool[Tensor, " rows"]]:
    """The step in relative changes of delta, with a line search that keeps `gram - diag(delta)` positive definite."""
    factor = cholesky_factors(_without(gram, delta))
    inverse = torch.cholesky_inverse(factor)
    mu = weight[:, None]
    slope = gain - mu * (inverse.diagonal(dim1=-2, dim2=-1) * delta - 1)
    hessian = inverse.square_().mul_((mu * delta)[:, :, None]).mul_(delta[:, None, :])
    hessian.diagonal(dim1=-2, dim2=-1).add_(mu + 0.5 * gain)
    step = solve(cholesky_factors(hessian), slope)
    # A row whose barrier has become too weak for the precision stays where it is.
    step = torch.where(step.isfinite().all(-1, keepdim=True), step, 0.0)
    promise = (step * slope).sum(-1)
    before = _log_det(factor)
    move = delta * step
    length = INSIDE * torch.minimum(1 / (-step).amax(-1).clamp_min(1e-9), room(factor, lambda x: move * x))
    length = length.clamp_max(1.0).nan_to_num()
    accepted = torch.zeros_like(length, dtype=torch.bool)
    for _ in range(12):
        change = length[:, None] * step
        factor = cholesky_factors(_without(gram, delta + length[:, None] * move))
        rise = (gain * (change - change.square() / 4)).sum(-1)
        rise = rise + weight * (_log_det(factor) - before + torch.log1p(change).sum(-1))
        accepted |= rise >= 0.2 * length * promise  # not where the factor is NaN
        if bool(accepted.all()):
            break
        length = torch.where(accepted, length, 0.6 * length)
    length = torch.where(accepted, length, 0.0)
    close = (length > 0.5) | (promise < 4 * weight)
    return delta + length[:, None] * move, close


def _without(gram: Float[Tensor, "live live"], delta: Float[Tensor, "rows live"]) -> Float[Tensor, "rows live live"]:
    """`gram - diag(delta)` for each row."""
    result = gram.expand(len(delta), *gram.shape).clone()
    result.diagonal(dim1=-2, dim2=-1).sub_(delta)
    return result


def _log_det(factor: Float[Tensor, "rows live live"]) -> Float[Tensor, " rows"]:
    return 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
