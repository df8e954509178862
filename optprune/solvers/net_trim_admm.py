"""Net-Trim by ADMM, finished exactly by proximal Newton steps and a closed form in the ball's multiplier."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from optprune.errors import InvalidInputError
from optprune.problems import unstack
from optprune.problems.net_trim import NetTrim
from optprune.solution import Answer, Termination
from optprune.solvers._base import Progress, Solver
from optprune.solvers._net_trim_exact import Exact, finish
from optprune.solvers._net_trim_first_order import FirstOrder
from optprune.solvers._net_trim_layer import Layer


@dataclass(frozen=True)
class NetTrimADMM(Solver[NetTrim]):
    max_steps: int = 200
    check_every: int = 10
    handover: float = 3e-3
    tolerance: float = 1e-9
    max_rounds: int = 40
    relaxation: float = 1.6

    accepts: ClassVar = (NetTrim,)
    summary: ClassVar[str] = "Net-Trim's convex program to machine precision: ADMM, then proximal Newton on the support"
    source: ClassVar[str] = "Aghasi, Abdi, Romberg 2020, Algorithm 1; Li, Sun, Toh 2018"

    def run(self, problem: NetTrim, progress: Progress | None = None) -> Answer:
        if problem.batch_shape:
            parts = [self.run(part, progress) for part in unstack(problem)]
            return Answer(
                torch.stack([part.matrix for part in parts]),
                tuple(reason for part in parts for reason in part.termination),
                max(part.steps for part in parts),
                {"multipliers": torch.stack([part.hint["multipliers"] for part in parts])},
                {name: sum(part.info[name] for part in parts) for name in parts[0].info},
            )
        layer = Layer.of(problem)
        method = FirstOrder(layer, self.relaxation)
        state = method.start()
        steps = 0
        gap = 1
        while steps < self.max_steps:
            for i in range(self.check_every):
                state = method.step(state, measure=i == self.check_every - 1)
            steps += self.check_every
            if progress is not None:
                progress(steps, self.max_steps)
            if float(torch.maximum(state.primal, state.dual).max()) < self.handover:
                break
            if steps // self.check_every >= gap:
                state = method.rebalance(state)
                gap = int(gap * 1.5) + 1
        result = finish(layer, state, self.tolerance, self.max_rounds)
        return Answer(
            result.u * layer.unit,
            (result.termination,),
            steps,
            {"multipliers": (result.lam * layer.dual_unit).mT},
            {"admm_steps": float(steps), "newton_steps": float(result.newton), "rounds": float(result.rounds)},
        )
