"""Small pruned networks with reports, made without `prune`: a fault there does not show as a fault of the files."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from optprune.certify import certify
from optprune.network.layers import adapter_for
from optprune.network.report import LayerRecord, Part, Report
from optprune.network.total import total
from optprune.patterns import PerLayer
from optprune.problems import L0LeastSquares
from optprune.solution import Termination
from optprune.solvers import Magnitude


def mlp(dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Sequential:
    """Three linear layers, none larger than 12 x 8."""
    model = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 4))
    return randomised(model, dtype, seed)


def conv_net(dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Sequential:
    """A grouped convolution between a plain one and a linear layer; a batch norm with its counters."""
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, stride=2, groups=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24, 3),
    )
    return randomised(model, dtype, seed)


def randomised(model: nn.Sequential, dtype: torch.dtype, seed: int) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / math.sqrt(parameter[0].numel()))
    return model.to(dtype).eval()


def inputs_of(model: nn.Sequential, inputs: Tensor) -> Mapping[str, Tensor]:
    """What each layer of a sequential model sees."""
    seen = {}
    for name, layer in model.named_children():
        seen[name] = inputs
        inputs = layer(inputs)
    return seen


@torch.no_grad()
def pruned_run(model: nn.Sequential, inputs: Tensor, density: float = 0.4) -> tuple[nn.Sequential, Report]:
    """Prune every layer of a model in place by magnitude with refit, and certify what ships."""
    seen = inputs_of(model, inputs)
    records = []
    for name, layer in model.named_children():
        if not isinstance(layer, nn.Linear | nn.Conv2d):
            continue
        adapter = adapter_for(layer)
        groups = adapter.matrix(layer.weight.double().clone())
        rows = adapter.rows(seen[name].double())
        pattern = PerLayer.at_density(density, adapter.shape)
        patterns = pattern.split(adapter.groups, adapter.shape)
        problems = [L0LeastSquares.from_layer(*group) for group in zip(groups, rows, patterns, strict=True)]
        matrices = torch.stack([Magnitude().run(problem).matrix for problem in problems])
        layer.weight.copy_(adapter.weight_from(matrices))
        shipped = adapter.matrix(layer.weight).double()
        parts = [part_of(problem, matrix) for problem, matrix in zip(problems, shipped, strict=True)]
        records.append(record_of(name, layer, str(pattern), rows, shipped - groups, parts))
    return model, Report(records, None, {"seed": 0, "inputs": {"rows": len(inputs)}})


def part_of(problem: L0LeastSquares, matrix: Tensor) -> Part:
    certificate, evidence = certify(problem, matrix)
    return Part(problem, matrix, evidence, certificate)


def record_of(
    name: str, layer: nn.Linear | nn.Conv2d, pattern: str, rows: Tensor, step: Tensor, parts: list[Part]
) -> LayerRecord:
    kept = int((layer.weight != 0).sum())
    discrepancy = float((rows @ step.mT).norm())
    return LayerRecord(
        name=name,
        kind=type(layer).__name__,
        shape=tuple(layer.weight.shape),
        target=pattern,
        pattern=pattern,
        problem="L0LeastSquares",
        solver="Magnitude()",
        kept=kept,
        density=kept / layer.weight.numel(),
        error=discrepancy,
        discrepancy=discrepancy,
        rows=rows.shape[1],
        certificate=total([part.certificate for part in parts]),
        termination=Termination.CLOSED_FORM,
        steps=0,
        seconds=0.25,
        parts=parts,
    )
