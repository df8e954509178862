"""Finding good evidence for the minorant-split bound. Nothing here needs to be right: `check` decides."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from optprune.errors import NotPositiveDefiniteError
from optprune.numerics.linalg import factorize
from optprune.numerics.rounding import UNIT
from optprune.patterns import Pattern, Shape
from optprune.problems.least_squares import L0LeastSquares


def scaled_minorant(gram: Float[Tensor, "in in"]) -> Float[Tensor, " in"]:
    r"""$\delta = \mu / \operatorname{diag}(H^{-1})$ with the largest $\mu$ that a floating-point proof will accept.

    $\mu$ is the smallest eigenvalue of $S H S$, $S = \operatorname{diag}(H^{-1})^{1/2}$, less a margin for the proof of
    positive semidefiniteness. All zero when $H$ is singular on its live inputs.
    """
    minorant = torch.zeros_like(gram[0])
    live = gram.diagonal() > 0
    h = gram[live][:, live]
    if not len(h):
        return minorant
    unit = h.diagonal().rsqrt()
    h = h * unit[:, None] * unit[None, :]
    try:
        inverse = factorize(h, ladder=()).inverse().diagonal()
    except NotPositiveDefiniteError:
        return minorant
    root = inverse.sqrt()
    smallest = torch.linalg.eigvalsh(h * root[:, None] * root[None, :])[0]
    # The proof shifts the (power-of-two scaled, diagonal within [1/2, 2]) matrix by about 2 (d + 3) u trace.
    delta = smallest * (1 - 1e-9) / inverse - 16 * (len(h) + 4) ** 2 * UNIT
    if bool((delta <= 0).any()):
        return minorant
    minorant[live] = delta / unit.square()
    return minorant


@dataclass(frozen=True, eq=False)
class Perspective:
    r"""The convex relaxation whose value is the best bound of given minorants, in the coordinates $x = u \delta^{1/2}$.

    $$\min_{x, z} \langle x, x A\rangle - 2 \langle x, b\rangle + \sum_{units} \lVert x_{unit}\rVert^2 / z_{unit}, \quad
      z \in [0, 1], \; \sum_{units} z \le k \text{ in each budget}$$

    with $A = \delta^{-1/2} H \delta^{-1/2} - I$ and $b = B \delta^{-1/2}$, over the live inputs; each row may have a
    $\delta$ of its own. Every $x$ gives the bound $c - \langle x, x A\rangle - \max_{S} \sum_S (b - xA)^2$. The Gram
    matrix is held with a unit diagonal, which changes neither $x$ nor $A$.

    Attributes:
        pattern: the family of supports.
        shape: of the layer.
        live: inputs that are not dead.
        unit: the inverse root of the Gram matrix's diagonal.
        gram: $H$ on the live inputs, scaled to a unit diagonal.
        root: $\delta^{1/2}$ in that scaling, one for all rows or one per row.
        b: $b$, one row per output.
        energy: $c$ per row.
    """

    pattern: Pattern
    shape: Shape
    live: Bool[Tensor, " in"]
    unit: Float[Tensor, " live"]
    gram: Float[Tensor, "live live"]
    root: Float[Tensor, "*out live"]
    b: Float[Tensor, "out live"]
    energy: Float[Tensor, " out"]

    @classmethod
    def of(cls, problem: L0LeastSquares, minorant: Float[Tensor, "*out in"]) -> Perspective:
        """The relaxation of a problem for minorants that are positive on the live inputs."""
        live = problem.gram.diagonal() > 0
        gram = problem.gram[live][:, live]
        unit = gram.diagonal().rsqrt()
        root = minorant[..., live].sqrt() * unit
        b = problem.linear[:, live] * unit / root
        return cls(
            problem.pattern, problem.shape, live, unit, gram * unit[:, None] * unit[None, :], root, b, problem.energy
        )

    def moved(self, delta: Float[Tensor, "*out live"]) -> Perspective:
        """The relaxation for other minorants, given in the scaling of the unit diagonal."""
        root = delta.sqrt()
        return replace(self, root=root, b=self.b * self.root / root)

    def part(self, inputs: Bool[Tensor, " live"]) -> Perspective:
        """The relaxation over some of the live inputs, as if the others were dead."""
        live = self.live.clone()
        live[self.live] = inputs
        gram, root = self.gram[inputs][:, inputs], self.root[..., inputs]
        return replace(self, live=live, unit=self.unit[inputs], gram=gram, root=root, b=self.b[:, inputs])

    def per(self, size: float) -> Perspective:
        """The same relaxation in units of `size` for the outputs."""
        return replace(self, b=self.b / size, energy=self.energy / size**2)

    def to(self, dtype: torch.dtype) -> Perspective:
        """The same relaxation in another precision."""
        changed = {name: getattr(self, name).to(dtype) for name in ("unit", "gram", "root", "b", "energy")}
        return replace(self, **changed)

    @property
    def minorant(self) -> Float[Tensor, "*out in"]:
        """The minorants in the layer's own scaling, 0 on dead inputs."""
        delta = (self.root / self.unit).square()
        full = torch.zeros(*delta.shape[:-1], len(self.live), dtype=delta.dtype, device=delta.device)
        full[..., self.live] = delta
        return full

    def enter(self, u: Float[Tensor, "out in"]) -> Float[Tensor, "out live"]:
        """Into the coordinates of the relaxation."""
        return u[:, self.live] / self.unit * self.root

    def leave(self, x: Float[Tensor, "out live"]) -> Float[Tensor, "out in"]:
        """Back to the layer's coordinates; dead inputs are 0."""
        return self.widen(x / self.root * self.unit)

    def widen(self, x: Float[Tensor, "out live"]) -> Float[Tensor, "out in"]:
        """Put zeros on the dead inputs."""
        full = torch.zeros(self.shape, dtype=x.dtype, device=x.device)
        full[:, self.live] = x
        return full

    def product(self, x: Float[Tensor, "out live"]) -> Float[Tensor, "out live"]:
        """$xA$."""
        return (x / self.root) @ self.gram / self.root - x

    def curvature(self) -> Float[Tensor, "live live"]:
        """$A$, where all rows share a minorant."""
        a = self.gram / (self.root[:, None] * self.root[None, :])
        a.diagonal().sub_(1.0)
        return a

    def value(self, x: Float[Tensor, "out live"], xa: Float[Tensor, "out live"]) -> Float[Tensor, " out"]:
        """Twice the bound of each row at a point, without rounding terms; under one budget only the sum counts."""
        gains = self.widen((self.b - xa).square())
        return self.energy - (x * xa).sum(-1) - torch.where(self.pattern.support(gains), gains, 0.0).sum(-1)

    def norms(self, x: Float[Tensor, "out live"]) -> Float[Tensor, "budgets units"]:
        """The norm of every unit."""
        return self.pattern.units(self.widen(x)).square().sum(-1).sqrt()

    def spread(self, z: Float[Tensor, "budgets units"]) -> Float[Tensor, "out live"]:
        """Give every weight the share of its unit."""
        size = self.pattern.layout(self.shape)[2]
        return self.pattern.from_units(z.unsqueeze(-1).expand(*z.shape, size), self.shape)[:, self.live]

    def kept(self) -> Float[Tensor, "budgets 1"] | float:
        """The budget k, one per row of `norms`."""
        kept = self.pattern.kept(self.shape)
        return kept.to(self.live.device).double()[:, None] if isinstance(kept, Tensor) else float(kept)


class Best:
    """The best point found, for each independent part: row by row where the pattern allows it, else for the layer."""

    def __init__(self, relaxation: Perspective) -> None:
        self.relaxation = relaxation
        self.point: Tensor | None = None
        self.value = torch.full_like(relaxation.energy, -torch.inf)
        self.history: list[float] = []

    def offer(self, x: Float[Tensor, "out live"], xa: Float[Tensor, "out live"]) -> None:
        """Evaluate the bound (twice it, without rounding terms) at a point and keep what is better."""
        r = self.relaxation
        value = r.value(x, xa)
        if not r.pattern.row_separable:
            value = value.sum().expand(len(x))
        better = value > self.value
        self.value = torch.where(better, value, self.value)
        self.point = x if self.point is None else torch.where(better[:, None], x, self.point)
        self.history.append(float(self.value.sum() if r.pattern.row_separable else self.value[0]))

    def stalled(self, growth: float, window: int) -> bool:
        """Whether the last `window` offers raised the total by less than `growth`."""
        return len(self.history) > window and self.history[-1] - self.history[-1 - window] < growth
