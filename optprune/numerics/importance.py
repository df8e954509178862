"""How large a part of a sum each of its terms can be: relative importances of edges and their maximum over points."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from optprune.numerics.linear import LinearMap

ELEMENTS = 2**17
"""Products formed at a time: few enough for a core's cache."""


def largest_shares(weight: Float[Tensor, "*batch out d"], inputs: LinearMap) -> Float[Tensor, "*batch out d"]:
    r"""The empirical sensitivity of every edge of a layer,

    $$s_{ij} = \max_{x, \pm} \frac{|w_{ij}|\, x_j^\pm}{\sum_{k : w_{ik} w_{ij} > 0} |w_{ik}|\, x_k^\pm}, \; 0/0 := 0,$$

    over the rows $x$ of the inputs and over the positive and the negative part of each: an edge's largest part of its
    half-neuron. Rows that are patches of a convolution give the maximum over patches. It does not change when a row of
    the weight or of the inputs is multiplied by a power of two, nor, but for rounding, by another positive number.

    Memory: one block of the inputs' rows, one of their values per output, and `ELEMENTS` products.
    """
    scaled = _unit(weight.double())
    found = torch.zeros_like(scaled)
    for sign in (1.0, -1.0):
        half = (sign * scaled).clamp(min=0)
        best = torch.zeros_like(half)
        for _, block in inputs.rows():
            for part in _parts(_unit(block.double())):
                sums = part @ half.mT
                inverse = torch.where(sums > 0, 1 / sums, 0.0)
                best = torch.maximum(best, _max_product(inverse.mT, part))
        found = torch.where(half > 0, best * half, found)
    # Rounding may put the only edge of a half-neuron above 1.
    return found.clamp_(max=1.0)


def _parts(rows: Tensor) -> list[Tensor]:
    """The rows' positive parts, and their negative ones where there are any."""
    return [rows] if bool((rows >= 0).all()) else [rows.clamp(min=0), (-rows).clamp(min=0)]


def _unit(rows: Tensor) -> Tensor:
    """Each row times a power of two that brings its largest magnitude to [1/2, 1)."""
    exponent = torch.frexp(rows.abs().amax(-1, keepdim=True)).exponent
    return torch.ldexp(rows, -exponent)


def _max_product(left: Float[Tensor, "*batch out n"], right: Float[Tensor, "*batch n d"]) -> Tensor:
    r"""$\max_x L_{ix} R_{xj}$ for nonnegative matrices."""
    out, n = left.shape[-2:]
    batch, d = left.shape[:-2].numel(), right.shape[-1]
    found = left.new_zeros((*left.shape[:-1], d))
    points = max(1, min(n, ELEMENTS // max(1, batch * d)))
    neurons = max(1, ELEMENTS // max(1, batch * d * points))
    for first in range(0, out, neurons):
        own = slice(first, first + neurons)
        for start in range(0, n, points):
            some = slice(start, start + points)
            product = left[..., own, some, None] * right[..., None, some, :]
            found[..., own, :] = torch.maximum(found[..., own, :], product.amax(-2))
    return found
