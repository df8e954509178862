"""One eigen-decomposition of a Gram matrix, many shifted solves."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from optprune.errors import InvalidInputError, NotPositiveDefiniteError
from optprune.numerics.checks import require_finite


@dataclass(frozen=True, eq=False)
class Spectrum:
    r"""$G = V \operatorname{diag}(\lambda) V^\top$, computed in float64, with $\lambda \ge 0$.

    Attributes:
        values: $\lambda$, ascending.
        vectors: $V$, orthonormal columns.
        clamped: How many eigenvalues came out slightly negative and were set to zero, per batch element.
    """

    values: Float[Tensor, "*batch d"]
    vectors: Float[Tensor, "*batch d d"]
    clamped: Int[Tensor, "*batch"]

    @staticmethod
    def of(gram: Float[Tensor, "*batch d d"], *, tolerance: float = 1e-12) -> "Spectrum":
        r"""Decompose $G$ once.

        Args:
            gram: $G$, symmetric; only its lower triangle is read.
            tolerance: Eigenvalues in $[-\tau\lambda_{\max}, 0)$, $\tau$ the larger of this and
                $d\,\varepsilon$, count as rounding of a semidefinite matrix and become zero; `clamped` says
                how many.
                The default suits a Gram matrix accumulated in float64; one accumulated in float32 needs 1e-5.

        Raises:
            NonFiniteError: $G$ holds NaN or infinity.
            NotPositiveDefiniteError: an eigenvalue is more negative than rounding explains.
        """
        require_finite("Gram matrix", gram, "Check the activations that it was made from.")
        values, vectors = torch.linalg.eigh(gram.to(torch.float64))
        largest = values.abs().amax(-1, keepdim=True) if values.shape[-1] else values.sum(-1, keepdim=True)
        relative = max(tolerance, gram.shape[-1] * torch.finfo(torch.float64).eps)
        refused = (values < -relative * largest).any(-1)
        if bool(refused.any()):
            element = tuple(refused.nonzero()[0].tolist())
            raise NotPositiveDefiniteError(
                f"The Gram matrix {f'at batch element {element} ' if element else ''}has the eigenvalue "
                f"{float(values[element].min()):.3g} next to {float(values[element].max()):.3g}, more "
                f"negative than rounding explains (relative tolerance {relative:.1g}). It is no Gram matrix: "
                "check that it is symmetric and was accumulated without cancellation."
            )
        return Spectrum(values.clamp(min=0), vectors, (values < 0).sum(-1))

    def to(self, dtype: torch.dtype) -> "Spectrum":
        """The same decomposition rounded to another precision, in which `solve` then works."""
        return Spectrum(self.values.to(dtype), self.vectors.to(dtype), self.clamped)

    def solve(
        self, rhs: Float[Tensor, "*batch k d"], shift: float | Float[Tensor, "*shifts"]
    ) -> Float[Tensor, "*shifts_batch k d"]:
        r"""$B (G + \sigma I)^{-1}$, row by row, at the price of two products.

        Args:
            rhs: $B$.
            shift: $\sigma$: one number, or a tensor that broadcasts against the batch (leading dimensions
                of its own give many shifts of one decomposition).

        Raises:
            InvalidInputError: $\sigma$ is negative or not finite.
            NotPositiveDefiniteError: $G + \sigma I$ is singular: an eigenvalue is zero and so is the shift.
        """
        sigma = torch.as_tensor(shift, dtype=self.values.dtype, device=self.values.device)
        # A number is looked at where it is, so that a step with a fixed shift does not wait for the device.
        given = sigma if isinstance(shift, Tensor) else torch.tensor(shift, dtype=self.values.dtype)
        if not bool(((given >= 0) & given.isfinite()).all()):
            raise InvalidInputError(f"shift {shift} was given; shifts are finite numbers >= 0.")
        scale = self.values + sigma.unsqueeze(-1)
        if bool((given == 0).any()) and not bool((scale > 0).all()):
            raise NotPositiveDefiniteError(
                f"The Gram matrix has {int((self.values == 0).sum())} zero eigenvalues and the shift is "
                "zero, so the system is singular. Give a positive shift."
            )
        rotated = rhs.to(self.values.dtype) @ self.vectors
        return rotated.div(scale.unsqueeze(-2)) @ self.vectors.mT
