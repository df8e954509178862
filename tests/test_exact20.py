"""Certified bound <= proven optimum <= our error, on a layer whose optimum is known for every row and budget."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import optprune as op
from optprune.solvers import solve_all

pytestmark = pytest.mark.usefixtures("unchecked")

ROUNDING = 1e-9
"""The optimum on file is itself a rounded number, relative to the row's energy."""


@pytest.fixture(scope="module")
def layer(data_dir):
    arrays = np.load(data_dir / "layers" / "exact20.npz")
    return torch.from_numpy(arrays["W"]).double(), torch.from_numpy(arrays["X"]).double()


@pytest.fixture(scope="module")
def proven(data_dir, layer):
    """Proven optima in the library's unit: half of the mean over samples."""
    with np.load(data_dir / "layers" / "exact20_opt.npz") as arrays:
        half_mean = 0.5 / len(layer[1])
        return {name: torch.from_numpy(arrays[name]) * half_mean for name in ("f", "layer_global", "nm24", "tot")}


def rows(layer, pattern):
    """One problem per row, so that every row has a certificate of its own."""
    weight, inputs = layer
    statistics = op.Statistics.from_layer(weight, inputs)
    return [
        op.L0LeastSquares(
            op.Statistics(
                statistics.gram, statistics.cross[:, [i]], statistics.energy[[i]], statistics.count, weight[[i]]
            ),
            pattern,
        )
        for i in range(len(weight))
    ]


def assert_enclosed(solution, optimum, energy):
    assert solution.termination.ok
    certificate = solution.certificate
    assert certificate is not None
    slack = ROUNDING * float(energy)
    assert certificate.lower_bound <= float(optimum) + slack
    assert certificate.objective >= float(optimum) - slack
    return certificate


def test_the_optima_on_file_are_those_of_this_layer(layer, proven):
    """The unit is right: no weight leaves the whole energy, a proven support its proven error."""
    weight, inputs = layer
    problem = op.L0LeastSquares.from_layer(weight, inputs, op.PerRow(0))
    assert torch.allclose(problem.row_objective(weight * 0), proven["f"][:, 0], rtol=1e-9)
    assert torch.allclose(problem.row_objective(weight * 0), proven["tot"], rtol=1e-9)


@pytest.mark.parametrize("k", range(21))
def test_every_row_at_every_budget(layer, proven, k):
    solutions = solve_all(rows(layer, op.PerRow(k)), op.ADMM())
    for i, solution in enumerate(solutions):
        certificate = assert_enclosed(solution, proven["f"][i, k], proven["tot"][i])
        if k == 0:
            assert certificate.relative_gap <= 1e-3


@pytest.mark.parametrize("k", [*range(0, 320, 8), 320])
def test_the_layer_at_a_global_budget(layer, proven, k):
    solution = op.solve(op.L0LeastSquares.from_layer(*layer, pattern=op.PerLayer(k)), op.ADMM())
    assert_enclosed(solution, proven["layer_global"][k], proven["tot"].sum())
    assert int((solution.weight != 0).sum()) == k


def test_two_of_four_in_every_row(layer, proven):
    for i, solution in enumerate(solve_all(rows(layer, op.NOfM(2, 4)), op.ADMM())):
        certificate = assert_enclosed(solution, proven["nm24"][i], proven["tot"][i])
        assert not certificate.vacuous


@pytest.mark.parametrize("sparsity", [0.5, 0.7, 0.9])
def test_admm_is_within_two_percent_of_the_optimum(layer, proven, sparsity):
    pattern = op.PerLayer.at_density(1 - sparsity, (16, 20))
    solution = op.solve(op.L0LeastSquares.from_layer(*layer, pattern=pattern), op.ADMM())
    certificate = assert_enclosed(solution, proven["layer_global"][pattern.k], proven["tot"].sum())
    assert certificate.objective <= 1.02 * float(proven["layer_global"][pattern.k])
    assert certificate.relative_gap <= 0.2


def test_admm_is_within_two_percent_of_the_optimum_at_two_of_four(layer, proven):
    certificate = op.solve(op.L0LeastSquares.from_layer(*layer, pattern=op.NOfM(2, 4)), op.ADMM()).certificate
    assert certificate is not None
    assert certificate.objective <= 1.02 * float(proven["nm24"].sum())
    assert certificate.lower_bound <= float(proven["nm24"].sum())
