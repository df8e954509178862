"""The lower bound with block-diagonal minorants in rational arithmetic."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from optprune.bounds._theorem import theorem
from optprune.certify._exact_least_squares import witness, witnessed
from optprune.numerics.dyadic import Dyadic, Enclosure
from optprune.numerics.linalg import binary_scale, diagonal_blocks


@theorem("T10")
def exact_block_bound(
    gram: Float[Tensor, "in in"],
    cross: Float[Tensor, "in out"],
    energy: Float[Tensor, " out"],
    reference: Float[Tensor, "out in"],
    blocks: Float[Tensor, "*out blocks size size"],
    point: Float[Tensor, "out in"],
    choices: Int[Tensor, "choices kept"],
) -> Enclosure:
    r"""The lower bound of `block_minorant_bound`, without rounding, with its hypotheses proved exactly; 0 if they are
    not. Arguments as there.

    All terms but $q D_{SS}^{-1} q^\top$ are exact; that one lies between $2 x q^\top - x D x^\top$ for any $x$, here
    the solution in float64, and the same plus $\lVert q - x D \rVert^2 / \mu$, where $D_{BB} \succeq \mu I$.

    Guarantees:
        T10.
    """
    zero, rows, size = Enclosure.point(0), len(energy), blocks.shape[-1]
    if gram.shape[0] != blocks.shape[-3] * size or blocks.shape[-2] != size:
        return zero
    live, shape = gram.diagonal() > 0, (rows, blocks.shape[-3], size)
    scale = binary_scale(gram.diagonal())
    cut = Dyadic.of(scale.view(shape[1:]))
    scaled = Dyadic.of(gram) * Dyadic.of(scale)[:, None] * Dyadic.of(scale)[None, :]
    d = Dyadic.of(blocks.expand(rows, *blocks.shape[-3:])) * cut[:, :, None] * cut[:, None, :]
    if not _proves(gram, blocks, scaled, d, scale):
        return zero
    dead = Dyadic(np.eye(size, dtype=int).astype(object), 0) * Dyadic.of((~live).double().view(shape[1:]))[:, :, None]
    filled = d + dead
    least = _least(filled)
    if least is None:
        return zero
    inverse_scale = Dyadic.of(1 / scale)
    r = (Dyadic.of(reference) * inverse_scale).where(live)
    step = (Dyadic.of(point - reference) * inverse_scale).where(live)
    pa = step @ scaled - _cut(_apply(_cut(step, shape), d), (rows, len(gram)))
    g = Dyadic.of(cross).mT * Dyadic.of(scale) - pa
    if bool((g.digits[:, (~live).numpy()] != 0).any()):
        return zero
    fixed = (Dyadic.of(energy).sum() - (step * pa).sum()).item()
    low, high = _minimum(filled, least, _cut(r, shape), _cut(g, shape), choices.tolist())
    return Enclosure((fixed + low) / 2, (fixed + high) / 2).clipped().shortened()


def _minimum(
    d: Dyadic, least: Float[Tensor, "rows groups"], r: Dyadic, g: Dyadic, choices: list[list[int]]
) -> tuple[Fraction, Fraction]:
    """The sum over rows and groups of the least value of a choice, from below and above."""
    inverse = Dyadic.of(1 / least)
    lows, highs = [], []
    for kept in choices:
        out = [place for place in range(d.shape[-1]) if place not in kept]
        inner, border, outer = (d[..., a, :][..., b] for a, b in ((kept, kept), (out, kept), (out, out)))
        rt, gt = r[..., out], g[..., out]
        q = g[..., kept] + _apply(rt, border)
        x = Dyadic.of(torch.linalg.solve(_floats(inner), _floats(q).unsqueeze(-1)).squeeze(-1))
        xd = _apply(x, inner)
        value = (rt * _apply(rt, outer)).sum(-1) + (gt * rt).sum(-1) + (gt * rt).sum(-1)
        value = value - (x * q).sum(-1) - (x * q).sum(-1) + (x * xd).sum(-1)
        rest = q - xd
        highs.append(value[None])
        lows.append((value - (rest * rest).sum(-1) * inverse)[None])
    low, high = ((-(-Dyadic.stacked(values)).max(0)).sum().item() for values in (lows, highs))
    return low, high


def _least(d: Dyadic) -> Float[Tensor, "rows groups"] | None:
    r"""Powers of two $\mu$ with $D_{BB} \succeq \mu I$, proved exactly by some $L$ with
    $\lVert D - \tfrac32 \mu I - L L^\top \rVert_F \le \mu / 2$. None where that fails.
    """
    approximate = _floats(d)
    smallest = torch.linalg.eigvalsh(approximate)[..., 0]
    if not bool((smallest > 0).all()):
        return None
    mu = 0.25 / binary_scale(smallest).square()
    eye = torch.eye(d.shape[-1], dtype=torch.float64)
    factor, _ = torch.linalg.cholesky_ex(approximate - 1.5 * mu[..., None, None] * eye)
    lower = Dyadic.of(factor.tril().nan_to_num(0.0, 0.0, 0.0))
    product = (lower[..., :, None, :] * lower[..., None, :, :]).sum(-1)
    rest = d - Dyadic.of(1.5 * mu[..., None, None] * eye) - product
    excess = (rest * rest).sum(-1).sum(-1) - Dyadic.of(0.5 * mu) * Dyadic.of(0.5 * mu)
    return mu if bool((excess.digits <= 0).all()) else None


def _proves(
    gram: Float[Tensor, "in in"],
    blocks: Float[Tensor, "*out groups size size"],
    scaled: Dyadic,
    d: Dyadic,
    scale: Float[Tensor, " in"],
) -> bool:
    """Whether the Hessian less every row's blocks is positive semidefinite, as `proves_minorant_exactly` does."""
    live, size = gram.diagonal() > 0, blocks.shape[-1]
    dead = ~live.view(-1, size)
    several = blocks.reshape(-1, *blocks.shape[-3:])
    wrong = (blocks != blocks.mT).any() | (several[:, dead] != 0).any() | (gram[~live] != 0).any()
    if bool(wrong | (gram != gram.mT).any()):
        return False
    alive = live.nonzero().squeeze(-1).numpy()
    near = gram * scale[:, None] * scale
    places = diagonal_blocks(torch.arange(gram.numel()).view_as(gram), size).numpy()
    for index in range(len(several)):
        rest = near.clone()
        diagonal_blocks(rest, size).sub_(_floats(d[index]))
        taken = np.zeros(gram.numel(), dtype=object)
        taken[places.ravel()] = d[index].digits.ravel()
        left = scaled - Dyadic(taken.reshape(gram.shape), d.exponent)
        shift, factor = witness(rest[live][:, live][None])
        if not witnessed(left[alive][:, alive], shift[0], factor[0]):
            return False
    return True


def _cut(x: Dyadic, shape: tuple[int, ...]) -> Dyadic:
    return Dyadic(x.digits.reshape(shape), x.exponent)


def _apply(x: Dyadic, d: Dyadic) -> Dyadic:
    """Row vectors times their matrices."""
    return (x[..., :, None] * d).sum(-2)


def _floats(x: Dyadic) -> Tensor:
    """The nearest float64 numbers."""
    values = [float(value) for value in x.fractions()]
    return torch.tensor(values, dtype=torch.float64).view(x.shape)
