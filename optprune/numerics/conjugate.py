"""Least squares for many rows at once, each on its own support, by products with the Gram matrix alone."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from optprune.errors import InvalidInputError
from optprune.numerics.checks import require_finite

CHECK_EVERY = 5
"""Steps between two looks at the recursion's residual."""

CYCLE = 1e-5
"""Reduction of the residual in a cycle; float32 can do no more on well-conditioned blocks."""

ROUGH_STEPS = 200
"""Most steps of a cycle in float32: where more are needed, float32 is not enough."""


@dataclass(frozen=True, eq=False)
class IteratedSolution:
    r"""An approximate solution and how approximate it is.

    Attributes:
        weight: zero outside the mask, float64.
        residual: $\lVert m \odot (c - w G) \rVert / \lVert m \odot c \rVert$ per row in the scale of unit-diagonal
            inputs, formed afresh from `weight` in float64; 0 where the right-hand side is.
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
    start: Float[Tensor, "*batch d_out d_in"] | None = None,
    tolerance: float = 1e-10,
    max_steps: int = 2000,
) -> IteratedSolution:
    r"""Row $i$ approaches the minimiser of $\tfrac12 w^\top G w - c_i^\top w$ over $w$ supported on `mask[i]`.

    Conjugate gradients on $G_{SS} w_S = c_S$ for all rows together: a step is one product of a full-size matrix with
    $G$, masked, and nothing of the size of a block is formed. Inputs are scaled to unit diagonal, which is Jacobi's
    preconditioner. The steps come in cycles that reduce the residual by `CYCLE` at most, in float32 as long as the true
    residual, formed in float64 after each, follows to a tenth; in float64 from then on. A row that has converged is
    left alone. Rows whose block is singular approach a minimiser, from zero the one of least norm (to the precision
    of the steps).

    Args:
        gram: $G$, symmetric positive semidefinite.
        rhs: one right-hand side $c_i$ per row.
        mask: True where the weight may be nonzero.
        start: where to start from; zero if not given. Outside the mask it is not looked at.
        tolerance: of the relative residual.
        max_steps: most steps; `residual` says what is then left.

    Raises:
        InvalidInputError: the tolerance or the number of steps is not positive.
        NonFiniteError: an entry is NaN or infinite.

    References:
        Refinement in two precisions: Higham 2002, chapter 12. Meng et al. 2024 (ALPS), Algorithm 2, stops by the
        residual without the mask, which does not become small.
    """
    if not (tolerance > 0 and max_steps > 0):
        raise InvalidInputError(f"tolerance={tolerance}, max_steps={max_steps} were given; both must be positive.")
    require_finite("Gram matrix", gram, "Check the activations that it was made from.")
    require_finite("right-hand side", rhs, "Check the weights and targets that it was made from.")
    diagonal = gram.to(torch.float64).diagonal(dim1=-2, dim2=-1)
    scale = torch.where(diagonal > 0, diagonal.rsqrt(), 0.0).unsqueeze(-2)
    matrix = gram.to(torch.float64) * scale * scale.mT
    target = rhs.to(torch.float64) * scale * mask
    if start is None:
        weight, residual = torch.zeros_like(target), target.clone()
    else:
        weight = torch.where(mask & (scale > 0), start.to(torch.float64) / scale, 0.0)
        residual = target - weight @ matrix * mask
    size, left = target.square().sum(-1), residual.square().sum(-1)
    running = left > tolerance**2 * size
    working = matrix.to(torch.float32)
    steps = 0
    while steps < max_steps and bool(running.any()):
        # Rows at unit size, so that float32 neither overflows nor underflows.
        unit = torch.where(running, left.sqrt(), 0.0).unsqueeze(-1)
        first = torch.where(unit > 0, residual / unit, 0.0).to(working.dtype)
        rough = working.dtype == torch.float32
        goal = torch.where(left > 0, (0.25 * tolerance**2 * size / left), 1.0).clamp(min=CYCLE**2)
        most = min(ROUGH_STEPS, max_steps - steps) if rough else max_steps - steps
        change, made = _cycle(working, first, mask, goal.to(working.dtype), most)
        moved = weight + unit * change
        after = target - moved @ matrix * mask
        reduced = after.square().sum(-1)
        if bool((running & ~(reduced <= torch.maximum(0.01 * left, tolerance**2 * size))).any()):
            working = matrix
        better = reduced < left
        weight = torch.where(better.unsqueeze(-1), moved, weight)
        residual, left = torch.where(better.unsqueeze(-1), after, residual), torch.where(better, reduced, left)
        running, steps = left > tolerance**2 * size, steps + made
    return IteratedSolution(weight * scale, torch.where(size > 0, (left / size).sqrt(), 0.0), steps)


def _cycle(
    matrix: Float[Tensor, "*batch d_in d_in"],
    residual: Float[Tensor, "*batch d_out d_in"],
    mask: Bool[Tensor, "*batch d_out d_in"],
    goal: Float[Tensor, "*batch d_out"],
    most: int,
) -> tuple[Float[Tensor, "*batch d_out d_in"], int]:
    """Conjugate gradients from zero until the square of every residual, one or zero at first, is at most its goal;
    changes the residual.
    """
    weight, direction, inside = torch.zeros_like(residual), residual.clone(), mask.to(matrix.dtype)
    energy = residual.square().sum(-1)
    for step in range(1, most + 1):
        image = (direction @ matrix).mul_(inside)
        curvature = (direction * image).sum(-1)
        length = torch.where((curvature > 0) & (energy > goal), energy / curvature, 0.0).unsqueeze(-1)
        weight.addcmul_(length, direction)
        residual.addcmul_(length, image, value=-1)
        before, energy = energy, residual.square().sum(-1)
        direction.mul_(torch.where(before > 0, energy / before, 0.0).unsqueeze(-1)).add_(residual)
        if step % CHECK_EVERY == 0 and bool((energy <= goal).all()):
            return weight, step
    return weight, most
