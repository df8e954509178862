"""Removing neurons of a hidden layer by sampling them, without data: the pair of layers becomes smaller in fact."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from optprune.bounds.coreset import coreset_error, largest_contributions
from optprune.bounds.horvitz_thompson import kept_radius
from optprune.errors import InvalidInputError, UnsupportedError, layer_context
from optprune.network.layers import LinearAdapter, named_adapters
from optprune.numerics.pivotal import choose_in_pairs
from optprune.numerics.sampling import generator
from optprune.numerics.water_filling import water_fill

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Removed:
    r"""What was kept of a hidden layer, and what that promises.

    Attributes:
        kept: indices of the neurons that are left, in order.
        of: how many there were.
        total: $t = \sum_q c_q$ of the largest contributions.
        error: at each input of the ball by itself no output of the second layer moves by more, but with probability
            delta.
        largest: no output of the second layer, bias aside, exceeds this on the ball: an error above it says nothing.
        delta: the probability.
        theorem: behind the error.
    """

    kept: tuple[int, ...]
    of: int
    total: float
    error: float
    largest: float
    delta: float
    theorem: str

    @property
    def vacuous(self) -> bool:
        """Whether removing every neuron has no larger error than what is promised."""
        return self.error >= self.largest


def remove_neurons(
    model: M,
    first: str,
    second: str,
    radius: float,
    *,
    neurons: int | None = None,
    draws: int | None = None,
    seed: int = 0,
    delta: float = 0.05,
) -> tuple[M, Removed]:
    r"""Sample the neurons between two fully connected layers with a ReLU in between, and remove the others.

    With `neurons`, exactly so many are kept, each with a probability $\min(1, \tau c_q)$ by its largest
    contribution, in pairs (T19). With `draws`, as published, that many are drawn with replacement, and those that
    were never drawn go. Outgoing weights are divided by the probability, or multiplied by how often a neuron was
    drawn over what is expected, so that every output is right on average at every input. Draws are never made until
    some number of distinct neurons is reached: that is biased.

    Args:
        model: untouched; a copy comes back.
        first: the layer whose neurons are removed, an `nn.Linear`.
        second: the `nn.Linear` that reads them, through a ReLU and nothing else.
        radius: bound of the norm of the first layer's inputs.
        neurons: how many to keep; or
        draws: how often to draw.
        seed: of the choice.
        delta: probability that the error is larger, for one input and all outputs together.

    Returns:
        The copy with smaller layers, and what is promised.

    Raises:
        InvalidInputError: no such layers, sizes that do not fit, or both or neither of `neurons` and `draws`.
        UnsupportedError: a layer that is not an `nn.Linear`.
    """
    pair = _pair(model, first, second)
    incoming, outgoing = _weights(pair)
    if (neurons is None) == (draws is None) or not radius > 0:
        raise InvalidInputError(
            f"neurons={neurons}, draws={draws}, radius={radius} given; give one of the first two, and a radius > 0"
        )
    asked = draws if neurons is None else neurons
    if asked is None or not 1 <= asked <= (asked if neurons is None else len(incoming)):
        raise InvalidInputError(f"{asked} given; at least 1 draw, or 1 to {len(incoming)} neurons, are needed")
    reach = (radius**2 + (pair[0].bias is not None)) ** 0.5
    largest = largest_contributions(incoming, outgoing, reach)
    bound = outgoing.abs() * reach * incoming.norm(dim=-1)
    total = float(largest.sum())
    random = generator(seed)
    if neurons is not None:
        p = water_fill(largest[None], torch.ones_like(largest)[None], largest.new_tensor([float(neurons)]))[0]
        factor = torch.where(choose_in_pairs(p[None], random)[0], 1 / torch.where(p > 0, p, 1.0), 0.0)
        terms = outgoing.sign() * bound
        error, theorem = float(kept_radius(terms, p, delta / len(terms)).max()), "T19"
    else:
        share = largest / total
        hits = torch.bincount(
            torch.multinomial(share, asked, replacement=True, generator=random), minlength=len(share)
        ).double()
        factor = torch.where(hits > 0, hits / (asked * torch.where(share > 0, share, 1.0)), 0.0)
        both = bool((outgoing > 0).any() and (outgoing < 0).any())
        error, theorem = coreset_error(total, asked, delta, len(outgoing), signed=both), "T20"
    kept = (factor > 0).nonzero()[:, 0]
    result = copy.deepcopy(model)
    _shrink(_pair(result, first, second), kept, factor)
    removed = Removed(tuple(kept.tolist()), len(incoming), total, error, float(bound.sum(-1).max()), delta, theorem)
    return result, removed


def _pair(model: nn.Module, first: str, second: str) -> tuple[nn.Linear, nn.Linear]:
    found: list[nn.Linear] = []
    for name, adapter in named_adapters(model, [first, second]).items():
        if not isinstance(adapter, LinearAdapter):
            with layer_context(name):
                raise UnsupportedError(f"a {adapter.kind} given; neurons are removed between two Linear layers")
        found.append(adapter.module)
    if len(found) != 2 or found[0].out_features != found[1].in_features:
        raise InvalidInputError(
            f"layers '{first}' and '{second}' given; the second must read what the first puts out, through a ReLU"
        )
    return found[0], found[1]


def _weights(pair: tuple[nn.Linear, nn.Linear]) -> tuple[Tensor, Tensor]:
    """Incoming weights with the bias as a coordinate, and outgoing ones, in float64."""
    incoming = pair[0].weight.detach().double().cpu()
    if pair[0].bias is not None:
        incoming = torch.cat([incoming, pair[0].bias.detach().double().cpu()[:, None]], -1)
    return incoming, pair[1].weight.detach().double().cpu()


def _shrink(pair: tuple[nn.Linear, nn.Linear], kept: Tensor, factor: Tensor) -> None:
    """Leave the kept neurons, in place."""
    first, second = pair
    index = kept.to(first.weight.device)
    with torch.no_grad():
        scaled = second.weight.double() * factor.to(second.weight.device)
        second.weight = nn.Parameter(scaled[:, index].to(second.weight))
        first.weight = nn.Parameter(first.weight[index].clone())
        if first.bias is not None:
            first.bias = nn.Parameter(first.bias[index].clone())
    first.out_features = second.in_features = len(kept)
