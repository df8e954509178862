"""The l0-constrained problem of a layer behind which a ReLU stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from optprune.errors import InvalidInputError
from optprune.numerics.checks import as_rows, require_columns, require_finite, require_one_device
from optprune.patterns import Pattern, Shape, pattern_from_json
from optprune.problems._base import Problem
from optprune.problems.least_squares import L0LeastSquares
from optprune.statistics import Statistics


@dataclass(frozen=True, eq=False)
class L0ReLU(Problem):
    r"""Best approximation of a layer's outputs behind the ReLU by a weight with an admissible support.

    $$\min_U \; \tfrac1{2n} \Bigl( \sum_{\Omega} (S - T)^2 + \sum_{\not\Omega} \max(0, S)^2 \Bigr)
      + \tfrac{\lambda}{2} \lVert U - R \rVert_F^2, \quad S = X U^\top + b,
      \quad \text{s.t.} \quad \operatorname{supp} U \in \mathcal F$$

    with $\Omega = \{T > 0\}$ and $\lambda$ = `damping` times the mean diagonal of $X^\top X / n$. Where the target is
    not positive only the positive part of the output counts: the ReLU forgets the rest. The objective is convex, and
    at least half the mean squared error behind the ReLU, to which it is equal where $S \ge 0$ on $\Omega$.

    Attributes:
        inputs: $X$, (n, in), or with leading batch dimensions as everything below.
        targets: $T$, (n, out), the dense layer's outputs before the ReLU, bias included.
        bias: $b$, (out,), which stays.
        reference: $R$, (out, in), the dense weight.
        pattern: the set of supports $\mathcal F$.
        damping: relative to the mean diagonal of the Gram matrix. It is positive: the lower bound lives on the
            curvature that every row has, however few of its samples are active.

    Raises:
        InvalidInputError: shapes that do not fit, no samples, a pattern that does not fit, damping not positive.
        NonFiniteError: NaN or infinity in the data.

    References:
        Phan, Nguyen, Nguyen & Kalagnanam 2020, the model for ReLU layers; its text was not at hand, this is the
        natural statement of what the abstract describes.
    """

    inputs: Float[Tensor, "*batch n d"]
    targets: Float[Tensor, "*batch n out"]
    bias: Float[Tensor, "*batch out"]
    reference: Float[Tensor, "*batch out d"]
    pattern: Pattern
    damping: float = 0.01

    def __post_init__(self) -> None:
        if not isinstance(self.pattern, Pattern):
            raise InvalidInputError(
                f"pattern {self.pattern!r} given; a Pattern is needed, for instance PerRow(10) or NOfM(2, 4)"
            )
        if not 0.0 < self.damping < float("inf"):
            raise InvalidInputError(
                f"damping {self.damping} given; L0ReLU needs a finite number > 0, relative to the mean Gram diagonal"
            )
        rows, weight = as_rows("inputs", self.inputs, self.inputs.device), self.reference
        require_columns(rows, weight)
        require_one_device(inputs=rows, targets=self.targets, bias=self.bias, reference=weight)
        fits = (*rows.shape[:-1], weight.shape[-2])
        if self.targets.shape != fits or self.bias.shape != weight.shape[:-1] or rows.shape[-2] == 0:
            raise InvalidInputError(
                f"inputs {tuple(rows.shape)}, targets {tuple(self.targets.shape)}, bias {tuple(self.bias.shape)}, "
                f"reference {tuple(weight.shape)} given; targets of shape {fits}, a bias per output and at least one "
                "sample are needed"
            )
        self.pattern.validate(self.shape)
        for name in ("inputs", "targets", "bias", "reference"):
            tensor = getattr(self, name)
            require_finite(name, tensor, "Check the network and the samples that it was made from.")
            object.__setattr__(self, name, tensor.double())

    @classmethod
    def from_layer(
        cls,
        weight: Float[Tensor, "out d"],
        inputs: Float[Tensor, "n d"],
        pattern: Pattern,
        damping: float = 0.01,
        bias: Float[Tensor, " out"] | None = None,
    ) -> Self:
        """The problem of replacing a dense layer: targets are `inputs @ weight.T + bias`."""
        wide, rows = weight.double(), inputs.double()
        require_columns(rows, wide)
        shift = torch.zeros_like(wide[..., 0]) if bias is None else bias.double()
        return cls(rows, rows @ wide.mT + shift.unsqueeze(-2), shift, wide, pattern, damping)

    @property
    def shape(self) -> Shape:
        return (int(self.reference.shape[-2]), int(self.reference.shape[-1]))

    @property
    def batch_shape(self) -> tuple[int, ...]:
        return tuple(self.reference.shape[:-2])

    @cached_property
    def active(self) -> Bool[Tensor, "*batch n out"]:
        r"""$\Omega$."""
        return self.targets > 0

    @cached_property
    def gram(self) -> Float[Tensor, "*batch d d"]:
        r"""$G = X^\top X / n$ over all samples."""
        gram = self.inputs.mT @ self.inputs / self.inputs.shape[-2]
        return (gram + gram.mT) / 2

    @cached_property
    def ridge(self) -> Float[Tensor, "*batch"]:
        r"""$\lambda$; 0 where every input is dead."""
        return self.damping * self.gram.diagonal(dim1=-2, dim2=-1).mean(-1)

    def missed(self, matrix: Float[Tensor, "*batch out d"]) -> Float[Tensor, "*batch n out"]:
        r"""$S - T$ on $\Omega$ and $\max(0, S)$ off it: what is squared."""
        outputs = self.inputs @ matrix.double().mT + self.bias.unsqueeze(-2)
        return torch.where(self.active, outputs - self.targets, outputs.clamp_min(0.0))

    def row_objective(self, matrix: Float[Tensor, "*batch out d"]) -> Float[Tensor, "*batch out"]:
        """The objective's share of each row."""
        fit = self.missed(matrix).square().sum(-2) / self.inputs.shape[-2]
        return 0.5 * (fit + self.ridge.unsqueeze(-1) * (matrix.double() - self.reference).square().sum(-1))

    def objective(self, matrix: Float[Tensor, "*batch out d"]) -> Float[Tensor, "*batch"]:
        return self.row_objective(matrix).sum(-1)

    def gradient(self, matrix: Float[Tensor, "*batch out d"]) -> Float[Tensor, "*batch out d"]:
        """Of the objective, which is continuously differentiable."""
        slope = self.missed(matrix).mT @ self.inputs / self.inputs.shape[-2]
        return slope + self.ridge[..., None, None] * (matrix.double() - self.reference)

    def majorant(self, matrix: Float[Tensor, "*batch out d"]) -> L0LeastSquares:
        r"""The l0 least-squares problem that is nowhere below this one and touches it at `matrix`:

        $F(V) + \langle \nabla F(V), U - V\rangle + \tfrac12 \langle U - V, (U - V) (G + \lambda I)\rangle$.
        """
        statistics = Statistics(
            gram=self.gram,
            cross=-self.gradient(matrix).mT,
            energy=2 * self.row_objective(matrix),
            count=int(self.inputs.shape[-2]),
            reference=matrix.double(),
        )
        return L0LeastSquares(statistics, self.pattern, self.damping)

    def violation(self, matrix: Float[Tensor, "*batch out d"]) -> Mapping[str, Tensor]:
        """`support`: of the pattern."""
        return {"support": self.pattern.violation(matrix)}

    def tensors(self) -> dict[str, Tensor]:
        return {
            "inputs": self.inputs,
            "targets": self.targets,
            "bias": self.bias,
            "reference": self.reference,
        }

    def settings(self) -> dict[str, Any]:
        return {"pattern": self.pattern.to_json(), "damping": self.damping}

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Self:
        return cls(**dict(tensors), pattern=pattern_from_json(settings["pattern"]), damping=settings["damping"])
