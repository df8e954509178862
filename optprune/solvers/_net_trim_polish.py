"""On given supports and tight ceilings the optimum of Net-Trim is affine in the ball's multiplier."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from optprune.solvers._net_trim_layer import FREE, SMALLEST_MULTIPLIER, Layer
from optprune.solvers._net_trim_systems import Systems, chunks

_RIDGE = 1e-9  # relative to a column's squared norm
_SWEEPS = 12
_ROUNDING = 1e-13
_SETTLED = 1e-11


@dataclass(frozen=True, eq=False)
class Piece:
    r"""On one piece $u = a + \mu b$ and $\mu\lambda = \alpha + \mu\beta$, with their products with $X$.

    In every tensor the base $(a, \alpha)$ comes first, then the slope $(b, \beta)$: with the products kept, what holds
    at another $\mu$ is known without a product.

    Attributes:
        u: `(2, rows, d)`.
        lam: `(2, rows, n)`.
        through: $X u$.
        correlation: $X^\top \lambda$, times $\mu$.
    """

    u: Float[Tensor, "2 rows d"]
    lam: Float[Tensor, "2 rows n"]
    through: Float[Tensor, "2 rows n"]
    correlation: Float[Tensor, "2 rows d"]

    @classmethod
    def empty(cls, u: Tensor, lam: Tensor) -> Piece:
        """Room for the pieces of neurons with weights like `u` and multipliers like `lam`."""
        return cls(*(like.new_empty(2, *like.shape) for like in (u, lam, lam, u)))

    def put(self, rows: Tensor, part: Piece) -> None:
        """Take the neurons `rows` from `part`."""
        for name, tensor in vars(part).items():
            getattr(self, name)[:, rows] = tensor

    def some(self, rows: Tensor) -> Piece:
        """The pieces of some neurons."""
        return Piece(*(tensor[:, rows] for tensor in vars(self).values()))

    def at(self, mu: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        r"""$u$, $\lambda$, $X u$ and $X^\top \lambda$ at the neurons' multipliers."""
        wide = mu[:, None]
        return (
            torch.addcmul(self.u[0], wide, self.u[1]),
            torch.addcdiv(self.lam[1], self.lam[0], wide),
            torch.addcmul(self.through[0], wide, self.through[1]),
            torch.addcdiv(self.correlation[1], self.correlation[0], wide),
        )


def piece(
    layer: Layer,
    systems: Systems,
    rows: Tensor,
    centre: Float[Tensor, "rows d"],
    lam: Float[Tensor, "rows n"],
    mu: Float[Tensor, " rows"],
    signs: Float[Tensor, "rows d"],
    support: Bool[Tensor, "rows d"],
    tight: Bool[Tensor, "rows n"],
) -> Piece:
    r"""Solve, for every neuron, its optimality conditions on support $S$ with signs $s$ and tight ceilings $J$:

    $$X_{\Omega S}^\top (X_{\Omega S} u - y) + X_{JS}^\top \nu = -\mu\, p \circ s, \qquad X_{JS}\, u = v_J,$$

    for the two right-hand sides (constant part, part in $\mu$), $\nu = \mu \lambda_J$. A slight ridge, centred at the
    last iterate and therefore without effect on what refinement converges to, bears dependent columns. Refinement ends
    when nothing that will be judged at the present multiplier is wrong any more, or it stops to help.
    """
    systems.prepare(rows, support)
    found = Piece.empty(centre, lam)
    samples = lam.shape[1]
    free = torch.where(layer.price > 0, layer.price, samples)
    for part, order, valid in chunks(support, 3 * int(support.sum(1).max()), 12 * samples, tight.sum(1)):
        on, goal, wide = layer.active[rows[part]], layer.targets[rows[part]], mu[part, None]
        chosen, held, counts = systems.tight(order, valid, tight[part])
        small = _Small.of(systems.active(rows[part], order, valid), chosen, valid, counts, samples)
        # Two right-hand sides, the constant part and the part in mu.
        goal = torch.stack((goal, torch.zeros_like(goal)))
        size = torch.linalg.vector_norm(torch.where(on, goal, 0.0), dim=2, keepdim=True)
        start = torch.where(support[part], centre[part], 0.0)
        pull = torch.stack((torch.zeros_like(start), -layer.price * signs[part]))
        x = torch.stack((start, torch.zeros_like(start)))
        # Without a support no equation asks for the multipliers of the ceilings: they stay.
        alone = torch.where(tight[part] & ~valid.any(1, keepdim=True), wide * lam[part], 0.0)
        nu = torch.stack(((wide * lam[part]).gather(1, held) * counts, torch.zeros_like(chosen[:, 0])))
        wide_order, wide_held, last = order.expand(2, -1, -1), held.expand(2, -1, -1), torch.inf
        for _ in range(_SWEEPS):
            through = layer.forward(x)
            out = torch.where(on, through - goal, 0.0)
            # Rounding is no residual: where mu is tiny it would be divided by it.
            attained = torch.linalg.vector_norm(out, dim=2, keepdim=True)
            force = torch.where(attained <= _ROUNDING * size, 0.0, out).scatter_add(2, wide_held, nu * counts)
            force[0] += alone
            correlation = layer.correlate(force)
            short = (pull - correlation).gather(2, wide_order) * valid
            above = (through - goal).gather(2, wide_held) * counts
            wrong = ((short[0].abs() / wide + short[1].abs()) / free[order]).amax(1)
            if above.shape[2]:
                wrong = torch.maximum(wrong, (above[0].abs() + wide * above[1].abs()).amax(1))
            if bool(((wrong <= _SETTLED) | ~(wrong < 0.5 * last)).all()):
                break
            last = wrong
            move, press = small.correction(short.movedim(0, -1), above.movedim(0, -1))
            nu = nu + press.movedim(-1, 0)
            x = x.scatter_add(2, wide_order, move.movedim(-1, 0))
        found.put(part, Piece(x, force, through, correlation))
    return found


@dataclass(frozen=True, eq=False)
class _Small:
    r"""$\begin{pmatrix} A & C \\ C^\top & 0 \end{pmatrix}$ with $A = X_{\Omega S}^\top X_{\Omega S}$ and $C =
    X_{JS}^\top$, by the factor of $M = A + C C^\top$, which is regular where $A$ is not but the ceilings hold, and that
    of $C^\top M^{-1} C$; both with a ridge.
    """

    chosen: Tensor
    spread: Tensor
    factor: Tensor
    outer: Tensor

    @classmethod
    def of(cls, own: Tensor, chosen: Tensor, valid: Tensor, counts: Tensor, samples: int) -> _Small:
        system = torch.baddbmm(own, chosen, chosen.mT)
        # Columns have the number of samples as squared norm; padding gets the same on its diagonal.
        factor = _factor(system, (_RIDGE + (~valid).double()) * samples)
        spread = torch.cholesky_solve(chosen, factor)
        return cls(chosen, spread, factor, _factor(chosen.mT @ spread, _RIDGE + (~counts).double()))

    def correction(self, short: Tensor, above: Tensor) -> tuple[Tensor, Tensor]:
        """What to add to weights and multipliers where `short` is missing and `above` is too much."""
        move = torch.cholesky_solve(short - self.chosen @ above, self.factor)
        press = torch.cholesky_solve(self.chosen.mT @ move + above, self.outer)
        return move - self.spread @ press, press


def _factor(system: Tensor, ridge: Tensor) -> Tensor:
    """Cholesky factors of the systems with the ridge on their diagonals, in place."""
    system.diagonal(dim1=1, dim2=2).add_(ridge)
    large = system.diagonal(dim1=1, dim2=2).amax(1)[:, None, None]
    factor, failed = torch.linalg.cholesky_ex(system)
    # A failed piece is found wrong by its optimality conditions; it must only stay finite.
    harmless = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device) * large.clamp(min=1.0)
    return torch.where(failed[:, None, None] > 0, harmless, factor)


def ball_terms(base: Float[Tensor, "rows n"], slope: Float[Tensor, "rows n"]) -> Float[Tensor, "3 rows"]:
    r"""$\lVert q \rVert^2$, $r^\top q$ and $\lVert r \rVert^2$, which make up $\lVert r + \mu q \rVert^2$."""
    return torch.stack((slope.square().sum(1), (base * slope).sum(1), base.square().sum(1)))


def ball_on_piece(layer: Layer, terms: Float[Tensor, "3 out"]) -> Float[Tensor, " out"]:
    r"""The $\mu$ at which $\sum \lVert r_m + \mu q_m \rVert^2 = \varepsilon^2$, one per neuron; 0 where no
    $\mu \ge 0$ is small enough.
    """
    if layer.penalty is not None:
        return layer.penalty
    assert layer.radius is not None
    if not layer.per_neuron:
        # In terms of the common multiplier, mu times size.
        terms = torch.stack((terms[0], terms[1] * layer.size, terms[2] * layer.size.square())).sum(1, keepdim=True)
    two, one, zero = terms
    rest = zero - layer.radius.square()
    root = (one.square() - two * rest).clamp(min=0).sqrt()
    mu = torch.where(one > 0, -rest / (one + root).clamp(min=1e-300), (root - one) / two.clamp(min=1e-300))
    # Nothing depends on mu, and the ball holds.
    mu = torch.where((two <= 0) & (rest <= 0), FREE, mu)
    return (mu if layer.per_neuron else mu / layer.size).clamp(SMALLEST_MULTIPLIER, FREE)


def off_ball(
    layer: Layer, terms: Float[Tensor, "3 out"], mu: Float[Tensor, " out"], tolerance: float
) -> Bool[Tensor, " out"]:
    """Whether the residual is not the radius, or less with a ball that is inactive (so that NaN is)."""
    if layer.radius is None:
        return torch.zeros_like(mu, dtype=torch.bool)
    size = (terms[2] + mu * (2 * terms[1] + mu * terms[0])).clamp(min=0).sqrt()
    slack = tolerance * torch.linalg.vector_norm(layer.targets, dim=1)
    if not layer.per_neuron:
        size = torch.linalg.vector_norm(size * layer.size)
        slack = torch.linalg.vector_norm(slack * layer.size)
    return ~((size <= layer.radius + slack) & ((size >= layer.radius - slack) | (mu >= FREE)))
