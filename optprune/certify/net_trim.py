"""The checker of Net-Trim problems: weak duality, in float64 with the rounding accounted for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from optprune.bounds._theorem import theorem
from optprune.certify._base import Checker
from optprune.certify._exact_net_trim import exact_dual_bound, exact_objective, exact_residual, exact_violation
from optprune.certify._net_trim_rounding import rounding_errors
from optprune.errors import InvalidInputError, NonFiniteError
from optprune.numerics.dyadic import Enclosure
from optprune.numerics.rounding import SMALLEST, gamma, norm_bound
from optprune.problems.net_trim import NetTrim
from optprune.solution import Certificate, Rigor

NEGLIGIBLE = 1e-6
"""A weight counts as proved negligible when every optimum keeps it below this fraction of the largest weight."""

ASCENT_STEPS = 100


@dataclass(frozen=True, eq=False)
class DualBound:
    r"""A proved lower bound and where it comes from, one entry per neuron where not said otherwise.

    Attributes:
        value: the lower bound, one number.
        correlation: upper bounds of $|X^\top \lambda_m|$ after scaling, `(out, d)`, at most 1 on
            penalised columns.
        stretch: the largest $|X^\top \lambda_m|$ before scaling.
        gain: $-\langle \lambda_m, y_m + v_m \rangle$ before scaling.
        moved: how far the multipliers were moved to be admissible, relative to their size; one number.
    """

    value: Tensor
    correlation: Tensor
    stretch: Tensor
    gain: Tensor
    moved: Tensor


@theorem("T01")
def dual_bound(problem: NetTrim, multipliers: Float[Tensor, "n out"]) -> DualBound:
    r"""Lower bound of a Net-Trim problem from any multipliers.

    Let $\lambda_m$ be nonnegative off $\Omega_m$, with $|X^\top \lambda_m| \le 1$ on the penalised inputs and
    $X^\top \lambda_m = 0$ on the bias. Every admissible $U$ satisfies

    $$\lVert U \rVert_1 \ge -\sum_m \langle \lambda_m, X u_m \rangle
      \ge \sum_m \langle -\lambda_m, y_m + v_m \rangle - \varepsilon \lVert \lambda_\Omega \rVert_F,$$

    by Hölder, then $X u_m \le v_m$ off $\Omega_m$, then Cauchy-Schwarz on the ball. With a ball per neuron
    the last term is $\sum_m \varepsilon_m \lVert \lambda_{\Omega_m} \rVert$; in the penalised form
    $\tfrac{\mu}{2} \lVert \lambda_\Omega \rVert_F^2$.

    Any multipliers are made admissible here: negative ones off $\Omega$ become 0; with a bias they are
    moved to a grid of integers times a power of two so coarse that their float64 sums are exact in any
    order, and the sum is taken back from the active entries, so that $\sum_p \lambda_{pm} = 0$ holds
    exactly; each neuron is divided by $\max(1, s_m)$ with $s_m \ge \lVert X^\top \lambda_m \rVert_\infty$.
    0 is a bound too.

    Args:
        problem: a single problem.
        multipliers: $\lambda$, one column per neuron.

    Guarantees:
        T01, rounded: products carry the error $\gamma_n |X|^\top |\lambda|$, sums $\gamma_n \sum |\cdot|$.
    """
    samples = problem.inputs.shape[0]
    lam = admissible(problem, multipliers)
    size = multipliers.abs().amax()
    moved = torch.where(size > 0, (lam - multipliers).abs().amax() / size, 0.0)
    target = (
        problem.targets if problem.ceiling is None else problem.targets + problem.ceiling
    )  # disjoint supports: exact

    products = lam * target
    gain = -products.sum(0)
    gain_error = gamma(samples + 2) * products.abs().sum(0) * (1 + 2 * gamma(samples + 2)) + samples * SMALLEST
    product, error = problem.linear.bounded_adjoint(lam.mT)
    correlation = (product.abs() + error) * problem.penalised * (1 + gamma(4))
    stretch = correlation.amax(-1)
    scale = stretch.clamp(min=1.0)
    norm = norm_bound(torch.where(problem.active, lam, 0.0), 0)
    value = _value(problem, gain - gain_error, norm, scale)
    return DualBound(value, correlation / scale[:, None], stretch, gain, moved)


def admissible(problem: NetTrim, multipliers: Float[Tensor, "n out"]) -> Float[Tensor, "n out"]:
    r"""Nearby multipliers that are nonnegative off $\Omega$ and, with a bias, sum to 0 in every column, exactly."""
    lam = torch.where(problem.active, multipliers, multipliers.clamp(min=0))
    return lam if bool(problem.penalised.all()) else _balanced(lam, problem.active)


def _value(problem: NetTrim, gain: Tensor, norm: Tensor, scale: Tensor) -> Tensor:
    """The dual objective at the scaled multipliers, rounded down; `norm` bounds their norms from above."""
    neurons = gain.shape[0]
    # What underflow may take from a quotient or product is added to costs; no square is taken far from unit scale.
    gain, norm = gain / scale, norm / scale + SMALLEST
    if problem.penalty is not None:
        cost = (problem.penalty * norm + SMALLEST) * norm / 2 + SMALLEST
    else:
        assert problem.radius is not None
        cost = problem.radius * (norm if problem.per_neuron else norm_bound(norm)[None]) + SMALLEST
    # Each term carries a handful of roundings of its own and the sums one per neuron.
    error = gamma(2 * neurons + 12) * (gain.abs().sum() + cost.sum()) * (1 + gamma(4 * neurons + 20))
    value = gain.sum() - cost.sum() - error - 2 * neurons * SMALLEST
    return torch.where(value > 0, value, 0.0)  # not a number where something overflowed: nothing follows then


def _balanced(lam: Tensor, active: Tensor) -> Tensor:
    """Nearby multipliers whose sum per neuron is exactly 0; off the active entries they stay nonnegative.

    In units of the step, entries are integers below 2^(51 - ceil(log2 n)), so that every partial sum stays
    below 2^52.
    """
    samples = lam.shape[0]
    size = lam.abs().amax(0)
    usable = (size > 1e-200) & active.any(0)
    exponent = torch.frexp(torch.where(usable, size, 1.0)).exponent.to(torch.int64)
    step = ((exponent + (samples - 1).bit_length() - 51 + 1023) << 52).view(torch.float64)
    units = torch.where(usable, (lam / step).round_(), 0.0)
    count = active.sum(0).clamp(min=1)
    surplus = units.sum(0)
    share = torch.floor(surplus / count)
    units = units - torch.where(active, share, 0.0)
    # What is left is an integer; floor of a rounded quotient may be off by one, so the rest may be negative
    # or exceed the count.
    left = units.sum(0) * usable
    first = torch.where(active, active.cumsum(0), samples + 1)
    units = units - torch.where(first <= left.abs(), left.sign(), 0.0)
    rest = units.sum(0) * usable
    units = units - torch.where(first == 1, rest, 0.0)
    return torch.where(usable, units, 0.0) * step


class NetTrimChecker(Checker[NetTrim]):
    """Lower bounds of `NetTrim` by weak duality; evidence is the multipliers."""

    problem = NetTrim
    theorem = "T01"

    def evidence(self, problem: NetTrim, matrix: Tensor, hint: Mapping[str, Tensor]) -> dict[str, Tensor]:
        r"""Multipliers: the hint's, or else those that the matrix suggests, scaled where that raises the bound.

        Without a hint $\lambda_\Omega = \theta R$ with $R$ the residual of the matrix, as at an optimum, and
        $(\theta, \lambda_{\Omega^c}) \ge 0$ by projected gradient steps towards $X^\top \lambda_m =
        -\operatorname{sign}(u_m)$ on the support of $u_m$. Neurons whose term is not positive are set to 0.
        """
        if "multipliers" in hint:
            raw = _require_multipliers(problem, hint["multipliers"])
        else:
            raw = _suggested(problem, matrix)
        found = dual_bound(problem, raw)
        positive = found.gain > 0
        tight = torch.where(positive, raw / found.stretch.clamp(min=1e-300), 0.0)
        candidates = [raw, torch.where(positive, raw, 0.0), tight * (1 - 1e-15)]
        if problem.per_neuron or problem.radius is None:
            candidates.append(_per_neuron_scale(problem, candidates[-1]))
        values = torch.stack([dual_bound(problem, c).value for c in candidates])
        return {"multipliers": candidates[int(values.argmax())].clone()}

    def check(self, problem: NetTrim, matrix: Tensor, evidence: Mapping[str, Tensor]) -> Certificate:
        """See `dual_bound`; the primal residual is the larger of the ball's and the signs' relative violation.

        `violation_error` bounds the rounding error of that residual.
        """
        bound = dual_bound(problem, _given_multipliers(problem, evidence))
        violation = {name: float(value) for name, value in problem.violation(matrix).items()}
        objective, lower = float(problem.objective(matrix)), float(bound.value)
        objective_error, violation_error = rounding_errors(problem, matrix)
        details = {f"{name}_violation": value for name, value in violation.items()}
        details["violation_error"] = violation_error
        gap = math.nextafter(objective - lower + objective_error, math.inf)
        details["negligible"] = float(_negligible(problem, matrix, bound, gap))
        details["penalised"] = float(problem.penalised.sum() * problem.shape[0])
        return Certificate(
            objective=objective,
            lower_bound=lower,
            primal_residual=max(violation.values()),
            dual_residual=max(float(bound.stretch.max()) - 1.0, float(bound.moved), 0.0),
            rigor=Rigor.ROUNDED,
            theorem=self.theorem,
            details=details,
            objective_error=objective_error,
        )

    def exact(
        self, problem: NetTrim, matrix: Tensor, evidence: Mapping[str, Tensor]
    ) -> tuple[Enclosure, Enclosure, Mapping[str, Enclosure], str]:
        lam = admissible(problem, _given_multipliers(problem, evidence))
        residual = exact_residual(problem, matrix)
        return (
            exact_objective(problem, matrix, residual),
            exact_dual_bound(problem, lam),
            exact_violation(problem, residual),
            self.theorem,
        )


def _given_multipliers(problem: NetTrim, evidence: Mapping[str, Tensor]) -> Tensor:
    if problem.batch_shape:
        raise InvalidInputError("a stack of problems given; certificates are of single problems, use unstack")
    if "multipliers" not in evidence:
        raise InvalidInputError(f"evidence with {sorted(evidence)} given; a Net-Trim certificate needs `multipliers`")
    return _require_multipliers(problem, evidence["multipliers"])


def _require_multipliers(problem: NetTrim, multipliers: Tensor) -> Tensor:
    if multipliers.shape != problem.targets.shape:
        raise InvalidInputError(
            f"multipliers of shape {tuple(multipliers.shape)} given; {tuple(problem.targets.shape)}, (samples, out), "
            "fits the problem"
        )
    if not bool(multipliers.isfinite().all()):
        raise NonFiniteError("the multipliers hold NaN or infinity; no bound follows from them")
    return multipliers.to(problem.targets.device, torch.float64)


def _negligible(problem: NetTrim, matrix: Tensor, bound: DualBound, gap: float) -> Tensor:
    r"""How many weights are negligible: every optimum has $\sum (1 - |X^\top\lambda|)|u| \le J - \underline J$."""
    slack = (1.0 - bound.correlation).clamp(min=0.0) * (1 - gamma(4))
    return ((slack * NEGLIGIBLE * matrix.abs().max() > gap) & problem.penalised).sum()


def _per_neuron_scale(problem: NetTrim, lam: Tensor) -> Tensor:
    """Decoupled neurons: drop those whose own term is negative; in the penalised form shrink to the best multiple."""
    target = problem.targets if problem.ceiling is None else problem.targets + problem.ceiling
    gain = -(lam * target).sum(0)
    energy = torch.where(problem.active, lam, 0.0).square().sum(0)
    if problem.penalty is not None:
        return lam * (gain / (problem.penalty * energy).clamp(min=1e-300)).clamp(0.0, 1.0)
    assert problem.radius is not None
    return torch.where(gain > problem.radius * energy.sqrt(), lam, 0.0)


def _square_norm(problem: NetTrim) -> Tensor:
    """The largest eigenvalue of the inputs' Gram matrix, on the smaller side."""
    samples, d = problem.linear.shape
    gram = problem.linear.outer() if samples < d else problem.linear.gram()
    return torch.linalg.eigvalsh(gram)[-1]


def _suggested(problem: NetTrim, matrix: Tensor) -> Tensor:
    """Multipliers from the matrix alone: the residual on the active entries, nonnegative least squares off them."""
    linear, active = problem.linear, problem.active
    residual = torch.where(active, problem.residual(matrix), 0.0)
    support = (matrix != 0) | ~problem.penalised
    wanted = -torch.sign(matrix) * problem.penalised
    lipschitz = _square_norm(problem).clamp(min=1e-300)
    # theta R counts as one more column of unit length relative to the inputs' norm.
    unit = residual / torch.linalg.vector_norm(residual, dim=0).clamp(min=1e-300)
    off = torch.zeros_like(residual)
    theta = torch.zeros_like(residual[0])
    ahead_off, ahead_theta, momentum = off, theta, 1.0
    for _ in range(ASCENT_STEPS):
        miss = torch.where(support, linear.adjoint((ahead_off + ahead_theta * unit).mT) - wanted, 0.0)
        slope = linear.outputs(miss)
        new_off = torch.where(active, 0.0, (ahead_off - slope / (2 * lipschitz)).clamp(min=0))
        new_theta = (ahead_theta - (slope * unit).sum(0) / (2 * lipschitz)).clamp(min=0)
        following = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        push = (momentum - 1) / following
        ahead_off, ahead_theta = new_off + push * (new_off - off), new_theta + push * (new_theta - theta)
        off, theta, momentum = new_off, new_theta, following
    return off + theta * unit
