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


class Systems:
    r"""The parts of $X_S^\top \operatorname{diag}(w) X_S$ per neuron, where $w$ has one value on the active samples
    $\Omega$, one on the tight ones $J$, and one on the rest:

    $$w_r\, G_{SS} + (w_\Omega - w_r)\, G^\Omega_{SS} + (w_J - w_r)\, X_{JS}^\top X_{JS} .$$

    $G = X^\top X$ is common to all neurons. Active samples stay active, so that $G^\Omega$ is kept per neuron, for all
    inputs that its support has held so far. Only the tight samples, which are few, are left to each system.
    """

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        out, d = len(layer.targets), layer.inputs.shape[1]
        new = layer.targets.new_zeros
        # Index d is nothing: a row and a column of zeros, for the padding.
        self._shared = new(d + 1, d + 1)
        self._shared[:d, :d] = layer.inputs.gram()
        self._place = torch.full((out, d + 1), -1, dtype=torch.int64, device=layer.targets.device)
        self._count = torch.zeros(out, dtype=torch.int64, device=layer.targets.device)
        self._members: Tensor | None = None
        self._kept: Tensor | None = None

    def _allocate(self, count: int) -> tuple[Tensor, Tensor]:
        """Room for `count` inputs and some more of every neuron, and one place for the padding."""
        out, d = len(self._count), self._shared.shape[0] - 1
        width = min(count + count // _ROOM, d, int((KEPT / out) ** 0.5)) + 1
        members = torch.full((out, width), d, dtype=torch.int64, device=self._place.device)
        return members, self._shared.new_zeros(out, width, width)

    def prepare(self, rows: Int[Tensor, " rows"], support: Bool[Tensor, "rows d"]) -> None:
        """Keep what systems with these supports will need; supports beyond the room are left out."""
        if self._members is None or self._kept is None:
            self._members, self._kept = self._allocate(int(support.sum(1).max()))
        width, nothing, samples = self._members.shape[1], self._shared.shape[0] - 1, self.layer.inputs.shape[0]
        wanted = self._count[rows] + (support & (self._place[rows, :-1] < 0)).sum(1)
        full = rows[wanted >= width]
        self._place[full], self._count[full] = -1, 0  # with what they held before there is no room
        new = support & (self._place[rows, :-1] < 0)
        wanted = self._count[rows] + new.sum(1)
        grow = ((wanted > self._count[rows]) & (wanted < width)).nonzero()[:, 0]
        for part, order, valid in chunks(new[grow], samples, samples * width):
            own = rows[grow[part]]
            at = torch.where(valid, self._count[own, None] + valid.cumsum(1) - 1, width - 1)
            column = torch.where(valid, order, nothing)
            self._members[own[:, None], at] = column
            self._place[own[:, None], column] = at
            self._count[own] += valid.sum(1)
            members = self._members[own, : int(self._count[own].max())]
            held = self.layer.gather(members.clamp(max=nothing - 1), members < nothing)
            fresh = self.layer.gather(order, valid) * self.layer.active[own, None, :]
            products = fresh @ held.mT
            self._kept[own[:, None], at, : members.shape[1]] = products
            self._kept[own[:, None], : members.shape[1], at] = products

    def active(self, rows: Tensor, order: Tensor, valid: Tensor) -> Float[Tensor, "part width width"]:
        r"""$G^\Omega_{SS}$, zero in the padding."""
        place = self._place[rows].gather(1, order)
        if self._kept is not None and bool(((place >= 0) | ~valid).all()):
            place = torch.where(valid, place, self._kept.shape[1] - 1)
            return self._kept[rows[:, None, None], place[:, :, None], place[:, None, :]]
        chosen = self.layer.gather(order, valid)
        return (chosen * self.layer.active[rows, None, :]) @ chosen.mT

    def shared(self, order: Tensor, valid: Tensor) -> Float[Tensor, "part width width"]:
        r"""$G_{SS}$, zero in the padding."""
        index = torch.where(valid, order, self._shared.shape[0] - 1)
        return self._shared[index[:, :, None], index[:, None, :]]

    def tight(
        self, order: Tensor, valid: Tensor, tight: Bool[Tensor, "part n"]
    ) -> tuple[Float[Tensor, "part width tight"], Int[Tensor, "part tight"], Bool[Tensor, "part tight"]]:
        r"""$X_{JS}^\top$, zero in the padding of both; $J$, padded; and which of it count: none without a support."""
        samples, counts = packed(tight & valid.any(1, keepdim=True))
        return self.layer.gather_at(order, samples).mul_(valid[:, :, None] & counts[:, None, :]), samples, counts
