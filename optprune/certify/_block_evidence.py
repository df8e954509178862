"""Blocks in the evidence: which groups lie in which block, and whether the Hessian less them is semidefinite."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from optprune.bounds._theorem import theorem
from optprune.numerics.linalg import binary_scale, diagonal_blocks, is_positive_semidefinite_certified
from optprune.numerics.rounding import UNIT
from optprune.numerics.working_memory import working_memory
from optprune.patterns import NOfM
from optprune.problems.least_squares import L0LeastSquares

MOST = 2**14
"""Supports of a block, at most: all are tried."""


class Blocked(NamedTuple):
    """What `block_minorant_bound` and `exact_block_bound` take, inputs in the order of the blocks."""

    gram: Float[Tensor, "in in"]
    cross: Float[Tensor, "in out"]
    energy: Float[Tensor, " out"]
    reference: Float[Tensor, "out in"]
    blocks: Float[Tensor, "*out blocks size size"]
    point: Float[Tensor, "out in"]
    choices: Int[Tensor, "choices kept"]


def choices_of(pattern: NOfM, several: int = 1, device: torch.device | None = None) -> Int[Tensor, "choices kept"]:
    """The supports of a block of so many groups, by places: every choice of n places of m in each."""
    one = list(itertools.combinations(range(pattern.m), pattern.n))
    every = [
        [number * pattern.m + place for number, group in enumerate(groups) for place in group]
        for groups in itertools.product(one, repeat=several)
    ]
    return torch.tensor(every, dtype=torch.long, device=device).view(len(every), several * pattern.n)


def inputs_of(groups: Int[Tensor, "blocks several"], size: int) -> Int[Tensor, " places"]:
    """The inputs in the order of the blocks: those of groups of so many consecutive ones; -1 for those of group -1."""
    inputs = groups.flatten()[:, None] * size + torch.arange(size, device=groups.device)
    return torch.where(groups.flatten()[:, None] >= 0, inputs, -1).flatten()


def columns(x: Float[Tensor, "*rows in"], inputs: Int[Tensor, " places"]) -> Float[Tensor, "*rows places"]:
    """The columns of these inputs, 0 for -1."""
    return pad(x, (0, 1))[..., inputs]


def both(x: Float[Tensor, "in in"], inputs: Int[Tensor, " places"]) -> Float[Tensor, "places places"]:
    """The rows and columns of these inputs of a symmetric matrix."""
    return columns(columns(x, inputs).mT, inputs)


def blocked(problem: L0LeastSquares, evidence: Mapping[str, Tensor]) -> Blocked | None:
    """The problem and the evidence as blocks of groups.

    `groups` holds, for every block, the groups of m consecutive inputs in it, and -1 where a block has fewer: inputs of
    which there is nothing, dead ones. Without it each group is a block. None where not each group is in it once, where
    a block has more supports than `MOST`, or where another shape or type does not fit.
    """
    pattern, (rows, width), blocks, point = problem.pattern, problem.shape, evidence["blocks"], evidence["point"]
    if not isinstance(pattern, NOfM) or blocks.dim() not in (3, 4) or point.shape != problem.shape:
        return None
    each = torch.arange(width // pattern.m, device=blocks.device)
    groups = evidence.get("groups", each[:, None])
    if groups.dim() != 2 or groups.dtype != torch.int64 or not torch.equal(groups[groups != -1].sort().values, each):
        return None
    (count, several), size = groups.shape, groups.shape[1] * pattern.m
    if math.comb(pattern.m, pattern.n) ** several > MOST:
        return None
    if blocks.shape not in ((count, size, size), (rows, count, size, size)):
        return None
    s, inputs = problem.statistics, inputs_of(groups, pattern.m)
    return Blocked(
        both(problem.gram, inputs),
        columns(s.cross.mT, inputs).mT,
        s.energy,
        columns(s.reference, inputs),
        blocks.double(),
        columns(point.double(), inputs),
        choices_of(pattern, several, blocks.device),
    )


@theorem("T10")
def proves_blocks(
    gram: Float[Tensor, "in in"], blocks: Float[Tensor, "*out blocks size size"], memory: int | None = None
) -> bool:
    r"""Whether $H - D_r \succeq 0$ is proved in floating point for every row, $D_r$ with these diagonal blocks.

    Blocks must be symmetric to the last bit, and 0 exactly in the rows and columns of dead inputs; whether they are
    positive definite, `block_minorant_bound` looks itself.

    Args:
        gram: $H$.
        blocks: one set for all rows or one per row.
        memory: bytes for the matrices of a chunk of rows; see `working_memory`.
    """
    count, size = blocks.shape[-3:-1]
    if gram.shape[0] != count * size or not bool(blocks.isfinite().all() & (blocks == blocks.mT).all()):
        return False
    live = gram.diagonal() > 0
    several = blocks.reshape(-1, count, size, size)
    dead = ~live.view(count, size)
    if bool((gram[~live] != 0).any() | (gram != gram.mT).any() | (several[:, dead] != 0).any()):
        return False
    scale = binary_scale(gram.diagonal())
    scaled, cut = gram * scale[:, None] * scale[None, :], scale.view(count, size)
    at_once = working_memory(memory, gram.device, 2**24) // (40 * len(gram) ** 2)
    for part in (several * cut[:, :, None] * cut[:, None, :]).split(max(1, at_once)):
        rest = scaled.expand(len(part), *scaled.shape).clone()
        inner = diagonal_blocks(rest, size)
        # Every entry rounds once and those on the diagonal twice: less than 4 UNIT of their sizes, summed over a row.
        shift = 4 * UNIT * (inner.abs() + part.abs()).sum(-1)
        inner.sub_(part)
        rest.diagonal(dim1=-2, dim2=-1).sub_(shift.view(len(part), -1))
        if not bool(is_positive_semidefinite_certified(rest[:, live][:, :, live]).all()):
            return False
    return True
