"""The small systems of Net-Trim's neurons: the inputs in a support, weighted by what each sample is to the neuron."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from optprune.solvers._net_trim_layer import Layer

CHUNK = 1 << 21
"""Most entries held at once for a chunk of neurons."""

KEPT = 1 << 27
"""Most entries of kept Gram matrices."""

_ROOM = 8  # a share of this more than the first supports need


def packed(mask: Bool[Tensor, "rows n"]) -> tuple[Int[Tensor, "rows width"], Bool[Tensor, "rows width"]]:
    """The positions of the true entries, in order and padded to a common width, and which of them count."""
    count = mask.sum(1)
    width = max(int(count.max()), 1)
    row, position = mask.nonzero(as_tuple=True)
    order = torch.zeros(len(mask), width, dtype=torch.int64, device=mask.device)
    order[row, (mask.cumsum(1) - 1)[row, position]] = position
    return order, torch.arange(width, device=mask.device) < count[:, None]


def chunks(
    support: Bool[Tensor, "rows d"], per_column: int, per_neuron: int = 0, more: Int[Tensor, " rows"] | None = None
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Chunks of neurons of similar size: their rows, the columns of each (padded), and which of these count.

    Args:
        support: the support of each neuron.
        per_column: entries held per column of a support.
        per_neuron: entries held per neuron besides.
        more: what counts like columns of the support, in the size of a neuron.
    """
    count = support.sum(1) if more is None else support.sum(1) + more
    by_size = torch.argsort(count, descending=True)
    sizes = count[by_size].tolist()
    start = 0
    while start < len(sizes):
        part = by_size[start : start + max(CHUNK // (max(sizes[start], 1) * per_column + per_neuron), 1)]
        yield part, *packed(support[part])
        start += len(part)


def _square(lines: Float[Tensor, "part width all"], place: Int[Tensor, "part width"]) -> Tensor:
    """The columns `place` of the lines: a few times faster than by both indices at once."""
    return lines.gather(2, place[:, None, :].expand(-1, place.shape[1], -1))


def backward(factor: Float[Tensor, "part w w"], right: Float[Tensor, "part w k"]) -> Float[Tensor, "part w k"]:
    """The solution for a Cholesky factor: `cholesky_solve` copies the factor, which takes longer than to use it."""
    middle = torch.linalg.solve_triangular(factor, right, upper=False)
    return torch.linalg.solve_triangular(factor.mT, middle, upper=True)


class Systems:
    r"""The parts of $X_S^\top \operatorname{diag}(w) X_S$ per neuron, where $w$ has one value on the active samples
    $\Omega$, one on the tight ones $J$, and one on the rest:

    $$w_r\, G_{SS} + (w_\Omega - w_r)\, G^\Omega_{SS} + (w_J - w_r)\, X_{JS}^\top X_{JS} .$$

    $G = X^\top X$ is common to all neurons. Active samples stay active, so that $G^\Omega$ is kept per neuron, for all
    inputs that its support has held so far. Only the tight samples, which are few, are left to each system. All of it
    is in the layer's precision.

    Args:
        layer: the problem.
        most: inputs in the largest support that is expected.
    """

    def __init__(self, layer: Layer, most: int) -> None:
        self.layer, self.most = layer, most
        out, d = len(layer.targets), layer.inputs.shape[1]
        new = layer.targets.new_zeros
        # Index d is nothing: a row and a column of zeros, for the padding.
        self._shared = new(d + 1, d + 1)
        self._shared[:d, :d] = layer.inputs.gram().to(self._shared.dtype)
        self._place = torch.full((out, d + 1), -1, dtype=torch.int64, device=layer.targets.device)
        self._count = torch.zeros(out, dtype=torch.int64, device=layer.targets.device)
        self._members: Tensor | None = None
        self._kept: Tensor | None = None

    def _allocate(self) -> tuple[Tensor, Tensor]:
        """Room for `most` inputs and some more of every neuron, and one place for the padding."""
        out, d = len(self._count), self._shared.shape[0] - 1
        width = min(self.most + self.most // _ROOM, d, int((KEPT / out) ** 0.5)) + 1
        members = torch.full((out, width), d, dtype=torch.int64, device=self._place.device)
        return members, self._shared.new_empty(out, width, width)

    def prepare(self, rows: Int[Tensor, " rows"], support: Bool[Tensor, "rows d"]) -> None:
        """Keep what systems with these supports will need; supports beyond the room are left out."""
        if self._members is None or self._kept is None:
            self._members, self._kept = self._allocate()
        width, nothing, samples = self._members.shape[1], self._shared.shape[0] - 1, self.layer.inputs.shape[0]
        wanted = self._count[rows] + (support & (self._place[rows, :-1] < 0)).sum(1)
        full = rows[wanted >= width]
        self._place[full], self._count[full] = -1, 0  # with what they held before there is no room
        new = support & (self._place[rows, :-1] < 0)
        wanted = self._count[rows] + new.sum(1)
        grow = ((wanted > self._count[rows]) & (wanted < width)).nonzero()[:, 0]
        for part, order, valid in chunks(new[grow], samples, samples * width):
            own = rows[grow[part]]
            before = self._count[own, None]
            at = torch.where(valid, before + valid.cumsum(1) - 1, width - 1)
            column = torch.where(valid, order, nothing)
            self._members[own[:, None], at] = column
            self._place[own[:, None], column] = at
            self._count[own] += valid.sum(1)
            self._kept[own, -1], self._kept[own, :, -1] = 0.0, 0.0
            held = fresh = self.layer.gather(order, valid)
            old = bool(before.any())
            if old:
                members = self._members[own, : int(self._count[own].max())]
                held = self.layer.gather(members.clamp(max=nothing - 1), members < nothing)
            products = (fresh * self.layer.active[own, None, :]) @ held.mT
            self._kept[own[:, None], at, : products.shape[2]] = products
            if old:
                self._kept[own[:, None], : products.shape[2], at] = products

    def active(self, rows: Tensor, order: Tensor, valid: Tensor) -> Float[Tensor, "part width width"]:
        r"""$G^\Omega_{SS}$, zero in the padding."""
        place = self._place[rows].gather(1, order)
        if self._kept is not None and bool(((place >= 0) | ~valid).all()):
            place = torch.where(valid, place, self._kept.shape[1] - 1)
            return _square(self._kept[rows[:, None], place], place)
        chosen = self.layer.gather(order, valid)
        return (chosen * self.layer.active[rows, None, :]) @ chosen.mT

    def shared(self, order: Tensor, valid: Tensor) -> Float[Tensor, "part width width"]:
        r"""$G_{SS}$, zero in the padding."""
        index = torch.where(valid, order, self._shared.shape[0] - 1)
        return _square(self._shared[index], index)

    def tight(
        self, order: Tensor, valid: Tensor, tight: Bool[Tensor, "part n"]
    ) -> tuple[Float[Tensor, "part width tight"], Int[Tensor, "part tight"], Bool[Tensor, "part tight"]]:
        r"""$X_{JS}^\top$, zero in the padding of both; $J$, padded; and which of it count: none without a support."""
        samples, counts = packed(tight & valid.any(1, keepdim=True))
        return self.layer.gather_at(order, samples).mul_(valid[:, :, None] & counts[:, None, :]), samples, counts
