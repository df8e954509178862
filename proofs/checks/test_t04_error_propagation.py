"""T04: the chain on random networks, the constants against exact operator norms, and where it is an equality."""

import math
from fractions import Fraction
from itertools import pairwise, product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from optprune.bounds.propagation import added, affine, axis_multiplicity, chain, convolution_gain, plus, stacked, times


def normal(rng: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def spectral(matrix: torch.Tensor) -> float:
    return float(torch.linalg.matrix_norm(matrix, 2))


def forward(weights: list[torch.Tensor], biases: list[torch.Tensor], x: torch.Tensor) -> list[torch.Tensor]:
    """The inputs of every layer and the output of the last: ReLU in between, none at the end."""
    outputs = [x]
    for weight, bias in zip(weights, biases, strict=True):
        if len(outputs) > 1:
            outputs[-1] = outputs[-1].clamp(min=0)
        outputs.append(outputs[-1] @ weight.mT + bias)
    return outputs


@pytest.mark.parametrize("size", [0.01, 0.3, 3.0])
def test_the_chain_bounds_the_measured_error(size, rng):
    widths = [6, 9, 7, 5]
    for _ in range(20):
        dense = [normal(rng, o, i) for i, o in pairwise(widths)]
        biases = [normal(rng, o) for o in widths[1:]]
        pruned = [w + size * normal(rng, *w.shape) for w in dense]
        shifted = [b + size * normal(rng, *b.shape) for b in biases]
        x = normal(rng, 12, widths[0])
        seen, seen_pruned = forward(dense, biases, x), forward(pruned, shifted, x)
        errors, cascade = [], 0.0
        for l, (w, v) in enumerate(zip(dense, pruned, strict=True)):
            change = shifted[l] - biases[l]
            errors.append(float((seen[l] @ (v - w).mT + change).norm()))
            cascade = affine(spectral(w), cascade, float((seen_pruned[l] @ (v - w).mT + change).norm()))
        parallel = chain(errors, [spectral(v) for v in pruned])
        measured = float((seen_pruned[-1] - seen[-1]).norm())
        assert measured <= parallel * (1 + 1e-12)
        assert measured <= cascade * (1 + 1e-12)
        assert measured > 1e-3 * parallel, "the instance would not notice a wrong bound"


def test_aligned_errors_are_an_equality_and_a_smaller_norm_breaks_it():
    second = torch.diag(torch.tensor([3.0, 1.0], dtype=torch.float64))
    step = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    x = torch.ones(1, 1, dtype=torch.float64)
    dense, pruned = [0 * step, second], [step, second]
    biases = [torch.ones(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)]
    measured = float((forward(pruned, biases, x)[-1] - forward(dense, biases, x)[-1]).norm())
    bound = chain([float(step.norm()), 0.0], [0.0, spectral(second)])
    assert measured <= bound
    assert measured == pytest.approx(bound, rel=1e-14)
    assert measured > chain([float(step.norm()), 0.0], [0.0, spectral(second) * (1 - 1e-3)])


def test_unfolding_multiplicity_along_an_axis_is_the_largest_count():
    for kernel, stride, dilation in product(range(1, 6), repeat=3):
        reach = dilation * (kernel - 1)
        size = 4 * (reach + stride) + 1
        counts = [0] * (size + 2 * reach)
        for start in range(0, size + reach, stride):
            for tap in range(kernel):
                counts[start + tap * dilation] += 1
        assert max(counts) == axis_multiplicity(kernel, stride, dilation)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("kernel", "stride", "dilation"), [(3, 1, 1), (3, 2, 1), (2, 2, 1), (3, 2, 2), (5, 3, 1)])
def test_convolution_constant_is_above_the_operator_norm(kernel, stride, dilation, groups, rng):
    channels, size = 4, 9
    weight = normal(rng, 6, channels // groups, kernel)
    basis = torch.eye(channels * size, dtype=torch.float64).reshape(-1, channels, size)
    padding = dilation * (kernel - 1)
    operator = F.conv1d(basis, weight, stride=stride, dilation=dilation, padding=padding, groups=groups).flatten(1)
    largest = max(spectral(part.flatten(1)) for part in weight.chunk(groups))
    constant = convolution_gain(largest, axis_multiplicity(kernel, stride, dilation))
    assert spectral(operator) <= constant * (1 + 1e-12)
    # Ones on the taps that meet the same entries: the constant is attained up to the borders.
    multiplicity = axis_multiplicity(kernel, stride, dilation)
    flat = torch.zeros(1, 1, kernel, dtype=torch.float64)
    flat[..., :: stride // math.gcd(stride, dilation)] = 1
    long = torch.eye(400, dtype=torch.float64).reshape(-1, 1, 400)
    reached = spectral(F.conv1d(long, flat, stride=stride, dilation=dilation, padding=padding).flatten(1))
    assert 0.99 * multiplicity < reached <= math.sqrt(multiplicity) * float(flat.norm()) * (1 + 1e-12)


@pytest.mark.parametrize(
    ("module", "constant"),
    [
        (nn.ReLU(), 1.0),
        (nn.LeakyReLU(0.2), 1.0),
        (nn.LeakyReLU(3.0), 3.0),
        (nn.Tanh(), 1.0),
        (nn.Hardtanh(), 1.0),
        (nn.Sigmoid(), 0.25),
        (nn.Dropout(0.5), 1.0),
        (nn.Flatten(), 1.0),
        (nn.MaxPool2d(2), 1.0),
        (nn.MaxPool2d(3, stride=1), 3.0),
        (nn.MaxPool2d(3, stride=2), 2.0),
        (nn.AvgPool2d(2), 0.5),
        (nn.AvgPool2d(3, stride=1), 1.0),
        (nn.AdaptiveAvgPool2d(1), 1 / 6),
    ],
    ids=str,
)
def test_constants_of_maps_hold_and_are_reached(module, constant, rng):
    module = module.eval()
    x = normal(rng, 60, 2, 6, 6)
    largest = 0.0
    for scale in (1e-3, 1.0):
        for step in (normal(rng, *x.shape), torch.ones_like(x), bump(x)):
            for at in (x, torch.zeros_like(x)):
                moved = (module(at + scale * step) - module(at)).flatten(1).norm(dim=1)
                ratio = moved / (scale * step).flatten(1).norm(dim=1)
                largest = max(largest, float(ratio.max()))
    assert largest <= constant * (1 + 1e-9)
    assert largest >= 0.6 * constant, "the constant is far from what the map does"


def bump(x: torch.Tensor) -> torch.Tensor:
    """One entry in the middle of every channel, which as many windows see as can."""
    step = torch.zeros_like(x)
    step[..., 2, 2] = 1
    return step


def test_batch_norm_constant_is_the_largest_scale(rng):
    norm = nn.BatchNorm1d(5).double().eval().requires_grad_(False)
    for tensor in (norm.weight.data, norm.running_mean, norm.running_var):
        assert tensor is not None
        tensor.copy_(torch.rand(5, generator=rng, dtype=torch.float64) + 0.1)
    assert norm.running_var is not None
    scales = (norm.weight / (norm.running_var + norm.eps).sqrt()).abs()
    basis = torch.eye(5, dtype=torch.float64)
    operator = norm(basis) - norm(torch.zeros_like(basis))
    assert spectral(operator) == pytest.approx(float(scales.max()), rel=1e-12)


def test_sums_and_concatenations(rng):
    for _ in range(50):
        a, b = normal(rng, 4, 6), normal(rng, 4, 6)
        sizes = [float(a.norm()), float(b.norm())]
        assert float((a + b).norm()) <= added(sizes)
        assert float(torch.cat([a, b], 1).norm()) == pytest.approx(stacked(sizes), rel=1e-12)
    assert added([2.0, 3.0]) == pytest.approx(5.0, rel=1e-15)


@given(st.lists(st.floats(0, 1e150), min_size=1, max_size=6))
def test_every_operation_rounds_up(numbers):
    exact = [Fraction(number) for number in numbers]
    assert Fraction(plus(*numbers)) >= sum(exact)
    assert Fraction(times(numbers[0], numbers[-1])) >= exact[0] * exact[-1]
    assert Fraction(stacked(numbers)) ** 2 >= sum(number**2 for number in exact)
    assert plus(*numbers) <= float(sum(exact)) * (1 + 1e-15) + 1e-300
    assert times(numbers[0], numbers[-1]) <= float(exact[0] * exact[-1]) * (1 + 1e-15) + 1e-300
