"""Small networks and the user's side of a training loop, which the tests of training methods share."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from optprune.training._base import Method

SAMPLES, BATCH = 96, 32
EVERY = SAMPLES // BATCH


def filled(model: nn.Sequential, seed: int = 0) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            fan = max(1, parameter[0].numel())
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan**0.5)
    return model


def mlp() -> nn.Sequential:
    return filled(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)))


def cnn() -> nn.Sequential:
    layers = nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4)
    return filled(nn.Sequential(*layers))


def data(*shape: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(SAMPLES, *shape, generator=generator)
    return inputs, torch.randint(0, 4, (SAMPLES,), generator=generator)


def go(model: nn.Module, optimizer: Optimizer, method: Method, steps: int, inputs: Tensor, targets: Tensor) -> None:
    """Steps of the loop; which batch comes next follows from the method's count, so that a run can be resumed."""
    for _ in range(steps):
        rows = slice(BATCH * (method.steps % EVERY), BATCH * (method.steps % EVERY + 1))
        loss = F.cross_entropy(model(inputs[rows]), targets[rows])
        optimizer.zero_grad()
        (loss + method.penalty()).backward()
        optimizer.step()
        method.step(loss)


def plain(model: nn.Module, optimizer: Optimizer, steps: int, inputs: Tensor, targets: Tensor) -> None:
    """The loop without a method."""
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()


OPTIMIZERS: dict[str, Callable[[nn.Module], Optimizer]] = {
    "momentum": lambda model: torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-2),
    "adam": lambda model: torch.optim.Adam(model.parameters(), lr=1e-2, weight_decay=1e-2),
}
