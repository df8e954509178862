"""What float64 may add to a Net-Trim objective and to the violation of its constraints."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from optprune.bounds._theorem import theorem
from optprune.numerics.rounding import SMALLEST, gamma, norm_bound
from optprune.problems.net_trim import NetTrim


@theorem("T01")
def rounding_errors(problem: NetTrim, matrix: Float[Tensor, "out d"]) -> tuple[float, float]:
    r"""Bounds of the rounding errors of `NetTrim.objective` and of the largest of `NetTrim.violation`.

    With $|\tilde R - R| \le E = \gamma_d |X| |U|^\top + d \eta + \gamma_2 |\tilde R|$ entrywise for the computed
    residual, $N$ entries in a sum and $k$ weights,

    $$\gamma_{k} \lVert U \rVert_1 + \tfrac1{2\mu} \bigl(\langle 2 |\tilde R| + E, E \rangle + \gamma_{N + 4}
      \lVert \tilde R \rVert^2\bigr)_\Omega$$

    for the objective, the second term with a penalty only. The excess over a ball is off by $\lVert E_\Omega \rVert +
    \gamma_{N + 8} (\lVert \tilde R_\Omega \rVert + \varepsilon)$, that over a sign by $\max E$; both are divided by the
    scales that `NetTrim.violation` divides by.
    """
    residual = problem.residual(matrix)
    _, error = problem.linear.bounded_outputs(matrix)
    error = error + gamma(2) * residual.abs()
    count = residual.numel()
    # What the evaluation of these lines rounds is below a thousandth of what it bounds.
    objective = 1.001 * gamma(matrix.numel() + 2) * (matrix.abs() * problem.penalised).sum() + SMALLEST
    active, off = torch.where(problem.active, error, 0.0), torch.where(problem.active, 0.0, error)
    kept = torch.where(problem.active, residual.abs(), 0.0)
    if problem.penalty is not None:
        missed = ((2 * kept + active) * active).sum() + gamma(count + 4) * kept.square().sum()
        objective = objective + 1.001 * (missed + 4 * count * SMALLEST) / (2 * problem.penalty) + SMALLEST
    relative = [_relative(off.amax(), problem.scale)]
    if problem.radius is not None:
        dim, size = (0, problem.size / problem.shape[0] ** 0.5) if problem.per_neuron else (-1, problem.size)
        shape = residual.shape if problem.per_neuron else (-1,)
        loose = norm_bound(active.reshape(shape), dim)
        norm = norm_bound(kept.reshape(shape), dim)
        missed = loose + gamma(count + 8) * (norm + problem.radius)
        relative.append(_relative(missed, torch.maximum(problem.radius, size)).amax())
    largest = torch.stack(list(problem.violation(matrix).values())).amax()
    return float(objective), float(1.001 * torch.stack(relative).amax() + gamma(8) * largest)


def _relative(error: Tensor, scale: Tensor) -> Tensor:
    return torch.where(error > 0, error / scale, 0.0)
