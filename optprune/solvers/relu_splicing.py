"""Local search for the l0 problem behind a ReLU: the most promising exchanges, each fitted exactly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from optprune.errors import InvalidInputError
from optprune.numerics.working_memory import working_memory
from optprune.problems import L0ReLU, Problem, unstack
from optprune.solution import Answer, Termination
from optprune.solvers._base import Progress, Promise, Solver
from optprune.solvers._relu_fit import fit_relu


@dataclass(frozen=True)
class ReLUSplicing(Solver[L0ReLU]):
    r"""Exchange a kept weight for a pruned one where the fit behind the ReLU gets better, until no exchange helps.

    To first order an exchange of $i$ for $j$ gains $\gamma_j^2 / 2 h_j - h_i V_i^2 / 2$, with the gradient $\gamma$ and
    the curvature $h$ of each weight at the fitted $V$. The `candidates` most promising exchanges of a row, within one
    budget, are fitted exactly, all rows at once, and each row takes its best where that lowers its objective.

    The start is the answer of another solver to the least-squares problem that majorises this one at the dense
    weight, which is the layer's ordinary l0 problem; or the largest $h_j R_j^2$. Exchanges are of single weights:
    with a pattern of blocks, rows or columns the start is fitted and stays.

    Attributes:
        start: a solver of `L0LeastSquares`, or None.
        candidates: exchanges fitted per row and round.
        max_rounds: most rounds.
        tolerance: least decrease of a row's objective that counts, relative.
        memory: bytes for the comparison of pairs. None: 128 MiB on a CPU, 1 GiB elsewhere.

    References:
        Zhu, Wen, Zhu, Zhang & Wang 2020 (splicing), section 2, whose sacrifices these are for a quadratic loss; Phan,
        Nguyen, Nguyen & Kalagnanam 2020 for the problem.
    """

    start: Solver | None = None
    candidates: int = 16
    max_rounds: int = 100
    tolerance: float = 1e-9
    memory: int | None = None

    accepts: ClassVar[tuple[type[Problem], ...]] = (L0ReLU,)
    summary: ClassVar[str] = "exchanges of single weights behind a ReLU, the most promising ones fitted exactly"
    source: ClassVar[str] = "Phan, Nguyen, Nguyen & Kalagnanam 2020 (problem); Zhu et al. 2020 (splicing)"

    def __post_init__(self) -> None:
        counts = (self.candidates, self.max_rounds, 1 if self.memory is None else self.memory)
        if not (min(counts) > 0 and self.tolerance > 0):
            raise InvalidInputError(
                f"ReLUSplicing with candidates={self.candidates}, max_rounds={self.max_rounds}, "
                f"tolerance={self.tolerance}, memory={self.memory} given; all must be positive"
            )

    @property
    def promises(self) -> frozenset[Promise]:
        return frozenset({Promise.REFITTED})

    def run(self, problem: L0ReLU, progress: Progress | None = None) -> Answer:
        if problem.batch_shape:
            answers = [self.run(part) for part in unstack(problem)]
            terminations = tuple(t for answer in answers for t in answer.termination)
            return Answer(torch.stack([a.matrix for a in answers]), terminations, max(a.steps for a in answers))
        weight = fit_relu(problem, self._first(problem))
        budgets, units, size = problem.pattern.layout(problem.shape)
        if size > 1 or units == 1:
            return Answer(weight, (Termination.CLOSED_FORM,), 0)
        own = torch.arange(budgets, device=weight.device).reshape(-1, 1, 1).expand(budgets, units, 1)
        budget = problem.pattern.from_units(own, problem.shape)
        rows = torch.arange(problem.shape[0], device=weight.device)
        rounds = 0
        while len(rows) and rounds < self.max_rounds:
            weight, rows = self._round(problem, weight, rows, budget)
            rounds += 1
            if progress is not None:
                progress(rounds, self.max_rounds)
        return Answer(weight, (Termination.STEP_LIMIT if len(rows) else Termination.CONVERGED,), rounds)

    def _first(self, problem: L0ReLU) -> Bool[Tensor, "out d"]:
        if self.start is None:
            return problem.pattern.support(_curvature(problem, problem.reference) * problem.reference.square())
        answer = self.start.run(problem.majorant(problem.reference))
        return problem.pattern.support((answer.matrix != 0).double())

    def _round(
        self, problem: L0ReLU, weight: Float[Tensor, "out d"], rows: Int[Tensor, " open"], budget: Int[Tensor, "out d"]
    ) -> tuple[Float[Tensor, "out d"], Int[Tensor, " improved"]]:
        """The weight after each open row's best exchange, and the rows that had one."""
        curvature = _curvature(problem, weight)[rows]
        slope = problem.gradient(weight)[rows]
        current, mask = weight[rows], self._mask(problem, weight)[rows]
        gain = torch.where(mask | (curvature == 0), -torch.inf, slope.square() / (2 * curvature))
        loss = torch.where(mask, curvature * current.square() / 2, torch.inf)
        leaves, enters, real = self._pairs(gain, loss, budget[rows])
        trials = mask.unsqueeze(1).repeat(1, leaves.shape[1], 1)
        trials = trials.scatter(-1, leaves.unsqueeze(-1), False).scatter(-1, enters.unsqueeze(-1), True)
        trials = torch.where(real.unsqueeze(-1), trials, mask.unsqueeze(1))
        which = rows.unsqueeze(1).expand(trials.shape[:2])
        starts = current.unsqueeze(1) * trials
        fitted = fit_relu(problem, trials.flatten(0, 1), starts.flatten(0, 1), which.flatten()).reshape(trials.shape)
        value = torch.stack([_row_values(problem, fitted[:, i], rows) for i in range(fitted.shape[1])], dim=1)
        lowest, best = value.min(1)
        better = lowest < (1 - self.tolerance) * _row_values(problem, current, rows)
        chosen = fitted[torch.arange(len(rows), device=rows.device), best]
        weight = weight.clone()
        weight[rows[better]] = chosen[better]
        return weight, rows[better]

    def _mask(self, problem: L0ReLU, weight: Float[Tensor, "out d"]) -> Bool[Tensor, "out d"]:
        """The support, filled up to the budget where weights came out as 0."""
        return problem.pattern.support((weight != 0).double())

    def _pairs(
        self, gain: Float[Tensor, "open d"], loss: Float[Tensor, "open d"], budget: Int[Tensor, "open d"]
    ) -> tuple[Int[Tensor, "open pairs"], Int[Tensor, "open pairs"], Bool[Tensor, "open pairs"]]:
        """The most promising exchanges: who leaves, who enters, and whether there is such a pair."""
        d = gain.shape[1]
        count = min(self.candidates, d * d)
        found = []
        at_once = max(1, working_memory(self.memory, gain.device, 2**27) // (24 * d * d))
        for g, l, b in zip(*(x.split(at_once) for x in (gain, loss, budget)), strict=True):
            score = g.unsqueeze(-2) - l.unsqueeze(-1)  # [leaves, enters]
            score = torch.where(b.unsqueeze(-1) == b.unsqueeze(-2), score, -torch.inf)
            found.append(score.flatten(1).topk(count, dim=-1))
        values, places = (torch.cat([part[i] for part in found]) for i in (0, 1))
        return places // d, places % d, values.isfinite()


def _row_values(problem: L0ReLU, weight: Float[Tensor, "rows d"], rows: Int[Tensor, " rows"]) -> Float[Tensor, " rows"]:
    """The objective's share of some rows, for weights of these rows."""
    outputs = weight @ problem.inputs.T + problem.bias[rows].unsqueeze(-1)
    missed = torch.where(problem.active.T[rows], outputs - problem.targets.T[rows], outputs.clamp_min(0.0))
    damping = problem.ridge * (weight - problem.reference[rows]).square().sum(-1)
    return 0.5 * (missed.square().mean(-1) + damping)


def _curvature(problem: L0ReLU, weight: Float[Tensor, "out d"]) -> Float[Tensor, "out d"]:
    r"""The diagonal of each row's Hessian at a weight."""
    counted = (problem.active | (problem.missed(weight) > 0)).double()
    return counted.mT @ problem.inputs.square() / problem.inputs.shape[-2] + problem.ridge
