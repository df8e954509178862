"""The l0-constrained least-squares problem of layer-wise pruning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor

from optprune.errors import InvalidInputError
from optprune.numerics.linalg import damped
from optprune.patterns import Pattern, Shape, pattern_from_json
from optprune.problems._base import Problem
from optprune.statistics import Statistics


@dataclass(frozen=True)
class L0LeastSquares(Problem):
    r"""Best approximation of a layer's outputs by a weight with an admissible support.

    $$\min_U \; \tfrac1{2n} \lVert X U^\top - T \rVert_F^2 + \tfrac{\lambda}{2} \lVert U - R \rVert_F^2
      \quad \text{s.t.} \quad \operatorname{supp} U \in \mathcal F$$

    with inputs $X$ `(n, in)`, targets $T$ `(n, out)`, the dense weight $R$ `(out, in)` and $\lambda$ = `damping`
    times the mean diagonal of $G = X^\top X / n$. The samples enter through their `Statistics`, centred at $R$; with
    $\Delta = U - R$,

    $$J(U) = \tfrac12 \langle \Delta, \Delta (G + \lambda I) \rangle - \langle \Delta, C^\top \rangle + \tfrac12 E.$$

    Half the mean squared error, summed over outputs: the number does not depend on the calibration size. A
    certificate speaks of the problem as stated here, damping included; `damping=0` is the undamped problem.

    Attributes:
        statistics: $G$, $C$, $E$ and $R$ = `statistics.reference`.
        pattern: the set of supports $\mathcal F$.
        damping: relative to the mean diagonal of the Gram matrix.

    Raises:
        InvalidInputError: the pattern does not fit the layer, or the damping is negative or not finite.

    References:
        Frantar & Alistarh 2023 (SparseGPT), eq. (1); Meng et al. 2024 (ALPS), eq. (1), which use sums and no half.
    """

    statistics: Statistics
    pattern: Pattern
    damping: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.pattern, Pattern):
            raise InvalidInputError(
                f"pattern {self.pattern!r} given; a Pattern is needed, for instance PerLayer(100) or NOfM(2, 4)"
            )
        self.pattern.validate(self.shape)
        if not 0.0 <= self.damping < float("inf"):
            raise InvalidInputError(
                f"damping {self.damping} given; a finite number >= 0, relative to the mean Gram diagonal"
            )

    @classmethod
    def from_layer(
        cls,
        weight: Float[Tensor, "out in"],
        inputs: Float[Tensor, "n in"],
        pattern: Pattern,
        damping: float = 0.0,
    ) -> Self:
        """The problem of replacing a dense layer: targets are `inputs @ weight.T`."""
        return cls(Statistics.from_layer(weight, inputs), pattern, damping)

    @property
    def shape(self) -> Shape:
        return (int(self.dense.shape[-2]), int(self.dense.shape[-1]))

    @property
    def batch_shape(self) -> tuple[int, ...]:
        return tuple(self.dense.shape[:-2])

    @property
    def dense(self) -> Float[Tensor, "*batch out in"]:
        """The dense weight $R$."""
        return self.statistics.reference

    @cached_property
    def gram(self) -> Float[Tensor, "*batch in in"]:
        r"""$H = G + \lambda I$, the Hessian of the objective in each row."""
        return damped(self.statistics.gram, self.damping) if self.damping else self.statistics.gram

    @cached_property
    def linear(self) -> Float[Tensor, "*batch out in"]:
        r"""$B = R H + C^\top$: the objective is $\tfrac12\langle U, U H\rangle - \langle U, B\rangle$ + constant."""
        return self.dense @ self.gram + self.statistics.cross.mT

    @cached_property
    def energy(self) -> Float[Tensor, "*batch out"]:
        r"""$c = E + \langle R, R H \rangle + 2 \langle R, C^\top \rangle$ per row: twice the objective at $U = 0$."""
        reference = self.dense
        return self.statistics.energy + (reference * (reference @ self.gram + 2 * self.statistics.cross.mT)).sum(-1)

    def row_objective(self, matrix: Float[Tensor, "*batch out in"]) -> Float[Tensor, "*batch out"]:
        """The objective's share of each row."""
        step = matrix.to(torch.float64) - self.dense
        return (
            0.5 * (step * (step @ self.gram)).sum(-1)
            - (step * self.statistics.cross.mT).sum(-1)
            + 0.5 * self.statistics.energy
        )

    def objective(self, matrix: Float[Tensor, "*batch out d"]) -> Float[Tensor, "*batch"]:
        return self.row_objective(matrix).sum(-1)

    def gradient(self, matrix: Float[Tensor, "*batch out in"]) -> Float[Tensor, "*batch out in"]:
        r"""$\Delta H - C^\top$."""
        return (matrix.to(torch.float64) - self.dense) @ self.gram - self.statistics.cross.mT

    def violation(self, matrix: Float[Tensor, "*batch out d"]) -> Mapping[str, Tensor]:
        """`support`: of the pattern."""
        return {"support": self.pattern.violation(matrix)}

    def tensors(self) -> dict[str, Tensor]:
        s = self.statistics
        return {"gram": s.gram, "cross": s.cross, "energy": s.energy, "reference": s.reference}

    def settings(self) -> dict[str, Any]:
        return {"pattern": self.pattern.to_json(), "damping": self.damping, "count": self.statistics.count}

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Self:
        statistics = Statistics(**dict(tensors), count=settings["count"])
        return cls(statistics, pattern_from_json(settings["pattern"]), settings["damping"])
