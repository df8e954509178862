"""T02 on random pre-activations of every sign pattern, on feasible points, and where it is an equality."""

import pytest
import torch

from optprune.problems.net_trim import NetTrim


def normal(rng: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def test_residuals_bound_the_error_of_any_weight(rng):
    for _ in range(200):
        z, dense = normal(rng, 6, 5), normal(rng, 6, 5)
        y, active = dense.clamp(min=0), dense > 0
        error = (z.clamp(min=0) - y).square().sum()
        on = torch.where(active, z - y, 0.0).square().sum()
        off = torch.where(active, 0.0, z.clamp(min=0)).square().sum()
        assert error <= (on + off) * (1 + 1e-14)


def test_no_part_of_the_residual_can_be_left_out(rng):
    """The constants are 1: with 0.999 of either part the inequality fails for some weight."""
    failures = {"on": 0, "off": 0}
    for _ in range(200):
        dense = normal(rng, 1, 1)
        z = normal(rng, 1, 1).abs()
        y, active = dense.clamp(min=0), dense > 0
        error = (z.clamp(min=0) - y).square().sum()
        on = torch.where(active, z - y, 0.0).square().sum()
        off = torch.where(active, 0.0, z.clamp(min=0)).square().sum()
        failures["on"] += bool(error > 0.999 * on + off)
        failures["off"] += bool(error > on + 0.999 * off)
    assert all(failures.values())


@pytest.mark.parametrize("gamma", [1.0, 1.1, 2.0])
def test_cascade_programs_admit_the_dense_weight_and_bound_every_feasible_one(gamma, rng):
    # Fewer samples than inputs, so that the ceilings, all met with equality by the dense weight, leave room.
    inputs, weight = normal(rng, 5, 8), normal(rng, 2, 8)
    seen = inputs + 0.1 * normal(rng, 5, 8)
    dense = inputs @ weight.mT
    problem = NetTrim.cascade(weight, seen, dense, gamma=gamma)
    assert max(float(v) for v in problem.violation(weight).values()) < 1e-14
    passed = seen @ weight.mT
    limit = gamma * (passed - dense).square().sum()
    tried = 0
    for _ in range(200):
        candidate = weight + 0.1 * normal(rng, 2, 8)
        # The feasible set is convex and holds the dense weight: walk towards it until inside.
        for _ in range(12):
            if max(float(v) for v in problem.violation(candidate).values()) == 0:
                tried += 1
                error = ((seen @ candidate.mT).clamp(min=0) - dense.clamp(min=0)).square().sum()
                assert error <= limit * (1 + 1e-12)
            candidate = (candidate + weight) / 2
    assert tried > 0, "no feasible point was drawn"


def test_one_entry_is_an_equality_and_a_smaller_radius_breaks_it():
    y, radius = 1.0, 0.25
    z = y - radius
    error = abs(max(z, 0.0) - y)
    assert error == radius
    assert error > radius * (1 - 1e-3)
