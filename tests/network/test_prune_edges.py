"""Networks pruned by sampling edges: counts, certificates that a file holds, convolutions with groups, the cascade."""

import copy

import pytest
import torch
from torch import nn

import optprune as op
from optprune.errors import UnsupportedError

SOLVERS = [
    op.SiPPDet(),
    op.SiPPRand(),
    op.SiPPHybrid(),
    op.CoreNet(),
    op.PivotalEdges(derandomise=False),
    op.PivotalEdges(),
]


@pytest.fixture
def model(rng) -> nn.Sequential:
    model = nn.Sequential(
        nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=rng))
    return model


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_a_network_is_pruned_certified_and_verified(solver, model, rng, tmp_path):
    images = torch.randn(20, 2, 6, 6, generator=rng)
    plan = op.plan.uniform(model, 0.5)
    pruned, report = op.prune(model, images, plan, solver, samples=60)
    assert report.kept <= plan.count()
    for record in report.layers:
        assert record.problem == "EdgeSampling"
        assert record.certificate is not None
        assert record.certificate.theorem == "T16"
        assert record.certificate.primal_residual < 1e-6
        for old, new in zip(model.parameters(), pruned.parameters(), strict=True):
            assert old.dim() > 1 or torch.equal(old, new)
        if record.name != "2":  # whose certificate is that of two groups
            below = 100 * record.certificate.details["below_one"]
            assert f"{record.name}: neurons with an error below 1: exactly, on the points {below:.3g} %" in str(report)
    op.export(pruned, report, tmp_path / "run")
    op.verify(tmp_path / "run")


def test_the_cascade_sees_the_pruned_prefix(model, rng):
    images = torch.randn(20, 2, 6, 6, generator=rng)
    plan = op.plan.uniform(model, 0.4)
    solver = op.PivotalEdges()
    apart, _ = op.prune(model, images, plan, solver, certified=False)
    behind, report = op.prune(model, images, plan, solver, mode="cascade", certified=False)
    assert torch.equal(apart[0].weight, behind[0].weight)
    assert not torch.equal(apart[5].weight, behind[5].weight)
    assert report.kept <= plan.count()


def test_retraining_is_the_users_own(model, rng):
    """Prune, retrain the kept weights, prune further: three rounds of the loop that the papers use."""
    images = torch.randn(64, 2, 6, 6, generator=rng)
    targets = model(images).detach()
    student = copy.deepcopy(model)
    for density in (0.8, 0.6, 0.4):
        plan = op.plan.uniform(student, density)
        student, report = op.prune(student, images, plan, op.PivotalEdges(), certified=False)
        masks = {name: p != 0 for name, p in student.named_parameters() if p.dim() > 1}
        before = float((student(images) - targets).square().mean())
        optimizer = torch.optim.Adam(student.parameters(), lr=5e-3)
        for _ in range(25):
            optimizer.zero_grad()
            (student(images) - targets).square().mean().backward()
            optimizer.step()
            with torch.no_grad():
                for name, parameter in student.named_parameters():
                    if name in masks:
                        parameter *= masks[name]
        assert float((student(images) - targets).square().mean()) < before
        assert report.kept <= plan.count()
    assert sum(int((p != 0).sum()) for p in student.parameters() if p.dim() > 1) <= 0.41 * plan.total()


def test_a_radius_is_refused(model, rng):
    with pytest.raises(UnsupportedError, match="needs a pattern"):
        op.prune(model, torch.randn(4, 2, 6, 6, generator=rng), op.plan.radius(model, 0.1), op.SiPPDet())
