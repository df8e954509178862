"""Net-Trim by general convex solvers through cvxpy: slow, independent, the yardstick of the tests."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch

from optprune.errors import InvalidInputError, MissingDependencyError, UnsupportedError
from optprune.problems import unstack
from optprune.problems.net_trim import NetTrim
from optprune.solution import Answer, Termination
from optprune.solvers._base import Progress, Solver

_TERMINATIONS = {
    "optimal": Termination.CONVERGED,
    "optimal_inaccurate": Termination.STEP_LIMIT,
    "user_limit": Termination.STEP_LIMIT,
    "infeasible": Termination.INFEASIBLE,
    "infeasible_inaccurate": Termination.INFEASIBLE,
}


@dataclass(frozen=True)
class _Options:
    """How a solver names its tolerances and its limit of steps, and what stands there unless told otherwise."""

    tolerances: tuple[str, ...]
    steps: str
    tolerance: float
    max_steps: int
    others: Mapping[str, Any] = field(default_factory=dict)


_OPTIONS = {
    "CLARABEL": _Options(("tol_gap_abs", "tol_gap_rel", "tol_feas"), "max_iter", 1e-8, 200),
    "SCS": _Options(("eps_abs", "eps_rel"), "max_iters", 1e-7, 20000),
    "OSQP": _Options(("eps_abs", "eps_rel"), "max_iter", 1e-8, 50000, {"polishing": True}),
}


@dataclass(frozen=True)
class Cvxpy(Solver[NetTrim]):
    r"""The program of `NetTrim` written down for cvxpy and solved by a general solver.

    A joint ball is one program for the whole layer; balls per neuron and the penalised form are one program
    per neuron. The multipliers are those of the ceilings and of the ball's cone; in the penalised form, on the
    active entries, the residual over the penalty.

    Attributes:
        solver: "CLARABEL" (interior point), "SCS" (operator splitting, cones) or "OSQP" (operator
            splitting, the penalised form alone, which is a quadratic program).
        time_limit: seconds per program, or None; a program stopped by it is reported as `STEP_LIMIT`.
        tolerance: of the solver's own stopping rules, absolute and relative; None is 1e-8, for SCS 1e-7.
        max_steps: most iterations per program; None is 200 for CLARABEL, 20,000 for SCS, 50,000 for OSQP.

    Raises:
        InvalidInputError: a name that is not one of the three, or a tolerance or a limit that is not positive.

    References:
        Goulart, Chen 2024 (Clarabel); O'Donoghue et al. 2016 (SCS); Stellato et al. 2020 (OSQP); Diamond,
        Boyd 2016 (cvxpy).
    """

    solver: str = "CLARABEL"
    time_limit: float | None = None
    tolerance: float | None = None
    max_steps: int | None = None

    accepts: ClassVar = (NetTrim,)
    summary: ClassVar[str] = "Net-Trim's convex program through cvxpy: the reference, slow"
    source: ClassVar[str] = "Aghasi et al. 2017, eq. (5); Diamond, Boyd 2016"

    def __post_init__(self) -> None:
        if self.solver not in _OPTIONS:
            raise InvalidInputError(f"solver {self.solver!r} given; accepted are {', '.join(_OPTIONS)}")
        given = (self.time_limit, self.tolerance, self.max_steps)
        if any(value is not None and not value > 0 for value in given):
            raise InvalidInputError(f"{self} given; time_limit, tolerance and max_steps are > 0, or None")

    def run(self, problem: NetTrim, progress: Progress | None = None) -> Answer:
        """Solve each program of the problem.

        Raises:
            UnsupportedError: OSQP with a ball.
            MissingDependencyError: cvxpy is not installed.
        """
        if self.solver == "OSQP" and problem.penalty is None:
            raise UnsupportedError(
                "OSQP given a ball; it takes quadratic programs: give NetTrim a penalty, or use CLARABEL or SCS"
            )
        if problem.batch_shape:
            answers = [self.run(part) for part in unstack(problem)]
            return Answer(
                torch.stack([answer.matrix for answer in answers]),
                tuple(reason for answer in answers for reason in answer.termination),
                sum(answer.steps for answer in answers),
                {"multipliers": torch.stack([answer.hint["multipliers"] for answer in answers])},
                {"cpu_seconds": sum(answer.info["cpu_seconds"] for answer in answers)},
            )
        out = problem.shape[0]
        decoupled = problem.penalty is not None or problem.per_neuron
        groups = [[m] for m in range(out)] if decoupled else [list(range(out))]
        started, steps = time.process_time(), 0
        matrix = np.zeros(problem.shape)
        multipliers = np.zeros(tuple(problem.targets.shape))
        reasons = []
        for done, group in enumerate(groups):
            weights, duals, reason, made = self._solve(problem, group)
            matrix[group], multipliers[:, group] = weights, duals
            reasons.append(reason)
            steps += made
            if progress is not None:
                progress(done + 1, len(groups))
        worst = max(reasons, key=list(Termination).index)
        like = problem.targets
        return Answer(
            torch.as_tensor(matrix).to(like),
            (worst,),
            steps,
            {"multipliers": torch.as_tensor(multipliers).to(like)},
            {"cpu_seconds": time.process_time() - started},
        )

    def _solve(self, problem: NetTrim, neurons: list[int]) -> tuple[np.ndarray, np.ndarray, Termination, int]:
        """One program over some neurons: weights, multipliers, why it stopped, iterations."""
        cp = _cvxpy()
        x = torch.cat([block for _, block in problem.linear.rows()]).cpu().numpy()
        targets = problem.targets[:, neurons].cpu().numpy()
        active = problem.active[:, neurons].cpu().numpy()
        ceiling = np.zeros_like(targets) if problem.ceiling is None else problem.ceiling[:, neurons].cpu().numpy()
        penalised = problem.penalised.cpu().numpy()
        u = cp.Variable((len(neurons), x.shape[1]))
        # A column of the variable per neuron and rows by activity: no dense masks reach the solver.
        on = [x[active[:, k]] @ u[k] - targets[active[:, k], k] for k in range(len(neurons)) if active[:, k].any()]
        off = [
            (k, x[~active[:, k]] @ u[k] <= ceiling[~active[:, k], k])
            for k in range(len(neurons))
            if not active[:, k].all()
        ]
        objective = cp.norm1(u[:, np.flatnonzero(penalised)])
        constraints = [constraint for _, constraint in off]
        residual = cp.hstack(on) if on else None
        if problem.penalty is not None:
            objective = objective + (cp.sum_squares(residual) / (2 * float(problem.penalty)) if on else 0)
        elif problem.radius is not None and residual is not None:
            radius = problem.radius[neurons[0]] if problem.per_neuron else problem.radius
            constraints.append(cp.SOC(cp.Constant(float(radius)), residual))
        program = cp.Problem(cp.Minimize(objective), constraints)
        try:
            program.solve(solver=self.solver, **self._options())
        except cp.SolverError:
            return np.zeros(u.shape), np.zeros_like(targets), Termination.STEP_LIMIT, 0
        iterations = int(program.solver_stats.num_iters or 0)
        reason = _TERMINATIONS.get(program.status, Termination.STEP_LIMIT)
        if u.value is None:
            return np.zeros(u.shape), np.zeros_like(targets), reason, iterations
        duals = np.zeros_like(targets)
        for k, constraint in off:
            duals[~active[:, k], k] = np.maximum(constraint.dual_value, 0)
        if problem.penalty is not None:
            duals += np.where(active, x @ u.value.T - targets, 0.0) / float(problem.penalty)
        elif residual is not None:
            # Boolean indexing of the transpose goes neuron by neuron, as the residual does.
            duals.T[active.T] = -constraints[-1].dual_value[1].ravel()
        return u.value, duals, reason, iterations

    def _options(self) -> dict[str, Any]:
        known = _OPTIONS[self.solver]
        tolerance = known.tolerance if self.tolerance is None else self.tolerance
        options = dict.fromkeys(known.tolerances, tolerance) | dict(known.others)
        options[known.steps] = known.max_steps if self.max_steps is None else self.max_steps
        if self.time_limit is not None:
            options["time_limit_secs" if self.solver == "SCS" else "time_limit"] = self.time_limit
        return options


def _cvxpy() -> Any:
    try:
        import cvxpy
    except ImportError as error:
        raise MissingDependencyError("cvxpy is not installed; pip install cvxpy clarabel scs osqp") from error
    return cvxpy
