"""The ADMM of Net-Trim's authors, as published: one penalty throughout, no polishing, nothing after it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from optprune.certify import certify
from optprune.errors import UnsupportedError
from optprune.problems.net_trim import NetTrim
from optprune.solution import Answer, Certificate, Termination
from optprune.solvers import Solver
from optprune.solvers._base import Progress


@dataclass(frozen=True)
class Replica(Solver[NetTrim]):
    r"""ADMM on $T = U X^\top$, $S = U$ with a fixed penalty, in float64.

    The published run is `published` steps; it is looked at there, and then goes on until the certified gap and the
    violations are within the targets or the time is up. Looks are not counted in the times.

    Attributes:
        rho: the penalty.
        published: steps of the published run.
        gap: relative gap to reach.
        violation: to reach.
        seconds: CPU time, looks apart.
        check_every: steps between two looks.

    References:
        Aghasi, Abdi, Romberg 2020, Algorithm 1; rho = 100 and 10 times 200 steps are the settings of their code.
    """

    rho: float = 100.0
    published: int = 2000
    gap: float = 1e-6
    violation: float = 1e-8
    seconds: float = 120.0
    check_every: int = 200

    accepts: ClassVar = (NetTrim,)
    summary: ClassVar[str] = "Net-Trim's published ADMM, without what came later"
    source: ClassVar[str] = "Aghasi, Abdi, Romberg 2020, Algorithm 1"

    def run(self, problem: NetTrim, progress: Progress | None = None) -> Answer:
        """Iterate; `info` holds the seconds, and those, gap and violation of the published run."""
        if problem.radius is None or problem.ceiling is not None:
            raise UnsupportedError("a penalty or a ceiling given; the replica takes a ball and no ceiling")
        spent, started = 0.0, time.process_time()
        iteration = _Iteration(problem, self.rho)
        info: dict[str, float] = {}
        for steps in range(1, 10**9):
            iteration.step()
            if steps % self.check_every and steps != self.published:
                continue
            spent += time.process_time() - started
            found = iteration.certificate()
            if steps == self.published or (steps < self.published and self._reached(found)):
                info |= {"published_seconds": spent, "published_steps": float(steps)}
                info |= {"published_gap": found.relative_gap, "published_violation": found.primal_residual}
            if self._reached(found) or (spent > self.seconds and steps >= self.published):
                break
            started = time.process_time()
        reason = Termination.CONVERGED if self._reached(found) else Termination.STEP_LIMIT
        info["cpu_seconds"] = spent
        return Answer(iteration.matrix, (reason,), steps, {"multipliers": iteration.multipliers}, info)

    def _reached(self, found: Certificate) -> bool:
        return abs(found.relative_gap) <= self.gap and found.primal_residual <= self.violation


class _Iteration:
    """The iterates, neurons first, in units in which the largest entry of the Gram matrix is about 11."""

    def __init__(self, problem: NetTrim, rho: float) -> None:
        assert problem.radius is not None
        self.problem, self.rho = problem, rho
        assert isinstance(problem.inputs, torch.Tensor)
        x = problem.inputs.mT
        self.unit = 0.3 * float((x @ x.mT).max()) ** 0.5
        self.x, self.y = x / self.unit, problem.targets.mT / self.unit
        self.radius = problem.radius / self.unit
        self.active = problem.active.mT
        # The bias costs nothing: its threshold is 0.
        self.threshold = problem.penalised[:, None] / rho
        self.factor = torch.linalg.cholesky(self.x @ self.x.mT + torch.eye(len(x), dtype=x.dtype))
        self.w = torch.zeros(len(x), len(self.y), dtype=x.dtype)
        self.s = self.u2 = self.w
        self.u1 = torch.zeros_like(self.y)
        self.through = self.u1

    def step(self) -> None:
        z = self.through - self.u1
        off = torch.where(self.active, z - self.y, 0.0)
        norm = off.norm(dim=1, keepdim=True) if self.problem.per_neuron else off.norm()
        radius = self.radius[:, None] if self.problem.per_neuron else self.radius
        shrink = (radius / norm.clamp(min=1e-300)).clamp(max=1.0)
        t = torch.where(self.active, self.y + shrink * off, z.clamp(max=0))
        s = self.w - self.u2
        self.s = s - s.clamp(-self.threshold, self.threshold)
        self.w = torch.cholesky_solve(self.x @ (t + self.u1).mT + self.s + self.u2, self.factor)
        self.through = self.w.mT @ self.x
        self.u1 = self.u1 + t - self.through
        self.u2 = self.u2 + self.s - self.w

    @property
    def matrix(self) -> Tensor:
        return self.s.mT.contiguous()

    @property
    def multipliers(self) -> Tensor:
        return (-self.rho / self.unit * self.u1.mT).contiguous()

    def certificate(self) -> Certificate:
        return certify(self.problem, self.matrix, {"multipliers": self.multipliers})[0]
