"""Checker of the edge-sampling problem: exact worst errors on the points, the printed bounds, and a lower bound."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from optprune.bounds._theorem import theorem
from optprune.bounds.bernstein import drawn_radius, relative_error
from optprune.bounds.horvitz_thompson import kept_radius
from optprune.bounds.sipp import deterministic_errors
from optprune.certify._base import Checker
from optprune.certify.least_squares import LeastSquaresChecker
from optprune.problems import EdgeSampling, L0LeastSquares, Problem
from optprune.solution import Certificate, Rigor
from optprune.statistics import Statistics

SHRINK = 1 - 1e-9
"""Taken off the scale of the rows, so that its rounding cannot lift the bound."""


class EdgeSamplingChecker(Checker[EdgeSampling]):
    r"""Certificates for `EdgeSampling`.

    The lower bound: the worst point errs at least as much as any weighted mean of the points. Weighted by the square
    of what flows, the mean is $\lVert X (u_i - w_i) \rVert^2 / (n \phi_i)$ with $\phi_i$ = `flow`, an l0
    least-squares problem with one Gram matrix for all neurons, whose bound is T03's. It is 0, hence vacuous, where
    the points do not span.

    Details, all recomputed from the weights and the points:

    - `worst`, `median`: of $\rho_i$ over the neurons; `below_one`: the share of neurons with $\rho_i < 1$. These are
      exact on the points, and hold there for certain.
    - `printed_below_one`, `printed_median`: the printed bound of what became of each edge (T16 (a), $C$ = 1).
    - `relative_error`: $\lVert X (U - W)^\top \rVert_F / \lVert X W^\top \rVert_F$; `kept`.

    Where the solver says with how many draws, or with which probabilities, it chose the edges, what that promised
    before the choice was made is evaluated, per half-neuron or neuron at a failure probability divided among them;
    the choice itself cannot be checked, so these are statements about the solver's procedure:

    - `draws_below_one`, `draws_median`: the printed bound for the draws, with the solver's constant and delta.
    - `variance_below_one`, `variance_median`: Bernstein with the exact variance at the worst point, over the flow.

    Guarantees:
        T16 (b): `lower_bound` is at most the objective of every admissible matrix.
    """

    problem: ClassVar[type[Problem]] = EdgeSampling
    theorem: ClassVar[str] = "T16"

    def evidence(self, problem: EdgeSampling, matrix: Tensor, hint: Mapping[str, Tensor]) -> dict[str, Tensor]:
        scaled, scale = relaxed(problem)
        found = LeastSquaresChecker().evidence(scaled, scale * matrix, {})
        stated = {name: hint[name] for name in ("draws", "probabilities", "settings") if name in hint}
        return found | stated

    def check(self, problem: EdgeSampling, matrix: Tensor, evidence: Mapping[str, Tensor]) -> Certificate:
        scaled, scale = relaxed(problem)
        bound = LeastSquaresChecker().check(scaled, scale * matrix, evidence).lower_bound
        violation = problem.violation(matrix)
        return Certificate(
            objective=float(problem.objective(matrix)),
            lower_bound=bound / problem.shape[0],
            primal_residual=max(float(value) for value in violation.values()),
            dual_residual=0.0,
            rigor=Rigor.FLOAT,
            theorem=self.theorem,
            details=_realised(problem, matrix) | _promised(problem, evidence),
        )


@theorem("T16")
def relaxed(problem: EdgeSampling) -> tuple[L0LeastSquares, Tensor]:
    r"""The l0 problem with rows $w_i / \sqrt{\phi_i}$, whose optimum is `out` times this one's at most; the scales."""
    flow = problem.flow
    scale = torch.where(flow > 0, SHRINK / torch.where(flow > 0, flow, 1.0).sqrt(), 0.0)[:, None]
    gram = problem.linear.gram() / problem.linear.shape[-2]
    weight = scale * problem.weight
    none = torch.zeros(weight.shape[1], weight.shape[0], dtype=torch.float64, device=weight.device)
    statistics = Statistics(
        gram=(gram + gram.mT) / 2, cross=none, energy=none[0], count=problem.linear.shape[-2], reference=weight
    )
    return L0LeastSquares(statistics, problem.pattern), scale


def _realised(problem: EdgeSampling, matrix: Tensor) -> dict[str, float]:
    rho = problem.relative_errors(matrix)
    printed = deterministic_errors(problem.weight, matrix, problem.sensitivity)
    missed = through = 0.0
    for rows in problem.blocks():
        missed += float((rows @ (matrix - problem.weight).mT).square().sum())
        through += float((rows @ problem.weight.mT).square().sum())
    return {
        "worst": float(rho.max()),
        "median": float(rho.median()),
        "below_one": _share(rho),
        "printed_below_one": _share(printed),
        "printed_median": float(printed.median()),
        "relative_error": (missed / through) ** 0.5 if through > 0 else 0.0,
        "kept": float((matrix != 0).sum()),
    }


def _promised(problem: EdgeSampling, evidence: Mapping[str, Tensor]) -> dict[str, float]:
    """What the solver's procedure promised before it chose."""
    delta, constant = evidence["settings"].tolist() if "settings" in evidence else (0.1, 1.0)
    out = problem.shape[0]
    found: dict[str, float] = {}
    if "draws" in evidence:
        draws = evidence["draws"]
        halves = [(problem.sensitivity * (sign * problem.weight > 0)).sum(-1) for sign in (1, -1)]
        error = relative_error(draws.nan_to_num(0.0), torch.stack(halves, -1), delta / (2 * out), constant)
        known = error[~draws.isnan()]
        found = {"draws_below_one": _share(known), "draws_median": _median(known)}
    if "probabilities" in evidence:
        worst = promised_errors(problem, evidence["probabilities"], delta / out)
        found |= {"variance_below_one": _share(worst), "variance_median": _median(worst)}
    return found


@theorem("T19")
def promised_errors(problem: EdgeSampling, probabilities: Tensor, delta: float) -> Tensor:
    r"""The radius of T19 (b) relative to the flow, for each neuron at its worst point `(out,)`.

    For one point and one neuron by itself it is missed with probability `delta` at most.
    """
    return _worst(problem, lambda terms, i: kept_radius(terms, probabilities[i], delta))


@theorem("T14")
def drawn_errors(problem: EdgeSampling, draws: Tensor, delta: float) -> Tensor:
    r"""The radius of T14 (d) relative to the flow for each half-neuron `(out, 2)` that is drawn with $q = s / S$.

    Half-neurons of which all edges are kept (infinitely many draws) have 0; NaN draws, edges kept at the top, NaN.
    """
    found = []
    for column, sign in enumerate((1, -1)):
        own = torch.where(sign * problem.weight > 0, problem.sensitivity, 0.0)
        share = own / own.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
        own_draws = draws[:, column]

        def radius(terms: Tensor, i: int, share: Tensor = share, own_draws: Tensor = own_draws, sign: int = sign):
            if not bool(own_draws[i].isfinite()):
                return torch.zeros(len(terms), dtype=torch.float64) + torch.where(own_draws[i].isinf(), 0.0, torch.nan)
            half = torch.where(sign * problem.weight[i] > 0, terms, 0.0)
            return drawn_radius(half, share[i], own_draws[i], delta)

        found.append(_worst(problem, radius))
    return torch.stack(found, -1)


def _worst(problem: EdgeSampling, radius) -> Tensor:
    worst = []
    for i, weight in enumerate(problem.weight):
        largest = torch.zeros((), dtype=torch.float64)
        for rows in problem.blocks():
            terms = rows * weight
            through = terms.abs().sum(-1)
            own = radius(terms, i)
            largest = torch.maximum(largest, torch.where(through > 0, own / through, 0.0).max())
        worst.append(largest)
    return torch.stack(worst)


def _share(values: Tensor) -> float:
    return float((values < 1).double().mean()) if values.numel() else 1.0


def _median(values: Tensor) -> float:
    return float(values.median()) if values.numel() else 0.0
