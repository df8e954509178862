"""Lower bound for least squares under N:M sparsity, by splitting a block-diagonal minorant off the Hessian."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from optprune.bounds._theorem import theorem
from optprune.numerics.linalg import binary_scale, is_positive_semidefinite_certified
from optprune.numerics.rounding import gamma

LARGEST = 2.0**200
"""Nothing follows from larger numbers, in the scaling that gives the Hessian a diagonal near 1."""

UNDERFLOW = 2.0**-560
"""What all products together can lose to underflow: fewer than 2**60, each by 2**-1074 times two factors up to
2**220."""

_CHUNK = 2**21
"""Numbers in the largest tensor of a chunk of rows."""


@theorem("T10")
def block_minorant_bound(
    gram: Float[Tensor, "in in"],
    cross: Float[Tensor, "in out"],
    energy: Float[Tensor, " out"],
    reference: Float[Tensor, "out in"],
    blocks: Float[Tensor, "*out groups size size"],
    point: Float[Tensor, "out in"],
    choices: Int[Tensor, "choices kept"],
) -> float:
    r"""A number that no weight undercuts whose support is one of the choices in each group of inputs.

    With $\Delta = U - R$, $P = V - R$, $D_r$ block-diagonal, $A_r = H - D_r \succeq 0$ and $g_r = C_r^\top - P_r A_r$,

    $$2 J(U) \ge \sum_r E_r - \sum_r P_r A_r P_r^\top + \sum_{r, B} \min_{S \subset B} v_{rB}(S), \qquad
      v(S) = R_T D_{TT} R_T^\top + 2 g_T R_T^\top - q_S D_{SS}^{-1} q_S^\top, \quad q_S = g_S + R_T D_{TS},$$

    $T = B \setminus S$: as in `minorant_bound`, but what is left after linearising separates over the groups, whose
    supports are few enough to try them all. The rounding error of every step is bounded and subtracted.

    Args:
        gram: $H$.
        cross: $C$.
        energy: $E$ per row.
        reference: $R$.
        blocks: the blocks of $D$, symmetric, for consecutive groups of `size` inputs; one for all rows or one per row,
            with $H - D_r \succeq 0$ (see `proves_blocks`); rows and columns of dead inputs 0 exactly. Everything is
            scaled by powers of two first, so that badly scaled inputs do not weaken the bound.
        point: $V$, any matrix.
        choices: the supports $S$ to try, by the places of their weights in a group.

    Returns:
        The bound on $J$ (half of the display), possibly negative, or minus infinity where nothing is proved.

    Guarantees:
        T10, rounding included.
    """
    rows, size = len(energy), blocks.shape[-1]
    live = gram.diagonal() > 0
    groups = gram.shape[0] // size
    scale = binary_scale(gram.diagonal())
    gram, cross = gram * scale[:, None] * scale, cross * scale[:, None]
    reference = torch.where(live, reference / scale, 0.0)
    step = torch.where(live, point / scale, 0.0) - reference
    cut = scale.view(groups, size)
    filled = blocks * cut[:, :, None] * cut[:, None, :] + torch.diag_embed((~live).double().view(groups, size))
    if not all(bool((x.abs() <= LARGEST).all()) for x in (gram, cross, reference, step, filled)):
        return -math.inf
    smallest = 0.5 * torch.linalg.eigvalsh(filled)[..., 0]
    if not bool((is_positive_semidefinite_certified(filled, smallest) & (smallest >= 1 / LARGEST)).all()):
        return -math.inf
    kept, pruned = choices, _complement(choices, size)
    budget = gamma(gram.shape[0] + size + 4)
    total = torch.zeros((), dtype=torch.float64, device=gram.device)
    off, mass = torch.zeros_like(total), torch.zeros_like(total)
    cells = groups * len(choices) * size * size
    for part in torch.arange(rows, device=gram.device).split(max(1, _CHUNK // cells)):
        d, low = (filled[part], smallest[part]) if blocks.dim() == 4 else (filled, smallest)
        p, r, c = step[part], reference[part], cross.mT[part]
        pg = p.view(-1, groups, size)
        pa = p @ gram - _apply(pg, d).view_as(p)
        g = c - pa
        if bool((g[:, ~live] != 0).any()):  # a weight that is free there would lower the objective without end
            return -math.inf
        slack = 1.01 * budget * (p.abs() @ gram.abs() + _apply(pg.abs(), d.abs()).view_as(p) + c.abs())
        r, g, wobble = (x.view(-1, groups, size) for x in (r, g, slack))
        v, doubt = _values(d, low, r, g, wobble, kept, pruned)
        least = (v - 1.01 * doubt).amin(-1)
        quadratic = p * pa
        total += energy[part].sum() - quadratic.sum() + least.sum()
        off += (p.abs() * slack).sum()
        mass += energy[part].abs().sum() + quadratic.abs().sum() + least.abs().sum()
    bound = 0.5 * float(total - 1.01 * off - 1.01 * gamma(point.numel() + rows * (groups + 1) + 12) * mass - UNDERFLOW)
    return bound if bound < math.inf else -math.inf  # infinite or not a number: overflow


def _values(
    d: Float[Tensor, "*rows groups size size"],
    smallest: Float[Tensor, "*rows groups"],
    r: Float[Tensor, "rows groups size"],
    g: Float[Tensor, "rows groups size"],
    slack: Float[Tensor, "rows groups size"],
    kept: Int[Tensor, "choices kept"],
    pruned: Int[Tensor, "choices pruned"],
) -> tuple[Float[Tensor, "rows groups choices"], Float[Tensor, "rows groups choices"]]:
    r"""$v(S)$ for every choice, and a bound of its error, where `g` is known up to `slack`.

    For any $x$: $q D^{-1} q^\top = 2 x q^\top - x D x^\top + (q - x D) D^{-1} (q - x D)^\top$, so that no solver of
    linear systems is trusted.
    """
    size = g.shape[-1]
    small = 1.01 * gamma(2 * size + 6)
    inner, border = _sub(d, kept, kept), _sub(d, pruned, kept)
    rt, gt, st = (x[..., pruned] for x in (r, g, slack))
    gs, ss = g[..., kept], slack[..., kept]
    q = gs + _apply(rt, border)
    wobble = ss + small * (gs.abs() + _apply(rt.abs(), border.abs()))
    x = torch.linalg.solve(inner, q.unsqueeze(-1)).squeeze(-1)
    xd = _apply(x, inner)
    rest = (q - xd).abs() + wobble + small * (q.abs() + _apply(x.abs(), inner.abs()))
    outer = _sub(d, pruned, pruned)
    terms = (rt * _apply(rt, outer), 2 * gt * rt, -2 * x * q, x * xd)
    value = sum((t.sum(-1) for t in terms), torch.zeros((), dtype=torch.float64, device=g.device))
    remainder = rest.square().sum(-1) / smallest.unsqueeze(-1)
    sizes = (rt.abs() * _apply(rt.abs(), outer.abs()), x.abs() * _apply(x.abs(), inner.abs()))
    mass = sum((t.sum(-1) for t in (*sizes, (2 * gt * rt).abs(), (2 * x * q).abs())), torch.zeros_like(value))
    doubt = (2 * st * rt.abs()).sum(-1) + (2 * x.abs() * wobble).sum(-1) + remainder + small * (mass + remainder)
    return value, doubt


def _apply(x: Float[Tensor, "*batch k"], d: Float[Tensor, "*other k n"]) -> Float[Tensor, "*batch n"]:
    """Row vectors times their matrices."""
    return (x.unsqueeze(-2) @ d).squeeze(-2)


def _sub(
    d: Float[Tensor, "*rows groups size size"], rows: Int[Tensor, "choices a"], columns: Int[Tensor, "choices b"]
) -> Float[Tensor, "*rows groups choices a b"]:
    """The submatrices of each choice."""
    return d[..., rows[:, :, None], columns[:, None, :]]


def _complement(choices: Int[Tensor, "choices kept"], size: int) -> Int[Tensor, "choices pruned"]:
    """The places of a group that each choice leaves out."""
    out = torch.ones(len(choices), size, dtype=torch.bool, device=choices.device)
    out.scatter_(1, choices, False)
    return out.nonzero()[:, 1].view(len(choices), -1)
