"""The best weight on given supports behind a ReLU, many rows at once."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from optprune.errors import NonFiniteError
from optprune.numerics.working_memory import working_memory
from optprune.problems import L0ReLU

MAX_STEPS = 200
SETTLED = 1e-15
"""A row ends when its model promises less than this share of the objective at 0."""
SUFFICIENT, SHORTEST = 1e-4, 1e-6
"""Share of the promised decrease that a step must keep; a length at which rounding is all that is left."""


def fit_relu(
    problem: L0ReLU,
    mask: Bool[Tensor, "out d"],
    start: Float[Tensor, "out d"] | None = None,
    rows: Tensor | None = None,
    *,
    memory: int | None = None,
) -> Float[Tensor, "out d"]:
    r"""Each row minimises its share of the objective over the weights of its support.

    Newton's method on a convex, piecewise quadratic function: the Hessian is that of the samples which count at the
    present point. A step that does not lower the objective is halved. The pieces are finitely many, and on the last
    one a full step ends at the minimiser.

    Args:
        problem: a single problem.
        mask: the supports, one per entry of `rows`.
        start: the point to start from; default 0.
        rows: which row of the problem each support belongs to; default all, in their order.
        memory: bytes for the gathered inputs of a chunk of rows; see `working_memory`.

    Raises:
        NonFiniteError: the numbers overflow.
    """
    rows = torch.arange(problem.shape[0], device=mask.device) if rows is None else rows
    start = torch.zeros_like(problem.reference[rows]) if start is None else start
    width = max(1, int(mask.sum(-1).max()))
    count = max(1, working_memory(memory, start.device, 2**27) // (32 * problem.inputs.shape[-2] * width))
    parts = zip(mask.split(count), start.split(count), rows.split(count), strict=True)
    return torch.cat([_Rows(problem, *part, width).newton() for part in parts])


class _Rows:
    """Some rows with the columns of their supports gathered, padded with zero columns to a common width."""

    def __init__(
        self, problem: L0ReLU, mask: Bool[Tensor, "rows d"], start: Float[Tensor, "rows d"], rows: Tensor, width: int
    ) -> None:
        self.mask = mask
        size, self.places = mask.int().topk(min(width, mask.shape[1]), dim=-1)
        self.used = size > 0
        self.inputs = problem.inputs.T[self.places] * self.used.unsqueeze(-1)
        self.active, self.targets = problem.active.T[rows], problem.targets.T[rows]
        self.bias, self.ridge = problem.bias[rows], problem.ridge
        self.reference = problem.reference[rows].gather(-1, self.places) * self.used
        self.start = start.gather(-1, self.places) * self.used

    def missed(self, x: Float[Tensor, "rows width"]) -> Float[Tensor, "rows n"]:
        outputs = torch.einsum("rk,rkn->rn", x, self.inputs) + self.bias.unsqueeze(-1)
        return torch.where(self.active, outputs - self.targets, outputs.clamp_min(0.0))

    def value(self, x: Float[Tensor, "rows width"]) -> Float[Tensor, " rows"]:
        damping = self.ridge * (x - self.reference).square().sum(-1)
        return 0.5 * (self.missed(x).square().mean(-1) + damping)

    def newton(self) -> Float[Tensor, "rows d"]:
        x, n = self.start, self.inputs.shape[-1]
        value = self.value(x)
        running = torch.ones_like(value, dtype=torch.bool)
        least = SETTLED * self.value(torch.zeros_like(x))
        for _ in range(MAX_STEPS):
            missed = self.missed(x)
            slope = torch.einsum("rkn,rn->rk", self.inputs, missed) / n + self.ridge * (x - self.reference)
            counted = self.inputs * (self.active | (missed > 0)).unsqueeze(-2)
            hessian = counted @ self.inputs.mT / n
            # The padding, and everything where all inputs are dead, gets a diagonal that only has to be positive.
            hessian.diagonal(dim1=-2, dim2=-1).add_(torch.where(self.used & (self.ridge > 0), self.ridge, 1.0))
            factor, failed = torch.linalg.cholesky_ex(hessian)
            if bool((failed > 0).any()):
                raise NonFiniteError("a Hessian of the ReLU problem cannot be factorised; more damping is needed")
            step = torch.cholesky_solve(slope.unsqueeze(-1), factor).squeeze(-1)
            promised = 0.5 * (slope * step).sum(-1)
            running = running & (promised > least)
            if not bool(running.any()):
                break
            before = value
            x, value = self._shortened(x, value, step, promised, running)
            running = running & (value < before)  # where no step lowers it, what was promised is rounding
        weight = torch.zeros(self.mask.shape, dtype=x.dtype, device=x.device)
        return weight.scatter(-1, self.places, x * self.used)

    def _shortened(
        self,
        x: Float[Tensor, "rows width"],
        value: Float[Tensor, " rows"],
        step: Float[Tensor, "rows width"],
        promised: Float[Tensor, " rows"],
        running: Bool[Tensor, " rows"],
    ) -> tuple[Float[Tensor, "rows width"], Float[Tensor, " rows"]]:
        """The longest of the steps 1, 1/2, 1/4 ... that lowers a row's objective by a share of what it promised."""
        length = 1.0
        while bool(running.any()):
            trial = x - length * running.unsqueeze(-1) * step
            reached = self.value(trial)
            if not bool(reached.isfinite().all()):
                raise NonFiniteError("the objective of the ReLU problem overflows; rescale inputs or weights")
            better = running & (reached <= value - SUFFICIENT * length * promised)
            x, value = torch.where(better.unsqueeze(-1), trial, x), torch.where(better, reached, value)
            length = length / 2
            running = running & ~better & (length > SHORTEST)
        return x, value
