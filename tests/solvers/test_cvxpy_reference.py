"""The reference through cvxpy: three solvers, one optimum, multipliers that certify it."""

import pytest
import torch

from optprune.certify import certify
from optprune.errors import InvalidInputError, UnsupportedError
from optprune.problems.net_trim import NetTrim
from optprune.solution import Termination
from optprune.solvers.cvxpy_reference import Cvxpy


def make(**form) -> NetTrim:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(30, 6, generator=generator, dtype=torch.float64)
    return NetTrim.from_layer(torch.randn(3, 6, generator=generator, dtype=torch.float64), inputs, **form)


@pytest.mark.parametrize(
    ("solver", "form", "gap"),
    [
        ("CLARABEL", {"radius": 2.0}, 1e-7),
        ("CLARABEL", {"radius": torch.ones(3)}, 1e-7),
        ("CLARABEL", {"penalty": 3.0, "bias": torch.ones(3, dtype=torch.float64)}, 1e-7),
        ("SCS", {"radius": 2.0}, 1e-7),
        ("OSQP", {"penalty": 3.0}, 1e-7),
    ],
)
def test_the_multipliers_certify_the_answer(solver, form, gap):
    problem = make(**form)
    answer = Cvxpy(solver).run(problem)
    assert answer.termination == (Termination.CONVERGED,)
    certificate, _ = certify(problem, answer.matrix, answer.hint)
    assert certificate.primal_residual <= 1e-6
    assert abs(certificate.relative_gap) <= gap
    assert answer.info["cpu_seconds"] > 0


@pytest.mark.parametrize(
    ("solver", "form"), [("CLARABEL", {"radius": 2.0}), ("SCS", {"radius": 2.0}), ("OSQP", {"penalty": 3.0})]
)
def test_the_tolerance_and_the_limit_of_steps_reach_the_solver(solver, form):
    problem = make(**form)
    loose, tight = (Cvxpy(solver, tolerance=tolerance).run(problem) for tolerance in (1e-2, 1e-10))
    assert loose.steps < tight.steps
    assert abs(certify(problem, tight.matrix, tight.hint)[0].relative_gap) < 1e-8
    assert Cvxpy(solver, max_steps=2).run(problem).termination == (Termination.STEP_LIMIT,)


def test_what_a_solver_cannot_take_is_refused():
    with pytest.raises(UnsupportedError, match="quadratic programs"):
        Cvxpy("OSQP").run(make(radius=2.0))
    with pytest.raises(InvalidInputError, match="CLARABEL, SCS, OSQP"):
        Cvxpy("MOSEK")
    for wrong in (lambda: Cvxpy(tolerance=0.0), lambda: Cvxpy(max_steps=0), lambda: Cvxpy(time_limit=-1.0)):
        with pytest.raises(InvalidInputError, match="> 0, or None"):
            wrong()
