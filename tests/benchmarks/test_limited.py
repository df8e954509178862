"""The limits that the benchmark's solves run under are kept, and what ended a solve is told."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

import optprune as op
from optprune.certify import certify
from optprune.problems.net_trim import NetTrim
from optprune.solution import Answer, Termination
from optprune.solvers import Solver
from optprune.solvers._base import Progress
from tests.benchmarks._limited import TIME_LIMIT, solve_limited
from tests.benchmarks._replica import Replica

WEIGHT = torch.linspace(-1, 1, 40, dtype=torch.float64).reshape(4, 10)


def problem() -> NetTrim:
    generator = torch.Generator().manual_seed(0)
    return NetTrim.from_layer(WEIGHT, torch.rand(50, 10, generator=generator, dtype=torch.float64), 0.5)


@dataclass(frozen=True)
class Greedy(Solver[NetTrim]):
    """Solves a tiny problem at once and never ends on a larger one, or asks for more memory than there is."""

    memory: bool

    accepts: ClassVar = (NetTrim,)
    summary: ClassVar[str] = "takes all it is given"
    source: ClassVar[str] = "none"

    def run(self, problem: NetTrim, progress: Progress | None = None) -> Answer:
        zero = torch.zeros(problem.shape, dtype=torch.float64)
        while problem.inputs.shape[0] > 10:
            bytearray(2**36 if self.memory else 8)
        return Answer(zero, (Termination.CONVERGED,), 0, {"multipliers": torch.zeros_like(problem.targets)})


@pytest.mark.parametrize(("memory", "reason"), [(False, TIME_LIMIT), (True, "memory limit of 8 GiB")])
def test_a_solve_beyond_its_limits_is_ended(memory, reason):
    answer, seconds, ended = solve_limited(problem(), Greedy(memory), 1.0, 8.0)
    assert answer is None
    assert ended == reason
    assert seconds < 30


def test_an_answer_comes_back_whole():
    answer, seconds, ended = solve_limited(problem(), op.NetTrimADMM(), 60.0, 8.0)
    assert ended is None
    assert answer is not None
    certificate, _ = certify(problem(), answer.matrix, answer.hint)
    assert certificate.relative_gap <= 1e-8
    assert 0 < seconds < 60


def test_the_replica_goes_on_until_the_target_is_certified():
    answer = Replica(published=10, check_every=50, seconds=60.0).run(problem())
    certificate, _ = certify(problem(), answer.matrix, answer.hint)
    assert abs(certificate.relative_gap) <= 1e-6
    assert certificate.primal_residual <= 1e-8
    assert answer.info["published_steps"] == 10 < answer.steps
    assert answer.info["published_gap"] > 1e-6
    exact = op.NetTrimADMM().run(problem())
    assert float((answer.matrix - exact.matrix).abs().max()) < 1e-3
