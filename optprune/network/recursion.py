"""From what a walk through the network noted to a bound of its output's discrepancy."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, fx
from torch.fx.node import map_arg

from optprune.bounds.propagation import added, affine, convolution_gain, plus, stacked, through, times, up
from optprune.network.lipschitz import UnknownError
from optprune.network.walk import Note, Walk
from optprune.numerics.linalg import spectral_norm
from optprune.numerics.rounding import gamma

Terms = dict[str, dict[str, float]]


@dataclass(frozen=True)
class _Behind:
    """A pruned layer and what follows it, as one map: its gain, what comes into it, what its run lost to rounding."""

    gain: float
    incoming: float
    lost: float


class Recursion:
    """The discrepancies of all values, each from those before it.

    Behind a pruned layer there are two bounds, and the smaller one counts: the constant of the last operation times the
    discrepancy of its input; and, with the layer and all that follows it taken as one map, that map's gain times what
    comes into the layer, plus the layer's own error behind it.

    Guarantees:
        T04 (a), (c), (d), (e), (g).
    """

    def __init__(self, walk: Walk) -> None:
        self._walk = walk
        self._discrepancy: dict[fx.Node, float] = {}
        self._behind: dict[fx.Node, _Behind] = {}
        self._gains: dict[str, float] = {}
        self.terms: Terms = {}

    def bound(self) -> float:
        """The discrepancy of what the network returns.

        Raises:
            UnknownError: the graph has no output.
        """
        for node, note in self._walk.notes.items():
            if node.op == "output":
                returned: list[fx.Node] = []
                map_arg(node.args, returned.append)
                return stacked([self._of(source) for source in returned])
            if node in self._walk.touched:
                affine_layer = self._walk.adapter(node) is not None
                self._discrepancy[node] = self._layer(node, note) if affine_layer else self._operation(node, note)
        raise UnknownError("the traced graph has no output")

    def own_error(self, node: fx.Node) -> float:
        """What the pruned layer before an operation, or at it, changes there by itself, rounding included."""
        return plus(_local(self._walk.notes[node]), self._behind[node].lost)

    def _operation(self, node: fx.Node, note: Note) -> float:
        """Behind an operation that both networks share."""
        passed = [through(constant, self._of(source)) for source, constant in note.factors.items()]
        combined = stacked(passed) if note.combine == "stack" else added(passed)
        size = [times(constant, self._norm(source)) for source, constant in note.factors.items()]
        lost = times(2 * gamma(note.roundings), plus(self._norm(node), *size, combined, up(math.sqrt(note.offset))))
        plain = plus(combined, lost)
        before = None if note.origin is None else self._behind.get(note.origin)
        if before is None or note.origin is None:
            return plain
        constant = note.factors[note.origin]
        behind = _Behind(times(constant, before.gain), before.incoming, plus(times(constant, before.lost), lost))
        self._behind[node] = behind
        return min(plain, affine(behind.gain, behind.incoming, plus(_local(note), behind.lost)))

    def _layer(self, node: fx.Node, note: Note) -> float:
        """Behind an affine layer, pruned or left as it is: gain times what comes in, plus its own error."""
        name, source = str(node.target), node.all_input_nodes[0]
        incoming, local = self._of(source), _local(note)
        if name in self._walk.measured:
            behind = _Behind(0.0, incoming, 0.0)
        else:
            gain = convolution_gain(self._spectral(name), note.multiplicity)
            behind = _Behind(gain, incoming, self._lost(name, note, self._norm(source), incoming))
        result = affine(behind.gain, incoming, plus(local, behind.lost))
        if name in self._walk.pruned:
            self._behind[node] = behind
            term = {"gain": behind.gain, "incoming": incoming, "local": local, "bound": result}
            worst = self.terms.get(name, term)
            self.terms[name] = {key: max(value, worst[key]) for key, value in term.items()}
        return result

    def _spectral(self, name: str) -> float:
        if name not in self._gains:
            adapter = self._walk.pruned.get(name, self._walk.dense[name])
            self._gains[name] = float(spectral_norm(adapter.matrix(adapter.module.weight.detach())).max())
        return self._gains[name]

    def _lost(self, name: str, note: Note, size: float, incoming: float) -> float:
        r"""Rounding of the two products and of their difference: $\gamma_{d+3}$ times sums of magnitudes."""
        dense = self._walk.dense[name]
        pair = (dense, self._walk.pruned.get(name, dense))
        weights = plus(*(_frobenius(adapter.module.weight) for adapter in pair))
        biases = plus(*(_frobenius(adapter.module.bias) for adapter in pair))
        reach = times(convolution_gain(weights, note.multiplicity), plus(size, incoming))
        return times(2 * gamma(dense.shape[1] + 3), plus(reach, times(up(math.sqrt(note.rows)), biases)))

    def _of(self, node: fx.Node) -> float:
        return self._discrepancy.get(node, 0.0)

    def _norm(self, node: fx.Node) -> float:
        return math.sqrt(self._walk.notes[node].squares) * (1 + 2.0**-20)


def _local(note: Note) -> float:
    return up(math.sqrt(note.local * (1 + 2 * gamma(note.entries + 2))))


def _frobenius(tensor: Tensor | None) -> float:
    return 0.0 if tensor is None else float(tensor.detach().norm()) * (1 + 2.0**-20)
