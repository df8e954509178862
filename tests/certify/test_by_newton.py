"""Newton's method over atoms: its derivatives, its optimum, and evidence that is proved like any other."""

from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
import torch

import optprune as op
from optprune.certify import _by_newton, certify, recheck
from optprune.certify._atoms import Atoms, Centre, _direction, charged, newton
from optprune.certify._by_newton import _Search, by_newton
from optprune.certify._moments import Prices
from optprune.certify._perspective import Perspective, scaled_minorant
from optprune.certify.least_squares import strengthen
from optprune.problems import L0LeastSquares
from tests.certify.test_by_moments import semidefinite, spectrum

INPUTS, ROWS = 7, 3


def correlated(inputs: int, rows: int, seed: int = 0, decay: float = 1.5) -> tuple[torch.Tensor, torch.Tensor]:
    """A normal weight and rectified inputs of a falling spectrum, as behind a ReLU layer: ill-conditioned."""
    rng = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(inputs, inputs, generator=rng, dtype=torch.float64)).Q
    scales = torch.arange(1, inputs + 1, dtype=torch.float64) ** -decay
    x = (torch.randn(30 * inputs, inputs, generator=rng, dtype=torch.float64) * scales @ turn).clamp(min=0)
    return torch.randn(rows, inputs, generator=rng, dtype=torch.float64), x


def somewhere(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, Centre]:
    """Gram matrix, b and a feasible place of three rows with pairs that share weights."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    x = normal(40, INPUTS)
    gram = x.mT @ x / 40
    first, second = torch.tensor([[0, 1, 4], [2, 5, 5], [0, 3, 6]]), torch.tensor([[1, 2, 6], [3, 6, 0], [6, 4, 5]])
    places = torch.arange(INPUTS).repeat(ROWS, 1)
    atoms = Atoms(INPUTS, places, 0.2 * normal(ROWS, INPUTS), 0.5 + normal(ROWS, INPUTS).abs())
    atoms = atoms.with_pairs(first, second)
    atoms.values[:, INPUTS:] = 0.1 * normal(ROWS, 6)
    atoms.offsets[:, INPUTS:] = (0.3 + normal(ROWS, 3).abs()).repeat(1, 2)
    b = normal(ROWS, INPUTS)
    centre = Centre.of(gram, b, atoms)
    assert bool(centre.feasible.all())
    return gram, b, centre


def value(values: torch.Tensor, gram: torch.Tensor, b: torch.Tensor, atoms: Atoms, weight: float) -> torch.Tensor:
    """What is maximised for one row, written out with a dense V."""
    pairs = atoms.many
    v = torch.zeros(INPUTS, INPUTS + pairs, dtype=torch.float64)
    atom = torch.cat([torch.arange(INPUTS + pairs), torch.arange(INPUTS, INPUTS + pairs)])
    v = v.index_put((atoms.places[0], atom), values)
    rest = gram - v @ v.mT
    free = b - v @ atoms.offsets[0, : INPUTS + pairs]
    return weight * torch.logdet(rest) - free @ torch.linalg.solve(rest, free)


def test_the_place_and_its_value_are_those_of_the_formula():
    gram, b, centre = somewhere()
    for row in range(ROWS):
        one = centre.atoms.of_rows(torch.tensor([row]))
        mine = centre.value(torch.full((ROWS,), 0.3, dtype=torch.float64))[row]
        assert float(mine) == pytest.approx(float(value(one.values[0], gram, b[row], one, 0.3)), rel=1e-12)


def test_directions_are_newtons_by_automatic_differentiation():
    gram, b, centre = somewhere()
    weight = torch.tensor([0.01, 0.3, 2.0], dtype=torch.float64)
    entries = centre.atoms.places.shape[1]
    direction, slope = _direction(centre, weight, torch.empty(4, ROWS, entries, entries, dtype=torch.float64))
    for row in range(ROWS):
        one = centre.atoms.of_rows(torch.tensor([row]))
        of_row = partial(value, gram=gram, b=b[row], atoms=one, weight=float(weight[row]))
        gradient = torch.autograd.functional.jacobian(of_row, one.values[0])
        hessian = torch.autograd.functional.hessian(of_row, one.values[0])
        step = torch.linalg.solve(torch.as_tensor(hessian), -torch.as_tensor(gradient))
        torch.testing.assert_close(direction[row], step, rtol=1e-9, atol=1e-12)
        assert float(slope[row]) == pytest.approx(float((step * torch.as_tensor(gradient)).sum()) / 2, rel=1e-9)


def test_steps_climb_to_a_place_where_the_slope_ends():
    gram, b, centre = somewhere()
    weight = torch.tensor([0.01, 0.3, 2.0], dtype=torch.float64)
    entries = centre.atoms.places.shape[1]
    room = torch.empty(4, ROWS, entries, entries, dtype=torch.float64)
    values = [centre.value(weight)]
    for _ in range(12):
        newton(gram, b, centre, weight, room)
        values.append(centre.value(weight))
    assert all(bool((after >= before - 1e-12).all()) for before, after in pairwise(values))
    assert float(_direction(centre, weight, room)[1].max()) < 1e-12
    again = Centre.of(gram, b, centre.atoms)
    torch.testing.assert_close(again.w, centre.w)


def test_charges_move_with_their_loads():
    """What every weight is charged, and V t, stay; and no row comes next to the boundary."""
    gram, b, centre = somewhere()
    weight = torch.full((ROWS,), 0.5, dtype=torch.float64)
    before, least = centre.atoms, centre.value(weight) - 0.25 * weight * INPUTS
    before = Atoms(INPUTS, before.places, before.values.clone(), before.offsets.clone())
    wanted = torch.tensor([[0.5, 0.0, 0.01], [0.2, 0.1, 0.05], [1e3, 0.3, 0.3]], dtype=torch.float64)
    after = charged(gram, b, centre, wanted, weight).atoms
    for of in (lambda a: a.offsets.square(), lambda a: a.values * a.offsets):
        torch.testing.assert_close(after.give(of(after)), before.give(of(before)))
    assert bool(centre.feasible.all() & (centre.value(weight) >= least).all())
    torch.testing.assert_close(after.halves(after.offsets)[0][1].square(), wanted[1])


@pytest.mark.parametrize("kept", [3, 6])
def test_without_pairs_it_reaches_the_optimum_of_the_relaxation(kept, monkeypatch):
    """One row of 14 inputs against a conic program."""
    monkeypatch.setattr(_by_newton, "PAIRS", 0)
    problem = L0LeastSquares.from_layer(*spectrum(14, 1), op.PerRow(kept))
    start = op.Exhaustive().run(problem).matrix
    evidence = by_newton(problem, scaled_minorant(problem.gram), start, 1e13, 40)
    assert evidence is not None
    assert "pairs" not in evidence
    bound = 2 * recheck(problem, start, evidence).lower_bound
    best = semidefinite(problem, kept)
    assert 0.985 * best <= bound <= best * (1 + 1e-6)


@pytest.mark.parametrize("pattern", [op.PerRow(8), op.PerLayer(50)], ids=repr)
def test_it_closes_a_part_of_the_gap_on_an_ill_conditioned_layer(pattern):
    weight, inputs = correlated(30, 6)
    inputs[:, 17] = 0.0
    problem = L0LeastSquares.from_layer(weight, inputs, pattern)
    start = op.Portfolio().run(problem).matrix
    certificate, evidence = certify(problem, start)
    assert certificate.theorem == "T25"
    assert bool((evidence["pairs"] != 17).all())
    assert certificate.lower_bound <= certificate.objective
    exact = op.certify_exact(problem, start, evidence)
    assert float(exact.lower_bound.low) == pytest.approx(certificate.lower_bound, rel=1e-6)
    minorant, point = strengthen(problem, scaled_minorant(problem.gram), start, 1e13, 1e-4, 20)
    single = recheck(problem, start, {"minorant": minorant, "point": point})
    assert certificate.relative_gap < 0.85 * single.relative_gap


@pytest.mark.parametrize("pattern", [op.PerRow(8), op.PerLayer(60)], ids=repr)
def test_it_closes_a_part_of_the_gap_where_the_hessian_is_nearly_singular(pattern):
    """Common minorants of less than a hundred thousandth, for which directions are sought in double precision."""
    problem = L0LeastSquares.from_layer(*correlated(30, 6, decay=4.0), pattern)
    start, minorant = op.Portfolio().run(problem).matrix, scaled_minorant(problem.gram)
    assert float((minorant / problem.gram.diagonal()).amin()) < 1e-5
    certificate, evidence = certify(problem, start)
    assert "pairs" in evidence
    minorant, point = strengthen(problem, minorant, start, 1e13, 1e-4, 20)
    single = recheck(problem, start, {"minorant": minorant, "point": point})
    assert certificate.lower_bound <= certificate.objective
    assert certificate.relative_gap < 0.92 * single.relative_gap


def searched(pattern: op.Pattern, times: float) -> _Search:
    """A search with pairs on a small layer, at prices that many times as high as they are guessed."""
    problem = L0LeastSquares.from_layer(*correlated(20, 6), pattern)
    exact, start = Perspective.of(problem, scaled_minorant(problem.gram)), op.Portfolio().run(problem).matrix
    everything, objective = torch.ones(20, dtype=torch.bool), 2 * float(problem.objective(start))
    search = _Search(exact, everything, exact.enter(start), objective, torch.float64, None)
    search.prices.level *= times
    search.atoms = replace(search.atoms, values=search.atoms.values / times**0.5, offsets=search._price().sqrt())
    search.climb(6, 0.8)
    search.add(30)
    search.climb(4, 0.8, charging=True)
    return search


@pytest.mark.parametrize("pattern", [op.PerRow(8), op.PerLayer(60)], ids=repr)
@pytest.mark.parametrize("times", [0.7, 1.5])
def test_a_price_moves_towards_its_budget_and_the_loads_stay(pattern, times):
    search = searched(pattern, times)
    before, level = search.atoms, search.prices.level
    search.reprice()
    assert bool(((search.prices.level - level) * (times - 1) < 0).all())
    atoms = search.atoms
    assert bool(Centre.of(search.gram, search.b, atoms).feasible.all())
    loads = [a.give(a.values * a.offsets) for a in (before, atoms)]
    torch.testing.assert_close(loads[1], loads[0])
    charges = atoms.offsets[:, :20].square() + atoms.over_pairs(atoms.halves(atoms.offsets)[0].square())
    torch.testing.assert_close(charges, search._price())


def test_no_lower_price_is_taken_next_to_the_boundary():
    search, row = searched(op.PerRow(8), 1.0), torch.tensor([3])
    atoms = search.atoms.of_rows(row)
    times = 1.0
    while bool(Centre.of(search.gram, search.b[row], replace(atoms, values=1.001 * times * atoms.values)).feasible):
        times *= 1.001
    search.atoms.values[row] *= times
    search.log_det[row] = Centre.of(search.gram, search.b[row], search.atoms.of_rows(row)).log_det
    lower = torch.full_like(search.prices.level, 0.999)
    assert search._refused(lower).flatten().tolist() == [False, False, False, True, False, False]
    assert not bool(search._refused(1 / lower).any())
    search.reprice()
    assert bool(Centre.of(search.gram, search.b, search.atoms).feasible.all())


def test_what_was_best_is_settled_not_what_came_last():
    search = searched(op.PerRow(8), 1.0)
    best = search.best
    search.prices = Prices(search.exact, 4 * search.prices.level)
    search.atoms = replace(search.atoms, values=search.atoms.values / 2, offsets=2 * search.atoms.offsets)
    assert search.climb(2, 0.8) < 0.9 * best
    assert search.settle().value > 0.999 * best > 0


def test_the_bound_is_below_the_optimum_of_small_layers():
    for seed in range(6):
        for pattern in (op.PerRow(2), op.PerLayer(6), op.PerLayer(9)):
            problem = L0LeastSquares.from_layer(*correlated(6, 2, seed, 1.0), pattern)
            best = op.Exhaustive().run(problem).matrix
            evidence = by_newton(problem, scaled_minorant(problem.gram), best, 1e13)
            if evidence is not None:
                assert recheck(problem, best, evidence).lower_bound <= float(problem.objective(best))


def test_inputs_that_are_linked_with_no_other_are_no_part_of_the_search():
    """They leave no gap, kept or pruned, and their minorant is the whole of what they have."""
    weight, inputs = correlated(24, 4)
    lone = torch.zeros(len(inputs), 4, dtype=torch.float64)
    plain = L0LeastSquares.from_layer(weight, inputs, op.PerLayer(30))
    more = torch.randn(4, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    sizes = torch.tensor([1.0, 1.0, 60.0, 60.0], dtype=torch.float64)
    mixed = L0LeastSquares(
        op.Statistics.from_layer(torch.cat([weight, more * sizes], 1), torch.cat([inputs, lone], 1)),
        op.PerLayer(38),
        damping=1e-3,
    )
    damped = L0LeastSquares(plain.statistics, op.PerLayer(30), damping=1e-3 * 24 / 28)  # the same in absolute terms
    starts = [op.Portfolio().run(p).matrix for p in (damped, mixed)]
    gaps = [certify(p, m)[0].relative_gap for p, m in zip((damped, mixed), starts, strict=True)]
    kept = (starts[1][:, 24:] != 0).double().mean()
    assert float(kept) == 0.5
    assert gaps[1] < gaps[0] + 1e-2
    evidence = by_newton(mixed, scaled_minorant(mixed.gram), starts[1], 1e13)
    assert evidence is not None
    own = mixed.gram.diagonal()[24:]
    torch.testing.assert_close(evidence["minorant"][:, 24:], own.expand(4, -1), rtol=1e-6, atol=0.0)


def test_chunks_of_rows_change_nothing():
    problem = L0LeastSquares.from_layer(*correlated(20, 6), op.PerLayer(40))
    start = op.Portfolio().run(problem).matrix
    bounds = []
    for memory in (None, 1):
        evidence = by_newton(problem, scaled_minorant(problem.gram), start, 1e13, memory=memory)
        assert evidence is not None
        bounds.append(recheck(problem, start, evidence).lower_bound)
    assert bounds[1] == pytest.approx(bounds[0], rel=1e-6)


def test_on_a_device_it_finds_what_it_finds_on_the_cpu(device):
    problem = L0LeastSquares.from_layer(*correlated(16, 3), op.PerLayer(20))
    start = op.Portfolio().run(problem).matrix
    here = by_newton(problem, scaled_minorant(problem.gram), start, 1e13)
    moved, matrix = problem.to(device), start.to(device)
    there = by_newton(moved, scaled_minorant(moved.gram), matrix, 1e13)
    assert here is not None
    assert there is not None
    assert all(tensor.device.type == device for tensor in there.values())
    bounds = [recheck(problem, start, here).lower_bound, recheck(moved, matrix, there).lower_bound]
    assert bounds[1] == pytest.approx(bounds[0], rel=1e-4)
