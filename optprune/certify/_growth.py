"""Finding good evidence for the growth bound behind a ReLU. Nothing here needs to be right: `check` decides."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from optprune.bounds.growth import growth_bound
from optprune.certify._accelerate import Proximal
from optprune.numerics.linalg import spectral_norm
from optprune.numerics.rounding import UNIT
from optprune.numerics.working_memory import working_memory
from optprune.problems import L0ReLU


def relu_minorant(problem: L0ReLU, memory: int | None = None) -> Float[Tensor, "out d"]:
    r"""$\delta_r = \mu_r / \operatorname{diag}(H_r^{-1})$ with the largest $\mu_r$ that a proof will accept."""
    if not bool(problem.ridge > 0):  # every input is dead
        return torch.zeros_like(problem.reference)
    parts = []
    for hessian in hessians(problem, memory):
        inverse = torch.cholesky_inverse(torch.linalg.cholesky_ex(hessian)[0]).diagonal(dim1=-2, dim2=-1)
        root = inverse.sqrt()
        scaled = hessian * root.unsqueeze(-1) * root.unsqueeze(-2)
        smallest = torch.linalg.eigvalsh(scaled)[:, :1] if bool(scaled.isfinite().all()) else 0 * root[:, :1]
        margin = 16 * (hessian.shape[-1] + 4) ** 2 * UNIT * hessian.diagonal(dim1=-2, dim2=-1).amax(-1, keepdim=True)
        parts.append((smallest * (1 - 1e-9) / inverse - margin).nan_to_num(0.0).clamp_min(0.0))
    return torch.cat(parts)


def relaxed_point(
    problem: L0ReLU,
    minorant: Float[Tensor, "out d"],
    start: Float[Tensor, "out d"],
    max_steps: int = 1000,
    tolerance: float = 1e-3,
    check_every: int = 20,
) -> Float[Tensor, "out d"]:
    """A point of nearly the best bound: FISTA on the perspective relaxation, in coordinates where delta is 1."""
    if bool((minorant <= 0).any()):
        return start
    relaxation = _Relaxation(problem, minorant)
    lipschitz = relaxation.lipschitz()
    step = Proximal(relaxation, lipschitz)
    x = y = start * relaxation.root
    best, reached, looks = start, bound_at(problem, minorant, start), []
    growth = tolerance * float(problem.objective(start))
    theta = 1.0
    for count in range(1, max_steps + 1):
        new = step(y - 2 * relaxation.slope(y) / lipschitz)
        if float(((y - new) * (new - x)).sum()) > 0:
            theta = 1.0
        following = (1 + (1 + 4 * theta * theta) ** 0.5) / 2
        y, x, theta = new + (theta - 1) / following * (new - x), new, following
        if count % check_every == 0:
            point = x / relaxation.root
            value = bound_at(problem, minorant, point)
            best, reached = (point, value) if value > reached else (best, reached)
            looks.append(reached)
            if len(looks) > 5 and looks[-1] - looks[-6] < growth:
                break
    return best


class _Relaxation:
    """The problem without its quadratic minorant, in scaled coordinates, and the pattern's units."""

    def __init__(self, problem: L0ReLU, minorant: Float[Tensor, "out d"]) -> None:
        self.problem, self.root = problem, minorant.sqrt()

    def slope(self, x: Float[Tensor, "out d"]) -> Float[Tensor, "out d"]:
        """Of what is convex."""
        return self.problem.gradient(x / self.root) / self.root - x

    def lipschitz(self) -> Tensor:
        """Twice the largest curvature of what is convex, over all rows."""
        p = self.problem
        gram = p.gram.clone()
        gram.diagonal().add_(p.ridge)
        largest = torch.zeros((), dtype=gram.dtype, device=gram.device)
        for root in self.root.split(max(1, 2**24 // gram.numel())):
            scaled = gram / (root.unsqueeze(-1) * root.unsqueeze(-2))
            largest = torch.maximum(largest, spectral_norm(scaled).max())
        return 2 * largest

    def kept(self) -> Float[Tensor, "budgets 1"] | float:
        kept = self.problem.pattern.kept(self.problem.shape)
        return kept.to(self.root.device).double()[:, None] if isinstance(kept, Tensor) else float(kept)

    def norms(self, x: Float[Tensor, "out d"]) -> Float[Tensor, "budgets units"]:
        return self.problem.pattern.units(x).square().sum(-1).sqrt()

    def spread(self, z: Float[Tensor, "budgets units"]) -> Float[Tensor, "out d"]:
        pattern, shape = self.problem.pattern, self.problem.shape
        return pattern.from_units(z.unsqueeze(-1).expand(*z.shape, pattern.layout(shape)[2]), shape)


def bound_at(problem: L0ReLU, minorant: Float[Tensor, "out d"], point: Float[Tensor, "out d"]) -> float:
    """The bound of a minorant and a point."""
    support = problem.pattern.support
    return growth_bound(problem.objective(point), problem.gradient(point), minorant, point, support)


def hessians(problem: L0ReLU, memory: int | None) -> Iterator[Float[Tensor, "rows d d"]]:
    r"""$H_r$ of some rows after the other."""
    n, d = problem.inputs.shape
    at_once = working_memory(memory, problem.inputs.device, 2**27) // (16 * d * (n + d))
    for active in problem.active.T.split(max(1, at_once)):
        counted = (problem.inputs.T * active.unsqueeze(-2)) @ problem.inputs / n
        hessian = (counted + counted.mT) / 2
        hessian.diagonal(dim1=-2, dim2=-1).add_(problem.ridge)
        yield hessian
