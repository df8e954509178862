"""Finding a good point for the bound on masks. Nothing here needs to be right: `check` decides."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from optprune.problems.least_squares import L0LeastSquares


def keeps_the_dense_weights(problem: L0LeastSquares, matrix: Float[Tensor, "out in"]) -> bool:
    """Whether the matrix is an admissible mask times the dense weight."""
    return bool(((matrix == problem.dense) | (matrix == 0)).all()) and problem.pattern.admits(matrix != 0)


def relax_mask(
    problem: L0LeastSquares,
    minorant: Float[Tensor, "*out in"],
    matrix: Float[Tensor, "out in"],
    *,
    steps: int = 200,
    tolerance: float = 1e-3,
) -> Float[Tensor, "out in"]:
    r"""The point of the best bound among the iterates of the Frank-Wolfe method on the relaxed mask, from `matrix`.

    $$\min_q \langle \Delta, \Delta A \rangle - 2 \langle \Delta, C^\top \rangle + \langle \delta R^2, q \rangle, \qquad
      \Delta = -q \circ R$$

    over the hull of the pruned sets; the linear program of a step is the selection by which the bound is evaluated, so
    that every step has its bound. The length is the minimiser on the segment.

    Args:
        problem: the problem.
        minorant: $\delta$.
        matrix: a mask times the dense weight.
        steps: most steps.
        tolerance: stop when the gap of the relaxation is this fraction of the objective at `matrix`.
    """
    dense, cross = problem.dense, problem.statistics.cross.mT
    cost = minorant * dense.square()
    q = (matrix == 0).to(dense.dtype)
    enough = 2 * tolerance * float(problem.objective(matrix))
    point, best = matrix, -torch.inf
    delta = -q * dense
    product = delta @ problem.gram - delta * minorant
    for _ in range(steps):
        score = cost - 2 * dense * (product - cross)
        gains = score.clamp_min(0.0)
        target = 1.0 - (problem.pattern.support(gains) & (score > 0)).to(q.dtype)
        move = target - q
        gap = -float((score * move).sum())
        value = float((delta * product).sum() - 2 * (delta * cross).sum() + (cost * q).sum()) - gap
        if value > best:
            point, best = dense + delta, value
        if gap <= enough:
            break
        ahead = -move * dense
        image = ahead @ problem.gram - ahead * minorant
        length = min(1.0, 0.5 * gap / max(float((ahead * image).sum()), 1e-300))
        q, delta, product = q + length * move, delta + length * ahead, product + length * image
    return point
