"""Semismooth Newton steps inside a proximal point method: Net-Trim's neurons at a given multiplier of the ball."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from optprune.solvers._net_trim_layer import Layer, settle
from optprune.solvers._net_trim_systems import Systems, backward, chunks

_SEARCH_STEPS = 40
_ENOUGH = 0.2
_STIFFEST, _SOFTEST = 1e-9, 1e-2


@dataclass(frozen=True, eq=False)
class Point:
    """Primal and dual iterate of some neurons: weights `(rows, d)` and multipliers `(rows, n)`."""

    u: Float[Tensor, "rows d"]
    lam: Float[Tensor, "rows n"]


@dataclass(frozen=True, eq=False)
class _Rows:
    """What one proximal step needs of the neurons still in it, which come first in every tensor."""

    index: Tensor
    rows: Tensor
    targets: Tensor
    active: Tensor
    mu: Tensor
    sigma: Tensor
    tau: Tensor
    u: Tensor
    t: Tensor
    lam: Tensor
    correlation: Tensor

    def keep(self, rows: Tensor) -> _Rows:
        return replace(self, **{f.name: getattr(self, f.name)[rows] for f in fields(self)})


def proximal_step(
    layer: Layer,
    systems: Systems,
    point: Point,
    rows: Int[Tensor, " rows"],
    mu: Float[Tensor, " rows"],
    sigma: Float[Tensor, " rows"],
    tau: Float[Tensor, " rows"],
    tolerance: float,
    max_newton: int,
) -> tuple[Point, Float[Tensor, " rows"], Int[Tensor, " rows"]]:
    r"""One step of the proximal point method on the neurons `rows`:

    $$\min_{u,\,t = Xu} \; \sum_j p_j |u_j| + h(t) + \tfrac1{2\sigma} \lVert u - u_0 \rVert^2
      + \tfrac1{2\tau} \lVert t - X u_0 \rVert^2 .$$

    Its dual in $\lambda$, the multipliers of $Xu = t$, is smooth and concave with gradient $X u(\lambda) -
    t(\lambda)$, $u(\lambda) = \operatorname{soft}(u_0 - \sigma X^\top \lambda)$, $t(\lambda) =
    \operatorname{prox}_{\tau h}(t_0 + \tau \lambda)$. Newton's system has one row and column per weight in
    the support of $u(\lambda)$, so that sparse neurons are cheap; the step length is a root of the
    directional derivative, which costs no product with $X$. Neurons leave when $\lVert X u - t \rVert$ is
    below the tolerance.

    Returns:
        The new point of these neurons, and for each the residual $\lVert X u - t \rVert$ and the Newton steps made.

    References:
        Li, Sun, Toh 2018 (SSNAL), 2020 (SNIPAL), whose lasso and linear programs are the two terms of this one.
    """
    start = point.u[rows]
    work = _Rows(
        index=torch.arange(len(rows), device=rows.device),
        rows=rows,
        targets=layer.targets[rows],
        active=layer.active[rows],
        mu=mu[:, None],
        sigma=sigma[:, None],
        tau=tau[:, None],
        u=start,
        t=layer.forward(start),
        lam=point.lam[rows],
        correlation=layer.correlate(point.lam[rows]),
    )
    u, lam = torch.empty_like(start), torch.empty_like(work.lam)
    residual = torch.empty_like(mu)
    steps = torch.zeros_like(rows)
    for iteration in range(max_newton + 1):
        moved = layer.soften(work.u - work.sigma * work.correlation, work.sigma)
        shifted = work.t + work.tau * work.lam
        miss = layer.forward(moved) - settle(shifted, work.targets, work.active, work.mu, work.tau)
        norm = torch.linalg.vector_norm(miss, dim=1)
        u[work.index], lam[work.index], residual[work.index] = moved, work.lam, norm
        going = (norm > tolerance).nonzero()[:, 0]
        if iteration == max_newton or not len(going):
            break
        if len(going) < len(norm):
            work, moved, shifted, miss, norm = work.keep(going), moved[going], shifted[going], miss[going], norm[going]
        direction = _direction(layer, systems, work, moved != 0, shifted, miss, norm)
        change = layer.correlate(direction)
        length = _line_search(layer, work, shifted, miss, direction, change)
        work = replace(work, lam=work.lam + length * direction, correlation=work.correlation + length * change)
        steps[work.index] += 1
    return Point(u, lam), residual, steps


def _direction(
    layer: Layer, systems: Systems, work: _Rows, support: Tensor, shifted: Tensor, miss: Tensor, norm: Tensor
) -> Tensor:
    r"""$(E + \sigma X_S X_S^\top)^{-1} r$ by Woodbury, with $E$ the derivative of $t(\lambda)$.

    $E$ is zero where the ceiling holds; there a small number takes its place that shrinks with the residual
    (Levenberg).
    """
    soft = work.sigma * layer.inputs.shape[0] * (_SOFTEST * norm[:, None]).clamp(_STIFFEST, _SOFTEST)
    tight = ~work.active & (shifted >= work.targets)
    on = 1 / torch.maximum(work.tau * work.mu / (work.mu + work.tau), soft)
    rest, held = 1 / torch.maximum(work.tau, soft), 1 / soft
    weight = torch.where(work.active, on, torch.where(tight, held, rest))
    right = layer.correlate(weight * miss)
    weights = torch.zeros_like(right)
    systems.prepare(work.rows, support)
    entries = 3 * int(support.sum(1).max()) + int(tight.sum(1).max())
    for part, order, valid in chunks(support, entries):
        first = rest[part, :, None]
        system = systems.active(work.rows[part], order, valid).mul_(on[part, :, None] - first)
        system.addcmul_(systems.shared(order, valid), first)
        chosen, _, _ = systems.tight(order, valid, tight[part])
        system.baddbmm_(chosen * (held[part, :, None] - first), chosen.mT)
        system.diagonal(dim1=1, dim2=2).add_(1 / work.sigma[part])
        factor, failed = torch.linalg.cholesky_ex(system)
        solved = backward(factor, right[part].gather(1, order)[..., None])[..., 0]
        # Without its second term the direction is still one of ascent.
        solved = torch.where(valid & (failed == 0)[:, None], solved, 0.0)
        weights[part] = weights[part].scatter_add(1, order, solved)
    return weight * (miss - layer.forward(weights))


def _line_search(layer: Layer, work: _Rows, shifted: Tensor, miss: Tensor, direction: Tensor, change: Tensor) -> Tensor:
    """A step length near the root of the directional derivative, which is monotone; 1 if the root lies beyond."""

    def derivative(length: Tensor) -> Tensor:
        u = layer.soften(work.u - work.sigma * (work.correlation + length * change), work.sigma)
        t = settle(shifted + (work.tau * length) * direction, work.targets, work.active, work.mu, work.tau)
        return ((direction * t).sum(1) - (change * u).sum(1))[:, None]

    first = -(direction * miss).sum(1, keepdim=True)
    length = torch.ones_like(first)
    low, low_value = torch.zeros_like(first), first
    high, high_value = torch.full_like(first, torch.inf), torch.zeros_like(first)
    for attempt in range(_SEARCH_STEPS):
        value = derivative(length)
        done = (value.abs() <= _ENOUGH * first.abs()) | ((length >= 1) & (value <= 0))
        if bool(done.all()):
            break
        above = ~done & (value > 0)
        below = ~done & (value <= 0)
        high, high_value = torch.where(above, length, high), torch.where(above, value, high_value)
        low, low_value = torch.where(below, length, low), torch.where(below, value, low_value)
        # Regula falsi, with a bisection (in turn) where it creeps.
        share = (low_value / (low_value - high_value)).clamp(0.02, 0.9) if attempt % 3 < 2 else 0.5
        length = torch.where(done, length, low + (high - low) * share)
    return length
