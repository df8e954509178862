"""Every layer type is exactly the product of its rows with its matrix."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from optprune.errors import InvalidInputError, UnsupportedError
from optprune.network.layers import adapter_for, candidates, named_adapters
from optprune.numerics.linalg import spectral_norm


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fill(module: nn.Module, seed: int = 0) -> nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator(seed), dtype=parameter.dtype))
    return module


def product(module, x):
    adapter = adapter_for(module)
    z = adapter.rows(x) @ adapter.matrix(module.weight).mT
    return z if module.bias is None else z + module.bias.reshape(adapter.groups, 1, -1)


CONV2D = [
    {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "padding_mode": mode}
    for stride, padding, dilation, groups, mode in itertools.product(
        (1, (2, 3)),
        (0, (1, 2), "same", "valid"),
        (1, (2, 1)),
        (1, 2, 4),
        ("zeros", "reflect", "replicate", "circular"),
    )
    if not (padding == "same" and stride != 1)
]
CONV1D = [
    {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "padding_mode": mode}
    for stride, padding, dilation, groups, mode in itertools.product(
        (1, 2), (0, 2, "same", "valid"), (1, 3), (1, 2, 4), ("zeros", "reflect", "replicate", "circular")
    )
    if not (padding == "same" and stride != 1)
]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("kernel", [(3, 2), (4, 3)], ids=str)
def test_conv2d_is_a_product(kernel):
    x = torch.randn(3, 4, 9, 8, generator=generator(1), dtype=torch.float64)
    for options in CONV2D:
        module = fill(nn.Conv2d(4, 8, kernel, bias=options["groups"] != 2, dtype=torch.float64, **options))
        with torch.no_grad():
            adapter = adapter_for(module)
            expected = adapter.outputs(module(x))
            torch.testing.assert_close(product(module, x), expected, rtol=1e-12, atol=1e-12, msg=str(options))
            assert adapter.rows_per_sample(x) * 3 == expected.shape[1], options
            single = adapter.outputs(module(x[0]))
            torch.testing.assert_close(product(module, x[0]), single, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kernel", [2, 3, 4])
def test_conv1d_is_a_product(kernel):
    x = torch.randn(3, 4, 13, generator=generator(2), dtype=torch.float64)
    for options in CONV1D:
        module = fill(nn.Conv1d(4, 8, kernel, bias=options["groups"] != 2, dtype=torch.float64, **options))
        with torch.no_grad():
            adapter = adapter_for(module)
            expected = adapter.outputs(module(x))
            torch.testing.assert_close(product(module, x), expected, rtol=1e-12, atol=1e-12, msg=str(options))
            assert adapter.rows_per_sample(x) * 3 == expected.shape[1], options


@pytest.mark.parametrize("leading", [(), (5,), (2, 3), (2, 1, 4)], ids=str)
def test_linear_is_a_product(leading):
    module = fill(nn.Linear(6, 3, dtype=torch.float64))
    x = torch.randn(*leading, 6, generator=generator(3), dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(product(module, x), adapter_for(module).outputs(module(x)))


@pytest.mark.parametrize(
    "module",
    [
        nn.Linear(5, 7),
        nn.Conv1d(4, 6, 3, groups=2),
        nn.Conv2d(4, 6, (3, 2), groups=2),
        nn.Conv2d(3, 3, 3, groups=3),
    ],
    ids=str,
)
def test_matrix_and_back(module):
    adapter = adapter_for(module)
    matrix = adapter.matrix(module.weight)
    assert matrix.shape == (adapter.groups, module.weight.shape[0] // adapter.groups, adapter.shape[1])
    assert torch.equal(adapter.weight_from(matrix), module.weight)


@pytest.mark.parametrize("limit", [1, 2000, 10**9])
def test_chunks_are_all_rows_in_order(limit):
    module = fill(nn.Conv2d(4, 6, 3, padding=1, groups=2))
    adapter = adapter_for(module)
    x = torch.randn(7, 4, 6, 6, generator=generator(4))
    with torch.no_grad():
        y = module(x)
        pieces = list(adapter.chunks(x, y, limit))
        assert torch.equal(torch.cat([rows for rows, _ in pieces], 1), adapter.rows(x))
        assert torch.equal(torch.cat([out for _, out in pieces if out is not None], 1), adapter.outputs(y))
    assert len(pieces) == {1: 7, 2000: 7, 10**9: 1}[limit]


def brute_force_multiplicity(module, size):
    """Largest eigenvalue of the unfolding's Gram operator, from its matrix."""
    adapter = adapter_for(module)
    numel = module.in_channels * int(torch.tensor(size).prod())
    basis = torch.eye(numel, dtype=torch.float64).reshape(numel, module.in_channels, *size)
    columns = torch.stack([adapter.rows(e.unsqueeze(0)).flatten() for e in basis], 1)
    return float(torch.linalg.matrix_norm(columns, 2)) ** 2


@pytest.mark.parametrize(
    ("module", "size"),
    [
        (nn.Conv2d(1, 2, 3), (5, 6)),
        (nn.Conv2d(1, 2, 3, stride=3), (6, 6)),
        (nn.Conv2d(2, 2, 3, stride=2, padding=1, groups=2), (5, 5)),
        (nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect"), (5, 4)),
        (nn.Conv2d(1, 2, 3, padding=1, padding_mode="replicate"), (5, 4)),
        (nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"), (5, 4)),
        (nn.Conv2d(1, 2, 2, dilation=2), (4, 5)),
        (nn.Conv2d(1, 2, 5), (5, 5)),
        (nn.Conv1d(2, 2, 3, padding=2, dilation=2), (9,)),
        (nn.Conv1d(2, 2, 4, padding="same", padding_mode="replicate"), (9,)),
    ],
    ids=str,
)
def test_multiplicity_is_exact_and_bounds_the_operator(module, size):
    adapter = adapter_for(module)
    exact = brute_force_multiplicity(module, size)
    assert adapter.multiplicity(size) == pytest.approx(exact, rel=1e-12)
    fill(module.double())
    gain = adapter.multiplicity(size) ** 0.5 * float(spectral_norm(adapter.matrix(module.weight.detach())).max())
    x = torch.randn(64, module.in_channels, *size, generator=generator(5), dtype=torch.float64)
    with torch.no_grad():
        y = module(x) - (module.bias.reshape(1, -1, *[1] * len(size)))
    assert (y.flatten(1).norm(dim=1) <= gain * x.flatten(1).norm(dim=1)).all()


class Scaled(nn.Linear):
    def forward(self, input):
        return 2 * F.linear(input, self.weight)


class Standardised(nn.Conv2d):
    def _conv_forward(self, input, weight, bias):
        return super()._conv_forward(input, weight / weight.norm(), bias)


def parametrised():
    module = nn.Linear(3, 3)
    return nn.utils.parametrizations.weight_norm(module)


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (nn.Conv3d(1, 1, 1), "Linear, Conv1d, Conv2d"),
        (nn.ReLU(), "no adapter for ReLU"),
        (Scaled(2, 2), "overrides forward"),
        (Standardised(1, 1, 1), "overrides _conv_forward"),
        (parametrised(), "remove_parametrizations"),
        (nn.LazyLinear(3), "run the model once"),
        (nn.Linear(2, 2, dtype=torch.complex64), "float64, float32, bfloat16, float16"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_what_has_no_adapter_is_refused(module, words):
    with pytest.raises(UnsupportedError, match=words):
        adapter_for(module)


def test_candidates_hold_each_module_once():
    inner = nn.Linear(2, 2)
    model = nn.Sequential(inner, nn.ReLU(), inner, nn.Conv1d(1, 1, 1), nn.Conv3d(1, 1, 1))
    assert candidates(model) == ["0", "3"]


def test_a_refused_layer_is_named():
    model = nn.Sequential(nn.ReLU(), Scaled(2, 2))
    with pytest.raises(UnsupportedError, match=r"layer '1': .*overrides"):
        named_adapters(model, candidates(model))


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(InvalidInputError, match=r"'fc9' is no module of Sequential; .*'0', '2'"):
        named_adapters(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)), ["fc9"])
