import pytest
import torch

from optprune.errors import InvalidInputError
from optprune.numerics.prox import project_ball, project_halfspace, project_nonnegative, soft_threshold

DTYPES = [torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_soft_threshold_is_the_formula(dtype, scale):
    x = torch.randn(4, 50, generator=torch.Generator().manual_seed(0), dtype=dtype) * scale
    expected = x.sign() * (x.abs() - 0.7 * scale).clamp(min=0)
    close = {"rtol": 4 * torch.finfo(dtype).eps, "atol": scale * torch.finfo(dtype).eps}
    torch.testing.assert_close(soft_threshold(x, 0.7 * scale), expected, **close)
    t = torch.full((4, 1), 0.7 * scale, dtype=dtype)
    torch.testing.assert_close(soft_threshold(x, t), expected, **close)


def test_soft_threshold_makes_exact_zeros_and_passes_nan():
    x = torch.tensor([-0.1, 0.1, 0.3, float("nan")], dtype=torch.float64)
    out = soft_threshold(x, 0.1)
    assert out[:2].tolist() == [0.0, 0.0]
    assert out[3].isnan()
    assert torch.equal(soft_threshold(x[:3], 0.0), x[:3])
    assert not soft_threshold(x[:3], float("inf")).any()


def test_soft_threshold_minimises_its_objective():
    x = torch.randn(300, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    p = soft_threshold(x, 0.4)
    value = 0.4 * p.abs() + (p - x).square() / 2
    for step in (-1e-3, 1e-3):
        moved = p + step
        assert (value <= 0.4 * moved.abs() + (moved - x).square() / 2).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_ball_projection_satisfies_the_variational_inequality(dtype, scale):
    g = torch.Generator().manual_seed(2)
    x = torch.randn(6, 40, generator=g, dtype=dtype) * scale
    centre = torch.randn(6, 40, generator=g, dtype=dtype) * scale
    radius = torch.tensor([0.0, 0.1, 1.0, 5.0, 50.0, 9.0], dtype=dtype).unsqueeze(-1) * scale
    p = project_ball(x, centre, radius)
    eps = torch.finfo(dtype).eps
    assert ((p - centre).norm(dim=-1, keepdim=True) <= radius * (1 + 50 * eps) + 50 * eps * scale).all()
    inside = centre + radius * torch.nn.functional.normalize(torch.randn(6, 40, generator=g, dtype=dtype), dim=-1) * 0.9
    assert (((x - p) * (inside - p)).sum(-1) <= 1e4 * eps * scale**2).all()


def test_ball_leaves_points_inside_alone_and_guards_the_centre():
    centre = torch.full((3, 4), 0.1, dtype=torch.float64)
    assert torch.equal(project_ball(centre, centre, 0.0), centre)
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert torch.equal(project_ball(x, centre, 100.0), x)
    assert torch.equal(project_ball(x, centre, float("inf")), x)
    torch.testing.assert_close(project_ball(x, centre, 0.0), centre, rtol=0, atol=1e-16)


def test_ball_over_several_dimensions_and_along_the_first():
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    joint = project_ball(x, 0.0, 1.0, dim=(-2, -1))
    torch.testing.assert_close(joint.flatten(1).norm(dim=-1), torch.ones(2, dtype=torch.float64))
    along = project_ball(x[0], 0.0, 0.5, dim=0)
    torch.testing.assert_close(along, project_ball(x[0].T, 0.0, 0.5).T)
    assert project_ball(x[:0], 0.0, 1.0).shape == (0, 3, 4)


def test_halfspace_and_nonnegative():
    x = torch.tensor([[-1.0, 0.5], [2.0, -3.0]])
    assert torch.equal(project_halfspace(x, 0.0), torch.tensor([[-1.0, 0.0], [0.0, -3.0]]))
    assert torch.equal(project_halfspace(x, torch.tensor([1.0, -5.0])), torch.tensor([[-1.0, -5.0], [1.0, -5.0]]))
    assert torch.equal(project_nonnegative(x), torch.tensor([[0.0, 0.5], [2.0, 0.0]]))


def test_negative_sizes_are_refused():
    x = torch.zeros(3)
    with pytest.raises(InvalidInputError, match="t = -1"):
        soft_threshold(x, -1.0)
    with pytest.raises(InvalidInputError, match="radius = nan"):
        project_ball(x, 0.0, float("nan"))
