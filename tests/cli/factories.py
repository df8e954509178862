"""What `--model module:function` is given in the tests."""

import torch
from torch import nn


def small() -> nn.Sequential:
    """Two linear layers, 8 to 5 to 3, with weights that are always the same."""
    model = nn.Sequential()
    generator = torch.Generator().manual_seed(0)
    for name, layer in (("first", nn.Linear(8, 5)), ("relu", nn.ReLU()), ("last", nn.Linear(5, 3))):
        model.add_module(name, layer)
        for parameter in layer.parameters():
            nn.init.normal_(parameter, generator=generator)
    return model


def number() -> int:
    return 3
