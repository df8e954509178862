"""Solvers that sample edges: unbiased, within their budgets, the same when asked twice, and better where tightened."""

import dataclasses

import jaxtyping
import pytest
import torch
from torch import Tensor

import optprune as op
from optprune.errors import InvalidInputError, UnsupportedError
from optprune.solvers._edges import Halves, draws_for_count, multinomial
from optprune.testing import check_solver

RANDOM = [
    op.SiPPRand(count="draws"),
    op.SiPPHybrid(delta=0.5, count="draws"),
    op.CoreNet(count="draws"),
    op.PivotalEdges(derandomise=False),
    op.PivotalEdges(score="sensitivity", derandomise=False),
]


@pytest.fixture
def layer(rng) -> tuple[Tensor, Tensor]:
    weight = torch.randn(6, 20, generator=rng, dtype=torch.float64) * torch.rand(6, 20, generator=rng).double()
    return weight, torch.rand(50, 20, generator=rng, dtype=torch.float64).square()


def seeded(solver, seed):
    return dataclasses.replace(solver, seed=seed)


@pytest.mark.parametrize("pattern", [op.PerLayer(50), op.PerRow(7)], ids=str)
@pytest.mark.parametrize("solver", [*RANDOM, op.SiPPRand(), op.SiPPHybrid(), op.CoreNet(), op.PivotalEdges()])
def test_budgets_hold_and_twice_is_once(solver, pattern, layer: tuple[Tensor, Tensor]):
    problem = op.EdgeSampling(*layer, pattern)
    for seed in range(5):
        one = seeded(solver, seed)
        first, second = one.run(problem), one.run(problem)
        assert torch.equal(first.matrix, second.matrix)
        assert pattern.admits(first.matrix != 0)
        assert bool(((first.matrix == 0) | (problem.weight != 0)).all())
    assert int((first.matrix != 0).sum()) > 0.4 * pattern.count(problem.shape)


@pytest.mark.parametrize("pattern", [op.PerLayer(30), op.PerLayer(50), op.PerRow(5), op.PerRow(20)], ids=str)
@pytest.mark.parametrize("solver", [*RANDOM, op.SiPPRand(), op.SiPPHybrid(), op.CoreNet(), op.PivotalEdges()])
def test_edges_that_carry_nothing_take_no_budget(solver, pattern, layer: tuple[Tensor, Tensor]):
    weight, inputs = layer
    inputs[:, :12] = 0
    answer = solver.run(op.EdgeSampling(weight, inputs, pattern))
    assert pattern.admits(answer.matrix != 0)
    assert bool((answer.matrix[:, :12] == 0).all())
    if pattern.count((6, 20)) >= 48:
        assert torch.allclose(answer.matrix[:, 12:], weight[:, 12:])


def require_unbiased(solver, problem):
    found = torch.stack([seeded(solver, seed).run(problem).matrix for seed in range(600)])
    error = found.std(0) / 600**0.5
    # Kept ones are biased, and said to be: their neurons are left out.
    random = error > 1e-9
    far = ((found.mean(0) - problem.weight).abs() / error)[random]
    assert float(random.double().mean()) > 0.3
    assert float((far > 3).double().mean()) < 0.02
    assert float(far.max()) < 6


@pytest.mark.slow
@pytest.mark.parametrize("solver", [s for s in RANDOM if not isinstance(s, op.SiPPHybrid)], ids=str)
def test_draws_are_unbiased(solver, layer: tuple[Tensor, Tensor]):
    require_unbiased(solver, op.EdgeSampling(*layer, op.PerLayer(50)))


@pytest.mark.slow
def test_the_drawn_halves_of_a_hybrid_are_unbiased(rng):
    # Many edges that matter alike: where few matter, the hybrid keeps these and draws nothing.
    weight = 1 + 0.1 * torch.rand(6, 200, generator=rng, dtype=torch.float64)
    problem = op.EdgeSampling(weight, torch.rand(50, 200, generator=rng, dtype=torch.float64), op.PerLayer(240))
    require_unbiased(op.SiPPHybrid(delta=0.5, count="draws"), problem)


def test_binomial_steps_draw_a_multinomial(rng):
    q = torch.tensor([0.5, 0.3, 0.2, 0.0], dtype=torch.float64).expand(4000, -1)
    hits = multinomial(torch.full((4000,), 10.0, dtype=torch.float64), q, rng)
    assert bool((hits.sum(-1) == 10).all())
    assert torch.allclose(hits.mean(0) / 10, q[0], atol=0.01)
    # Of one draw from ten, two edges are hit together with covariance -n q q'.
    assert float(torch.cov(hits.mT)[0, 1]) == pytest.approx(-10 * 0.5 * 0.3, rel=0.15)


def test_draws_leave_the_count_on_average(rng):
    q = torch.rand(3, 30, generator=rng, dtype=torch.float64).pow(4)
    q = q / q.sum(-1, keepdim=True)
    count = torch.tensor([0.0, 12.0, 30.0], dtype=torch.float64)
    draws = draws_for_count(q, count)
    assert float(draws[0]) == pytest.approx(0.0, abs=1e-9)
    assert torch.isinf(draws[2])
    assert float((1 - (1 - q[1]) ** draws[1]).sum()) == pytest.approx(12.0, rel=1e-9)


def test_hybrid_takes_the_smaller_bound(rng):
    weight = torch.randn(4, 200, generator=rng, dtype=torch.float64)
    weight[:2] = weight[:2].sign() * weight[:2].pow(4)  # few edges matter: kept; all matter alike: drawn
    inputs = torch.rand(20, 200, generator=rng, dtype=torch.float64)
    problem = op.EdgeSampling(weight, inputs, op.PerLayer(200))
    solver = op.SiPPHybrid(delta=0.5)
    answer = solver.run(problem)
    drawn = answer.hint["draws"].isfinite()
    assert drawn.tolist() == [[False, False]] * 2 + [[True, True]] * 2
    # Kept ones have the weights that they had, drawn ones have others.
    same = (answer.matrix == 0) | (answer.matrix == problem.weight)
    for column, sign in enumerate((1, -1)):
        own = sign * problem.weight > 0
        as_they_were = (same | ~own).all(-1)
        assert bool((as_they_were | drawn[:, column]).all())
        assert not bool((as_they_were & drawn[:, column]).any())
    # Nothing is remembered from one budget to the next.
    solver.run(op.EdgeSampling(weight, inputs, op.PerLayer(20)))
    assert torch.equal(answer.matrix, solver.run(problem).matrix)
    assert torch.equal(drawn, solver.run(problem).hint["draws"].isfinite())


def test_halves_are_a_partition(layer: tuple[Tensor, Tensor]):
    halves = Halves.of(op.EdgeSampling(*layer, op.PerRow(3)))
    assert torch.equal(halves.layer(halves.weight), layer[0])
    assert halves.mask.shape == (6, 2, 20)
    assert Halves.of(op.EdgeSampling(*layer, op.PerLayer(3))).mask.shape == (1, 12, 20)


def test_without_chance_is_better(layer: tuple[Tensor, Tensor]):
    problem = op.EdgeSampling(*layer, op.PerLayer(60))

    def error(solver) -> float:
        return float(problem.objective(solver.run(problem).matrix))

    by_chance = [error(op.PivotalEdges(seed=s, derandomise=False)) for s in range(10)]
    assert error(op.PivotalEdges()) < 0.7 * min(by_chance)
    assert error(op.PivotalEdges()) < error(op.SiPPDet())


def test_the_reference_refuses_what_it_cannot_enumerate(layer: tuple[Tensor, Tensor]):
    with pytest.raises(InvalidInputError, match="linear programs"):
        op.EdgeMinimax().run(op.EdgeSampling(*layer, op.PerLayer(60)))


def test_patterns_of_groups_are_for_the_deterministic_variant(layer: tuple[Tensor, Tensor]):
    problem = op.EdgeSampling(*layer, op.NOfM(2, 4))
    assert op.NOfM(2, 4).admits(op.SiPPDet().run(problem).matrix != 0)
    with pytest.raises(UnsupportedError, match="SiPPDet"):
        op.SiPPRand().run(problem)


@pytest.mark.parametrize(
    ("solver", "settings"),
    [
        (op.SiPPDet, {"rescale": "most"}),
        (op.SiPPRand, {"delta": 0.0}),
        (op.CoreNet, {"count": "some"}),
        (op.PivotalEdges, {"score": "magnitude"}),
    ],
)
def test_settings_are_checked(solver, settings, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(InvalidInputError, match=r"accepted|given"):
        solver(**settings)


@pytest.mark.slow
def test_the_variant_by_chance_conforms(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    for score in ("variance", "sensitivity"):
        assert check_solver(op.PivotalEdges(score=score, derandomise=False)).faults == ()
    assert check_solver(op.SiPPDet("minimax")).faults == ()
