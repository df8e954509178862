"""On given supports and tight ceilings the optimum of Net-Trim is affine in the ball's multiplier."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from optprune.solvers._net_trim_layer import FREE, SMALLEST_MULTIPLIER, Layer
from optprune.solvers._net_trim_newton import supports

_STIFFNESS = 1e5  # weight of a tight ceiling against an active sample
_RIDGE = 1e-9  # relative to a column's squared norm
_SWEEPS = 12
_ROUNDING = 1e-13
_SETTLED = 1e-14


@dataclass(frozen=True, eq=False)
class Piece:
    r"""On one piece $u = a + \mu b$ and $\mu\lambda = \alpha + \mu\beta$: base $(a, \alpha)$, slope $(b, \beta)$."""

    base: Float[Tensor, "rows d"]
    slope: Float[Tensor, "rows d"]
    lam_base: Float[Tensor, "rows n"]
    lam_slope: Float[Tensor, "rows n"]

    def replaced(self, rows: Tensor, part: Piece) -> Piece:
        """This with the neurons `rows` taken from `part`, in place."""
        self.base[rows], self.slope[rows] = part.base, part.slope
        self.lam_base[rows], self.lam_slope[rows] = part.lam_base, part.lam_slope
        return self


def piece(
    layer: Layer,
    rows: Tensor,
    centre: Float[Tensor, "rows d"],
    force: Float[Tensor, "rows n"],
    signs: Float[Tensor, "rows d"],
    support: Bool[Tensor, "rows d"],
    tight: Bool[Tensor, "rows n"],
) -> Piece:
    r"""Solve, for every neuron, its optimality conditions on support $S$ with signs $s$ and tight ceilings $J$:

    $$X_{\Omega S}^\top (X_{\Omega S} u - y) + X_{JS}^\top \nu = -\mu\, p \circ s, \qquad X_{JS}\, u = v_J,$$

    for the two right-hand sides (constant part, part in $\mu$), $\nu = \mu \lambda_J$. The ceilings enter
    the matrix with a large weight and the method of multipliers on the one factorisation makes them exact;
    a slight ridge, centred at the last iterate and therefore without effect on what it converges to, bears
    dependent columns.
    """
    targets, active = layer.targets[rows], layer.active[rows]
    zero_u, zero_l = torch.zeros_like(centre), torch.zeros_like(targets)
    base, slope, lam_base, lam_slope = zero_u, zero_u.clone(), zero_l, zero_l.clone()
    for part, order, valid in supports(support, targets.shape[1]):
        chosen = layer.gather(order, valid)
        on, held = active[part, None, :], tight[part, None, :]
        system = (chosen * (on + _STIFFNESS * held)) @ chosen.mT
        # Columns have the number of samples as squared norm; padding gets the same on its diagonal.
        system.diagonal(dim1=1, dim2=2).add_((_RIDGE + (~valid).double()) * chosen.shape[2])
        factor, failed = torch.linalg.cholesky_ex(system)
        # A failed piece is found wrong by its optimality conditions; it must only stay finite.
        harmless = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device) * _STIFFNESS * chosen.shape[2]
        factor = torch.where(failed[:, None, None] > 0, harmless, factor)
        price = layer.price[order] * signs[part].gather(1, order)
        x = torch.stack((centre[part].gather(1, order) * valid, torch.zeros_like(price)), -1)
        nu = torch.stack((torch.where(tight[part], force[part], 0.0), torch.zeros_like(targets[part])), -1)
        goal = torch.stack((targets[part], torch.zeros_like(targets[part])), -1)
        pull = torch.stack((torch.zeros_like(price), -price * valid), -1)
        out = chosen.mT @ x - goal
        for _ in range(_SWEEPS):
            push = torch.where(on.mT, out, torch.where(held.mT, nu + _STIFFNESS * out, 0.0))
            move = torch.cholesky_solve(pull - chosen @ push, factor)
            x = x + move
            out = chosen.mT @ x - goal
            nu = torch.where(held.mT, nu + _STIFFNESS * out, 0.0)
            if bool((move.abs().amax((1, 2)) <= _SETTLED * x.abs().amax((1, 2))).all()):
                break
        out = torch.where(on.mT, out, nu)
        # Rounding is no residual: where mu is tiny it would be divided by it.
        attained = torch.linalg.vector_norm(torch.where(on.mT, out, 0.0), dim=1, keepdim=True)
        size = torch.linalg.vector_norm(torch.where(on.mT, goal, 0.0), dim=1, keepdim=True)
        out = torch.where(on.mT & (attained <= _ROUNDING * size), 0.0, out)
        base[part] = base[part].scatter(1, order, x[..., 0] * valid)
        slope[part] = slope[part].scatter(1, order, x[..., 1] * valid)
        lam_base[part], lam_slope[part] = out[..., 0], out[..., 1]
    return Piece(base, slope, lam_base, lam_slope)


def ball_on_piece(layer: Layer, base: Tensor, slope: Tensor) -> Tensor:
    r"""The $\mu$ at which $\sum \lVert r_m + \mu q_m \rVert^2 = \varepsilon^2$, one per neuron; 0 where no
    $\mu \ge 0$ is small enough.

    Args:
        layer: for the form and the radius.
        base: residual $r$ on the active entries at $\mu = 0$ `(out, n)`.
        slope: its derivative $q$.
    """
    if layer.penalty is not None:
        return layer.penalty
    assert layer.radius is not None
    if not layer.per_neuron:
        base = base * layer.size[:, None]
    parts = torch.stack((slope.square().sum(1), (base * slope).sum(1), base.square().sum(1)))
    if not layer.per_neuron:
        parts = parts.sum(1, keepdim=True)
    two, one, zero = parts
    rest = zero - layer.radius.square()
    root = (one.square() - two * rest).clamp(min=0).sqrt()
    mu = torch.where(one > 0, -rest / (one + root).clamp(min=1e-300), (root - one) / two.clamp(min=1e-300))
    # Nothing depends on mu, and the ball holds.
    mu = torch.where((two <= 0) & (rest <= 0), FREE, mu)
    return (mu if layer.per_neuron else mu / layer.size).clamp(SMALLEST_MULTIPLIER, FREE)
