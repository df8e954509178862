"""Is a bound refuted? Monte Carlo against a stated probability, with exact confidence limits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from scipy.stats import beta
from torch import Tensor

from optprune.bounds._theorem import theorem
from optprune.errors import InvalidInputError

Experiment = Callable[[int, torch.Generator], Bool[Tensor, " trials"]]
"""Makes this many independent trials and says which of them violated the bound."""


@dataclass(frozen=True)
class Evidence:
    """What trials say of the claim that something happens with probability `claimed` at most.

    Attributes:
        failures: trials in which it happened.
        trials: all of them.
        claimed: the probability that is claimed.
        low: lower confidence limit of the true probability.
        high: upper confidence limit.
        confidence: of the two limits together.
    """

    failures: int
    trials: int
    claimed: float
    low: float
    high: float
    confidence: float

    @property
    def refuted(self) -> bool:
        """Whether even the lower limit exceeds the claim."""
        return self.low > self.claimed

    def __str__(self) -> str:
        verdict = "refuted" if self.refuted else "not refuted"
        return (
            f"{self.failures} of {self.trials}, in [{self.low:.3g}, {self.high:.3g}] at {100 * self.confidence:g} %; "
            f"claimed at most {self.claimed:g}: {verdict}"
        )


@theorem("T21")
def clopper_pearson(failures: int, trials: int, confidence: float = 0.999) -> tuple[float, float]:
    r"""Exact limits of a binomial probability, each missed with probability $(1 - \text{confidence}) / 2$ at most.

    $[B^{-1}(\tfrac{\gamma}{2}; r, n - r + 1), B^{-1}(1 - \tfrac{\gamma}{2}; r + 1, n - r)]$ with $\gamma$ = 1 -
    confidence and $B^{-1}(\cdot; a, b)$ the quantiles of the beta distribution; 0 and 1 at the ends.

    Guarantees:
        T21 (a).

    Raises:
        InvalidInputError: the counts are not 0 <= r <= n with n >= 1, or the confidence not in (0, 1).

    References:
        Clopper & Pearson 1934.
    """
    if not 0 <= failures <= trials or trials < 1:
        raise InvalidInputError(f"{failures} failures of {trials} trials given; 0 <= failures <= trials, trials >= 1")
    if not 0.0 < confidence < 1.0:
        raise InvalidInputError(f"confidence={confidence} given; a probability in (0, 1) is needed")
    side = (1 - confidence) / 2
    low = 0.0 if failures == 0 else float(beta.ppf(side, failures, trials - failures + 1))
    high = 1.0 if failures == trials else float(beta.isf(side, failures + 1, trials - failures))
    return low, high


@theorem("T21")
def monte_carlo(
    violated: Experiment,
    claimed: float,
    generator: torch.Generator,
    *,
    trials: int = 10_000,
    confidence: float = 0.999,
    chunk: int = 1_000,
) -> Evidence:
    """Try a bound: draw, count how often it is violated, compare with the probability that it claims.

    Args:
        violated: makes independent trials with the generator that it is given.
        claimed: the bound holds up to this probability, so it says.
        generator: the only source of randomness.
        trials: how many.
        confidence: of the limits; a true claim is refuted with half of the rest at most.
        chunk: trials at a time.

    Guarantees:
        T21 (b): a claim that is true is refuted with probability (1 - confidence) / 2 at most.

    Raises:
        InvalidInputError: the claim is not a probability, there are no trials, or the experiment returned something
            other than one truth value per trial.
    """
    if not 0.0 <= claimed <= 1.0:
        raise InvalidInputError(f"claimed={claimed} given; a probability is needed")
    if trials < 1 or chunk < 1:
        raise InvalidInputError(f"trials={trials}, chunk={chunk} given; both are at least 1")
    failures = 0
    for start in range(0, trials, chunk):
        count = min(chunk, trials - start)
        found = violated(count, generator)
        if found.dtype != torch.bool or tuple(found.shape) != (count,):
            raise InvalidInputError(
                f"an experiment of {count} trials returned {found.dtype} of shape {tuple(found.shape)}; "
                "one boolean per trial is needed"
            )
        failures += int(found.sum())
    return Evidence(failures, trials, claimed, *clopper_pearson(failures, trials, confidence), confidence)
