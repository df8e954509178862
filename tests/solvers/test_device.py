"""Every solver and every certificate on a device: nothing mixed, the same answers, and few waits for the host."""

import dataclasses

import numpy as np
import pytest
import torch

import optprune as op
from optprune.certify import certify, recheck
from optprune.errors import InvalidInputError
from optprune.numerics.linear import DiskMap
from optprune.testing.instances import all_instances, data
from tests import stand_in

SOLVERS = [
    found()
    for name in sorted(dir(op))
    if isinstance(found := getattr(op, name), type) and issubclass(found, op.Solver) and found is not op.Solver
]


def one_of_each(*solvers: op.Solver) -> list[op.Problem]:
    """The first golden instance of every kind that all of them accept: problem, pattern, shapes of the data."""
    found: dict[object, op.Problem] = {}
    for golden in all_instances():
        problem = golden.problem
        if golden.regular and all(isinstance(problem, solver.accepts) for solver in solvers):
            shapes = tuple((name, tensor.dim()) for name, tensor in problem.tensors().items())
            found.setdefault((type(problem), type(getattr(problem, "pattern", None)), shapes), problem)
    return list(found.values())


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: type(solver).__name__)
def test_answers_are_those_of_the_cpu(solver, device):
    tried = 0
    for problem in one_of_each(solver):
        try:
            here = op.solve(problem, solver, certified=False)
        except op.errors.UnsupportedError:
            continue
        there = op.solve(problem.to(device), solver, certified=False)
        tried += 1
        assert there.matrix.device.type == device
        torch.testing.assert_close(there.matrix.cpu(), here.matrix, rtol=1e-6, atol=1e-8)
    assert tried


@pytest.mark.parametrize("problem", one_of_each(), ids=lambda problem: type(problem).__name__)
def test_certificates_are_those_of_the_cpu(problem, device):
    """And the evidence found there says the same here, also to exact arithmetic where the bound has it."""
    matrix = op.solve(problem, next(s for s in SOLVERS if isinstance(problem, s.accepts)), certified=False).matrix
    here, _ = certify(problem, matrix)
    moved = problem.to(device)
    there, evidence = certify(moved, matrix.to(device))
    assert all(tensor.device.type == device for tensor in evidence.values())
    assert there.objective == pytest.approx(here.objective, rel=1e-9, abs=1e-12)
    assert there.lower_bound == pytest.approx(here.lower_bound, rel=1e-4, abs=1e-9)
    again = recheck(problem, matrix, {name: tensor.cpu() for name, tensor in evidence.items()})
    assert again.lower_bound == pytest.approx(there.lower_bound, rel=1e-9, abs=1e-12)
    if isinstance(problem, op.L0LeastSquares | op.NetTrim):
        exact = op.certify_exact(moved, matrix.to(device), evidence)
        assert float(exact.lower_bound.low) == pytest.approx(there.lower_bound, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("solver", [op.ADMM(), op.SLR(), op.OBC(), op.NetTrimADMM()], ids=lambda s: type(s).__name__)
def test_a_stack_gives_there_what_its_members_give(solver, device):
    problems = [problem.to(device) for problem in one_of_each(solver)[:2]]
    stack = [problems[0], problems[1], problems[0]]
    for together, problem in zip(op.solve_all(stack, solver, certified=False), stack, strict=True):
        alone = op.solve(problem, solver, certified=False)
        torch.testing.assert_close(together.matrix.cpu(), alone.matrix.cpu(), rtol=1e-6, atol=1e-9)


def test_data_on_two_devices_are_refused(device, tmp_path):
    weight, inputs = data(0)
    moved = weight.to(device)
    np.save(tmp_path / "rows.npy", inputs.numpy())
    rows = DiskMap(tmp_path / "rows.npy")
    least_squares = op.L0LeastSquares.from_layer(weight, inputs, op.PerRow(3))
    trim = op.NetTrim.from_layer(weight, rows, radius=1.0)
    solution = op.solve(least_squares, op.ADMM())
    for mixed in (
        lambda: op.L0LeastSquares.from_layer(moved, inputs, op.PerRow(3)),
        lambda: op.NetTrim.from_layer(moved, inputs, radius=1.0),
        lambda: op.NetTrim.from_layer(moved, rows, radius=1.0),
        lambda: trim.to(device),
        lambda: op.EdgeSampling(moved, rows, op.PerRow(3)),
        lambda: certify(least_squares.to(device), solution.matrix),
        lambda: recheck(least_squares.to(device), solution.matrix.to(device), solution.evidence),
    ):
        with pytest.raises(InvalidInputError, match=device):
            mixed()


class TestWaits:
    """The host waits for the device once every `check_every` steps, and otherwise only before and after the loop."""

    def problem(self, device: str) -> op.L0LeastSquares:
        weight, inputs = data(0, 16, 48, 200)
        return op.L0LeastSquares.from_layer(weight, inputs, op.PerLayer(200)).to(device)

    def waits(self, solver: op.Solver, problem: op.Problem) -> int:
        stand_in.waits.clear()
        op.solve(problem, solver, certified=False)
        return sum(stand_in.waits.values())

    @pytest.mark.parametrize(
        ("short", "long"),
        [
            (op.ADMM(max_steps=20, patience=1000, tolerance=1e-300), {"max_steps": 60}),
            (op.SLR(max_steps=20, patience=1000), {"max_steps": 60}),
            (op.ProximalL1(max_steps=20, tolerance=1e-300), {"max_steps": 60}),
        ],
        ids=["ADMM", "SLR", "ProximalL1"],
    )
    def test_one_look_every_few_steps(self, short, long):
        with stand_in.stand_in() as name:
            problem = self.problem(name)
            few = self.waits(short, problem)
            many = self.waits(dataclasses.replace(short, **long), problem)
        assert 0 < many - few <= 40 / short.check_every
