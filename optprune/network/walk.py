"""One run of the dense network, operation by operation, that notes what bounds the discrepancy of every value."""

from __future__ import annotations

import inspect
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from optprune.bounds.propagation import added, affine, convolution_gain, plus, stacked, through, times, up
from optprune.errors import UnsupportedError
from optprune.network.calibration import tensors_of
from optprune.network.layers import Adapter, adapter_for, candidates, named_adapters
from optprune.network.lipschitz import Call, Step, UnknownError, reads_shape, step_of
from optprune.numerics.linalg import spectral_norm
from optprune.numerics.rounding import gamma


@dataclass
class Note:
    """What the walk learns of one operation, over all batches."""

    squares: float = 0.0
    factors: dict[fx.Node, float] = field(default_factory=dict)
    parts: int = 0
    combine: str = "add"
    roundings: int = 0
    offset: float = 0.0
    multiplicity: int = 1
    local: float = 0.0
    rows: int = 0
    entries: int = 0


class Walk(fx.Interpreter):
    """Runs the dense network operation by operation and notes norms and constants of what pruning touches."""

    def __init__(
        self, traced: fx.GraphModule, wide: nn.Module, thin: nn.Module, names: Sequence[str], cascade: bool
    ) -> None:
        super().__init__(traced)
        self.extra_traceback = False
        self.measured = tuple(names) if cascade else ()
        self._pruned = named_adapters(thin, names)
        self._dense = _affine_layers(wide)
        self._signature = inspect.signature(wide.forward)
        self._gains: dict[str, float] = {}
        self._seen: dict[tuple[str, tuple[int, ...]], int] = {}
        self._notes: dict[fx.Node, Note] = defaultdict(Note)
        self._kept: Mapping[str, list[Tensor]] = {}
        self._touched: set[fx.Node] = set()
        for node in traced.graph.nodes:
            inputs = any(source in self._touched for source in node.all_input_nodes)
            if (inputs and not reads_shape(node)) or self._is_pruned(node):
                self._touched.add(node)

    def visit(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any, kept: Mapping[str, list[Tensor]]
    ) -> None:
        """One run, on the arguments of one call of the model; its output must be what the model returned.

        Raises:
            UnknownError: it is not (tracing does not see what happens in place), or an operation has no rule.
        """
        self._kept = kept
        values = self._signature.bind(*args, **kwargs)
        values.apply_defaults()
        kinds = {p.kind for p in self._signature.parameters.values()}
        if kinds & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}:
            raise UnknownError("the model's forward takes *args or **kwargs, which a traced graph does not name")
        again = self.run(*values.arguments.values())
        pairs = zip_longest(tensors_of(output), tensors_of(again))
        if not all(a is not None and b is not None and torch.allclose(a, b, rtol=1e-9, atol=0) for a, b in pairs):
            raise UnknownError("the traced graph does not compute what the model does (does it work in place?)")

    def run_node(self, n: fx.Node) -> Any:
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        # Before it runs: it may change its arguments in place.
        layer = self._enter(n, args) if n in self._touched and n.op == "call_module" else None
        result = super().run_node(n)
        note = self._notes[n]
        if isinstance(result, Tensor) and result.is_floating_point():
            note.squares += float(result.double().square().sum())
        if n in self._touched and n.op != "output" and layer is None:
            self._note(n, args, kwargs, result)
        elif layer is not None and n.target in self.measured:
            self._add_local(note, self._kept[str(n.target)].pop(0) - result)
        return result

    def bound(self) -> tuple[float, dict[str, dict[str, float]]]:
        """The discrepancy of the output, and per pruned layer what it is made of."""
        discrepancy: dict[fx.Node, float] = {}
        terms: dict[str, dict[str, float]] = {}
        for node in self._notes:
            note = self._notes[node]
            if node.op == "output":
                returned: list[fx.Node] = []
                map_arg(node.args, returned.append)
                return stacked([discrepancy.get(source, 0.0) for source in returned]), terms
            if node not in self._touched:
                continue
            if self._adapter(node) is not None:
                discrepancy[node] = self._through_layer(node, note, discrepancy, terms)
            else:
                sources = [through(c, discrepancy.get(source, 0.0)) for source, c in note.factors.items()]
                combined = stacked(sources) if note.combine == "stack" else added(sources)
                size = [times(c, self._norm(source)) for source, c in note.factors.items()]
                lost = 2 * gamma(note.roundings) * plus(self._norm(node), *size, combined, math.sqrt(note.offset))
                discrepancy[node] = plus(combined, lost)
        raise UnknownError("the traced graph has no output")

    def _through_layer(
        self, node: fx.Node, note: Note, discrepancy: Mapping[fx.Node, float], terms: dict[str, dict[str, float]]
    ) -> float:
        """A pruned layer, or an affine one left as it is: gain times what comes in, plus its own error."""
        name = str(node.target)
        source = node.all_input_nodes[0]
        incoming = discrepancy.get(source, 0.0)
        dense = self._adapter(node)
        assert dense is not None
        pruned = self._pruned.get(name, dense)
        if name not in self._gains:
            self._gains[name] = float(spectral_norm(pruned.matrix(pruned.module.weight.detach())).max())
        gain = convolution_gain(self._gains[name], note.multiplicity)
        lost = self._lost(note, dense, pruned, self._norm(source), incoming)
        local = up(math.sqrt(note.local * (1 + 2 * gamma(note.entries + 2))))
        if name in self.measured:
            result, gain = local, 0.0
        else:
            result = affine(gain, incoming, plus(local, lost))
        if name in self._pruned:
            worst = terms.get(name, {}).get("bound", 0.0)
            terms[name] = {"gain": gain, "local": local, "bound": max(worst, result)}
        return result

    def _lost(self, note: Note, dense: Adapter, pruned: Adapter, size: float, incoming: float) -> float:
        r"""Rounding of the two products and of their difference: $\gamma_{d+3}$ times sums of magnitudes."""
        weights = plus(*(_frobenius(adapter.module.weight) for adapter in (dense, pruned)))
        biases = plus(*(_frobenius(adapter.module.bias) for adapter in (dense, pruned)))
        reach = times(convolution_gain(weights, note.multiplicity), plus(size, incoming))
        return times(2 * gamma(dense.shape[1] + 3), plus(reach, times(math.sqrt(note.rows), biases)))

    def _enter(self, node: fx.Node, args: tuple[Any, ...]) -> Adapter | None:
        """Note what a layer with an adapter is about to see."""
        adapter = self._adapter(node)
        if adapter is None or len(node.all_input_nodes) != 1 or not args:
            return None
        note, x, name = self._notes[node], args[0], str(node.target)
        key = (name, adapter.spatial(x))
        if key not in self._seen:
            self._seen[key] = adapter.multiplicity(key[1])
        note.multiplicity = max(note.multiplicity, self._seen[key])
        note.rows += adapter.samples(x).shape[0] * adapter.rows_per_sample(x)
        if name in self._pruned and name not in self.measured:
            self._add_local(note, torch.func.functional_call(adapter.module, self._change(name), (x,)))
        return adapter

    @staticmethod
    def _add_local(note: Note, difference: Tensor) -> None:
        note.local += float(difference.square().sum())
        note.entries += difference.numel()

    def _change(self, name: str) -> dict[str, Tensor]:
        """Parameters of the difference between the pruned layer and the dense one."""
        old = dict(self._dense[name].module.named_parameters(recurse=False))
        new = dict(self._pruned[name].module.named_parameters(recurse=False))
        return {kind: (new[kind] - old[kind]).detach() for kind in old}

    def _note(self, node: fx.Node, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> None:
        module = self.module.get_submodule(str(node.target)) if node.op == "call_module" else None
        sources = tuple(source for source in node.all_input_nodes if source in self._touched)
        try:
            if not isinstance(result, Tensor):
                raise UnknownError("its result is no tensor")
            if not sources:
                raise UnknownError("it reads the parameters of a pruned layer directly")
            step = step_of(Call(node, module, args, kwargs, result, sources))
        except UnknownError as error:
            what = type(module).__name__ if module is not None else getattr(node.target, "__name__", node.target)
            raise UnknownError(f"operation '{node.name}' ({what}): {error}") from error
        self._record(self._notes[node], step)

    @staticmethod
    def _record(note: Note, step: Step) -> None:
        """Keep the largest constants over the batches; squares of offsets add."""
        once: dict[fx.Node, float] = {}
        for source, constant in step.factors:
            if step.combine == "stack":
                once[source] = stacked([once.get(source, 0.0), constant])
            else:
                once[source] = added([once.get(source, 0.0), constant])
        for source, constant in once.items():
            note.factors[source] = max(note.factors.get(source, 0.0), constant)
        note.combine, note.roundings = step.combine, max(note.roundings, step.roundings)
        note.offset += step.offset**2

    def _adapter(self, node: fx.Node) -> Adapter | None:
        """The adapter of an affine layer, pruned or left as it is."""
        return self._dense.get(str(node.target)) if node.op == "call_module" else None

    def _is_pruned(self, node: fx.Node) -> bool:
        """Whether a node calls a pruned layer or reads one of its parameters."""
        name = str(node.target)
        if node.op == "get_attr":
            return name.rpartition(".")[0] in self._pruned
        return node.op == "call_module" and name in self._pruned

    def _norm(self, node: fx.Node) -> float:
        return math.sqrt(self._notes[node].squares) * (1 + 2.0**-20)


def _affine_layers(model: nn.Module) -> dict[str, Adapter]:
    """Adapters of the layers that are a product with a matrix and nothing else."""
    found = {}
    for name in candidates(model):
        try:
            found[name] = adapter_for(model.get_submodule(name))
        except UnsupportedError:
            continue  # it is met in the walk, as an operation without a rule
    return found


def _frobenius(tensor: Tensor | None) -> float:
    return 0.0 if tensor is None else float(tensor.detach().norm()) * (1 + 2.0**-20)
