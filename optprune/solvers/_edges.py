"""What the solvers of `EdgeSampling` share: half-neurons in budgets, draws, admissible random counts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from optprune.errors import UnsupportedError
from optprune.patterns import PerLayer, PerRow
from optprune.problems import EdgeSampling, unstack
from optprune.solution import Answer, Termination

ATTEMPTS = 1000
"""Times that a random choice is made again; each is admissible with a probability of a half and more."""


@dataclass(frozen=True)
class Halves:
    """The half-neurons of a single problem, grouped by the budget that they share.

    Attributes:
        problem: the problem.
        budget: weights kept in each budget `(groups,)`.
        mask: which edges a half-neuron has `(groups, halves, in)`.
        sensitivity: of those edges, 0 elsewhere.
        weight: of those edges, 0 elsewhere.
    """

    problem: EdgeSampling
    budget: Int[Tensor, " groups"]
    mask: Bool[Tensor, "groups halves in"]
    sensitivity: Float[Tensor, "groups halves in"]
    weight: Float[Tensor, "groups halves in"]

    @classmethod
    def of(cls, problem: EdgeSampling) -> Halves:
        """Split a problem's neurons by the sign of their weights.

        Raises:
            UnsupportedError: a pattern other than `PerLayer` and `PerRow`.
        """
        if not isinstance(problem.pattern, PerLayer | PerRow):
            raise UnsupportedError(
                f"{problem.pattern} given to a solver that samples edges; PerLayer and PerRow are accepted. SiPPDet "
                "takes any pattern"
            )
        groups = 1 if isinstance(problem.pattern, PerLayer) else problem.shape[0]

        def halves(x: Tensor) -> Tensor:
            both = torch.stack([x * (problem.weight > 0), x * (problem.weight < 0)], -2)
            return both.reshape(groups, -1, problem.shape[1])

        weight = halves(problem.weight)
        budget = torch.full((groups,), problem.pattern.k, dtype=torch.long, device=weight.device)
        return cls(problem, budget, weight != 0, halves(problem.sensitivity), weight)

    @property
    def edges(self) -> Int[Tensor, "groups halves"]:
        """How many edges each half-neuron has that can carry anything on the points."""
        return (self.sensitivity > 0).sum(-1)

    @property
    def total(self) -> Float[Tensor, "groups halves"]:
        """$S$, the sum of sensitivities."""
        return self.sensitivity.sum(-1)

    def layer(self, x: Tensor) -> Tensor:
        """From half-neurons back to the matrix `(out, in)`: the two halves of a neuron have no edge in common."""
        return x.reshape(self.problem.shape[0], 2, self.problem.shape[1]).sum(1)


def alone(problem: EdgeSampling, run: Callable[[EdgeSampling], Answer]) -> Answer:
    """Solve the members of a stack one after the other, each with the random numbers that it would have alone."""
    if not problem.batch_shape:
        return run(problem)
    answers = [run(part) for part in unstack(problem)]
    hint = {name: torch.stack([answer.hint[name] for answer in answers]) for name in answers[0].hint}
    return Answer(
        torch.stack([answer.matrix for answer in answers]),
        (Termination.CLOSED_FORM,) * len(answers),
        steps=0,
        hint=hint,
        info={name: sum(a.info[name] for a in answers) / len(answers) for name in answers[0].info},
    )


def draws_for_count(
    probabilities: Float[Tensor, "*halves in"], count: Float[Tensor, "*halves"]
) -> Float[Tensor, "*halves"]:
    r"""$N$ with $\sum_j 1 - (1 - q_j)^N$ = `count`: draws that leave so many distinct edges on average.

    Infinite where the count is that of all edges.
    """
    edges = (probabilities > 0).sum(-1)
    log_missed = torch.log1p(-probabilities.clamp(max=1 - 1e-16))
    low, high = torch.zeros_like(count), torch.full_like(count, 45.0)
    for _ in range(60):  # in the logarithm of 1 + N
        middle = (low + high) / 2
        found = -torch.expm1(torch.expm1(middle)[..., None] * log_missed)
        enough = found.sum(-1) >= count
        low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
    return torch.where(count < edges, torch.expm1(high), torch.inf)


def multinomial(
    draws: Float[Tensor, "*halves"], probabilities: Float[Tensor, "*halves in"], generator: torch.Generator
) -> Float[Tensor, "*halves in"]:
    """How often each edge is drawn, by binomial variables conditioned one upon the other: any number of draws at once.

    The loop is over the edges of a half-neuron; all half-neurons step together.
    """
    left, mass = draws.clone(), probabilities.flip(-1).cumsum(-1).flip(-1)
    counts = torch.zeros_like(probabilities)
    for j in range(probabilities.shape[-1]):
        chance = torch.where(mass[..., j] > 0, probabilities[..., j] / mass[..., j], 0.0).clamp(0.0, 1.0)
        counts[..., j] = torch.binomial(left, chance, generator=generator)
        left -= counts[..., j]
    return counts


def admissible(
    budget: Int[Tensor, " groups"],
    draw: Callable[[], Float[Tensor, "groups halves in"]],
) -> tuple[Float[Tensor, "groups halves in"], int]:
    """Choices that keep no more than their budgets; a budget's choice is made again until it does.

    Returns:
        The choice, and how often one was discarded.
    """
    chosen = draw()
    discarded = 0
    for _ in range(ATTEMPTS):
        over = (chosen != 0).sum((-2, -1)) > budget
        if not bool(over.any()):
            return chosen, discarded
        discarded += int(over.sum())
        chosen = torch.where(over[:, None, None], draw(), chosen)
    raise ArithmeticError(f"no admissible choice in {ATTEMPTS} attempts")


def margin(inclusion: Float[Tensor, "groups halves in"]) -> Float[Tensor, " groups"]:
    """A standard deviation of the number of edges kept, or more: they are at most as spread as independent ones."""
    return (inclusion * (1 - inclusion)).sum((-2, -1)).sqrt()


def log_of_failure(delta: float, halves: int) -> float:
    r"""$\ln(2 H / \delta)$: the failure probability divided among $H$ half-neurons."""
    return math.log(2 * halves / delta)
