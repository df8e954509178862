"""The refit of large layers goes by conjugate gradients and says how far it got."""

import pytest
import torch

import optprune as op
from optprune.problems import L0LeastSquares
from optprune.solvers import _refit
from optprune.testing.instances import data


@pytest.mark.parametrize("pattern", [op.PerRow(6), op.PerLayer(30)], ids=repr)
def test_both_ways_agree(monkeypatch, pattern):
    problem = L0LeastSquares.from_layer(*data(40, out=5, inputs=12, samples=60), pattern=pattern)
    mask = pattern.support(problem.dense.square())
    factored, plain = _refit.refit(problem, mask)
    monkeypatch.setattr(_refit, "FACTORED", 0.0)
    iterated, info = _refit.refit(problem, mask)
    torch.testing.assert_close(iterated, factored, rtol=1e-8, atol=1e-9)
    assert "refit_residual" not in plain
    assert 0 < info["refit_residual"] <= 1e-10
