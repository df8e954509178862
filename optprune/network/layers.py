r"""Adapters: `nn.Module` <-> matrix.

A layer is a product of unfolded inputs with a matrix. An adapter states which: with an explicit axis of
groups (1 except for grouped convolutions), $Z_g = X_g M_g^\top + b_g$ where `rows` gives $X_g$
`(groups, n, d)`, `matrix` gives $M_g$ `(groups, out/groups, d)`, and `outputs` brings the module's own output
into the shape of $Z_g$.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import ClassVar

import torch
from jaxtyping import Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from optprune.errors import InvalidInputError, UnsupportedError, layer_context
from optprune.patterns import Shape

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""Weights that can be pruned; everything is computed in float64 and cast back."""


class Adapter(ABC):
    """One layer as a matrix. Holds the module and reads its parameters when asked, never a copy."""

    module: nn.Linear | nn.Conv1d | nn.Conv2d

    @property
    def kind(self) -> str:
        """The module's type, for people."""
        return type(self.module).__name__

    @property
    @abstractmethod
    def groups(self) -> int:
        """Independent blocks of outputs, each with inputs of its own."""

    @property
    def shape(self) -> Shape:
        """(out, d) of the matrix, all groups below one another."""
        weight = self.module.weight
        return (int(weight.shape[0]), math.prod(weight.shape[1:]))

    def matrix(self, weight: Shaped[Tensor, "out *d"]) -> Shaped[Tensor, "groups outg d"]:
        """The weight tensor as matrices, one per group."""
        return weight.reshape(self.groups, weight.shape[0] // self.groups, -1)

    def weight_from(self, matrix: Shaped[Tensor, "groups outg d"]) -> Shaped[Tensor, "out *d"]:
        """Inverse of `matrix`."""
        return matrix.reshape(self.module.weight.shape)

    @abstractmethod
    def samples(self, x: Tensor) -> Tensor:
        """Inputs or outputs of the module with one leading axis that may be cut anywhere."""

    @abstractmethod
    def batch(self, x: Tensor) -> Tensor:
        """Inputs or outputs of the module with the samples of the batch in front, whatever else they are made of."""

    @abstractmethod
    def rows(self, x: Tensor) -> Shaped[Tensor, "groups n d"]:
        """The rows that multiply the matrix: inputs as the layer sees them, padding and unfolding done."""

    @abstractmethod
    def outputs(self, y: Tensor) -> Shaped[Tensor, "groups n outg"]:
        """The module's output in the order of `rows`."""

    @abstractmethod
    def rows_per_sample(self, x: Tensor) -> int:
        """Rows that one entry of the leading axis of `samples(x)` gives."""

    @abstractmethod
    def multiplicity(self, size: tuple[int, ...]) -> int:
        r"""In how many rows an input entry occurs, at most.

        With this $m$, $\lVert \text{rows}(x) \rVert^2 \le m \lVert x \rVert^2$; hence the
        layer, without its bias, has operator norm at most $\sqrt m \max_g \lVert M_g \rVert_2$.

        Args:
            size: spatial size of the input (empty for a linear layer).
        """

    @abstractmethod
    def spatial(self, x: Tensor) -> tuple[int, ...]:
        """The spatial size of an input, as `multiplicity` takes it."""

    def chunks(
        self, x: Tensor, y: Tensor | None, limit: int
    ) -> Iterator[tuple[Shaped[Tensor, "groups n d"], Shaped[Tensor, "groups n outg"] | None]]:
        """Rows, and outputs where given, in pieces of `limit` bytes of float64 (one sample at least)."""
        x = self.samples(x)
        y = None if y is None else self.samples(y)
        step = max(1, limit // max(1, 8 * self.groups * self.shape[1] * self.rows_per_sample(x)))
        for start in range(0, x.shape[0], step):
            part = slice(start, start + step)
            yield self.rows(x[part]), None if y is None else self.outputs(y[part])


class LinearAdapter(Adapter):
    """`nn.Linear`, with any leading dimensions of the input."""

    def __init__(self, module: nn.Linear) -> None:
        self.module: nn.Linear = module

    @property
    def groups(self) -> int:
        return 1

    def samples(self, x: Tensor) -> Tensor:
        return x.reshape(-1, x.shape[-1])

    def batch(self, x: Tensor) -> Tensor:
        return x if x.dim() > 1 else x.unsqueeze(0)

    def rows(self, x: Tensor) -> Shaped[Tensor, "groups n d"]:
        return x.reshape(1, -1, x.shape[-1])

    def outputs(self, y: Tensor) -> Shaped[Tensor, "groups n outg"]:
        return y.reshape(1, -1, y.shape[-1])

    def rows_per_sample(self, x: Tensor) -> int:
        return 1

    def multiplicity(self, size: tuple[int, ...]) -> int:
        return 1

    def spatial(self, x: Tensor) -> tuple[int, ...]:
        return ()


class ConvAdapter(Adapter):
    """Convolutions as matrices of unfolded patches; one-dimensional ones are images of height 1."""

    dimensions: ClassVar[int]

    def __init__(self, module: nn.Conv1d | nn.Conv2d) -> None:
        self.module: nn.Conv1d | nn.Conv2d = module

    @property
    def groups(self) -> int:
        return self.module.groups

    def samples(self, x: Tensor) -> Tensor:
        return x if x.dim() == self.dimensions + 2 else x.unsqueeze(0)

    def batch(self, x: Tensor) -> Tensor:
        return self.samples(x)

    def rows(self, x: Tensor) -> Shaped[Tensor, "groups n d"]:
        patches = self._unfold(self._padded(self.samples(x)))
        count = patches.shape[0] * patches.shape[2]
        return patches.unflatten(1, (self.groups, -1)).permute(1, 0, 3, 2).reshape(self.groups, count, -1)

    def outputs(self, y: Tensor) -> Shaped[Tensor, "groups n outg"]:
        maps = self.samples(y).flatten(2)
        count = maps.shape[0] * maps.shape[2]
        return maps.unflatten(1, (self.groups, -1)).permute(1, 0, 3, 2).reshape(self.groups, count, -1)

    def rows_per_sample(self, x: Tensor) -> int:
        span = [d * (k - 1) + 1 for d, k in zip(self._two(self.module.dilation), self._kernel, strict=True)]
        left, right, top, bottom = self._padding
        size = self._flat(self.samples(x)).shape[-2:]
        padded = (size[0] + top + bottom, size[1] + left + right)
        steps = zip(padded, span, self._two(self.module.stride), strict=True)
        return math.prod((p - s) // t + 1 for p, s, t in steps)

    def multiplicity(self, size: tuple[int, ...]) -> int:
        # An entry of a patch is a copy of a pixel or a zero of the padding: number the pixels from 1, count.
        pixels = torch.arange(1, 1 + math.prod(size), dtype=torch.float64)
        copies = self._unfold(self._padded(pixels.reshape(1, 1, *size))).long()
        return int(torch.bincount(copies.flatten(), minlength=2)[1:].max())

    def spatial(self, x: Tensor) -> tuple[int, ...]:
        return tuple(self.samples(x).shape[2:])

    @property
    def _kernel(self) -> tuple[int, int]:
        return self._two(self.module.kernel_size)

    @property
    def _padding(self) -> tuple[int, int, int, int]:
        """(left, right, top, bottom), as torch pads: with "same", an odd one goes right and to the bottom."""
        given = self.module.padding
        if isinstance(given, str):
            spans = [d * (k - 1) for d, k in zip(self._two(self.module.dilation), self._kernel, strict=True)]
            (top, height), (left, width) = ((s // 2, s) if given == "same" else (0, 0) for s in spans)
            return (left, width - left, top, height - top)
        rows, columns = self._two(given, fill=0)
        return (columns, columns, rows, rows)

    def _two(self, values: tuple[int, ...], fill: int = 1) -> tuple[int, int]:
        return (fill, values[0]) if self.dimensions == 1 else (values[0], values[1])

    def _flat(self, x: Tensor) -> Tensor:
        return x.unsqueeze(2) if self.dimensions == 1 else x

    def _padded(self, x: Tensor) -> Tensor:
        """The padded batch; one-dimensional inputs are padded before they become images of height 1."""
        mode = "constant" if self.module.padding_mode == "zeros" else self.module.padding_mode
        padding = self._padding[: 2 * self.dimensions]
        return self._flat(F.pad(x, padding, mode=mode) if any(padding) else x)

    def _unfold(self, x: Tensor) -> Tensor:
        return F.unfold(x, self._kernel, dilation=self._two(self.module.dilation), stride=self._two(self.module.stride))


class Conv1dAdapter(ConvAdapter):
    """`nn.Conv1d`."""

    dimensions = 1


class Conv2dAdapter(ConvAdapter):
    """`nn.Conv2d`."""

    dimensions = 2


_ADAPTERS: dict[type[nn.Module], tuple[Callable[..., Adapter], tuple[str, ...]]] = {
    nn.Linear: (LinearAdapter, ("forward",)),
    nn.Conv1d: (Conv1dAdapter, ("forward", "_conv_forward")),
    nn.Conv2d: (Conv2dAdapter, ("forward", "_conv_forward")),
}


def adapter_for(module: nn.Module) -> Adapter:
    """The adapter of a module.

    Raises:
        UnsupportedError: there is none for this type, a subclass computes something else, or the weight is
            not a plain floating-point parameter.
    """
    for base, (adapter, methods) in _ADAPTERS.items():
        if isinstance(module, base):
            changed = [name for name in methods if getattr(type(module), name) is not getattr(base, name)]
            if changed:
                raise UnsupportedError(
                    f"{type(module).__name__} overrides {changed[0]} of {base.__name__}, so that its output "
                    f"may not be the product with its weight; use a plain {base.__name__} or skip the layer"
                )
            _require_plain(module.weight)
            return adapter(module)
    accepted = ", ".join(base.__name__ for base in _ADAPTERS)
    raise UnsupportedError(f"no adapter for {type(module).__name__}; there is one for {accepted}. Skip the layer")


def candidates(model: nn.Module) -> list[str]:
    """Names of the layers of a type with an adapter, each module once, in the order of `named_modules`.

    The projection inside of `nn.MultiheadAttention` is none of them: it is never called, its parent multiplies by its
    weight itself.
    """
    inside = {id(module.out_proj) for module in model.modules() if isinstance(module, nn.MultiheadAttention)}
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, tuple(_ADAPTERS)) and id(module) not in inside
    ]


def named_adapters(model: nn.Module, names: Iterable[str]) -> dict[str, Adapter]:
    """The adapters of named layers.

    Raises:
        InvalidInputError: the model has no such module.
        UnsupportedError: the module has no adapter; names it.
    """
    modules = dict(model.named_modules())
    found: dict[str, Adapter] = {}
    for name in names:
        if name not in modules:
            known = ", ".join(map(repr, candidates(model))) or "none"
            raise InvalidInputError(
                f"'{name}' is no module of {type(model).__name__}; its layers that can be pruned: {known}"
            )
        with layer_context(name):
            found[name] = adapter_for(modules[name])
    return found


def _require_plain(weight: object) -> None:
    if not isinstance(weight, nn.Parameter):
        raise UnsupportedError(
            "its weight is computed from other tensors (a parametrisation or a pruning hook); make it "
            "permanent first (torch.nn.utils.parametrize.remove_parametrizations, torch.nn.utils.prune.remove)"
        )
    if isinstance(weight, nn.parameter.UninitializedParameter):
        raise UnsupportedError("its weight has no size yet; run the model once on a batch before pruning")
    if weight.dtype not in DTYPES:
        raise UnsupportedError(f"its weight is {weight.dtype}; accepted are {', '.join(str(t)[6:] for t in DTYPES)}")
