"""The coordinates in which the l0 solvers work: inputs at one scale."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from optprune.numerics.linalg import cholesky
from optprune.numerics.masked import masked_least_squares
from optprune.patterns import Pattern
from optprune.problems import L0LeastSquares


@dataclass(frozen=True, eq=False)
class ScaledLayer:
    r"""The problem in the coordinates $V = U S$ with $S$ diagonal:

    $$f(V) = \tfrac12 \langle \Delta, \Delta \bar H \rangle - \langle \Delta, \bar C \rangle, \quad
      \Delta = V - \bar R,$$

    the objective less a constant. A dead input has a zero row in $\bar H$ and is zero in these coordinates: its
    weights, which the loss does not see, take no part of a budget.

    Attributes:
        pattern: the family of supports, the same in either coordinates.
        gram: $\bar H = S^{-1} H S^{-1}$.
        cross: $\bar C$.
        dense: $\bar R$, the dense weight.
    """

    pattern: Pattern
    gram: Float[Tensor, "*batch in in"]
    cross: Float[Tensor, "*batch out in"]
    dense: Float[Tensor, "*batch out in"]

    @classmethod
    def of(cls, problem: L0LeastSquares, softness: float = float("inf")) -> ScaledLayer:
        r"""Enter coordinates in which the square of a weight estimates what the weight is worth.

        With $S_0 = \operatorname{diag}(H)^{1/2}$, which gives the Gram matrix $H_0$ a unit diagonal,
        $S^2 = S_0^2 \operatorname{diag}((H_0 + \sigma I)^{-1})^{-1} (1 + \sigma)$. A weight whose neighbours stay where
        they are costs its square in the coordinates of $S_0$, which is $\sigma = \infty$; one whose neighbours all
        follow costs its square at $\sigma = 0$, the saliency of Optimal Brain Surgeon.

        Args:
            problem: the layer.
            softness: $\sigma > 0$.
        """
        root = problem.gram.diagonal(dim1=-2, dim2=-1).sqrt()
        unit = torch.where(root > 0, root.reciprocal(), 0.0)
        if softness < float("inf"):
            shifted = problem.gram * unit.unsqueeze(-1) * unit.unsqueeze(-2) / (1 + softness)
            shifted.diagonal(dim1=-2, dim2=-1).add_(softness / (1 + softness))
            inverse = torch.cholesky_inverse(cholesky(shifted, what="shifted Gram matrix"))
            free = inverse.diagonal(dim1=-2, dim2=-1).sqrt()
            root, unit = root / free, unit * free
        return cls(
            problem.pattern,
            problem.gram * unit.unsqueeze(-1) * unit.unsqueeze(-2),
            problem.statistics.cross.mT * unit.unsqueeze(-2),
            problem.dense * root.unsqueeze(-2),
        )

    @property
    def linear(self) -> Float[Tensor, "*batch out in"]:
        r"""$\bar B = \bar R \bar H + \bar C$, the linear term around zero."""
        return self.dense @ self.gram + self.cross

    def slope(self, weight: Float[Tensor, "*batch out in"]) -> Float[Tensor, "*batch out in"]:
        r"""$\nabla f = \Delta \bar H - \bar C$."""
        return (weight - self.dense) @ self.gram - self.cross

    def value(self, weight: Float[Tensor, "*batch out in"]) -> Float[Tensor, "*batch parts"]:
        """$f$ of each part that the pattern leaves independent: of each row, or of the whole matrix."""
        step = weight - self.dense
        rows = (step * (0.5 * (step @ self.gram) - self.cross)).sum(-1)
        return rows if self.pattern.row_separable else rows.sum(-1, keepdim=True)

    def fit(self, mask: Bool[Tensor, "*batch out in"]) -> Float[Tensor, "*batch out in"]:
        """The minimiser of $f$ on a support, exactly; rows with an empty support cost nothing."""
        pruned = torch.where(mask, 0.0, self.dense)
        change = masked_least_squares(self.gram, self.cross + pruned @ self.gram, mask).weight
        return torch.where(mask, self.dense + change, 0.0)

    def support(self, weight: Float[Tensor, "*batch out in"]) -> Bool[Tensor, "*batch out in"]:
        """The support of the projection on the pattern, filled up to full size where fewer entries are nonzero."""
        return self.pattern.support(weight.square())
