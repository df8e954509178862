"""Every linear map is the matrix that it stands for: products, columns, Gram matrices, bounds, files."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from optprune.errors import InvalidInputError, NonFiniteError
from optprune.numerics.linear import DenseMap, DiskMap, LinearMap, PatchMap, _base, disk, patches
from optprune.numerics.rounding import product_error


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(autouse=True, scope="module")
def small_blocks():
    """Blocks so small that every map here has several."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (_base, disk, patches):
            patch.setattr(module, "BLOCK", 60)
        yield


def explicit(linear: PatchMap) -> torch.Tensor:
    """The unfolded patches, by torch."""
    assert isinstance(linear.padding, tuple)
    sides = (linear.padding[1],) * 2 + (linear.padding[0],) * 2
    mode = "constant" if linear.padding_mode == "zeros" else linear.padding_mode
    padded = F.pad(linear.images, sides, mode=mode)
    columns = F.unfold(padded, linear.kernel, dilation=linear.dilation, stride=linear.stride)
    return columns.mT.flatten(0, 1)


@st.composite
def maps(draw) -> PatchMap:
    def pair(low: int, high: int) -> st.SearchStrategy[tuple[int, int]]:
        return st.tuples(st.integers(low, high), st.integers(low, high))

    kernel, stride, dilation = draw(pair(1, 3)), draw(pair(1, 3)), draw(pair(1, 2))
    padding = draw(pair(0, 2))
    size = [max(d * (k - 1) + 1 - 2 * p, 3) for d, k, p in zip(dilation, kernel, padding, strict=True)]
    more = draw(pair(0, 3))
    images = normal(
        draw(st.integers(1, 4)),
        draw(st.integers(1, 3)),
        size[0] + more[0],
        size[1] + more[1],
        seed=draw(st.integers(0, 99)),
    )
    mode = draw(st.sampled_from(("zeros", "reflect", "replicate", "circular")))
    return PatchMap(images, kernel, stride, padding, dilation, mode)


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12 * float(b.abs().max()))


def agree(linear: LinearMap, matrix: torch.Tensor) -> None:
    """Everything that a map answers is what the matrix answers."""
    n, d = matrix.shape
    assert linear.shape == (n, d)
    u, lam = normal(3, d, seed=1), normal(3, n, seed=2)
    order, samples = torch.tensor([[0, d - 1], [d // 2, 0]]), torch.tensor([[0, n - 1, n // 2], [n // 3, 0, n - 1]])
    close(linear.forward(u), u @ matrix.mT)
    close(linear.outputs(u), matrix @ u.mT)
    close(linear.adjoint(lam), lam @ matrix)
    close(linear.gram(), matrix.mT @ matrix)
    close(linear.weighted_gram(lam), (matrix.mT * lam[:, None, :]) @ matrix)
    close(linear.outer(), matrix @ matrix.mT)
    close(linear.mean_square(), matrix.square().mean(0))
    torch.testing.assert_close(torch.cat([block for _, block in linear.rows()]), matrix, rtol=1e-15, atol=0)
    torch.testing.assert_close(linear.gather(order), matrix.mT[order], rtol=1e-15, atol=0)
    torch.testing.assert_close(linear.last(), matrix[:, -1], rtol=1e-15, atol=0)
    entries = matrix.mT[order[:, :, None], samples[:, None, :]]
    torch.testing.assert_close(linear.gather_at(order, samples), entries, rtol=1e-15, atol=0)
    # <A u, z> = <u, A* z>
    left, right = (linear.forward(u) * lam).sum(), (u * linear.adjoint(lam)).sum()
    assert abs(float(left - right)) <= 1e-12 * float((linear.forward(u).abs() * lam.abs()).sum())
    product, error = linear.bounded_adjoint(lam)
    close(error, product_error(matrix.mT, lam.mT).mT)
    assert bool(((product - lam @ matrix).abs() <= 2 * error).all())


@settings(deadline=None, max_examples=40)
@given(linear=maps())
def test_patches_are_the_unfolded_matrix_and_its_adjoint_is_right(linear):
    agree(linear, explicit(linear))


def test_scaled_columns_and_ones(tmp_path):
    linear = PatchMap(normal(3, 2, 6, 5), (3, 2), 2, 1)
    matrix = torch.cat((explicit(linear), torch.ones(linear.shape[0], 1, dtype=torch.float64)), 1)
    agree(linear.with_ones(), matrix)
    live = torch.arange(matrix.shape[1]) % 3 != 0
    scale = 1 + normal(int(live.sum())).abs()
    scaled = linear.with_ones().scaled(live, scale)
    agree(scaled, matrix[:, live] / scale)
    agree(DenseMap(matrix).scaled(live, scale), matrix[:, live] / scale)
    agree(LinearMap.read(scaled.tensors(), scaled.record()), matrix[:, live] / scale)
    with pytest.raises(InvalidInputError, match="appended once"):
        linear.with_ones().with_ones()


@pytest.mark.parametrize(("padding", "kernel"), [("same", (3, 5)), ("valid", (2, 2))])
def test_named_paddings_are_those_of_the_convolution(padding, kernel):
    images, weight = normal(2, 3, 7, 6), normal(4, 3, *kernel, seed=3)
    linear = PatchMap(images, kernel, padding=padding, dilation=(1, 1))
    wanted = F.conv2d(images, weight, padding=padding)
    found = linear.outputs(weight.flatten(1)).unflatten(0, (2, *linear.positions)).movedim(-1, 1)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_a_wrong_adjoint_is_caught():
    class Wrong(DenseMap):
        def adjoint(self, lam):
            return (1 + 1e-9) * super().adjoint(lam)

    with pytest.raises(AssertionError):
        agree(Wrong(normal(20, 5)), normal(20, 5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_file_is_the_matrix_in_it(tmp_path, dtype):
    matrix = normal(37, 5).to(dtype)
    np.save(tmp_path / "x.npy", matrix.numpy())
    linear = DiskMap(tmp_path / "x.npy")
    agree(linear, matrix.double())
    agree(linear.with_ones(), torch.cat((matrix.double(), torch.ones(37, 1, dtype=torch.float64)), 1))
    again = LinearMap.read(linear.tensors(), linear.record())
    agree(again, matrix.double())
    assert again.to(torch.float32).forward(normal(2, 5).float()).dtype == torch.float32
    np.save(tmp_path / "x.npy", 2 * matrix.numpy())
    with pytest.raises(InvalidInputError, match="has changed"):
        LinearMap.read({}, linear.record())


def test_what_is_no_matrix_is_refused(tmp_path):
    for name, array in {
        "integers": np.ones((3, 2), dtype=np.int64),
        "vector": np.ones(3),
        "empty": np.ones((0, 2)),
        "columns": np.asfortranarray(np.ones((3, 2))),
    }.items():
        np.save(tmp_path / f"{name}.npy", array)
        with pytest.raises(InvalidInputError):
            DiskMap(tmp_path / f"{name}.npy")
    np.save(tmp_path / "bad.npy", np.array([[0.0, 1.0], [np.nan, 1.0]]))
    with pytest.raises(NonFiniteError, match="row 1"):
        DiskMap(tmp_path / "bad.npy")
    with pytest.raises(InvalidInputError, match="that can be read"):
        DiskMap(tmp_path / "nothing.npy")
    images = normal(1, 1, 4, 4)
    for kernel, stride, padding in ((5, 1, 0), (2, 0, 0), (2, 1, -1), (2, 2, "same"), (2, 1, "middle")):
        with pytest.raises(InvalidInputError):
            PatchMap(images, kernel, stride, padding)
    with pytest.raises(InvalidInputError, match="mirror"):
        PatchMap(images, 2, padding_mode="mirror")
    with pytest.raises(NonFiniteError):
        PatchMap(images / 0, 2)
    with pytest.raises(InvalidInputError, match="of kind 'Other'"):
        LinearMap.read({}, {"kind": "Other"})


_PRODUCTS = """
import sys, torch
from optprune.numerics.linear import DiskMap
def peak():
    # The peak that getrusage reports is inherited from the parent; this one is not.
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
block = torch.ones(2000, 500, dtype=torch.float64)
block.mT @ block  # the library keeps buffers of its own from here on
del block
open("/proc/self/clear_refs", "w").write("5")  # the peak is the present size again
before = peak()
linear = DiskMap(sys.argv[1])
through = linear.forward(torch.ones(2, linear.shape[1], dtype=torch.float64))
linear.bounded_adjoint(through), linear.adjoint(through), linear.gram(), linear.mean_square()
print((peak() - before) * 1024)
"""


@pytest.mark.slow
def test_products_with_a_file_take_a_fraction_of_its_size(tmp_path):
    """A fifth of a file of 200 MB: what a product holds is blocks of 8 MB, three or four at a time."""
    file = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float64, (50_000, 500))
    for start in range(0, 50_000, 1000):
        file[start : start + 1000] = normal(1000, 500, seed=start).numpy()
    del file
    run = [sys.executable, "-c", _PRODUCTS, str(tmp_path / "x.npy")]
    returning = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed counts no more
    done = subprocess.run(run, capture_output=True, text=True, check=True, env=returning)
    assert 0 < int(done.stdout) < 40e6
