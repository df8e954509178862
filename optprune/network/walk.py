"""Runs of the dense network, operation by operation, that note what bounds the discrepancy of every value."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from optprune.bounds.propagation import added, stacked
from optprune.errors import UnsupportedError
from optprune.network.calibration import tensors_of
from optprune.network.layers import Adapter, adapter_for, candidates, named_adapters
from optprune.network.lipschitz import Call, Step, UnknownError, reads_shape, step_of


@dataclass
class Note:
    """What the walk learns of one operation, over all batches.

    Attributes:
        squares: squared norm of the dense result.
        factors: Lipschitz constant for each input that depends on a pruned layer, the largest seen.
        combine, roundings, offset: as in `Step`, the offsets squared and added.
        multiplicity, rows: of a layer's unfolded input.
        local: squared error of a pruned layer alone, here or behind what follows it; `entries` terms were summed.
        origin: the input behind which `local` is that of the pruned layer before; None at the layer itself.
    """

    squares: float = 0.0
    factors: dict[fx.Node, float] = field(default_factory=dict)
    combine: str = "add"
    roundings: int = 0
    offset: float = 0.0
    multiplicity: int = 1
    rows: int = 0
    local: float = 0.0
    entries: int = 0
    origin: fx.Node | None = None


class Walk(fx.Interpreter):
    """Runs the dense network operation by operation and notes norms and constants of what pruning touches.

    Behind each pruned layer runs a twin: its own output in place of the dense one, on the dense inputs (in cascade mode
    on those that the pruned network gave it), through what follows until values of several layers meet. Its distance
    from the dense value is what this layer alone does there.

    Attributes:
        measured: layers whose discrepancy is measured: all in cascade mode, none else.
        pruned, dense: adapters of the pruned layers, and of all affine layers of the dense network.
        notes: one per operation, in order of execution.
        touched: the operations whose value depends on a pruned layer.
    """

    def __init__(
        self, traced: fx.GraphModule, wide: nn.Module, thin: nn.Module, names: Sequence[str], cascade: bool
    ) -> None:
        super().__init__(traced)
        self.extra_traceback = False
        self.measured = tuple(names) if cascade else ()
        self.pruned = named_adapters(thin, names)
        self.dense = _affine_layers(wide)
        self.notes: dict[fx.Node, Note] = defaultdict(Note)
        self.touched: set[fx.Node] = set()
        self._signature = inspect.signature(wide.forward)
        self._multiplicities: dict[tuple[str, tuple[int, ...]], int] = {}
        self._kept: Mapping[str, list[Tensor]] = {}
        self._twins: dict[fx.Node, Tensor] = {}
        for node in traced.graph.nodes:
            inputs = any(source in self.touched for source in node.all_input_nodes)
            if (inputs and not reads_shape(node)) or self._is_pruned(node):
                self.touched.add(node)

    def visit(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any, kept: Mapping[str, list[Tensor]]
    ) -> None:
        """One run, on the arguments of one call of the model; its output must be what the model returned.

        Raises:
            UnknownError: it is not (tracing does not see what happens in place), or an operation has no rule.
        """
        self._kept = kept
        self._twins.clear()
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
        touched = n in self.touched and n.op != "output"
        layer = self.adapter(n) if touched and len(n.all_input_nodes) == 1 and args else None
        # Before it runs: it may change its arguments in place.
        change = None if layer is None else self._enter(n, layer, args[0])
        result = super().run_node(n)
        note = self.notes[n]
        if isinstance(result, Tensor) and result.is_floating_point():
            note.squares += float(result.double().square().sum())
        if layer is None and touched:
            self._note(n, args, kwargs, result)
            self._follow(n, result)
        elif change is not None:
            self._twins[n] = result + change
            self._add_local(note, change)
        elif n.target in self.measured:
            self._twins[n] = self._kept[str(n.target)].pop(0)
            self._add_local(note, self._twins[n] - result)
        for done in self.user_to_last_uses.get(n, ()):
            self._twins.pop(done, None)
        return result

    def adapter(self, node: fx.Node) -> Adapter | None:
        """The adapter of an affine layer, pruned or left as it is."""
        return self.dense.get(str(node.target)) if node.op == "call_module" else None

    def _enter(self, node: fx.Node, adapter: Adapter, x: Tensor) -> Tensor | None:
        """Note what an affine layer is about to see; how a pruned one differs there from the dense one."""
        note, name = self.notes[node], str(node.target)
        key = (name, adapter.spatial(x))
        if key not in self._multiplicities:
            self._multiplicities[key] = adapter.multiplicity(key[1])
        note.multiplicity = max(note.multiplicity, self._multiplicities[key])
        note.rows += adapter.samples(x).shape[0] * adapter.rows_per_sample(x)
        if name not in self.pruned or name in self.measured:
            return None
        old = dict(self.dense[name].module.named_parameters(recurse=False))
        new = dict(self.pruned[name].module.named_parameters(recurse=False))
        change = {kind: (new[kind] - old[kind]).detach() for kind in old}
        return torch.func.functional_call(adapter.module, change, (x,))

    def _follow(self, node: fx.Node, result: Any) -> None:
        """Run an operation on the twin of its input, where it has one such input and no other that pruning touches."""
        sources = [source for source in node.all_input_nodes if source in self.touched]
        if len(sources) != 1 or sources[0] not in self._twins or not isinstance(result, Tensor):
            return
        twin = self._twins[sources[0]]
        values = self.env | {sources[0]: twin.clone() if len(sources[0].users) > 1 else twin}
        args, kwargs = (map_arg(tree, values.__getitem__) for tree in (node.args, node.kwargs))
        self._twins[node] = getattr(self, node.op)(node.target, args, kwargs)
        self.notes[node].origin = sources[0]
        self._add_local(self.notes[node], self._twins[node] - result)

    @staticmethod
    def _add_local(note: Note, difference: Tensor) -> None:
        note.local += float(difference.square().sum())
        note.entries += difference.numel()

    def _note(self, node: fx.Node, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> None:
        module = self.module.get_submodule(str(node.target)) if node.op == "call_module" else None
        sources = tuple(source for source in node.all_input_nodes if source in self.touched)
        try:
            if not isinstance(result, Tensor):
                raise UnknownError("its result is no tensor")
            if not sources:
                raise UnknownError("it reads the parameters of a pruned layer directly")
            if module is not None and (module._forward_hooks or module._forward_pre_hooks):
                raise UnknownError("it has hooks of its own, which may change what it computes")
            step = step_of(Call(node, module, args, kwargs, result, sources))
        except UnknownError as error:
            what = type(module).__name__ if module is not None else getattr(node.target, "__name__", node.target)
            raise UnknownError(f"operation '{node.name}' ({what}): {error}") from error
        self._record(self.notes[node], step)

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

    def _is_pruned(self, node: fx.Node) -> bool:
        """Whether a node calls a pruned layer or reads one of its parameters."""
        name = str(node.target)
        if node.op == "get_attr":
            return name.rpartition(".")[0] in self.pruned
        return node.op == "call_module" and name in self.pruned


def _affine_layers(model: nn.Module) -> dict[str, Adapter]:
    """Adapters of the layers that are a product with a matrix and nothing else."""
    found = {}
    for name in candidates(model):
        module = model.get_submodule(name)
        if module._forward_hooks or module._forward_pre_hooks:
            continue
        try:
            found[name] = adapter_for(module)
        except UnsupportedError:
            continue  # it is met in the walk, as an operation without a rule
    return found
