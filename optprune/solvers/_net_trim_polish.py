"""On given supports and tight ceilings the optimum of Net-Trim is affine in the ball's multiplier."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from optprune.solvers._net_trim_layer import FREE, SMALLEST_MULTIPLIER, Layer
from optprune.solvers._net_trim_systems import Systems, backward, chunks

_RIDGE = {torch.float32: 2e-6, torch.float64: 1e-9}  # relative to a column's squared norm
_SWEEPS = 12
_ROUNDING = 1e-13
_TINY = 1e-30  # a normal number of float32 too


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
    def from_point(cls, u: Tensor, lam: Tensor, mu: Tensor) -> Piece:
        """A point as a piece without a slope, its products still unknown."""
        parts = u, mu[:, None] * lam, torch.zeros_like(lam), torch.zeros_like(u)
        return cls(*(torch.stack((part, torch.zeros_like(part))) for part in parts))

    def put(self, rows: Tensor, part: Piece) -> None:
        """Take the neurons `rows` from `part`."""
        for name, tensor in vars(part).items():
            getattr(self, name)[:, rows] = tensor

    def to(self, dtype: torch.dtype) -> Piece:
        """The same in another precision."""
        return Piece(*(tensor.to(dtype) for tensor in vars(self).values()))

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
    start: Piece,
    mu: Float[Tensor, " rows"],
    signs: Float[Tensor, "rows d"],
    support: Bool[Tensor, "rows d"],
    tight: Bool[Tensor, "rows n"],
    settled: float,
) -> tuple[Piece, Bool[Tensor, " rows"]]:
    r"""Solve, for every neuron, its optimality conditions on support $S$ with signs $s$ and tight ceilings $J$:

    $$X_{\Omega S}^\top (X_{\Omega S} u - y) + X_{JS}^\top \nu = -\mu\, p \circ s, \qquad X_{JS}\, u = v_J,$$

    for the two right-hand sides (constant part, part in $\mu$), $\nu = \mu \lambda_J$. A slight ridge, centred at the
    start and therefore without effect on what refinement converges to, bears dependent columns. The systems may be in
    single precision: products with $X$ in the layer's own correct them, until at the present multiplier all is right up
    to `settled`, or it stops to help.

    Returns:
        The pieces of these neurons, and which of them got there.
    """
    systems.prepare(rows, support)
    samples = layer.inputs.shape[0]
    own, on = tight & support.any(1, keepdim=True), layer.active[rows]
    parts = []
    for part, order, valid in chunks(support, 3 * int(support.sum(1).max()), samples, own.sum(1)):
        chosen, held, counts = systems.tight(order, valid, own[part])
        matrix = systems.active(rows[part], order, valid)
        parts.append(_Part(part, order, valid, held, counts, _Small.of(matrix, chosen, valid, counts, samples)))
    # Two right-hand sides, the constant part and the part in mu.
    goal = layer.targets[rows]
    goal = torch.stack((goal, torch.zeros_like(goal)))
    size = torch.linalg.vector_norm(torch.where(on, goal, 0.0), dim=2, keepdim=True)
    pull = torch.stack((torch.zeros_like(signs), -layer.price * signs))
    x = torch.where(support, start.u, 0.0)
    # Without a support no equation asks for the multipliers of the ceilings: they stay.
    nu = torch.where(tight, start.lam, 0.0)
    free, wrong = torch.where(layer.price > 0, layer.price, samples), torch.full_like(mu, torch.inf)
    for _ in range(_SWEEPS):
        through = layer.forward(x)
        out = through - goal
        force = torch.where(on, out, 0.0)
        # Rounding is no residual: where mu is tiny it would be divided by it.
        attained = torch.linalg.vector_norm(force, dim=2, keepdim=True)
        force = torch.where(attained <= _ROUNDING * size, 0.0, force) + nu
        correlation = layer.correlate(force)
        short = torch.where(support, pull - correlation, 0.0)
        above = torch.where(own, out, 0.0)
        unbalanced = ((short[0].abs() / mu[:, None] + short[1].abs()) / free).amax(1)
        last, wrong = wrong, torch.maximum(unbalanced, (above[0].abs() + mu[:, None] * above[1].abs()).amax(1))
        if not bool((~(wrong <= settled) & (wrong < 0.5 * last)).any()):
            break
        for each in parts:
            each.correct(x, nu, short, above)
    return Piece(x, force, through, correlation), wrong <= settled


@dataclass(frozen=True, eq=False)
class _Part:
    """Some of the neurons, of similar size, and their factored systems."""

    part: Tensor
    order: Tensor
    valid: Tensor
    held: Tensor
    counts: Tensor
    small: _Small

    def correct(self, x: Tensor, nu: Tensor, short: Tensor, above: Tensor) -> None:
        """Add to weights and multipliers where `short` is missing and `above` is too much."""
        order, held = self.order.expand(2, -1, -1), self.held.expand(2, -1, -1)
        missing = short[:, self.part].gather(2, order) * self.valid
        excess = above[:, self.part].gather(2, held) * self.counts
        move, press = self.small.correction(missing.movedim(0, -1), excess.movedim(0, -1))
        x[:, self.part] = x[:, self.part].scatter_add(2, order, move.movedim(-1, 0) * self.valid)
        nu[:, self.part] = nu[:, self.part].scatter_add(2, held, press.movedim(-1, 0) * self.counts)


@dataclass(frozen=True, eq=False)
class _Small:
    r"""$\begin{pmatrix} A & C \\ C^\top & 0 \end{pmatrix}$ with $A = X_{\Omega S}^\top X_{\Omega S}$ and $C =
    X_{JS}^\top$, by the factor of $M = A + C C^\top$, which is regular where $A$ is not but the ceilings hold, and that
    of $C^\top M^{-1} C$; both with a ridge, in the precision of the systems.
    """

    chosen: Tensor
    spread: Tensor
    factor: Tensor
    outer: Tensor

    @classmethod
    def of(cls, own: Tensor, chosen: Tensor, valid: Tensor, counts: Tensor, samples: int) -> _Small:
        ridge = _RIDGE[own.dtype]
        system = torch.baddbmm(own, chosen, chosen.mT)
        # Columns have the number of samples as squared norm; padding gets the same on its diagonal.
        factor = _factor(system, (ridge + (~valid).to(own.dtype)) * samples)
        spread = backward(factor, chosen)
        return cls(chosen, spread, factor, _factor(chosen.mT @ spread, ridge + (~counts).to(own.dtype)))

    def correction(self, short: Tensor, above: Tensor) -> tuple[Tensor, Tensor]:
        """What to add to weights and multipliers where `short` is missing and `above` is too much."""
        precise, short, above = short.dtype, short.to(self.factor.dtype), above.to(self.factor.dtype)
        move = backward(self.factor, short - self.chosen @ above)
        press = backward(self.outer, self.chosen.mT @ move + above)
        return (move - self.spread @ press).to(precise), press.to(precise)


def _factor(system: Tensor, ridge: Tensor) -> Tensor:
    """Cholesky factors of the systems with the ridge on their diagonals, in place."""
    system.diagonal(dim1=1, dim2=2).add_(ridge)
    large = system.diagonal(dim1=1, dim2=2).amax(1, keepdim=True).clamp(min=1.0)
    factor, failed = torch.linalg.cholesky_ex(system)
    # A failed piece is found wrong by its optimality conditions; it must only stay finite.
    failed = failed[:, None] > 0
    factor.masked_fill_(failed[:, :, None], 0.0).diagonal(dim1=1, dim2=2).add_(large * failed)
    return factor


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
    mu = torch.where(one > 0, -rest / (one + root).clamp(min=_TINY), (root - one) / two.clamp(min=_TINY))
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
