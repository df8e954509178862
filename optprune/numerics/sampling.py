"""Random choices that depend on nothing but the generator that they are given."""

import math

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from optprune.errors import InvalidInputError


def generator(seed: int, device: str | torch.device = "cpu") -> torch.Generator:
    """A generator of its own, started from `seed`."""
    return torch.Generator(device).manual_seed(seed)


def choose(n: int, k: int, generator: torch.Generator) -> Int[Tensor, "k"]:
    r"""$k$ of the numbers $0, \dots, n - 1$ without replacement, all subsets equally likely, in ascending
    order.

    Raises:
        InvalidInputError: $k < 0$ or $k > n$.
    """
    if not 0 <= k <= n:
        raise InvalidInputError(f"{k} of {n} rows were asked for without replacement; ask for 0 to {n}.")
    order = torch.randperm(n, generator=generator, device=generator.device)
    return order[:k].sort().values


class Divider:
    """Sets a fixed share of a stream aside, at random: of every beginning of it as many as rounding allows.

    Attributes:
        seen: how many came so far.
    """

    def __init__(self, share: float, generator: torch.Generator) -> None:
        self.seen = 0
        self._share = share
        self._taken = 0
        self._generator = generator

    def take(self, count: int) -> Bool[Tensor, " count"]:
        """Which of the next `count` are set aside."""
        self.seen += count
        wanted = math.floor(self._share * self.seen + 0.5) - self._taken
        self._taken += wanted
        mask = torch.zeros(count, dtype=torch.bool)
        mask[choose(count, wanted, self._generator).cpu()] = True
        return mask


class Reservoir:
    """A uniform subsample of fixed size of a stream of rows, in memory for `capacity` rows and one batch.

    Every row draws a random key on arrival and the rows with the smallest keys stay, so that each subset of
    `capacity` rows is equally likely however the stream was cut into batches.

    References:
        Efraimidis & Spirakis 2006, with equal weights.
    """

    def __init__(self, capacity: int, generator: torch.Generator) -> None:
        if capacity < 1:
            raise InvalidInputError(f"A reservoir of {capacity} rows was asked for; it holds at least one.")
        self.capacity = capacity
        self.seen = 0
        self._generator = generator
        self._keys = torch.empty(0, dtype=torch.float64, device=generator.device)
        self._rows: tuple[Tensor, ...] | None = None

    def __len__(self) -> int:
        """How many rows it holds now."""
        return len(self._keys)

    def add(self, *tensors: Shaped[Tensor, "_ ..."]) -> None:
        """Offer a batch: one or several tensors whose rows (dimension 0) belong together.

        Raises:
            InvalidInputError: the tensors differ in rows, or in number or row shape from those before.
        """
        self._require_aligned(tensors)
        keys = torch.rand(
            len(tensors[0]), dtype=torch.float64, generator=self._generator, device=self._generator.device
        )
        self.seen += len(keys)
        pool = torch.cat([self._keys, keys])
        if len(pool) > self.capacity:
            # Ascending indices keep the rows in their order of arrival.
            stay = pool.topk(self.capacity, largest=False, sorted=False).indices.sort().values
        else:
            stay = torch.arange(len(pool), device=pool.device)
        old, new = stay[stay < len(self)], stay[stay >= len(self)] - len(self)
        before = self._rows or tuple(tensor[:0] for tensor in tensors)
        self._rows = tuple(
            torch.cat([held[old.to(held.device)], tensor.detach()[new.to(tensor.device)]])
            for held, tensor in zip(before, tensors, strict=True)
        )
        self._keys = pool[stay]

    def finish(self) -> tuple[Tensor, ...]:
        """The rows held, in their order of arrival, one tensor for each that `add` was given.

        Raises:
            InvalidInputError: nothing was ever added.
        """
        if self._rows is None:
            raise InvalidInputError("The reservoir was never given a batch; add one before finish.")
        return self._rows

    def _require_aligned(self, tensors: tuple[Tensor, ...]) -> None:
        lengths = {len(tensor) for tensor in tensors}
        if len(lengths) != 1:
            raise InvalidInputError(
                f"A batch of tensors with {sorted(lengths)} rows was added; give one or more tensors with "
                "the same number of rows."
            )
        if self._rows is not None:
            held, given = [row.shape[1:] for row in self._rows], [tensor.shape[1:] for tensor in tensors]
            if held != given:
                raise InvalidInputError(
                    f"Rows of shapes {[tuple(s) for s in given]} were added to a reservoir that holds rows "
                    f"of shapes {[tuple(s) for s in held]}; one reservoir holds one kind of rows."
                )
