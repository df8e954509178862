"""Networks and helpers that the tests of pruning share."""

import math
from typing import Any, TypeVar

import torch
from torch import nn


def data(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


M = TypeVar("M", bound=nn.Module)


def filled(model: M, seed: int = 0) -> M:
    rng = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        fan = math.prod(parameter.shape[1:]) or 1
        parameter.data = (torch.randn(parameter.shape, generator=rng) / fan**0.5).to(parameter)
    return model


def mlp() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 4, bias=False))
    filled(model)
    return model


def cnn() -> nn.Sequential:
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, groups=3), nn.ReLU(), nn.Conv2d(6, 8, 2, stride=2), nn.Flatten(), nn.Linear(72, 5)
    )
    filled(model)
    return model


def layer(model: nn.Module, name: str) -> Any:
    return model.get_submodule(name)


def parameters(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
