"""What a finished network does on points that it was not made from: distribution-free certificates, by theorem T15.

Nothing is assumed of the data but that held-out and new points are drawn alike, and nothing of the network but that it
was finished, and chosen, without the held-out points.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from optprune.bounds.conformal import (
    bonferroni,
    conditional_rank,
    conformal_rank,
    exceedance_p_value,
    fixed_sequence,
    mean_bound,
    order_bound,
)
from optprune.errors import InvalidInputError, UnsupportedError, layer_context
from optprune.network.calibration import Calibration, Forward, calibration, call, device_of, evaluating

THEOREM = "T15"


@dataclass(frozen=True)
class Claim:
    r"""One certified statement about a new point.

    Attributes:
        about: "output", "layer <name>", "disagreement" or "accuracy loss".
        kind: "conformal" (the bound holds with probability $1 - \alpha$ over held-out and new point together),
            "conditional" (with probability $1 - \delta$ over the held-out points it holds for a fraction
            $1 - \alpha$ of new ones), or "mean" (with probability $1 - \delta$ the mean over new points is no larger).
        bound: the number; infinite where there are too few points to say anything.
        alpha: $\alpha$; None for a mean.
        delta: $\delta$ of this claim, its share of the certificate's; None for a conformal one.
    """

    about: str
    kind: str
    bound: float
    alpha: float | None
    delta: float | None

    @property
    def vacuous(self) -> bool:
        """Whether it says no more than is true of the zero function."""
        return not self.bound < 1.0


@dataclass(frozen=True)
class Claims:
    r"""Claims about a pruned network from held-out points.

    The conditional and mean claims hold all together with probability $1 - \delta$.

    Attributes:
        claims: in the order of the layers, then the output.
        points: held-out points.
        alpha: the fraction of new points that may exceed a bound.
        delta: of all conditional and mean claims together.
        theorem: behind them.
    """

    claims: tuple[Claim, ...]
    points: int
    alpha: float
    delta: float
    theorem: str = THEOREM

    def claim(self, about: str, kind: str) -> Claim:
        """The claim of a kind about something.

        Raises:
            InvalidInputError: there is none; says which there are.
        """
        for found in self.claims:
            if (found.about, found.kind) == (about, kind):
                return found
        known = ", ".join(f"({c.about!r}, {c.kind!r})" for c in self.claims)
        raise InvalidInputError(f"no claim ({about!r}, {kind!r}); there are {known}")

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready record."""
        return asdict(self)

    def __str__(self) -> str:
        head = f"{self.points} held-out points · alpha {self.alpha:g} · delta {self.delta:g} · theorem {self.theorem}"
        rows = [f"  {c.about}: {c.kind} bound {c.bound:.4g}" + (" (vacuous)" if c.vacuous else "") for c in self.claims]
        return "\n".join([head, *rows])


def held_out(
    dense: nn.Module,
    pruned: nn.Module,
    batches: Iterable[Any],
    *,
    alpha: float = 0.1,
    delta: float = 0.05,
    layers: Sequence[str] = (),
    labels: Iterable[Tensor] | None = None,
    forward: Forward | None = None,
) -> Claims:
    r"""Certify a pruned network on held-out points.

    A point's scores are $\lVert \hat f(x) - f(x) \rVert / \lVert f(x) \rVert$ of the output and, for each layer named,
    the same of the layer by itself on the dense network's activations. With `labels`, also how often the two networks
    decide differently, and how much more often the pruned one is wrong, on average over new points.

    Args:
        dense: the network before pruning.
        pruned: after.
        batches: held-out points, used neither for pruning nor for choosing; the first dimension of outputs counts them.
        alpha: fraction of new points that may exceed a bound.
        delta: divided equally among all conditional and mean claims.
        layers: names of modules whose own error is certified, too.
        labels: the class of each point, one tensor per batch.
        forward: runs a model on a batch of another kind and returns its output.

    Raises:
        InvalidInputError: no points, outputs that do not count them, or labels that do not fit.
        UnsupportedError: an output that is not a tensor.

    Guarantees:
        T15.
    """
    data = calibration(dense, batches, forward, device_of(dense, None), 2**30)
    with evaluating(dense, pruned):
        scores, decided = _scores(dense, pruned, data, forward or call, layers, labels)
    points = len(scores["output"])
    each = bonferroni(delta, len(scores) + 2 * bool(decided))
    claims = []
    for about, values in scores.items():
        claims += [
            Claim(about, "conformal", order_bound(values, conformal_rank(points, alpha)), alpha, None),
            Claim(about, "conditional", order_bound(values, conditional_rank(points, alpha, each)), alpha, each),
        ]
    if decided:
        before, after, truth = (torch.cat(part) for part in zip(*decided, strict=True))
        loss = (after != truth).double() - (before != truth).double()
        claims += [
            Claim("disagreement", "mean", mean_bound((before != after).double(), each), None, each),
            # A difference of errors lies in [-1, 1].
            Claim("accuracy loss", "mean", 2 * mean_bound((loss + 1) / 2, each) - 1, None, each),
        ]
    return Claims(tuple(claims), points, alpha, delta)


def certified_candidates(
    dense: nn.Module,
    candidates: Sequence[nn.Module],
    batches: Iterable[Any],
    limit: float,
    *,
    alpha: float = 0.1,
    delta: float = 0.05,
    forward: Forward | None = None,
) -> int:
    r"""How many of the candidates, in their order, exceed a limit on at most a fraction $\alpha$ of new points.

    They are tested in the order given, which must not depend on the held-out points: from the densest to the sparsest.
    All claims hold together with probability $1 - \delta$ (T15 (d)); the last of the certified ones may be used.

    Args:
        dense: the network before pruning.
        candidates: pruned networks.
        batches: held-out points.
        limit: of the output's relative error at a point.
        alpha: fraction of new points that may exceed the limit.
        delta: probability of a false claim.
        forward: runs a model on a batch of another kind and returns its output.
    """
    data = calibration(dense, batches, forward, device_of(dense, None), 2**30)
    p_values = []
    for candidate in candidates:
        with evaluating(dense, candidate):
            scores, _ = _scores(dense, candidate, data, forward or call, (), None)
        errors = scores["output"]
        p_values.append(exceedance_p_value(int((errors > limit).sum()), len(errors), alpha))
    return fixed_sequence(p_values, delta)


def _scores(
    dense: nn.Module,
    pruned: nn.Module,
    data: Calibration,
    run: Callable[[nn.Module, Any], Any],
    layers: Sequence[str],
    labels: Iterable[Tensor] | None,
) -> tuple[dict[str, Tensor], list[tuple[Tensor, Tensor, Tensor]]]:
    """Scores by what they are about, and the decisions of both networks beside the labels."""
    found: dict[str, list[Tensor]] = {f"layer {name}": [] for name in layers}
    found["output"] = []
    decided: list[tuple[Tensor, Tensor, Tensor]] = []
    truth = None if labels is None else iter(labels)
    handles = [
        dense.get_submodule(name).register_forward_hook(
            _comparison(name, pruned.get_submodule(name), found[f"layer {name}"])
        )
        for name in layers
    ]
    try:
        for batch in data:
            before = run(dense, batch)
            after = run(pruned, batch)
            if not isinstance(before, Tensor) or not isinstance(after, Tensor):
                raise UnsupportedError(
                    f"an output of type {type(before).__name__} given; "
                    "give forward=... that returns the tensor to compare"
                )
            found["output"].append(_relative(after, before))
            if truth is not None:
                own = next(truth, None)
                if own is None or tuple(own.shape) != (len(before),) or before.dim() != 2:
                    raise InvalidInputError(
                        f"labels {None if own is None else tuple(own.shape)} given for outputs {tuple(before.shape)}; "
                        "one class per point is needed, and outputs (points, classes)"
                    )
                decided.append((before.argmax(-1).cpu(), after.argmax(-1).cpu(), own.cpu()))
    finally:
        for handle in handles:
            handle.remove()
    scores = {about: torch.cat(parts) for about, parts in found.items() if parts}
    if "output" not in scores:
        raise InvalidInputError("no held-out point given; give at least one batch")
    points = len(scores["output"])
    for about, values in scores.items():
        if len(values) != points:
            raise InvalidInputError(
                f"{about}: {len(values)} scores for {points} points; a layer is compared where it is called once per "
                "batch, on a tensor whose first dimension counts the points"
            )
    return scores, decided


def _comparison(name: str, pruned: nn.Module, scores: list[Tensor]) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        with layer_context(name):
            scores.append(_relative(pruned(*args), output))

    return hook


def _relative(after: Tensor, before: Tensor) -> Float[Tensor, " points"]:
    """The relative error of each point; infinite where the dense output is 0 and the other is not."""
    missed = (after.double() - before.double()).flatten(1).norm(dim=-1)
    size = before.double().flatten(1).norm(dim=-1)
    ratio = torch.where(missed > 0, missed / size, 0.0)
    return torch.where(ratio.isnan(), math.inf, ratio).cpu()
