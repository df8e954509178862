"""The Net-Trim certificate in rational arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

from jaxtyping import Float
from torch import Tensor

from optprune.bounds._theorem import theorem
from optprune.numerics.dyadic import Dyadic, Enclosure, total
from optprune.numerics.linear import LinearMap
from optprune.problems.net_trim import NetTrim


@theorem("T01")
def exact_dual_bound(problem: NetTrim, multipliers: Float[Tensor, "n out"]) -> Enclosure:
    r"""The lower bound of `dual_bound`, without rounding.

    With $t_m = \max(1, \lVert X^\top \lambda_m \rVert_\infty)$ over the penalised inputs,

    $$\max\Bigl(0, \; \sum_m \frac{-\langle \lambda_m, y_m + v_m \rangle}{t_m} -
      \varepsilon \Bigl(\sum_m \frac{\lVert \lambda_{\Omega_m} \rVert^2}{t_m^2}\Bigr)^{1/2}\Bigr) ,$$

    and likewise with a ball per neuron or a penalty. All sums and products are exact; quotients and roots are
    enclosed. Neurons whose multipliers break a condition (a negative one off $\Omega$, $X^\top \lambda_m \ne 0$ on
    an unpenalised input) count as $\lambda_m = 0$.

    Args:
        problem: a single problem.
        multipliers: as `admissible` makes them.

    Guarantees:
        T01.
    """
    lam = Dyadic.of(multipliers)
    correlation = adjoint(problem.linear, multipliers).abs()
    met = correlation.where(~problem.penalised).max(1).digits == 0
    sound = met & (lam.where(~problem.active).digits.min(0) >= 0)
    stretch = [max(Fraction(1), s) for s in correlation.where(problem.penalised).max(1).fractions()]

    target = Dyadic.of(problem.targets)
    if problem.ceiling is not None:
        target = target + Dyadic.of(problem.ceiling)
    gain = (-(lam * target).sum(0)).fractions()
    energy = (lam * lam).where(problem.active).sum(0).fractions()
    kept = [m for m in range(len(stretch)) if sound[m]]
    value = total([Enclosure.point(gain[m] / stretch[m]).shortened() for m in kept])
    squares = [Enclosure.point(energy[m] / stretch[m] ** 2).shortened() for m in kept]
    return (value - _cost(problem, squares, kept)).clipped()


def _cost(problem: NetTrim, squares: list[Enclosure], kept: list[int]) -> Enclosure:
    """What the ball or the penalty takes off, from the squared norms of the multipliers on the active entries."""
    if problem.penalty is not None:
        return total(squares).times(Dyadic.of(problem.penalty).item() / 2)
    assert problem.radius is not None
    radius = Dyadic.of(problem.radius).fractions()
    if problem.per_neuron:
        return total([square.root().times(radius[m]) for m, square in zip(kept, squares, strict=True)])
    return total(squares).root().times(radius[0])


def exact_objective(problem: NetTrim, matrix: Tensor, residual: Dyadic) -> Enclosure:
    """The objective; a point without `penalty`."""
    norm = Enclosure.point(Dyadic.of(matrix).where(problem.penalised).abs().sum().item())
    if problem.penalty is None:
        return norm
    missed = (residual * residual).where(problem.active).sum().item()
    return norm + Enclosure.point(missed / (2 * Dyadic.of(problem.penalty).item())).shortened()


def exact_violation(problem: NetTrim, residual: Dyadic) -> Mapping[str, Enclosure]:
    r"""`ball`: $\lVert (X U^\top - Y)_\Omega \rVert - \varepsilon$, the largest over neurons with a ball each; `sign`:
    the largest of $X U^\top - V$ off $\Omega$. 0 where nothing is exceeded.
    """
    excess = residual.where(~problem.active).clipped().max().item()
    found = {"sign": Enclosure.point(excess)}
    if problem.radius is not None:
        squares = (residual * residual).where(problem.active).sum(0 if problem.per_neuron else None).fractions()
        radii = Dyadic.of(problem.radius).fractions()
        over = [
            (Enclosure.point(square).shortened().root() - Enclosure.point(radius)).clipped()
            for square, radius in zip(squares, radii, strict=True)
        ]
        found["ball"] = Enclosure(max(e.low for e in over), max(e.high for e in over))
    return found


def exact_residual(problem: NetTrim, matrix: Float[Tensor, "out d"]) -> Dyadic:
    r"""$X U^\top - Y$ on $\Omega$ and $X U^\top - V$ off it."""
    weight = Dyadic.of(matrix).mT
    parts = [Dyadic.of(rows) @ weight for _, rows in problem.linear.rows()]
    residual = Dyadic.stacked(parts) - Dyadic.of(problem.targets)
    return residual if problem.ceiling is None else residual - Dyadic.of(problem.ceiling)


def adjoint(linear: LinearMap, multipliers: Float[Tensor, "n out"]) -> Dyadic:
    r"""$\Lambda^\top X$, `(out, d)`."""
    parts = [Dyadic.of(multipliers[part]).mT @ Dyadic.of(rows) for part, rows in linear.rows()]
    product = parts[0]
    for part in parts[1:]:
        product = product + part
    return product
