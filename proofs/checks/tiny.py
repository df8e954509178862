"""Layers small enough to try every support."""

import torch

import optprune as op

SHAPE = (2, 4)
PATTERNS = [
    op.PerLayer(3),
    op.PerRow(2),
    op.NOfM(1, 2),
    op.NOfM(2, 4),
    op.Blocks(1, 2, 2),
    op.Blocks(2, 2, 1),
    op.Rows(1),
    op.Columns(2),
    op.Fixed(torch.tensor([[True, False, True, False], [False, False, True, True]])),
    op.PerLayer(0),
    op.PerLayer(8),
]


def normal(rng: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=rng, dtype=torch.float64)
