"""Where the pruned network is a plain chain of layers, what the sources' closed forms need of it."""

from __future__ import annotations

from torch import Tensor, fx
from torch.fx.node import map_arg

from optprune.bounds.net_trim import ParallelBounds, parallel_bounds
from optprune.bounds.propagation import up
from optprune.network.recursion import Recursion
from optprune.network.walk import Note, Walk


def chain_errors(walk: Walk, recursion: Recursion) -> dict[str, float]:
    r"""$e_l$ by layer: what each pruned layer alone changes, behind the maps up to the next one.

    Empty unless everything from the first pruned layer on is a chain: pruned layers that are one product of rows with a
    matrix, each met once, maps that expand nothing between and behind them, and the end of it is what is returned. It
    is empty in cascade mode, where the discrepancy is measured behind every layer.
    """
    errors: dict[str, float] = {}
    name, last = "", None
    for node, note in walk.notes.items():
        if node.op == "output":
            returned: list[fx.Node] = []
            map_arg(node.args, returned.append)
            return errors if returned == [last] else {}
        if node not in walk.touched:
            continue
        if [source for source in node.all_input_nodes if source in walk.touched] != ([] if last is None else [last]):
            return {}
        if walk.adapter(node) is not None:
            name = str(node.target)
            if name in errors or not _is_product(walk, name, note):
                return {}
        elif note.origin is None or max(note.factors.values()) > up(1.0):  # a constant of 1 is noted rounded up
            return {}
        errors[name], last = recursion.own_error(node), node
    return {}


def closed_forms(walk: Walk, errors: dict[str, float], size: float) -> ParallelBounds:
    """The sources' bounds of a chain, from `chain_errors`.

    Guarantees:
        T07 (a).
    """
    return parallel_bounds(
        list(errors.values()),
        [_weight(walk.dense[name].module.weight) for name in errors],
        [_weight(walk.pruned[name].module.weight) for name in errors],
        size,
    )


def _is_product(walk: Walk, name: str, note: Note) -> bool:
    """A pruned layer in parallel mode whose rows are multiplied by one matrix, no input entry in two rows."""
    layer = walk.pruned.get(name)
    return layer is not None and name not in walk.measured and note.multiplicity == 1 and layer.groups == 1


def _weight(weight: Tensor) -> Tensor:
    return weight.detach().flatten(1)
