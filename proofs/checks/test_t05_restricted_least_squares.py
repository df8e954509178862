"""T05: its forms against each other in rational arithmetic, and the masked solver against the normal equations."""

from itertools import combinations

import pytest
import torch
from sympy import Matrix, Rational, cancel, symbols

from optprune.numerics.masked import masked_least_squares

D = 5
SUPPORTS = [list(s) for k in range(1, D) for s in combinations(range(D), k)]


def instance() -> tuple[Matrix, Matrix]:
    """A positive definite matrix and a right-hand side with small rational entries."""
    root = Matrix(D, D, lambda i, j: Rational((3 * i + 5 * j * j + i * j) % 7 - 3, 1 + (i + 2 * j) % 4))
    return root.T * root + Matrix.eye(D) / 3, Matrix(D, 1, lambda i, _: Rational(2 * i - 3, 2))


def value(h: Matrix, b: Matrix, w: Matrix) -> Rational:
    """Twice the objective."""
    return (w.T * h * w)[0] - 2 * (b.T * w)[0]


def fit(h: Matrix, b: Matrix, support: list[int]) -> Matrix:
    w = Matrix.zeros(D, 1)
    for index, entry in zip(support, h.extract(support, support).LUsolve(b.extract(support, [0])), strict=True):
        w[index] = entry
    return w


@pytest.mark.parametrize("support", SUPPORTS, ids=str)
def test_kept_and_pruned_forms_agree_exactly(support):
    h, b = instance()
    pruned = [i for i in range(D) if i not in support]
    dense, inverse, w = h.LUsolve(b), h.inv(), fit(h, b, support)
    assert (h * w - b).extract(support, [0]) == Matrix.zeros(len(support), 1)
    excess = value(h, b, w) - value(h, b, dense)
    kept = (b.T * dense)[0] - (b.extract(support, [0]).T * w.extract(support, [0]))[0]
    block = inverse.extract(pruned, pruned).inv()
    lost = dense.extract(pruned, [0])
    assert excess == kept == (lost.T * block * lost)[0]
    assert w == dense - inverse.extract(list(range(D)), pruned) * block * lost


@pytest.mark.parametrize("support", [s for s in SUPPORTS if len(s) > 1], ids=str)
def test_removal_and_addition_costs_are_exact(support):
    h, b = instance()
    w = fit(h, b, support)
    inverse = h.extract(support, support).inv()
    for place, i in enumerate(support):
        smaller = [j for j in support if j != i]
        assert value(h, b, fit(h, b, smaller)) - value(h, b, w) == Rational(w[i]) ** 2 / inverse[place, place]
    slope = b - h * w
    for j in (j for j in range(D) if j not in support):
        schur = h[j, j] - (h.extract([j], support) * inverse * h.extract(support, [j]))[0]
        assert value(h, b, w) - value(h, b, fit(h, b, sorted([*support, j]))) == Rational(slope[j]) ** 2 / schur


def test_a_residual_is_the_error_it_leaves():
    h, b = instance()
    support = [0, 2, 3]
    w = fit(h, b, support)
    off = w + Matrix([Rational(1, 7), 0, Rational(-2, 5), Rational(1, 3), 0])
    residual = (h * off - b).extract(support, [0])
    left = (residual.T * h.extract(support, support).inv() * residual)[0]
    assert value(h, b, off) - value(h, b, w) == left
    assert left != Rational(999, 1000) * left, "a wrong constant would be seen"


def test_the_masked_solver_meets_the_normal_equations(rng):
    x = torch.randn(200, 40, generator=rng, dtype=torch.float64)
    gram = x.mT @ x / 200
    rhs = torch.randn(25, 40, generator=rng, dtype=torch.float64)
    for density in (0.1, 0.5, 0.95):  # the last one takes the pruned form
        mask = torch.rand(25, 40, generator=rng) < density
        weight = masked_least_squares(gram, rhs, mask).weight
        assert bool((weight[~mask] == 0).all())
        gradient = torch.where(mask, weight @ gram - rhs, 0.0)
        assert float(gradient.norm() / rhs.norm()) < 1e-12
        moved = torch.where(mask, 1e-3 * torch.randn(25, 40, generator=rng, dtype=torch.float64), 0.0)
        rise = 0.5 * ((weight + moved) * ((weight + moved) @ gram)).sum(-1) - ((weight + moved) * rhs).sum(-1)
        rise = rise - 0.5 * (weight * (weight @ gram)).sum(-1) + (weight * rhs).sum(-1)
        torch.testing.assert_close(rise, 0.5 * (moved * (moved @ gram)).sum(-1), rtol=1e-6, atol=1e-15)


@pytest.mark.parametrize("support", [[0], [0, 1], [2]], ids=str)
def test_kept_and_pruned_forms_agree_symbolically(support):
    # Any symmetric matrix of order 3 whose blocks are invertible, not one of numbers.
    entries = symbols("a:f")
    h = Matrix(3, 3, lambda i, j: entries[(0, 1, 3)[max(i, j)] + min(i, j)])
    b = Matrix(symbols("x:z"))
    pruned = [i for i in range(3) if i not in support]
    inverse = h.adjugate() / h.det(method="berkowitz")
    dense = inverse * b
    kept = (b.T * dense)[0] - (b.extract(support, [0]).T * h.extract(support, support).inv() * b.extract(support, [0]))[
        0
    ]
    lost = dense.extract(pruned, [0])
    assert cancel(kept - (lost.T * inverse.extract(pruned, pruned).inv() * lost)[0]) == 0
