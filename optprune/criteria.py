"""Criteria: a saliency score per weight. A one-shot heuristic is a criterion plus a pattern, nothing more."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from optprune.statistics import Statistics


def magnitude(weight: Float[Tensor, "*batch out in"], statistics: Statistics) -> Float[Tensor, "*batch out in"]:
    r"""$w_{ij}^2$: what removing the weight changes in the weight matrix."""
    return weight.double().square()


def activation_weighted(
    weight: Float[Tensor, "*batch out in"], statistics: Statistics
) -> Float[Tensor, "*batch out in"]:
    r"""$w_{ij}^2 \, G_{jj}$: what removing the weight alone changes in the outputs (twice the mean squared error).

    The square of Wanda's score $|w_{ij}| \lVert x_j \rVert_2$, up to the number of samples; squares add over the
    weights of a unit and order single weights alike.

    References:
        Sun, Liu, Bair & Kolter 2023 (Wanda), eq. (1).
    """
    return weight.double().square() * statistics.gram.diagonal(dim1=-2, dim2=-1).unsqueeze(-2)


def relative_importance(
    weight: Float[Tensor, "*batch out in"], statistics: Statistics, power: float = 0.5
) -> Float[Tensor, "*batch out in"]:
    r"""$\Bigl(\frac{|w_{ij}|}{\sum_l |w_{lj}|} + \frac{|w_{ij}|}{\sum_l |w_{il}|}\Bigr)^2 G_{jj}^{a}$: the weight's
    share of its input and of its output, weighted by the input.

    The square of RIA's score with $\lVert x_j \rVert_2^a$, up to the number of samples. Shares keep inputs and
    outputs of small weights from being pruned altogether. A row or column of zeros has share zero.

    Args:
        weight: $W$.
        statistics: hold $G$.
        power: $a$; 0 leaves the inputs out of account, 1 weighs them as Wanda does.

    References:
        Zhang et al. 2024 (RIA), eq. (4); there $a = 1/2$ too.
    """
    size = weight.double().abs()
    columns, rows = size.sum(-2, keepdim=True), size.sum(-1, keepdim=True)
    share = torch.where(columns > 0, size / columns, 0.0) + torch.where(rows > 0, size / rows, 0.0)
    return share.square() * statistics.gram.diagonal(dim1=-2, dim2=-1).unsqueeze(-2).pow(power)
