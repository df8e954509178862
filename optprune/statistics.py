r"""What a layer saw: rows of inputs and targets (`Samples`), or their sufficient statistics (`Statistics`).

Everything is a mean over samples, so that numbers do not depend on the size of the calibration set.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from optprune.errors import InvalidInputError
from optprune.numerics.checks import as_rows, require_columns, require_finite
from optprune.numerics.sampling import choose

CHUNK_ELEMENTS = 2**23
"""Numbers that one chunk of rows may hold while it is accumulated (64 MiB in float64)."""

CHUNK_ROWS_FLOAT32 = 1024
"""Rows that float32 products may sum before the sum is carried on in float64."""


@dataclass(frozen=True, eq=False)
class Samples:
    """Rows of inputs and the targets that belong to them; float16 and bfloat16 are widened to float32.

    Attributes:
        inputs: $X$, (*batch, n, d_in).
        targets: $T$, (*batch, n, d_out).

    Raises:
        InvalidInputError: no rows, no columns, different numbers of rows, an integer dtype, two devices.
        NonFiniteError: says how many entries are NaN or infinite, and in which rows.
    """

    inputs: Shaped[Tensor, "..."]
    targets: Shaped[Tensor, "..."]

    def __post_init__(self) -> None:
        inputs = as_rows("inputs", self.inputs, self.inputs.device)
        targets = as_rows("targets", self.targets, self.inputs.device)
        _require_rows_to_match(inputs, targets)
        if len(self) == 0:
            raise InvalidInputError("Samples without rows were given; give at least one row.")
        object.__setattr__(self, "inputs", inputs)
        object.__setattr__(self, "targets", targets)

    def __len__(self) -> int:
        """The number of rows."""
        return self.inputs.shape[-2]

    @staticmethod
    def from_layer(weight: Shaped[Tensor, "..."], inputs: Shaped[Tensor, "..."]) -> "Samples":
        r"""The targets are the layer's own outputs, $T = X W^\top$, in the wider of the two dtypes.

        Args:
            weight: $W$, (*batch, d_out, d_in).
            inputs: $X$, (*batch, n, d_in).
        """
        rows = as_rows("inputs", inputs, weight.device)
        matrix = as_rows("weight", weight, weight.device)
        require_columns(rows, matrix)
        dtype = torch.promote_types(rows.dtype, matrix.dtype)
        return Samples(rows, rows.to(dtype) @ matrix.to(dtype).mT)

    def merge(self, other: "Samples") -> "Samples":
        """The rows of both, ours first.

        Raises:
            InvalidInputError: the two differ in columns or batch shape.
        """
        mine = (self.inputs.shape[:-2], self.inputs.shape[-1], self.targets.shape[-1])
        theirs = (other.inputs.shape[:-2], other.inputs.shape[-1], other.targets.shape[-1])
        if mine != theirs:
            raise InvalidInputError(
                f"Samples of batch, inputs and outputs {theirs} were merged into {mine}; they must be equal."
            )
        inputs = torch.cat([self.inputs, other.inputs], dim=-2)
        return Samples(inputs, torch.cat([self.targets, other.targets], dim=-2))

    def subsample(self, k: int, generator: torch.Generator) -> "Samples":
        """At most `k` rows, drawn uniformly without replacement, in their order; all if there are fewer."""
        if k >= len(self):
            return self
        rows = choose(len(self), k, generator).to(self.inputs.device)
        return Samples(self.inputs.index_select(-2, rows), self.targets.index_select(-2, rows))

    def chunks(self, rows: int) -> Iterator["Samples"]:
        """Consecutive views of at most `rows` rows."""
        if rows < 1:
            raise InvalidInputError(f"Chunks of {rows} rows were asked for; a chunk has at least one row.")
        for inputs, targets in zip(self.inputs.split(rows, dim=-2), self.targets.split(rows, dim=-2), strict=True):
            yield Samples(inputs, targets)


@dataclass(frozen=True, eq=False)
class Statistics:
    r"""The sufficient statistics of half the mean squared error, centred at a reference weight $R$.

    With $n$ rows $X$ and targets $T$, and $E = T - X R^\top$ what the reference leaves over,
    $$G = X^\top X / n, \qquad C = X^\top E / n, \qquad e_i = \|E_{:,i}\|^2 / n,$$
    and half the mean squared error of a weight $U = R + D$ is
    $$\tfrac{1}{2n}\|X U^\top - T\|_F^2
        = \tfrac12 \langle D, D G \rangle - \langle D, C^\top \rangle + \tfrac12 \sum_i e_i.$$
    Centring is what keeps digits: when $R$ is the dense layer, $C$ and $e$ are exactly zero, and the error of
    a pruned weight close to it is not the difference of two numbers of the size of the outputs' energy.

    Attributes:
        gram: $G$, symmetric.
        cross: $C$.
        energy: $e$.
        count: $n$, the same for every batch element.
        reference: $R$.

    Raises:
        InvalidInputError: the shapes, dtypes (float64) or devices disagree, or the count is below one.
        NonFiniteError: a field holds NaN or infinity, as when the activations' squares overflow.
    """

    gram: Float[Tensor, "*batch d_in d_in"]
    cross: Float[Tensor, "*batch d_in d_out"]
    energy: Float[Tensor, "*batch d_out"]
    count: int
    reference: Float[Tensor, "*batch d_out d_in"]

    def __post_init__(self) -> None:
        *batch, d_out, d_in = self.reference.shape
        expected = {
            "gram": (*batch, d_in, d_in),
            "cross": (*batch, d_in, d_out),
            "energy": (*batch, d_out),
            "reference": (*batch, d_out, d_in),
        }
        for name, shape in expected.items():
            field: Tensor = getattr(self, name)
            if tuple(field.shape) != shape or field.dtype != torch.float64:
                raise InvalidInputError(
                    f"Statistics were given {name} of shape {tuple(field.shape)} and dtype {field.dtype}; "
                    f"the reference of shape {tuple(self.reference.shape)} asks for {shape} in float64."
                )
            if field.device != self.reference.device:
                raise InvalidInputError(
                    f"Statistics were given {name} on {field.device} and the reference on "
                    f"{self.reference.device}; move them to one device."
                )
            require_finite(
                f"statistics' {name}", field, "Check the activations; if finite, their squares overflow: scale them."
            )
        if self.count < 1:
            raise InvalidInputError(f"Statistics of {self.count} samples were given; at least one is needed.")

    @staticmethod
    def from_samples(
        inputs: Shaped[Tensor, "..."],
        targets: Shaped[Tensor, "..."],
        reference: Shaped[Tensor, "..."] | None = None,
        *,
        accumulate: Literal["float64", "float32"] = "float64",
    ) -> "Statistics":
        """Statistics of rows of inputs and targets.

        Args:
            inputs: $X$, (*batch, n, d_in).
            targets: $T$, (*batch, n, d_out).
            reference: $R$, (*batch, d_out, d_in); zeros by default. A weight that nearly reproduces the
                targets saves digits.
            accumulate: See `Accumulator`.
        """
        if reference is None:
            shape = (*inputs.shape[:-2], targets.shape[-1], inputs.shape[-1])
            reference = torch.zeros(shape, dtype=torch.float64, device=inputs.device)
        accumulator = Accumulator(reference, accumulate=accumulate)
        accumulator.add(inputs, targets)
        return accumulator.finish()

    @staticmethod
    def from_layer(
        weight: Shaped[Tensor, "..."],
        inputs: Shaped[Tensor, "..."],
        *,
        accumulate: Literal["float64", "float32"] = "float64",
    ) -> "Statistics":
        r"""Statistics whose targets are the layer's own outputs $X W^\top$, centred at $W$.

        `cross` and `energy` are exactly zero.

        Args:
            weight: $W$, (*batch, d_out, d_in).
            inputs: $X$, (*batch, n, d_in).
            accumulate: See `Accumulator`.
        """
        accumulator = Accumulator(weight, accumulate=accumulate)
        accumulator.add(inputs)
        return accumulator.finish()

    def merge(self, other: "Statistics") -> "Statistics":
        r"""The statistics of both sets of rows: means weighted by the counts. Commutative and associative
        to rounding.

        Raises:
            InvalidInputError: the references differ.
        """
        if not torch.equal(self.reference, other.reference.to(self.reference.device)):
            raise InvalidInputError(
                f"Statistics around different reference weights (shapes {tuple(self.reference.shape)} and "
                f"{tuple(other.reference.shape)}) were merged; accumulate both with the same reference."
            )
        total = self.count + other.count
        mine, theirs = self.count / total, other.count / total

        def mean(a: Tensor, b: Tensor) -> Tensor:
            return mine * a + theirs * b.to(a.device)

        return Statistics(
            gram=mean(self.gram, other.gram),
            cross=mean(self.cross, other.cross),
            energy=mean(self.energy, other.energy),
            count=total,
            reference=self.reference,
        )

    def to(self, device: str | torch.device) -> "Statistics":
        """The same numbers on another device."""
        fields = (self.gram, self.cross, self.energy)
        gram, cross, energy = (field.to(device) for field in fields)
        return Statistics(gram, cross, energy, self.count, self.reference.to(device))

    @property
    def shape(self) -> torch.Size:
        """The shape of a weight, (*batch, d_out, d_in)."""
        return self.reference.shape

    @property
    def dead(self) -> Bool[Tensor, "*batch d_in"]:
        """Inputs that were zero in every sample: no weight on them changes the error."""
        return self.gram.diagonal(dim1=-2, dim2=-1) == 0

    @property
    def target_energy(self) -> Float[Tensor, "*batch d_out"]:
        r"""$\|T_{:,i}\|^2 / n = e_i + 2 \langle R_i, C_{:,i} \rangle + \langle R_i, R_i G \rangle$."""
        # Nonnegative in exact arithmetic, so that clamping only removes error.
        return (self.energy + _quadratic(self.reference, self.gram, -2 * self.cross)).clamp(min=0)

    def error(self, weight: Shaped[Tensor, "..."]) -> Float[Tensor, "*batch d_out"]:
        r"""Half the mean squared error of each output, $\|X u_i - T_{:,i}\|^2 / 2n$, in float64.

        Args:
            weight: $U$, of the shape of the reference.

        Raises:
            InvalidInputError: the shape is another.
        """
        if weight.shape != self.shape:
            raise InvalidInputError(
                f"The error of a weight of shape {tuple(weight.shape)} was asked for; these statistics are "
                f"of weights of shape {tuple(self.shape)}."
            )
        change = weight.detach().to(torch.float64) - self.reference
        # Nonnegative in exact arithmetic, so that clamping only removes error; NaN passes through.
        return (_quadratic(change, self.gram, 2 * self.cross) + self.energy).clamp(min=0) / 2

    def relative_error(self, weight: Shaped[Tensor, "..."]) -> Float[Tensor, "*batch"]:
        r"""$\|X U^\top - T\|_F / \|T\|_F$ per batch element.

        0 when both are zero, infinite when only the target is.
        """
        error, energy = 2 * self.error(weight).sum(-1), self.target_energy.sum(-1)
        nothing = (energy == 0) & (error == 0)
        return torch.where(nothing, 0.0, (error / energy).sqrt())


class Accumulator:
    r"""Statistics of a stream of batches, in the memory of one Gram matrix and one chunk of rows.

    Sums are float64. `accumulate="float32"` forms the products of at most 1,024 rows in float32 before they join the
    sum: faster where float64 is slow, with an error of at most $1024 \cdot 2^{-24} < 6.2 \cdot 10^{-5}$ of
    $|X|^\top |X| / n$, near $10^{-6}$ as a rule (more where the caller has allowed TensorFloat-32).

    Attributes:
        count: Rows so far.
    """

    def __init__(
        self, reference: Shaped[Tensor, "..."], *, accumulate: Literal["float64", "float32"] = "float64"
    ) -> None:
        """Start empty.

        Args:
            reference: $R$, (*batch, d_out, d_in): it fixes shapes and device. Zeros if there is no dense
                weight.
            accumulate: The dtype of the products.
        """
        if accumulate not in ("float64", "float32"):
            raise InvalidInputError(f"accumulate={accumulate!r} was given; it is 'float64' or 'float32'.")
        self._reference = as_rows("reference weight", reference, reference.device).to(torch.float64).clone()
        *batch, d_out, d_in = self._reference.shape
        if d_out == 0:
            raise InvalidInputError(
                f"A weight of shape {tuple(reference.shape)} was given; at least one output is needed."
            )
        zeros = self._reference.new_zeros
        self._gram, self._cross = zeros(*batch, d_in, d_in), zeros(*batch, d_in, d_out)
        self._energy = zeros(*batch, d_out)
        self._dtype = torch.float64 if accumulate == "float64" else torch.float32
        self._rows = max(1, CHUNK_ELEMENTS // (self._reference[..., 0, 0].numel() * (d_in + d_out)))
        if accumulate == "float32":
            self._rows = min(self._rows, CHUNK_ROWS_FLOAT32)
        self.count = 0

    def __len__(self) -> int:
        """The number of rows so far."""
        return self.count

    def add(self, inputs: Shaped[Tensor, "..."], targets: Shaped[Tensor, "..."] | None = None) -> None:
        r"""Add a batch of rows.

        Args:
            inputs: $X$, (*batch, n, d_in).
            targets: $T$, (*batch, n, d_out); without them they are $X R^\top$.

        Raises:
            InvalidInputError: shapes, dtype or device do not fit.
            NonFiniteError: an entry is NaN or infinite; nothing was added.
        """
        d_out = self._reference.shape[-2]
        inputs = as_rows("inputs", inputs, self._reference.device)
        require_columns(inputs, self._reference)
        self._require_batch("inputs", inputs)
        if targets is not None:
            targets = as_rows("targets", targets, self._reference.device)
            self._require_batch("targets", targets)
            _require_rows_to_match(inputs, targets)
            if targets.shape[-1] != d_out:
                raise InvalidInputError(
                    f"Targets with {targets.shape[-1]} columns were given for a layer of {d_out} outputs."
                )
        for start in range(0, inputs.shape[-2], self._rows):
            rows = slice(start, start + self._rows)
            chunk = inputs[..., rows, :]
            product = chunk.to(self._dtype)
            self._gram += product.mT @ product
            if targets is not None:
                # The residual cancels, so it is formed in float64 also where the products are not.
                left = targets[..., rows, :].to(torch.float64) - chunk.to(torch.float64) @ self._reference.mT
                self._cross += product.mT @ left.to(self._dtype)
                self._energy += left.square().sum(-2)
        self.count += inputs.shape[-2]

    def finish(self) -> Statistics:
        """The statistics so far; more batches may follow.

        Raises:
            InvalidInputError: no row was added.
            NonFiniteError: the squares overflowed.
        """
        if self.count == 0:
            raise InvalidInputError(
                "Statistics of no rows were asked for: the data is empty, or the layer was never reached. "
                "Give at least one batch that reaches it."
            )
        gram = self._gram / self.count
        return Statistics(
            gram=(gram + gram.mT) / 2,
            cross=self._cross / self.count,
            energy=self._energy / self.count,
            count=self.count,
            reference=self._reference,
        )

    def _require_batch(self, name: str, tensor: Tensor) -> None:
        if tensor.shape[:-2] != self._reference.shape[:-2]:
            raise InvalidInputError(
                f"The {name} of shape {tuple(tensor.shape)} were given for a reference weight of shape "
                f"{tuple(self._reference.shape)}; the leading dimensions must be equal."
            )


def _quadratic(weight: Tensor, gram: Tensor, linear: Tensor) -> Float[Tensor, "*batch d_out"]:
    r"""$\langle w_i, w_i G - l_i \rangle$ per row."""
    return (weight * (weight @ gram - linear.mT)).sum(-1)


def _require_rows_to_match(inputs: Tensor, targets: Tensor) -> None:
    if inputs.shape[:-1] != targets.shape[:-1]:
        raise InvalidInputError(
            f"Inputs of shape {tuple(inputs.shape)} were given with targets of shape {tuple(targets.shape)}; "
            "all dimensions but the last must be equal."
        )
