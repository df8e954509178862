"""The network and the data of `optprune prune` without arguments: a LeNet-300-100 on scikit-learn's digits.

Everything is drawn from generators of its own: the same seed gives the same network, and the random state of
the caller stays as it was. Nothing is downloaded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from optprune.errors import MissingDependencyError

TEST_IMAGES = 360
EPOCHS = 15
BATCH = 64


@dataclass(frozen=True)
class Split:
    """Images as rows in [0, 1] with their classes, in two disjoint parts."""

    train_inputs: Float[Tensor, "train pixels"]
    train_targets: Int[Tensor, "train"]
    test_inputs: Float[Tensor, "test pixels"]
    test_targets: Int[Tensor, "test"]


def digits(seed: int = 0) -> Split:
    """The 1,797 digits of scikit-learn (8 x 8 pixels), shuffled by the seed; the last 360 are for testing.

    Raises:
        MissingDependencyError: scikit-learn cannot be imported.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingDependencyError(
            "the digits come with scikit-learn, which cannot be imported; install it, or give --data a file"
        ) from error
    images, labels = load_digits(return_X_y=True)
    inputs = torch.as_tensor(images, dtype=torch.float32) / 16
    targets = torch.as_tensor(labels, dtype=torch.int64)
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))
    train, test = order[:-TEST_IMAGES], order[-TEST_IMAGES:]
    return Split(inputs[train], targets[train], inputs[test], targets[test])


def mlp(sizes: Sequence[int], seed: int = 0) -> nn.Sequential:
    """Linear layers with ReLU between them, weights uniform in He's bounds, biases zero."""
    generator = torch.Generator().manual_seed(seed)
    layers: list[tuple[str, nn.Module]] = []
    for index, (fan_in, fan_out) in enumerate(pairwise(sizes), start=1):
        limit = math.sqrt(6 / fan_in)
        linear = nn.Linear(fan_in, fan_out, device="meta")  # elsewhere its constructor draws globally
        linear = linear.to_empty(device="cpu")
        with torch.no_grad():
            nn.init.uniform_(linear.weight, -limit, limit, generator=generator)
            nn.init.zeros_(linear.bias)
        layers.append((f"fc{index}", linear))
        if index < len(sizes) - 1:
            layers.append((f"relu{index}", nn.ReLU()))
    model = nn.Sequential()
    for name, layer in layers:
        model.add_module(name, layer)
    return model


def train(
    model: nn.Module,
    inputs: Float[Tensor, "n *features"],
    targets: Int[Tensor, "n"],
    *,
    epochs: int = EPOCHS,
    batch: int = BATCH,
    rate: float = 2e-3,
    decay: float = 1e-4,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Minimise the cross-entropy in place by AdamW with a cosine schedule, in a seeded order of batches."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay)
    steps = epochs * -(-len(inputs) // batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    for epoch in range(epochs):
        order = torch.randperm(len(inputs), generator=generator)
        for rows in order.split(batch):
            loss = nn.functional.cross_entropy(model(inputs[rows]), targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        if progress is not None:
            progress(epoch + 1, epochs)
    model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, inputs: Float[Tensor, "n *features"], targets: Int[Tensor, "n"]) -> float:
    """The fraction of inputs whose largest output is the target's."""
    right = sum(
        int((model(rows).argmax(-1) == classes).sum())
        for rows, classes in zip(inputs.split(1024), targets.split(1024), strict=True)
    )
    return right / len(inputs)


def batches(inputs: Float[Tensor, "n *features"], size: int = 256) -> Iterator[Tensor]:
    """The inputs in pieces, as a model takes them."""
    return iter(inputs.split(size))
