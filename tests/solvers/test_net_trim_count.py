"""The radius for a wanted count: at most that many weights, nearly that many, in few solves."""

from dataclasses import replace

import pytest
import torch

from optprune.errors import InvalidInputError
from optprune.problems.net_trim import NetTrim
from optprune.solvers import NetTrimADMM
from optprune.solvers.net_trim_count import EXACT_SOLVES, solve_for_count


def make(per_neuron: bool = False, bias: bool = False) -> NetTrim:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(80, 20, generator=generator, dtype=torch.float64)
    weight = torch.randn(6, 20, generator=generator, dtype=torch.float64)
    shift = torch.randn(6, generator=generator, dtype=torch.float64) if bias else None
    return NetTrim.from_layer(weight, inputs, torch.ones(6) if per_neuron else 1.0, shift)


@pytest.mark.parametrize("count", [0, 1, 12, 60, 110])
@pytest.mark.parametrize("form", [{}, {"per_neuron": True}, {"bias": True}], ids=["joint", "per neuron", "bias"])
def test_the_count_is_met_and_used(count, form):
    problem = make(**form)
    found, solution = solve_for_count(problem, count)
    kept = int((solution.weight != 0).sum())
    assert solution.termination.ok
    assert solution.certificate is not None
    assert solution.certificate.relative_gap <= 1e-5
    assert kept <= count
    if kept < 0.9 * count - 2:
        # The count may jump: the supports of whole neurons vanish at one radius. Just below it, it is too large.
        assert found.radius is not None
        below = NetTrimADMM().run(replace(found, radius=found.radius * 0.995))
        assert int(((below.matrix != 0) & found.penalised).sum()) > count
    assert found.per_neuron == problem.per_neuron


def test_the_number_of_full_solves_is_bounded():
    calls = []

    class Counting(NetTrimADMM):
        def solve_layer(self, method, state, progress=None):
            calls.append(method)
            return super().solve_layer(method, state, progress)

    solve_for_count(make(), 37, Counting())
    assert 1 <= len(calls) <= EXACT_SOLVES


def test_impossible_counts_are_refused():
    with pytest.raises(InvalidInputError, match="0 <= k <= 120"):
        solve_for_count(make(), 121)
    with pytest.raises(InvalidInputError, match="k = -1"):
        solve_for_count(make(), -1)
