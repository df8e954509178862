"""Finding block-diagonal minorants for N:M sparsity. Nothing here needs to be right: `check` decides."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from optprune.certify._block_evidence import both, choices_of, columns, inputs_of
from optprune.certify._blocks import FLOORS, Blocks, mixed
from optprune.certify._clusters import clustered
from optprune.certify._tighten import WORTHWHILE, outputs, search_precision
from optprune.numerics.linalg import diagonal_blocks
from optprune.numerics.working_memory import working_memory
from optprune.patterns import NOfM
from optprune.problems.least_squares import L0LeastSquares

MOST_CHOICES = 70
"""Supports of a block up to which groups are put together, or made blocks at all: one group of 4:8 has 70, two of 2:4
have 36. On ten rows of LeNet-300-100's last layer the gap at 2:4 is 11.2 % after 15 rounds with single groups, 9.9 with
two in a block, 9.5 with three (216), which take six times as long as two; on three rows of the first layer 19.6, 15.8
and 14.5. At 4:8 it is 16 % on six rows of the first layer, and 26 with minorants of single weights.
"""

COOLING = 0.7
"""Factor of the part of the shares that is spread evenly, from round to round."""

FIRST, SHRINK = 16.0, 0.4
"""The barrier's weight at first, and its factor once a row is near its central path. With a weight of 1 at first the
steps have a tenth of their length for five rounds (LeNet-300-100's first layer).
"""

FEWEST_ROUNDS = 5
"""With fewer rounds single weights' minorants are better."""

FITS = 4
"""Majorisation steps per round."""


def enumerable(pattern: object) -> bool:
    """Whether blocks are worth while: few supports in a group, and neither none nor all of its weights kept."""
    return isinstance(pattern, NOfM) and 0 < pattern.n < pattern.m and math.comb(pattern.m, pattern.n) <= MOST_CHOICES


def tighten_blocks(
    blocks: Blocks,
    d: Float[Tensor, "rows blocks size size"],
    start: Float[Tensor, "rows in"],
    growth: float,
    rounds: int,
) -> tuple[Float[Tensor, "rows blocks size size"], Float[Tensor, "rows in"]]:
    """Alternate majorisation steps for the point with a Newton step for the minorants, as `tighten` does.

    Args:
        blocks: the relaxation.
        d: minorants that are strictly feasible.
        start: a good weight.
        growth: stop when a round raises twice the bound by less than this.
        rounds: most rounds.

    Returns:
        The best minorants found, and the points that go with them.
    """
    choices = len(blocks.choices)
    covered = blocks.cut((start != 0).to(start))[..., blocks.choices].sum(-1)
    shares = torch.nn.functional.one_hot(covered.argmax(-1), choices).to(start)
    best = torch.full_like(blocks.energy, -torch.inf)
    record, point = d, start
    weight = torch.full_like(best, FIRST)
    floor, history = FLOORS[0], []
    for count in range(rounds):
        pieces = blocks.pieces(d)
        light = pieces.float()
        for _ in range(FITS):
            shares = mixed(shares, floor)
            u, slope, new = blocks.fit(d, pieces, shares)
            new = blocks.share(light, u, new)
            # Where the precision was not enough for a fit the shares stay, and the value below is NaN.
            used, shares = shares, torch.where(new.isfinite(), new, shares)
        value = blocks.value(d, pieces, u)
        better = value > best
        best = torch.where(better, value, best)
        record = torch.where(better[:, None, None, None], d, record)
        point = torch.where(better[:, None], u, point)
        history.append(float(best.sum()))
        if count + 1 == rounds or (count > 1 and history[-1] - history[-2] < growth):
            break
        d, close = blocks.ascend(d, blocks.gain(pieces, used, u, slope), weight)
        weight = torch.where(close, weight * SHRINK, weight)
        floor = max(COOLING * floor, FLOORS[1])
    return record, point


def strengthen_groups(
    problem: L0LeastSquares,
    minorant: Float[Tensor, " in"],
    start: Float[Tensor, "out in"],
    effort: float,
    tolerance: float = 0.005,
    max_rounds: int = 12,
    memory: int | None = None,
) -> dict[str, Tensor] | None:
    r"""Block-diagonal minorants for each row, and a point of linearisation, whose bound is near the best; None where
    the effort does not allow enough rounds to make them better than diagonal ones.

    Args:
        problem: with an n of m pattern.
        minorant: as `scaled_minorant` gives it, positive on the live inputs.
        start: a good weight.
        effort: floating-point operations that may be spent; a round takes about `5 * out * in**3`.
        tolerance: stop when a round raises the bound by less than three quarters of this fraction of the objective at
            `start`.
        max_rounds: most rounds.
        memory: bytes for the matrices of a chunk of rows; see `working_memory`.
    """
    pattern, rows = problem.pattern, problem.shape[0]
    assert isinstance(pattern, NOfM)
    # Groups of dead inputs alone are left out; a dead input beside live ones costs nothing and gains nothing.
    worth = (problem.gram.diagonal() > 0).view(-1, pattern.m).any(-1)
    several = 1
    while math.comb(pattern.m, pattern.n) ** (2 * several) <= MOST_CHOICES:
        several *= 2
    groups, size = clustered(problem.gram, worth, pattern.m, several), several * pattern.m
    used = math.ceil(int(worth.sum()) / several)
    inputs = inputs_of(groups[:used], pattern.m)
    gram = both(problem.gram, inputs)
    live = gram.diagonal() > 0
    gram.diagonal().masked_fill_(~live, 1.0)
    unit = gram.diagonal().rsqrt()
    gram, b = gram * unit[:, None] * unit, columns(problem.linear, inputs) * live * unit
    delta = columns(minorant, inputs) * unit.square()
    objective = 2 * float(problem.objective(start))
    scale, share = outputs(problem.energy, objective)
    dtype, time = search_precision(delta[live], share)
    # Where a large layer is too ill-conditioned for float32 a round takes twice as long, and the solver does not.
    most = 3 * max_rounds // 5 if dtype == torch.float64 and len(gram) >= WORTHWHILE else max_rounds
    rounds = int(min(most, effort / (time * 5.0 * rows * len(gram) ** 3)))
    if rounds < min(FEWEST_ROUNDS, most):
        return None
    delta = torch.where(live, 0.6 * delta, 0.5).to(dtype).view(-1, size)
    choices = choices_of(pattern, several, gram.device)
    first, growth = columns(start, inputs) * live / unit, 0.75 * tolerance * objective / scale**2
    gram, b, energy, first = (x.to(dtype) for x in (gram, b / scale, problem.energy / scale**2, first / scale))
    found = []
    each = 5 * len(gram) ** 2 + 4 * len(choices) * size * len(gram)
    at_once = working_memory(memory, gram.device, 2**24) // (dtype.itemsize * each)
    for part in torch.arange(rows, device=gram.device).split(max(1, at_once)):
        blocks = Blocks(gram, b[part], energy[part], choices, size)
        d = torch.diag_embed(delta).expand(len(part), -1, -1, -1)
        found.append(tighten_blocks(blocks, d, first[part], growth * len(part) / rows, rounds))
    d, u = (torch.cat(tensors).double() for tensors in zip(*found, strict=True))
    d = d / diagonal_blocks(unit[:, None] * unit, size)
    here = live.view(-1, size)
    minorants = d.new_zeros(rows, len(groups), size, size)
    minorants[:, :used] = torch.where(here[:, :, None] & here[:, None, :], (d + d.mT) / 2, 0.0)
    point = d.new_zeros(rows, problem.shape[1] + 1)  # the last column takes what is there of inputs -1: nothing
    point[:, inputs] = u * scale * unit * live
    return {"blocks": minorants, "groups": groups, "point": point[:, :-1].contiguous()}
