"""The search over moments of a random row: optimal for its relaxation, and its evidence is proved like any other."""

import cvxpy as cp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import optprune as op
from optprune.certify import _by_moments, _moments, _tighten, certify, least_squares, recheck
from optprune.certify._by_moments import by_moments
from optprune.certify._moment_minorants import evidence_of, settle
from optprune.certify._moments import Moments, cheapest, descend, guess, shares_of
from optprune.certify._perspective import Perspective, scaled_minorant
from optprune.certify._priced_pairs import violated
from optprune.certify.least_squares import strengthen
from optprune.problems import L0LeastSquares

INPUTS = 48


@pytest.fixture(autouse=True)
def _small_layers_too(monkeypatch):
    """The search is for layers of many rows and 128 inputs and more, which the tests have no time for."""
    monkeypatch.setattr(_tighten, "WORTHWHILE", INPUTS - 1)
    monkeypatch.setattr(least_squares, "SMALL", 0)


def spectrum(inputs: int, rows: int, seed: int = 0, samples: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    """A normal weight and inputs whose covariance has the eigenvalues 1/j."""
    rng = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(inputs, inputs, generator=rng, dtype=torch.float64)).Q
    scales = 1 / torch.arange(1, inputs + 1, dtype=torch.float64).sqrt()
    x = torch.randn(samples, inputs, generator=rng, dtype=torch.float64) * scales @ turn
    return torch.randn(rows, inputs, generator=rng, dtype=torch.float64), x


def relaxation_of(problem: L0LeastSquares, start: torch.Tensor) -> tuple[Perspective, torch.Tensor]:
    relaxation = Perspective.of(problem, scaled_minorant(problem.gram))
    return relaxation, relaxation.enter(start)


@given(
    st.lists(st.floats(-5, 5), min_size=2, max_size=4),
    st.floats(1e-3, 10),
    st.floats(1, 5),
    st.integers(0, 10**6),
)
def test_a_coordinate_step_is_the_least_of_its_objective(slope, price, stiffness, seed):
    """Against many other points, near and far."""
    g = torch.tensor([slope], dtype=torch.float64)

    def objective(x: torch.Tensor) -> torch.Tensor:
        share = x[:, 0].square() / x.square().sum(-1).clamp_min(1e-300)
        return stiffness * x.square().sum(-1) + 2 * (g * x).sum(-1) + price * share

    best = cheapest(g, torch.tensor([price], dtype=torch.float64), torch.tensor([stiffness], dtype=torch.float64))
    rng = torch.Generator().manual_seed(seed)
    noise = torch.randn(4000, g.shape[1], generator=rng, dtype=torch.float64)
    others = torch.cat([best + 1e-3 * noise[:2000], 5 * noise[2000:], torch.zeros_like(best)])
    assert float(objective(best)) <= float(objective(others).min()) + 1e-9


def test_a_weight_that_is_not_worth_its_price_becomes_zero_exactly():
    """The cosine of the number next to a right angle is not 0, and a share of nearly 0 over nearly 0 would be 1."""
    for dtype in (torch.float32, torch.float64):
        new = cheapest(
            torch.tensor([[0.1, 0.0, 0.0]], dtype=dtype), torch.ones(1, dtype=dtype), torch.ones(1, dtype=dtype)
        )
        assert bool((new == 0).all())
        assert float(shares_of(new[None])) == 0.0


def semidefinite(problem: L0LeastSquares, kept: int) -> float:
    """Twice the value of the relaxation of one row, by a conic program in the second moments."""
    size, h = problem.shape[1], problem.gram.numpy()
    moment = cp.Variable((size + 1, size + 1), PSD=True)
    w, y, z = moment[0, 1:], moment[1:, 1:], cp.Variable(size)
    limits = [moment[0, 0] == 1, z >= 0, z <= 1, cp.sum(z) <= kept]
    limits += [cp.bmat([[z[i], w[i]], [w[i], y[i, i]]]) >> 0 for i in range(size)]
    objective = cp.trace(h @ y) - 2 * problem.linear[0].numpy() @ w + float(problem.energy[0])
    program = cp.Problem(cp.Minimize(objective), limits)
    program.solve(solver="CLARABEL")
    return float(np.asarray(program.value))


def test_moments_reach_the_optimum_of_the_relaxation():
    """One row of 14 inputs against a conic program, whose value minorants that are feasible reach too."""
    kept = 4
    problem = L0LeastSquares.from_layer(*spectrum(14, 1), op.PerRow(kept))
    start = op.Exhaustive().run(problem).matrix
    relaxation, x = relaxation_of(problem, start)
    found = descend(relaxation, guess(relaxation, x), 400)
    best = semidefinite(problem, kept)
    assert found.value(relaxation) == pytest.approx(best, rel=2e-3)
    assert 0.985 * best <= settle(relaxation, found).value <= best * (1 + 1e-5)


def test_pairs_pass_the_optimum_of_the_relaxation_without_them():
    """Which moments without pairs tell, by the test above."""
    problem = L0LeastSquares.from_layer(*spectrum(INPUTS, 6), op.PerLayer(60))
    start = op.Portfolio().run(problem).matrix
    relaxation, x = relaxation_of(problem, start)
    plain = descend(relaxation, guess(relaxation, x), 100)
    pairs = violated(plain.vectors, plain.price(relaxation), 2 * INPUTS)
    paired = descend(relaxation, Moments(plain.vectors, plain.level, pairs), 300, 10)
    objective = 2 * float(problem.objective(start))
    assert settle(relaxation, plain).value <= plain.value(relaxation) < settle(relaxation, paired).value <= objective


@pytest.mark.parametrize("pattern", [op.PerRow(10), op.PerLayer(60)], ids=repr)
def test_pairs_close_a_part_of_the_gap_that_minorants_of_the_rows_own_leave(pattern):
    weight, inputs = spectrum(INPUTS, 6)
    inputs[:, 17] = 0.0
    problem = L0LeastSquares.from_layer(weight, inputs, pattern)
    start = op.Portfolio().run(problem).matrix
    certificate, evidence = certify(problem, start)
    assert certificate.theorem == "T25"
    assert evidence["pairs"].shape[0] == 6
    assert bool((evidence["pairs"] != 17).all())
    assert recheck(problem, start, evidence).lower_bound == certificate.lower_bound <= certificate.objective
    minorant, point = strengthen(problem, scaled_minorant(problem.gram), start, 1e13, 1e-4, 20)
    single = recheck(problem, start, {"minorant": minorant, "point": point})
    assert certificate.relative_gap < 0.93 * single.relative_gap


def test_isotropic_inputs_need_no_pairs():
    rng = torch.Generator().manual_seed(5)
    inputs = torch.randn(4000, INPUTS, generator=rng, dtype=torch.float64)
    problem = L0LeastSquares.from_layer(
        torch.randn(6, INPUTS, generator=rng, dtype=torch.float64), inputs, op.PerLayer(90)
    )
    certificate, evidence = certify(problem, op.Portfolio().run(problem).matrix)
    assert certificate.theorem == "T03"
    assert evidence["minorant"].shape == (6, INPUTS)
    assert certificate.relative_gap < 0.03


def test_sweeps_that_run_away_leave_the_bound_to_the_other_search(monkeypatch):
    """Forced: with so much momentum they do."""
    problem = L0LeastSquares.from_layer(*spectrum(INPUTS, 4), op.PerRow(10))
    start = op.Portfolio().run(problem).matrix
    best, _ = certify(problem, start)
    monkeypatch.setattr(_moments, "MOMENTUM", 3.0)
    monkeypatch.setattr(_moments.Descent, "__init__", _reckless(_moments.Descent.__init__))
    assert by_moments(problem, scaled_minorant(problem.gram), start, 1e13) is None
    certificate, _ = certify(problem, start)
    assert 0.8 * best.lower_bound < certificate.lower_bound <= certificate.objective


def _reckless(init):
    def changed(self, gram, x):
        init(self, gram, x)
        self.age = self.age + 1e9

    return changed


def test_more_sweeps_follow_where_minorants_lose_much(monkeypatch):
    """With few sweeps the first minorants are far from what the moments promise."""
    problem = L0LeastSquares.from_layer(*spectrum(INPUTS, 6), op.PerLayer(140))
    start, minorant = op.Portfolio().run(problem).matrix, scaled_minorant(problem.gram)
    monkeypatch.setattr(_by_moments, "REST", 5)
    bounds = []
    for rounds in (1, 7):
        evidence = by_moments(problem, minorant, start, 1e13, 0.005, rounds)
        bounds.append(0.0 if evidence is None else recheck(problem, start, evidence).lower_bound)
    assert bounds[1] > bounds[0]


def test_on_a_device_sweeps_and_what_they_settle_on_are_those_of_the_cpu(device):
    """And the evidence from there is proved there, and again here, in floating point and exactly."""
    problem = L0LeastSquares.from_layer(*spectrum(INPUTS, 3), op.PerLayer(30))
    start = op.Portfolio().run(problem).matrix
    values = []
    for place in ("cpu", device):
        relaxation, x = relaxation_of(problem.to(place), start.to(place))
        plain = descend(relaxation, guess(relaxation, x), 10)
        pairs = violated(plain.vectors, plain.price(relaxation), 20)
        settled = settle(relaxation, descend(relaxation, Moments(plain.vectors, plain.level, pairs), 10, 6, lag=3))
        values.append((plain.value(relaxation), settled.value))
    assert values[1] == pytest.approx(values[0], rel=1e-6)
    moved, matrix, evidence = problem.to(device), start.to(device), evidence_of(relaxation, settled, 1.0)
    assert all(tensor.device.type == device for tensor in evidence.values())
    certificate = recheck(moved, matrix, evidence)
    assert certificate.theorem == "T25"
    assert certificate.lower_bound > 0
    exact = op.certify_exact(moved, matrix, evidence)
    assert float(exact.lower_bound.low) == pytest.approx(certificate.lower_bound, rel=1e-9)
    again = recheck(problem, start, {name: tensor.cpu() for name, tensor in evidence.items()})
    assert again.lower_bound == pytest.approx(certificate.lower_bound, rel=1e-9)
