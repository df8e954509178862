"""Few edges whose sums stay close, relative to what flows through each neuron."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor

from optprune.errors import InvalidInputError
from optprune.numerics.checks import as_rows, require_columns, require_one_device
from optprune.numerics.importance import largest_shares
from optprune.numerics.linear import LinearMap, PatchMap, as_map
from optprune.patterns import Pattern, Shape, pattern_from_json
from optprune.problems._base import Problem

ROWS = 2**22
"""Outputs formed at a time."""


@dataclass(frozen=True, eq=False)
class EdgeSampling(Problem):
    r"""The least relative error, at the worst point, of a layer with an admissible support.

    $$\min_U \; J(U) = \frac1{2\, out} \sum_i \rho_i(U)^2, \quad
      \rho_i(U) = \max_{x \in S} \frac{|\sum_j (u_{ij} - w_{ij}) x_j|}{\sum_j |w_{ij} x_j|}
      \quad \text{s.t.} \; \operatorname{supp} U \in \mathcal F, \operatorname{supp} U \subseteq \operatorname{supp} W$$

    with the dense weight $W$ `(out, in)`, the rows $x$ of the inputs `(n, in)` as the points $S$, and $0/0 := 0$. The
    denominator is what flows through neuron $i$ at $x$, both signs counted as positive: a neuron whose edges are all
    dropped has $\rho_i = 1$, so that $\rho_i < 1$ is what a bound must show to say anything, and $J \le 1/2$ is for
    free. This is the error that sampling edges by sensitivity controls; every weight of $U$ may take any value, that
    of a reweighted edge among them. A bias stays as it is and cancels.

    $J$ does not change when a neuron's weights or the inputs are multiplied by a number.

    Attributes:
        weight: $W$.
        inputs: the rows of $S$: activations, or patches of a convolution (every patch is a point); a tensor, or a
            linear map where the matrix is not to be in memory. A problem with a map is single.
        pattern: the set of supports $\mathcal F$.

    Raises:
        InvalidInputError: shapes that do not fit, or no point.
        NonFiniteError: NaN or infinity in the data.

    References:
        Baykal, Liebenwein, Gilitschenski, Feldman & Rus 2019 (SiPP), section 3; they bound each $\rho_i$ at a random
        $x$, and state no program.
    """

    weight: Float[Tensor, "*batch out d"]
    inputs: Float[Tensor, "*batch n d"] | LinearMap
    pattern: Pattern

    def __post_init__(self) -> None:
        if not isinstance(self.pattern, Pattern):
            raise InvalidInputError(
                f"pattern {self.pattern!r} given; a Pattern is needed, for instance PerLayer(100) or PerRow(8)"
            )
        weight = as_rows("weight", self.weight, self.weight.device).double()
        data = self.inputs
        if not isinstance(data, LinearMap):
            data = as_rows("inputs", data, weight.device)
        require_columns(data, weight)
        require_one_device(weight=weight, inputs=data)
        if tuple(data.shape[:-2]) != tuple(weight.shape[:-2]) or data.shape[-2] < 1:
            raise InvalidInputError(
                f"inputs of shape {tuple(data.shape)} given for a weight of shape {tuple(weight.shape)}; at least one "
                "row is needed, and leading dimensions must be equal"
            )
        object.__setattr__(self, "weight", weight)
        object.__setattr__(self, "inputs", data.to(torch.float64))
        self.pattern.validate(self.shape)

    @classmethod
    def from_conv2d(
        cls,
        weight: Float[Tensor, "out in kh kw"],
        images: Float[Tensor, "samples in h w"],
        pattern: Pattern,
        **settings: Any,
    ) -> Self:
        """The problem of a convolution in one group, every patch a point, without the patches in memory.

        Args:
            weight: of the convolution.
            images: what it sees.
            pattern: of the matrix `(out, in * kh * kw)`.
            settings: `stride`, `padding`, `dilation`, `padding_mode`, as of `torch.nn.Conv2d`.
        """
        kernel = (int(weight.shape[2]), int(weight.shape[3]))
        return cls(weight.flatten(1), PatchMap(images.double(), kernel, **settings), pattern)

    @property
    def shape(self) -> Shape:
        return (int(self.weight.shape[-2]), int(self.weight.shape[-1]))

    @property
    def batch_shape(self) -> tuple[int, ...]:
        return tuple(self.weight.shape[:-2])

    @property
    def stackable(self) -> bool:
        """A stack is of tensors."""
        return isinstance(self.inputs, Tensor)

    @cached_property
    def linear(self) -> LinearMap:
        """The inputs as a linear map, whatever they are held in."""
        return as_map(self.inputs)

    @cached_property
    def sensitivity(self) -> Float[Tensor, "*batch out d"]:
        r"""$s_{ij}$, the largest part of edge $(i, j)$ in its half-neuron (see `largest_shares`).

        A half-neuron is the edges of one neuron whose weights have one sign; inputs of both signs are split likewise.
        """
        return largest_shares(self.weight, self.linear)

    @cached_property
    def flow(self) -> Float[Tensor, "*batch out"]:
        r"""$\frac1n \sum_x (\sum_j |w_{ij} x_j|)^2$, the mean square of the denominators."""
        size = self.weight.abs()
        total = sum(((rows.abs() @ size.mT).square().sum(-2) for rows in self.blocks()), torch.zeros(()).double())
        return torch.as_tensor(total) / self.linear.shape[-2]

    def blocks(self) -> Iterator[Float[Tensor, "*batch block d"]]:
        """The rows of the inputs, a few at a time."""
        step = max(1, ROWS // max(1, self.weight[..., 0].numel()))
        for _, rows in self.linear.rows():
            yield from rows.split(step, -2)

    def relative_errors(self, matrix: Float[Tensor, "*batch out d"]) -> Float[Tensor, "*batch out"]:
        r"""$\rho_i$, in float64."""
        change, size = matrix.double() - self.weight, self.weight.abs()
        worst = torch.zeros_like(self.weight[..., 0])
        for rows in self.blocks():
            missed, through = (rows @ change.mT).abs(), rows.abs() @ size.mT
            ratio = torch.where(missed > 0, missed / through, 0.0)
            worst = torch.maximum(worst, ratio.amax(-2))
        return worst

    def objective(self, matrix: Float[Tensor, "*batch out d"]) -> Float[Tensor, "*batch"]:
        return 0.5 * self.relative_errors(matrix).square().mean(-1)

    def violation(self, matrix: Float[Tensor, "*batch out d"]) -> Mapping[str, Tensor]:
        r"""`support`: the part of $U$ off the nearest admissible support, `edges`: off $\operatorname{supp} W$; both
        Frobenius norms, relative to that of $U$.
        """
        outside = torch.where(self.weight == 0, matrix, 0.0).square().sum((-2, -1)).sqrt()
        return {
            "support": self.pattern.violation(matrix),
            "edges": torch.where(outside > 0, outside / matrix.square().sum((-2, -1)).sqrt(), 0.0),
        }

    def tensors(self) -> dict[str, Tensor]:
        own = self.inputs.tensors() if isinstance(self.inputs, LinearMap) else {"": self.inputs}
        return {"weight": self.weight} | {f"inputs.{name}" if name else "inputs": t for name, t in own.items()}

    def settings(self) -> dict[str, Any]:
        map_of = {"inputs": self.inputs.record()} if isinstance(self.inputs, LinearMap) else {}
        return {"pattern": self.pattern.to_json()} | map_of

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Self:
        inputs = tensors["inputs"] if "inputs" not in settings else None
        if inputs is None:
            own = {name.removeprefix("inputs."): t for name, t in tensors.items() if name.startswith("inputs.")}
            inputs = LinearMap.read(own, settings["inputs"])
        return cls(tensors["weight"], inputs, pattern_from_json(settings["pattern"]))
