"""Arithmetic of many small square blocks; blocks of one number go elementwise, where batched routines would crawl."""

import torch
from jaxtyping import Float
from torch import Tensor


def diagonal_blocks(matrix: Float[Tensor, "*batch c c"], width: int) -> Float[Tensor, "*batch u w w"]:
    """A copy of the blocks of this width on the diagonal."""
    tiles = matrix.unflatten(-1, (-1, width)).unflatten(-3, (-1, width))
    return tiles.diagonal(dim1=-4, dim2=-2).movedim(-1, -3).clone()


def root(blocks: Float[Tensor, "*batch w w"]) -> Float[Tensor, "*batch w w"]:
    """Lower Cholesky factors; NaN where a block is not positive definite."""
    if blocks.shape[-1] == 1:
        return blocks.sqrt()
    factor, failed = torch.linalg.cholesky_ex(blocks)
    return factor.masked_fill_((failed > 0)[..., None, None], torch.nan)


def divided(factor: Float[Tensor, "*batch w w"], rows: Float[Tensor, "*batch w c"]) -> Float[Tensor, "*batch w c"]:
    r"""$L^{-1} R$ per block."""
    if factor.shape[-1] == 1:
        return rows / factor
    return torch.linalg.solve_triangular(factor, rows, upper=False)


def times(left: Float[Tensor, "*#batch w w"], right: Float[Tensor, "*#batch w w"]) -> Float[Tensor, "*#batch w w"]:
    r"""$A B$ per block."""
    return left * right if left.shape[-1] == 1 else left @ right


def ratio(below: Float[Tensor, "*#batch w w"], above: Float[Tensor, "*#batch w w"]) -> Float[Tensor, "*#batch"]:
    r"""$\operatorname{tr}(D^{-1} N)$ per block, for positive definite $D$; NaN where it is not."""
    if below.shape[-1] == 1:
        return above[..., 0, 0] / below[..., 0, 0]
    return torch.cholesky_solve(above, root(below)).diagonal(dim1=-2, dim2=-1).sum(-1)
