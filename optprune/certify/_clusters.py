"""Which groups of inputs share a block of a minorant. Nothing here needs to be right: `check` decides."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from optprune.certify._block_evidence import both


def clustered(
    gram: Float[Tensor, "in in"], live: Bool[Tensor, " groups"], size: int, several: int
) -> Int[Tensor, "blocks several"]:
    r"""The live groups in blocks of `several`, a power of two, with -1 where there are not enough; and then the others.

    Those come together that have the largest sums of squared correlations $H_{ij}^2 / (H_{ii} H_{jj})$: in pairs, and
    then pairs of pairs.

    Args:
        gram: $H$.
        live: the groups that matter, of consecutive inputs.
        size: inputs in a group.
        several: groups in a block.
    """
    unit = gram.diagonal().clamp_min(torch.finfo(gram.dtype).tiny).rsqrt()
    square = (gram * unit[:, None] * unit).square()
    strength = square.view(len(live), size, len(live), size).sum((1, 3)).nan_to_num()
    groups = torch.arange(len(live), device=gram.device)
    members, others = (pad(part, (0, -len(part) % several), value=-1) for part in (groups[live], groups[~live]))
    strength, members = both(strength + strength.mT, members), members[:, None]
    while members.shape[1] < several:
        one, other = matched(strength)
        members = torch.cat([members[one], members[other]], -1)
        strength = strength[one] + strength[other]
        strength = strength[:, one] + strength[:, other]
    return torch.cat([members, others.view(-1, several)])


def matched(strength: Float[Tensor, "even even"]) -> tuple[Int[Tensor, " half"], Int[Tensor, " half"]]:
    """Pairs of which no two have a member in common, the strongest first: again and again those that are the strongest
    for each other.
    """
    left = strength.clone().fill_diagonal_(-torch.inf)
    every = torch.arange(len(left), device=left.device)
    partner = torch.full_like(every, -1)
    while bool((partner < 0).any()):
        best = left.argmax(-1)
        mutual = (best[best] == every) & (partner < 0)
        partner = torch.where(mutual, best, partner)
        left[mutual], left[:, mutual] = -torch.inf, -torch.inf
    one = every[every < partner]
    return one, partner[one]
