"""The networks of the benchmarks: LeNets that are trained on the spot, a pretrained ResNet, and their data."""

from __future__ import annotations

import gzip
import math
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from optprune.cli.embedded import mlp, train

BATCHNORM_EPSILON = 1e-5


def data_folder() -> Path:
    """The folder that OPTPRUNE_DATA names."""
    if "OPTPRUNE_DATA" not in os.environ:
        raise SystemExit("set OPTPRUNE_DATA to the folder that holds layers/, mnist/, nets/ and cifar10_lossless/")
    return Path(os.environ["OPTPRUNE_DATA"])


def mnist(part: str = "train") -> tuple[Tensor, Tensor]:
    """Images `(n, 784)` in [0, 1] and classes; `part` is "train" or "t10k"."""
    arrays = []
    for kind, header in (("images-idx3", 16), ("labels-idx1", 8)):
        with gzip.open(data_folder() / "mnist" / f"{part}-{kind}-ubyte.gz") as file:
            arrays.append(np.frombuffer(file.read(), np.uint8, offset=header).copy())
    images, labels = (torch.as_tensor(array) for array in arrays)
    return images.reshape(len(labels), -1) / 255, labels.long()


def lenet300(epochs: int = 4) -> nn.Sequential:
    """LeNet-300-100 after a few epochs on all of MNIST, the same at every call."""
    model = mlp([784, 300, 100, 10])
    train(model, *mnist(), epochs=epochs, batch=128, rate=1.5e-3, decay=1e-2)
    return model


def lenet5(images: int = 20_000, epochs: int = 3, seed: int = 0) -> nn.Sequential:
    """LeNet-5 with 32 and 64 filters of 5 x 5, trained on the first images of MNIST; takes `(n, 1, 28, 28)`."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential()
    layers = {
        "conv1": _drawn(nn.Conv2d(1, 32, 5, device="meta"), generator),
        "relu1": nn.ReLU(),
        "pool1": nn.MaxPool2d(2),
        "conv2": _drawn(nn.Conv2d(32, 64, 5, device="meta"), generator),
        "relu2": nn.ReLU(),
        "pool2": nn.MaxPool2d(2),
        "flat": nn.Flatten(),
        "fc1": _drawn(nn.Linear(1024, 512, device="meta"), generator),
        "relu3": nn.ReLU(),
        "fc2": _drawn(nn.Linear(512, 10, device="meta"), generator),
    }
    for name, layer in layers.items():
        model.add_module(name, layer)
    inputs, labels = mnist()
    train(model, inputs[:images].reshape(-1, 1, 28, 28), labels[:images], epochs=epochs, seed=seed)
    return model


def _drawn(layer: nn.Conv2d | nn.Linear, generator: torch.Generator) -> nn.Module:
    """The layer with weights uniform in He's bounds and biases zero."""
    layer = layer.to_empty(device="cpu")
    limit = math.sqrt(6 / math.prod(layer.weight.shape[1:]))
    with torch.no_grad():
        nn.init.uniform_(layer.weight, -limit, limit, generator=generator)
        assert layer.bias is not None
        nn.init.zeros_(layer.bias)
    return layer


class Block(nn.Module):
    """Two convolutions around a shortcut that subsamples and pads with zero channels."""

    def __init__(self, fan_in: int, fan_out: int) -> None:
        super().__init__()
        self.stride = fan_out // fan_in
        self.conv1 = nn.Conv2d(fan_in, fan_out, 3, self.stride, 1, device="meta")
        self.conv2 = nn.Conv2d(fan_out, fan_out, 3, 1, 1, device="meta")
        self.padding = (fan_out - fan_in) // 2

    def forward(self, x: Tensor) -> Tensor:
        inner = self.conv2(F.relu(self.conv1(x)))
        passed = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(inner + passed)


class ResNet20(nn.Module):
    """The ResNet-20 of He et al. for CIFAR-10, its normalisations folded into the convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, device="meta")
        self.layer1 = nn.Sequential(Block(16, 16), Block(16, 16), Block(16, 16))
        self.layer2 = nn.Sequential(Block(16, 32), Block(32, 32), Block(32, 32))
        self.layer3 = nn.Sequential(Block(32, 64), Block(64, 64), Block(64, 64))
        self.linear = nn.Linear(64, 10, device="meta")

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(F.relu(self.conv1(x)))))
        return self.linear(x.mean((2, 3)))


def resnet20() -> ResNet20:
    r"""The pretrained network. A convolution $w$ and a normalisation $(\gamma, \beta, \mu, \sigma^2)$ behind it are
    the convolution $\gamma w / \sqrt{\sigma^2 + \epsilon}$ with bias $\beta - \gamma \mu / \sqrt{\sigma^2 +
    \epsilon}$: only so is what the ReLU sees a product with a weight.
    """
    saved = load_file(data_folder() / "nets" / "resnet20_cifar10.safetensors")
    model = ResNet20()
    model.load_state_dict(_folded(saved), assign=True)
    return model.eval()


def _folded(saved: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = {name: tensor for name, tensor in saved.items() if name.startswith("linear.")}
    for name, weight in saved.items():
        head, dot, last = name.removesuffix(".weight").rpartition(".")
        if not last.startswith("conv"):
            continue
        norm = head + dot + last.replace("conv", "bn")
        scale = saved[f"{norm}.weight"] / (saved[f"{norm}.running_var"] + BATCHNORM_EPSILON).sqrt()
        found[name] = weight * scale[:, None, None, None]
        found[name.removesuffix("weight") + "bias"] = saved[f"{norm}.bias"] - scale * saved[f"{norm}.running_mean"]
    return found


def cifar10(part: str = "train") -> tuple[Tensor, Tensor]:
    """Images `(n, 3, 32, 32)` as the ResNets take them, and classes; `part` is "train" or "test"."""
    (file,) = (data_folder() / "cifar10_lossless").glob("*.npz")
    saved = np.load(file)
    images = torch.as_tensor(saved[f"x_{part}"]).movedim(3, 1) / 255
    mean, deviation = (torch.tensor(v).reshape(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return (images - mean) / deviation, torch.as_tensor(saved[f"y_{part}"]).long()
