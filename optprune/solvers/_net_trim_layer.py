"""A Net-Trim problem in the units in which the solver works, and the proximal maps of its two terms."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from optprune.numerics.linear import LinearMap
from optprune.problems.net_trim import NetTrim

FREE = 1e7
"""The ball's multiplier, in solver units, that stands for an inactive ball."""

SMALLEST_MULTIPLIER = 1e-14
"""That of a ball of radius 0."""

_TINY = 1e-30  # a normal number of float32 too
_ROOT_STEPS = 3


@dataclass(frozen=True, eq=False)
class Layer:
    r"""One problem, neurons first, inputs scaled to unit root mean square and targets to unit scale.

    $$\min \sum_j p_j |u_j| + h(t), \quad t = X u, \qquad
      h(t) = \tfrac1{2\mu} \lVert (t - y)_\Omega \rVert^2 + \iota\{t \le v \text{ off } \Omega\}$$

    per neuron; $\mu$ is the multiplier that the ball asks for, or the penalty. Scaling the columns of $X$
    turns the l1 norm into one with prices $p$; the bias has price 0.

    Attributes:
        inputs: $X$ `(n, d)`, as a map.
        targets: $y$ on $\Omega$, $v$ off it, `(out, n)`.
        active: $\Omega$ `(out, n)`.
        price: $p$ `(d,)`.
        radius: radius of the joint ball `()` in the problem's units, or of the neurons' balls `(out,)` in
            theirs, or None.
        penalty: $\mu$ of each neuron, or None.
        size: what one unit of a neuron's targets is in the largest neuron's; the $\mu$ of a joint ball is
            common to all neurons as $\mu_m s_m$.
        live: the inputs that are not dead, the only ones here, among those of the problem.
        unit: what one unit of a weight is in the problem's, for those.
        dual_unit: the same for the multipliers.
    """

    inputs: LinearMap
    targets: Float[Tensor, "out n"]
    active: Bool[Tensor, "out n"]
    price: Float[Tensor, " d"]
    radius: Float[Tensor, "..."] | None
    penalty: Float[Tensor, " out"] | None
    size: Float[Tensor, " out"]
    live: Bool[Tensor, " inputs"]
    unit: Float[Tensor, "out d"]
    dual_unit: float

    @classmethod
    def of(cls, problem: NetTrim) -> Layer:
        """A single problem in solver units."""
        samples = problem.inputs.shape[0]
        spread = problem.linear.mean_square().sqrt()
        # What is that small is dead, or would leave the range of float32 in the first phase.
        live = (spread > 1e-18 * spread.amax()) | (spread >= spread.amax())
        spread = torch.where(spread[live] > 0, spread[live], 1.0)
        targets = problem.targets if problem.ceiling is None else problem.targets + problem.ceiling
        size = targets.square().mean(0).sqrt()
        size = torch.where(size > 0, size, size.amax())
        size = torch.where(size > 0, size, 1.0)
        price = torch.where(problem.penalised[live], 1 / spread, 0.0)
        # The unit of the objective is chosen so that multipliers come out near 1.
        dual_unit = float(price[price > 0].median()) / samples if bool((price > 0).any()) else 1.0
        return cls(
            inputs=problem.linear.scaled(live, spread),
            targets=(targets / size).mT.contiguous(),
            active=problem.active.mT.contiguous(),
            price=price / dual_unit,
            radius=None if problem.radius is None else problem.radius / (size if problem.per_neuron else size.amax()),
            penalty=None if problem.penalty is None else problem.penalty * dual_unit / size,
            size=size / size.amax(),
            live=live,
            unit=size[:, None] / spread,
            dual_unit=dual_unit,
        )

    def matrix(self, u: Float[Tensor, "out d"]) -> Float[Tensor, "out inputs"]:
        """Weights in the problem's units, 0 at dead inputs."""
        whole = u.new_zeros(len(u), len(self.live))
        whole[:, self.live] = u * self.unit
        return whole

    def to(self, dtype: torch.dtype) -> Layer:
        """The same problem in another precision."""
        changed = {
            name: tensor.to(dtype)
            for name, tensor in vars(self).items()
            if isinstance(tensor, Tensor) and tensor.is_floating_point()
        }
        return replace(self, inputs=self.inputs.to(dtype), **changed)

    def some(self, rows: Tensor) -> Layer:
        """Some of the neurons, in the same units."""
        return replace(
            self,
            targets=self.targets[rows],
            active=self.active[rows],
            radius=self.radius[rows] if self.radius is not None and self.per_neuron else self.radius,
            penalty=None if self.penalty is None else self.penalty[rows],
            size=self.size[rows],
            unit=self.unit[rows],
        )

    @property
    def per_neuron(self) -> bool:
        """Whether every neuron has a ball of its own."""
        return self.radius is not None and self.radius.dim() == 1

    def soften(self, u: Tensor, amount: Tensor) -> Tensor:
        r"""The proximal map of `amount` times $\sum_j p_j |u_j|$; `amount` is a column, one per neuron."""
        threshold = amount * self.price
        return u - torch.minimum(torch.maximum(u, -threshold), threshold)

    def correlate(self, lam: Tensor) -> Tensor:
        r"""$X^\top \lambda$ per neuron."""
        return self.inputs.adjoint(lam)

    def forward(self, u: Tensor) -> Tensor:
        r"""$X u$ per neuron."""
        return self.inputs.forward(u)

    def gather(self, order: Tensor, valid: Tensor) -> Float[Tensor, "part width n"]:
        r"""The columns `order` of $X$ as rows, zero where not `valid`."""
        return self.inputs.gather(order).mul_(valid[..., None])

    def gather_at(self, order: Tensor, samples: Tensor) -> Float[Tensor, "part width depth"]:
        r"""The entries of $X$ in the columns `order` and the rows `samples`."""
        return self.inputs.gather_at(order, samples)


def settle(z: Tensor, targets: Tensor, active: Tensor, mu: Tensor, tau: Tensor) -> Tensor:
    r"""The proximal map of $\tau h$ at $z$: towards $y$ on $\Omega$, cut at $v$ off it; `mu`, `tau` are columns."""
    weight = mu / (mu + tau)
    return torch.where(active, torch.lerp(targets, z, weight), torch.minimum(z, targets))


def ball_multiplier(layer: Layer, distance: Tensor, rho: Tensor, start: Tensor) -> Tensor:
    r"""The $\mu$ at which the points after `settle` with $\tau = 1/\rho$ lie on the ball, one per neuron.

    With distances $\delta_m$ from $y_m$ before, the residual after is $\delta_m w_m$, $w_m = \mu\rho_m/(1 +
    \mu\rho_m)$. For a ball per neuron $w_m = \varepsilon_m / \delta_m$. For the joint ball the inverse of
    the norm $(\sum_m (\delta_m w_m)^2)^{1/2}$ is, as a function of $1/\mu$, concave, and linear where the
    penalties are equal: a few Newton steps find where it is $1/\varepsilon$ (Moré, Sorensen 1983). Points
    inside get `FREE`.

    Args:
        layer: for the form and the radius.
        distance: $\delta$ `(out,)`.
        rho: $\rho$ `(out,)`.
        start: a first guess `(out,)`, all equal for a joint ball.
    """
    if layer.penalty is not None:
        return layer.penalty
    assert layer.radius is not None
    if layer.per_neuron:
        inside = distance <= layer.radius
        weight = layer.radius / torch.where(inside, 1.0, distance)
        return torch.where(inside, FREE, weight / ((1 - weight).clamp(min=_TINY) * rho)).clamp(max=FREE)
    square = (distance * layer.size).square()
    rate = layer.size / rho
    inverse = 1 / (start * layer.size).amax().clamp(min=_TINY)
    radius = layer.radius.clamp(min=_TINY)
    for _ in range(_ROOT_STEPS):
        weight = 1 / (1 + inverse * rate)
        terms = square * weight.square()
        total = terms.sum()
        slope = (terms * weight * rate).sum().clamp(min=_TINY)
        inverse = (inverse + total * (total.sqrt() / radius - 1) / slope).clamp(0.0, 1 / SMALLEST_MULTIPLIER)
    outside = square.sum().sqrt() > layer.radius
    mu = (1 / (inverse.clamp(min=_TINY) * layer.size)).clamp(SMALLEST_MULTIPLIER, FREE)
    return torch.where(outside, mu, FREE)
