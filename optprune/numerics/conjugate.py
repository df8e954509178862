"""Least squares for many rows at once, each on its own support, by products with the Gram matrix alone."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from optprune.errors import InvalidInputError
from optprune.numerics.checks import require_finite

CHECK_EVERY = 10
"""Steps between two looks at the true residual."""


@dataclass(frozen=True, eq=False)
class IteratedSolution:
    r"""An approximate solution and how approximate it is.

    Attributes:
        weight: zero outside the mask, float64.
        residual: $\lVert m \odot (c - w G) \rVert / \lVert m \odot c \rVert$ per row in the scale of unit-diagonal
            inputs, formed afresh from `weight`; 0 where the right-hand side is.
        steps: made in all.
    """

    weight: Float[Tensor, "*batch d_out d_in"]
    residual: Float[Tensor, "*batch d_out"]
    steps: int


def masked_conjugate_gradients(
    gram: Float[Tensor, "*batch d_in d_in"],
    rhs: Float[Tensor, "*batch d_out d_in"],
    mask: Bool[Tensor, "*batch d_out d_in"],
    *,
    tolerance: float = 1e-10,
    max_steps: int = 2000,
) -> IteratedSolution:
    r"""Row $i$ approaches the minimiser of $\tfrac12 w^\top G w - c_i^\top w$ over $w$ supported on `mask[i]`.

    Conjugate gradients on $G_{SS} w_S = c_S$ for all rows together: a step is one product of a full-size matrix with
    $G$, masked, and nothing of the size of a block is formed. Inputs are scaled to unit diagonal, which is Jacobi's
    preconditioner. The recursion's residual drifts, so that the true one is formed every `CHECK_EVERY` steps, decides,
    and replaces it; a row that has converged is left alone. Rows whose block is singular approach a minimiser, from
    zero the one of least norm.

    Args:
        gram: $G$, symmetric positive semidefinite.
        rhs: one right-hand side $c_i$ per row.
        mask: True where the weight may be nonzero.
        tolerance: of the relative residual.
        max_steps: most steps; `residual` says what is then left.

    Raises:
        InvalidInputError: the tolerance or the number of steps is not positive.
        NonFiniteError: an entry is NaN or infinite.

    References:
        Meng et al. 2024 (ALPS), Algorithm 2, stops by the residual without the mask, which does not become small.
    """
    if not (tolerance > 0 and max_steps > 0):
        raise InvalidInputError(f"tolerance={tolerance}, max_steps={max_steps} were given; both must be positive.")
    require_finite("Gram matrix", gram, "Check the activations that it was made from.")
    require_finite("right-hand side", rhs, "Check the weights and targets that it was made from.")
    diagonal = gram.to(torch.float64).diagonal(dim1=-2, dim2=-1)
    scale = torch.where(diagonal > 0, diagonal.rsqrt(), 0.0).unsqueeze(-2)
    matrix = gram.to(torch.float64) * scale * scale.mT
    target = rhs.to(torch.float64) * scale * mask
    size = target.square().sum(-1)
    weight, residual, direction = torch.zeros_like(target), target.clone(), target.clone()
    energy = size.clone()
    running = size > 0
    steps = 0
    while steps < max_steps and bool(running.any()):
        for _ in range(min(CHECK_EVERY, max_steps - steps)):
            image = direction @ matrix * mask
            curvature = (direction * image).sum(-1)
            length = torch.where(running & (curvature > 0), energy / curvature, 0.0).unsqueeze(-1)
            weight.addcmul_(length, direction)
            residual.addcmul_(length, image, value=-1)
            before, energy = energy, residual.square().sum(-1)
            ratio = torch.where(before > 0, energy / before, 0.0).unsqueeze(-1)
            direction.mul_(ratio).add_(residual)
            steps += 1
        residual = target - weight @ matrix * mask
        energy = residual.square().sum(-1)
        running = energy > tolerance**2 * size
    left = torch.where(size > 0, (energy / size).sqrt(), 0.0)
    return IteratedSolution(weight * scale, left, steps)
