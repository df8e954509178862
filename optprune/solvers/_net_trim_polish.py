"""On given supports and tight ceilings the optimum of Net-Trim is affine in the ball's multiplier."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from optprune.solvers._net_trim_layer import FREE, SMALLEST_MULTIPLIER, Layer
from optprune.solvers._net_trim_systems import Systems, chunks

_STIFFNESS = 1e5  # weight of a tight ceiling against an active sample
_RIDGE = 1e-9  # relative to a column's squared norm
_SWEEPS = 12
_ROUNDING = 1e-13
_SETTLED, _ACCURATE = 1e-12, 1e-10


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
    systems: Systems,
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
    systems.prepare(rows, support)
    zero_u, zero_l = torch.zeros_like(centre), torch.zeros_like(force)
    base, slope, lam_base, lam_slope = zero_u, zero_u.clone(), zero_l, zero_l.clone()
    samples = force.shape[1]
    for part, order, valid in chunks(support, 3 * int(support.sum(1).max()), 12 * samples):
        on, goal = layer.active[rows[part]], layer.targets[rows[part]]
        chosen, held, counts = systems.tight(order, valid, tight[part])
        small = _Small.of(systems.active(rows[part], order, valid), chosen, valid, samples)
        # Two right-hand sides, the constant part and the part in mu.
        goal = torch.stack((goal, torch.zeros_like(goal)))
        pull = torch.stack((zero_u[part], -layer.price * signs[part]))
        x = torch.stack((torch.where(support[part], centre[part], 0.0), zero_u[part]))
        nu = torch.stack((force[part].gather(1, held) * counts, torch.zeros_like(held, dtype=force.dtype)), -1)
        wide_order, wide_held = order.expand(2, -1, -1), held.expand(2, -1, -1)
        last = torch.full((len(part),), torch.inf, dtype=x.dtype, device=x.device)
        for _ in range(_SWEEPS):
            out = layer.forward(x) - goal
            short = (pull - layer.correlate(torch.where(on, out, 0.0))).gather(2, wide_order) * valid
            above = (out.gather(2, wide_held) * counts).movedim(0, -1)
            move, press = small.correction(short.movedim(0, -1) - chosen @ nu, above)
            nu = nu + press
            x = x.scatter_add(2, wide_order, move.movedim(-1, 0))
            length = move.abs().amax((1, 2))
            if _ended(length, last, _SETTLED * x.abs().amax((0, 2))):
                break
            last = length
        out = torch.where(on, layer.forward(x) - goal, 0.0)
        # Rounding is no residual: where mu is tiny it would be divided by it.
        attained = torch.linalg.vector_norm(out, dim=2, keepdim=True)
        size = torch.linalg.vector_norm(torch.where(on, goal, 0.0), dim=2, keepdim=True)
        out = torch.where(attained <= _ROUNDING * size, 0.0, out)
        # Without a support no equation asks for the multipliers of the ceilings: they stay.
        out[0] += torch.where(tight[part] & ~valid.any(1, keepdim=True), force[part], 0.0)
        out = out.scatter_add(2, wide_held, (nu * counts[..., None]).movedim(-1, 0))
        base[part], slope[part] = x[0], x[1]
        lam_base[part], lam_slope[part] = out[0], out[1]
    return Piece(base, slope, lam_base, lam_slope)


@dataclass(frozen=True, eq=False)
class _Small:
    r"""$\begin{pmatrix} A & C \\ C^\top & 0 \end{pmatrix}$ with $A = X_{\Omega S}^\top X_{\Omega S}$ and $C =
    X_{JS}^\top$, by the method of multipliers on the factor of $A + K C C^\top + \text{ridge}$.
    """

    own: Tensor
    chosen: Tensor
    valid: Tensor
    factor: Tensor

    @classmethod
    def of(cls, own: Tensor, chosen: Tensor, valid: Tensor, samples: int) -> _Small:
        system = torch.baddbmm(own, chosen * _STIFFNESS, chosen.mT)
        # Columns have the number of samples as squared norm; padding gets the same on its diagonal.
        system.diagonal(dim1=1, dim2=2).add_((_RIDGE + (~valid).double()) * samples)
        factor, failed = torch.linalg.cholesky_ex(system)
        # A failed piece is found wrong by its optimality conditions; it must only stay finite.
        harmless = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device) * _STIFFNESS * samples
        return cls(own, chosen, valid, torch.where(failed[:, None, None] > 0, harmless, factor))

    def correction(self, short: Tensor, above: Tensor) -> tuple[Tensor, Tensor]:
        """What to add to weights and multipliers where `short` is missing and `above` is too much."""
        move, press = torch.zeros_like(short), torch.zeros_like(above)
        last = torch.full_like(move[:, 0, 0], torch.inf)
        for _ in range(_SWEEPS):
            trial = press + _STIFFNESS * (above + self.chosen.mT @ move)
            step = torch.cholesky_solve(short - self.own @ move - self.chosen @ trial, self.factor)
            move = move + step * self.valid[..., None]
            press = press + _STIFFNESS * (above + self.chosen.mT @ move)
            length = step.abs().amax((1, 2))
            if _ended(length, last, _ACCURATE * move.abs().amax((1, 2))):
                break
            last = length
        return move, press


def _ended(length: Tensor, last: Tensor, small: Tensor) -> bool:
    """Whether every neuron's step is small, or has stopped shrinking: rounding, or a system that bears no more."""
    return bool(((length <= small) | ~(length < 0.5 * last)).all())


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
