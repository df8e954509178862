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
        ("CLARABEL", {"radius": 2.0}, 1e-4),
        ("CLARABEL", {"radius": torch.ones(3)}, 1e-4),
        ("CLARABEL", {"penalty": 3.0, "bias": torch.ones(3, dtype=torch.float64)}, 1e-4),
        ("SCS", {"radius": 2.0}, 1e-4),
        ("OSQP", {"penalty": 3.0}, 1e-4),
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


def test_what_a_solver_cannot_take_is_refused():
    with pytest.raises(UnsupportedError, match="quadratic programs"):
        Cvxpy("OSQP").run(make(radius=2.0))
    with pytest.raises(InvalidInputError, match="CLARABEL, SCS, OSQP"):
        Cvxpy("MOSEK")
