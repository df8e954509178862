"""Criteria: a saliency score per weight. A one-shot heuristic is a criterion plus a pattern, nothing more."""

from __future__ import annotations

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
