"""Net-Trim by ADMM, finished exactly on the pieces that it finds."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from optprune.errors import InvalidInputError
from optprune.problems import unstack
from optprune.problems.net_trim import NetTrim
from optprune.solution import Answer
from optprune.solvers._base import Progress, Promise, Solver
from optprune.solvers._net_trim_exact import finish
from optprune.solvers._net_trim_first_order import FirstOrder, State
from optprune.solvers._net_trim_layer import Layer
from optprune.solvers._net_trim_linear import CHOICES
from optprune.solvers._net_trim_parts import common_ball, decoupled

_STRAGGLERS = 0.1
"""Share of neurons that the first phase need not wait for: the second is cheap for a few."""

_BYTES = 280
"""Held per neuron and sample at the height of a solve, measured."""


@dataclass(frozen=True)
class NetTrimADMM(Solver[NetTrim]):
    r"""The optimum of a Net-Trim problem, usually to machine precision, for all neurons of a layer at once.

    1. ADMM on $t = XU^\top$, $S = U$, over-relaxed, with a penalty per neuron balanced by its residuals and
       one factorisation for all; a step costs two products of the inputs with the weights. It finds the
       neighbourhood of the optimum in one or two hundred steps, and would need many thousands for the rest.
    2. On the supports, signs and tight ceilings found, the optimality conditions are linear and their
       solution affine in the ball's multiplier $\mu$; the ball gives $\mu$ in closed form, jointly or per
       neuron. Where all conditions hold, this is the optimum. Where few fail, what is on the wrong side
       changes sides (Newton's step on the conditions); first in single precision, then in double.
    3. Other neurons take semismooth Newton steps on the dual of a proximal problem, whose systems are as
       small as their supports, and go back to 2.
    4. The few for which such steps have cost as much as an interior point method (neurons held by their
       ceilings on almost all samples) are restarted from what an interior point method finds.

    Why all: on a 300 x 100 layer ADMM alone leaves a relative gap of about 1e-3 after 500 steps and 1e-5
    after 5,000, and the Newton phase alone, from zero, spends on large early supports several times what
    ADMM costs; together the gap is below 1e-9. The step of 2 ends in three to five rounds where ADMM left
    few wrong, and goes astray elsewhere; that of 3 cannot, and costs about ten times as much. Newton's
    steps alone leave about one neuron in fifty of an ill-conditioned layer far from its optimum after a
    hundred rounds; the interior point method gets there in 20 to 45 steps, but each costs `samples x
    inputs^2`. Columns are scaled to unit size and neurons by their targets, so that the data's units do not
    matter.

    The solve ends as `CONVERGED` when all violations, relative to the data's scale, and the relative
    duality gap are at most the tolerance, as the solver sees them; as `INFEASIBLE` when the lower bound
    outgrows the norm of the nearly feasible iterates (the certificate then says how large any admissible
    matrix must be); otherwise as `STEP_LIMIT`.

    Attributes:
        max_steps: most ADMM steps.
        check_every: ADMM steps between two looks at the residuals.
        handover: relative residual at which ADMM hands over.
        tolerance: of violations and gap, at the end.
        max_rounds: most repetitions of 2 and what follows it.
        relaxation: of ADMM, in (0, 2).
        memory: GiB that arrays of neurons x samples may take besides the problem's and the answer's; a layer
            that needs more is solved in parts, with a joint ball by a root search for its multiplier.
        linear_solver: how ADMM's linear system is solved: "factor", "cg" (conjugate gradients, products with the
            inputs alone), or "auto", a factor unless its memory, $8 \min(n, d)^2$ bytes, passes half a gigabyte.

    Raises:
        InvalidInputError: a setting out of its range.

    References:
        Aghasi, Abdi, Romberg 2020, Algorithm 1; Boyd et al. 2011, sections 3.4.1 and 3.4.3; Li, Sun, Toh
        2018 (SSNAL); Mehrotra 1992.
    """

    max_steps: int = 1000
    check_every: int = 10
    handover: float = 7e-4
    tolerance: float = 1e-9
    max_rounds: int = 120
    relaxation: float = 1.6
    memory: float = 4.0
    linear_solver: str = "auto"

    accepts: ClassVar = (NetTrim,)
    summary: ClassVar[str] = "Net-Trim's convex program to machine precision: ADMM, then Newton on the support"
    source: ClassVar[str] = "Aghasi, Abdi, Romberg 2020, Algorithm 1; Li, Sun, Toh 2018"

    def __post_init__(self) -> None:
        counts = self.max_steps >= 1 and self.check_every >= 1 and self.max_rounds >= 1
        positive = self.handover > 0 and self.tolerance > 0 and self.memory > 0
        if not (counts and positive and 0 < self.relaxation < 2):
            raise InvalidInputError(
                f"{self} given; counts are >= 1, handover, tolerance and memory > 0, relaxation in (0, 2)"
            )
        if self.linear_solver not in CHOICES:
            raise InvalidInputError(f"linear_solver = {self.linear_solver!r} given; accepted are {', '.join(CHOICES)}")

    @property
    def promises(self) -> frozenset[Promise]:
        return frozenset({Promise.OPTIMAL})

    def run(self, problem: NetTrim, progress: Progress | None = None) -> Answer:
        """Solve a problem; the members of a stack one after the other, each of them fills the machine."""
        if problem.batch_shape:
            parts = [self.run(part, progress) for part in unstack(problem)]
            return Answer(
                torch.stack([part.matrix for part in parts]),
                tuple(reason for part in parts for reason in part.termination),
                max(part.steps for part in parts),
                {"multipliers": torch.stack([part.hint["multipliers"] for part in parts])},
                {name: sum(part.info[name] for part in parts) for name in parts[0].info},
            )
        share = self.memory * 2**30 / (_BYTES * problem.inputs.shape[0])
        neurons = max(int(min(share, problem.shape[0])), 1)
        if neurons < problem.shape[0]:
            whole = replace(self, memory=math.inf)
            if problem.radius is None or problem.per_neuron:
                return decoupled(problem, whole.run, neurons)
            return common_ball(problem, whole.run, neurons, self.tolerance)
        method = FirstOrder(Layer.of(problem), self.relaxation, self.linear_solver)
        return self.solve_layer(method, method.start(), progress)[0]

    def solve_layer(self, method: FirstOrder, state: State, progress: Progress | None = None) -> tuple[Answer, State]:
        """Both phases from a given state, for instance that of another radius; the answer, and ADMM's last state."""
        layer = method.exact
        before = method.linear.steps
        state, steps = self._approach(method, state, progress)
        made = method.linear.steps - before
        result = finish(layer, state, self.tolerance, self.max_rounds)
        answer = Answer(
            layer.matrix(result.u),
            (result.termination,),
            steps,
            {"multipliers": (result.lam * layer.dual_unit).mT.contiguous()},
            {"rounds": float(result.rounds), "newton_steps": float(result.newton), "cg_steps": float(made)},
        )
        return answer, state

    def _approach(self, method: FirstOrder, state: State, progress: Progress | None) -> tuple[State, int]:
        """ADMM until all but a few neurons have a small residual; the penalties change ever more rarely."""
        steps, looks, change = 0, 0, 1
        while steps < self.max_steps:
            count = min(self.check_every, self.max_steps - steps)
            for k in range(count):
                state = method.step(state, measure=k == count - 1)
            steps, looks = steps + count, looks + 1
            if progress is not None:
                progress(steps, self.max_steps)
            late = torch.maximum(state.primal, state.dual) > self.handover
            if float(late.double().mean()) <= _STRAGGLERS:
                break
            if looks >= change:
                state = method.rebalance(state)
                change = int(1.5 * change) + 1
        return state, steps
