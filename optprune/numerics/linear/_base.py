"""What a matrix of samples must be able to do, and all that follows from its rows alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from optprune.errors import InvalidInputError
from optprune.numerics.rounding import product_bound

BLOCK = 1 << 20
"""Most entries of the matrix formed at once, where a single sample does not hold more."""


class LinearMap(ABC):
    r"""A matrix $X$ `(n, d)`, samples by inputs, known by its products.

    A map gives its rows in blocks, in order, and single columns; products, the Gram matrix and norms are sums
    over the blocks. Sums over samples are accumulated in float64. Maps are immutable and finite.
    """

    _kinds: ClassVar[dict[str, type[LinearMap]]] = {}

    def __init_subclass__(cls) -> None:
        LinearMap._kinds[cls.__name__] = cls

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """(n, d)."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """In which its blocks are given."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where its blocks are."""

    @abstractmethod
    def rows(self) -> Iterator[tuple[slice, Float[Tensor, "*batch block d"]]]:
        """All rows, in blocks and in order: which they are, and the rows."""

    @abstractmethod
    def gather(self, order: Int[Tensor, "part width"]) -> Float[Tensor, "part width n"]:
        """The columns `order` as rows, in memory of their own."""

    @abstractmethod
    def gather_at(
        self, order: Int[Tensor, "part width"], samples: Int[Tensor, "part depth"]
    ) -> Float[Tensor, "part width depth"]:
        """The entries in the columns `order` and the rows `samples`, in memory of their own."""

    @abstractmethod
    def to(self, dtype: torch.dtype) -> LinearMap:
        """The same matrix in another precision."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by name; with `settings` a lossless description."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """The rest of it, JSON-ready."""

    @classmethod
    @abstractmethod
    def restore(cls, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Self:
        """Inverse of `tensors` and `settings`."""

    def record(self) -> dict[str, Any]:
        """`settings` and the kind of map that they are of, for `read`."""
        return {"kind": type(self).__name__, **self.settings()}

    @staticmethod
    def read(tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> LinearMap:
        """The map with these tensors and this `record`.

        Raises:
            InvalidInputError: no map is of that kind.
        """
        kind = LinearMap._kinds.get(str(record.get("kind")))
        if kind is None:
            raise InvalidInputError(
                f"a map of kind {record.get('kind')!r} given; accepted are {', '.join(sorted(LinearMap._kinds))}"
            )
        return kind.restore(tensors, record)

    def forward(self, u: Float[Tensor, "*lead d"]) -> Float[Tensor, "*lead n"]:
        r"""$X u$ for every row $u$."""
        return torch.cat([u @ block.mT for _, block in self.rows()], -1)

    def adjoint(self, lam: Float[Tensor, "*lead n"]) -> Float[Tensor, "*lead d"]:
        r"""$X^\top \lambda$ for every row $\lambda$."""
        total = torch.zeros((*lam.shape[:-1], self.shape[-1]), dtype=torch.float64, device=lam.device)
        for part, block in self.rows():
            total += lam[..., part] @ block
        return total.to(lam.dtype)

    def bounded_adjoint(self, lam: Float[Tensor, "out n"]) -> tuple[Float[Tensor, "out d"], Float[Tensor, "out d"]]:
        r"""$X^\top \lambda$ by direct summation in float64, and an entrywise bound $\gamma_n |X|^\top |\lambda| + n
        \eta$ of its rounding error.

        The bound holds for every order of the $n$ terms, that of the blocks too (`product_error`).
        """
        wide = self.to(torch.float64)
        total = lam.new_zeros((lam.shape[0], self.shape[-1]), dtype=torch.float64)
        size = torch.zeros_like(total)
        for part, block in wide.rows():
            total += lam[:, part] @ block
            size += lam[:, part].abs() @ block.abs()
        return total, product_bound(size, self.shape[-2])

    def outputs(self, u: Float[Tensor, "*batch out d"]) -> Float[Tensor, "*batch n out"]:
        r"""$X U^\top$ by direct summation."""
        return torch.cat([block @ u.mT for _, block in self.rows()], -2)

    def bounded_outputs(self, u: Float[Tensor, "out d"]) -> tuple[Float[Tensor, "n out"], Float[Tensor, "n out"]]:
        r"""$X U^\top$ by direct summation in float64, and an entrywise bound $\gamma_d |X| |U|^\top + d \eta$ of its
        rounding error.
        """
        pairs = [(block @ u.mT, block.abs() @ u.mT.abs()) for _, block in self.to(torch.float64).rows()]
        size = torch.cat([size for _, size in pairs], -2)
        return torch.cat([product for product, _ in pairs], -2), product_bound(size, self.shape[-1])

    def gram(self) -> Float[Tensor, "d d"]:
        r"""$X^\top X$ in float64."""
        total = torch.zeros((self.shape[-1],) * 2, dtype=torch.float64, device=self.device)
        for _, block in self.rows():
            wide = block.double()
            total += wide.mT @ wide
        return total

    def weighted_gram(self, weight: Float[Tensor, "part n"]) -> Float[Tensor, "part d d"]:
        r"""$X^\top \operatorname{diag}(w) X$ for every row $w$."""
        total = weight.new_zeros((len(weight), self.shape[-1], self.shape[-1]))
        for part, block in self.rows():
            total += (block.mT * weight[:, None, part]) @ block
        return total

    def outer(self) -> Float[Tensor, "n n"]:
        r"""$X X^\top$, between samples."""
        return torch.cat([self.forward(block) for _, block in self.rows()])

    def mean_square(self) -> Float[Tensor, " d"]:
        """The mean of the squares of each column, in float64."""
        total = torch.zeros(self.shape[-1], dtype=torch.float64, device=self.device)
        for _, block in self.rows():
            total += block.double().square().sum(0)
        return total / self.shape[0]

    def last(self) -> Float[Tensor, "*batch n"]:
        """The last column, that of the bias where there is one."""
        return self.gather(torch.tensor([[self.shape[-1] - 1]], device=self.device))[0, 0]

    def scaled(self, live: Bool[Tensor, " d"], scale: Float[Tensor, " live"]) -> LinearMap:
        """The columns `live`, divided by `scale`, for a solver that gathers columns often."""
        from optprune.numerics.linear.columns import ScaledMap

        return ScaledMap(self, live, scale)

    def with_ones(self) -> LinearMap:
        """A last column of ones appended, for a bias."""
        from optprune.numerics.linear.columns import WithOnes

        return WithOnes(self)
