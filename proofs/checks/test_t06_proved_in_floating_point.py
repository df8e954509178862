"""T06: what is said to be proved, decided again in rational arithmetic."""

from fractions import Fraction

import pytest
import torch

from optprune.numerics.linalg import is_positive_semidefinite_certified, spectral_norm
from optprune.numerics.rounding import UNIT


def is_positive_semidefinite(matrix: list[list[Fraction]]) -> bool:
    """Exact, by symmetric elimination: a zero pivot asks for a zero row."""
    rows = [list(row) for row in matrix]
    while rows:
        pivot = rows[0][0]
        if pivot < 0 or (pivot == 0 and any(rows[0])):
            return False
        rows = [[a - (rows[0][j] * row[0] / pivot if pivot else 0) for j, a in enumerate(row) if j] for row in rows[1:]]
    return True


def rational(matrix: torch.Tensor, shift: float = 0.0) -> list[list[Fraction]]:
    """The matrix minus a multiple of the identity, exactly."""
    return [
        [Fraction(v) - (Fraction(shift) if i == j else 0) for j, v in enumerate(row)]
        for i, row in enumerate(matrix.tolist())
    ]


def near_singular(rng: torch.Generator, smallest: float, d: int = 8) -> torch.Tensor:
    """A symmetric matrix with a smallest eigenvalue near the given one; the exact sign is decided by the test."""
    basis = torch.linalg.qr(torch.randn(d, d, generator=rng, dtype=torch.float64)).Q
    values = torch.rand(d, generator=rng, dtype=torch.float64) + 0.1
    values[0] = smallest
    matrix = (basis * values) @ basis.mT
    return (matrix + matrix.mT) / 2


@pytest.mark.parametrize("exponent", [-2, -8, -13, -14, -15, -16, -17])
def test_nothing_indefinite_is_said_to_be_proved(exponent, rng):
    proved = 0
    for sign in (1, -1):
        for _ in range(25):
            matrix = near_singular(rng, sign * 10.0**exponent)
            if bool(is_positive_semidefinite_certified(matrix)):
                proved += 1
                assert is_positive_semidefinite(rational(matrix))
    assert proved >= 25 or exponent < -13, "matrices far from singular must be decided"
    assert proved < 50


@pytest.mark.parametrize("margin", [1e-3, 0.05, -1e-3, -0.2])
def test_the_margin_is_what_is_proved(margin, rng):
    decisions = []
    for _ in range(30):
        matrix = near_singular(rng, margin + 1e-12 * float(torch.randn((), generator=rng)))
        proved = bool(is_positive_semidefinite_certified(matrix, margin))
        decisions.append(proved)
        if proved:
            assert is_positive_semidefinite(rational(matrix, margin))
    assert len(set(decisions)) == 2, "the instances lie on both sides"


@pytest.mark.parametrize("shape", [(6, 6), (9, 4), (3, 10), (1, 5)])
def test_spectral_norm_is_an_upper_bound_and_tight(shape, rng):
    for _ in range(10):
        matrix = torch.randn(*shape, generator=rng, dtype=torch.float64)
        bound = Fraction(float(spectral_norm(matrix)))
        tall = [[Fraction(v) for v in row] for row in (matrix if shape[0] >= shape[1] else matrix.mT).tolist()]
        d = len(tall[0])
        gram = [[sum((row[i] * row[j] for row in tall), Fraction(0)) for j in range(d)] for i in range(d)]

        def below(square: Fraction, gram=gram, d=d) -> bool:
            return is_positive_semidefinite(
                [[(square if i == j else 0) - gram[i][j] for j in range(d)] for i in range(d)]
            )

        assert below(bound**2)
        assert not below((bound * (1 - Fraction(1, 10**9))) ** 2)


def test_the_shift_cannot_be_left_out(rng):
    """A plain Cholesky accepts matrices that are indefinite: the theorem's shift is what makes it a proof."""
    fooled = 0
    for _ in range(200):
        matrix = near_singular(rng, -UNIT / 4)
        if int(torch.linalg.cholesky_ex(matrix).info) == 0 and not is_positive_semidefinite(rational(matrix)):
            fooled += 1
            assert not bool(is_positive_semidefinite_certified(matrix))
    assert fooled > 0
