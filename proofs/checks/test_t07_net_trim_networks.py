"""T07 on random chains of layers, on solved programs, and where it is an equality."""

import itertools
import math

import pytest
import torch
from torch import Tensor

import optprune as op
from optprune.bounds.net_trim import cascade_bound, cascade_step, parallel_bounds
from optprune.errors import InvalidInputError

Layers = list[tuple[Tensor, Tensor]]


def normal(rng: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def chain(rng: torch.Generator, widths: tuple[int, ...], bias: bool) -> Layers:
    """Weights and biases; one layer of rank one, one with a dead neuron."""
    layers = [(normal(rng, o, i), normal(rng, o) * bias) for i, o in itertools.pairwise(widths)]
    layers[1] = (torch.outer(normal(rng, widths[2]), normal(rng, widths[1])), layers[1][1])
    layers[0][0][0] = 0.0
    return layers


def values(layers: Layers, inputs: Tensor) -> list[Tensor]:
    """What every layer puts out; the last is linear."""
    found = [inputs]
    for number, (weight, bias) in enumerate(layers):
        out = found[-1] @ weight.mT + bias
        found.append(out if number == len(layers) - 1 else out.clamp(min=0))
    return found


def errors(dense: Layers, pruned: Layers, inputs: Tensor) -> list[float]:
    """Of every pruned layer on the dense network's inputs."""
    seen = values(dense, inputs)
    found = []
    for number, (weight, bias) in enumerate(pruned):
        out = seen[number] @ weight.mT + bias
        out = out if number == len(pruned) - 1 else out.clamp(min=0)
        found.append(float((out - seen[number + 1]).norm()) * (1 + 1e-13))
    return found


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("change", [0.01, 0.3, 3.0])
def test_every_norm_bounds_the_error_of_any_layers(bias, change, rng):
    for _ in range(20):
        dense = chain(rng, (6, 8, 5, 7, 3), bias)
        pruned = [(w + change * normal(rng, *w.shape), b + change * bias * normal(rng, *b.shape)) for w, b in dense]
        inputs = normal(rng, 11, 6)
        truth, size = values(dense, inputs)[-1], float(values(dense, inputs)[-1].norm())
        missed = float((values(pruned, inputs)[-1] - truth).norm())
        found = parallel_bounds(errors(dense, pruned, inputs), [w for w, _ in dense], [w for w, _ in pruned], size)
        assert missed <= found.spectral <= found.frobenius <= found.l1
        shrunk = all(float(a.abs().sum()) <= float(b.abs().sum()) for (a, _), (b, _) in zip(pruned, dense, strict=True))
        assert (found.printed is not None) == shrunk
        if found.printed is not None:
            assert found.l1 <= found.printed


def trimmed(dense: Layers, inputs: Tensor, gain: float) -> Layers:
    """Every layer's program on the dense network's inputs, solved."""
    seen = values(dense, inputs)
    pruned = []
    for number, (weight, _) in enumerate(dense):
        relu = number < len(dense) - 1
        problem = op.NetTrim.from_layer(weight, seen[number], gain * float(seen[number + 1].norm()), relu=relu)
        pruned.append((op.solve(problem, op.NetTrimADMM()).weight, torch.zeros(len(weight), dtype=torch.float64)))
    return pruned


def test_radii_bound_what_the_programs_leave(rng):
    """Theorem 1: with the radii as errors; the printed form applies, for the dense weights are admissible."""
    dense = chain(rng, (10, 12, 8, 9, 4), bias=False)
    inputs = normal(rng, 40, 10).clamp(min=0)
    seen = values(dense, inputs)
    pruned = trimmed(dense, inputs, 0.1)
    radii = [0.1 * float(value.norm()) * (1 + 1e-9) for value in seen[1:]]
    found = parallel_bounds(radii, [w for w, _ in dense], [w for w, _ in pruned], float(seen[-1].norm()))
    missed = float((values(pruned, inputs)[-1] - seen[-1]).norm())
    assert found.printed is not None
    assert missed <= found.spectral <= found.frobenius <= found.l1 <= found.printed
    assert found.vacuous("printed")
    assert not parallel_bounds(radii[:1], [dense[0][0]], [pruned[0][0]], float(seen[1].norm())).vacuous("spectral")


@pytest.mark.parametrize("gamma", [1.0, 1.3])
def test_a_cascade_stays_below_the_product_known_before(gamma, rng):
    """Theorem 2, and the tighter bound layer by layer."""
    dense = chain(rng, (10, 12, 8, 9), bias=False)
    inputs = normal(rng, 40, 10).clamp(min=0)
    seen = values(dense, inputs)
    first = op.NetTrim.from_layer(dense[0][0], inputs, 0.1 * float(seen[1].norm()))
    here = (inputs @ op.solve(first, op.NetTrimADMM()).weight.mT).clamp(min=0)
    start = 0.1 * float(seen[1].norm()) * (1 + 1e-9)
    for number in (1, 2):
        weight, relu = dense[number][0], number == 1
        problem = op.NetTrim.cascade(weight, here, seen[number] @ weight.mT, gamma, relu=relu)
        assert problem.radius is not None
        passed = (here @ weight.mT).clamp(min=0)
        overshoot = float(torch.where(problem.active, 0.0, passed).norm())
        here = here @ op.solve(problem, op.NetTrimADMM()).weight.mT
        here = here.clamp(min=0) if relu else here
        missed = float((here - seen[number + 1]).norm())
        before = cascade_bound(start, [gamma] * number, [w for w, _ in dense[1 : number + 1]])
        step = cascade_step(float(problem.radius) * (1 + 1e-9), overshoot if relu else 0.0)
        assert missed <= step <= before * (1 + 1e-9)


def test_no_constant_can_be_smaller():
    """One sample, one neuron per layer: both bounds are attained."""
    one = torch.ones(1, 1, dtype=torch.float64)
    found = parallel_bounds([0.25, 0.5], [2 * one, 3 * one], [2.25 * one, 2.75 * one], 1.0)
    assert found.spectral == pytest.approx(0.25 * 2.75 + 0.5, rel=1e-12)
    dense, pruned = [(2 * one, 0 * one[0]), (3 * one, 0 * one[0])], [(2.25 * one, 0 * one[0]), (3.25 * one, 0 * one[0])]
    truth, after = values(dense, one)[-1], values(pruned, one)[-1]
    tight = parallel_bounds(errors(dense, pruned, one), [w for w, _ in dense], [w for w, _ in pruned], float(truth))
    missed = float((after - truth).abs())
    assert missed <= tight.spectral
    assert missed > 0.999 * tight.spectral
    assert cascade_bound(0.25, [4.0], [3 * one]) == pytest.approx(1.5, rel=1e-12)
    assert cascade_step(3.0, 4.0) == pytest.approx(5.0, rel=1e-12)


def test_what_does_not_fit_is_refused():
    one = torch.ones(1, 1, dtype=torch.float64)
    with pytest.raises(InvalidInputError, match="one of each per"):
        parallel_bounds([1.0, 1.0], [one], [one], 1.0)
    with pytest.raises(InvalidInputError, match="factor >= 1"):
        cascade_bound(1.0, [0.5], [one])
    empty = parallel_bounds([1.0], [one], [one], 0.0)
    assert empty.relative("spectral") == math.inf
    assert empty.vacuous("spectral")
