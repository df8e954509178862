"""Hypothesis strategies for layers, patterns and problems, for property tests of solvers, checkers and bounds.

Hypothesis is imported when a strategy is first asked for. Shapes are drawn by hypothesis, so that a failing example
shrinks to a small layer; numbers come from a seed, so that they are as a layer's numbers are.
"""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING

import torch

from optprune.errors import MissingDependencyError
from optprune.patterns import Blocks, Columns, Fixed, NOfM, Pattern, PerLayer, PerRow, Rows, Shape
from optprune.problems import L0LeastSquares, NetTrim
from optprune.statistics import Statistics
from optprune.testing.instances import Layer, data

if TYPE_CHECKING:
    from hypothesis.strategies import DrawFn, SearchStrategy


def layers(
    max_outputs: int = 3, max_inputs: int = 8, max_samples: int = 30, *, hostile: bool = True
) -> SearchStrategy[Layer]:
    """A dense weight (out, in) and rows of inputs (n, in), float64.

    Args:
        max_outputs: most outputs.
        max_inputs: most inputs.
        max_samples: most samples; there may be fewer than inputs.
        hostile: also dead and duplicated inputs, rows of zero weights, and scales from 1e-6 to 1e6.
    """
    st = _hypothesis()

    @st.composite
    def draw_layer(draw: DrawFn) -> Layer:
        sizes = (draw(st.integers(1, most)) for most in (max_outputs, max_inputs, max_samples))
        weight, inputs = data(draw(st.integers(0, 2**32 - 1)), *sizes)
        if not hostile:
            return weight, inputs
        column = st.integers(0, weight.shape[1] - 1)
        for dead in draw(st.sets(column, max_size=2)):
            inputs[:, dead] = 0.0
        if draw(st.booleans()):
            inputs[:, draw(column)] = inputs[:, draw(column)].clone()
        if draw(st.booleans()):
            weight[draw(st.integers(0, weight.shape[0] - 1))] = 0.0
        scale = 10.0 ** draw(st.integers(-6, 6))
        return weight / scale, inputs * scale

    return draw_layer()


def patterns(shape: Shape) -> SearchStrategy[Pattern]:
    """A pattern of any type that fits a matrix of this shape, budgets from nothing to everything."""
    st = _hypothesis()
    out, inputs = shape

    @st.composite
    def n_of_m(draw: DrawFn) -> Pattern:
        m = draw(st.sampled_from(_divisors(inputs)))
        return NOfM(draw(st.integers(0, m)), m)

    @st.composite
    def blocks(draw: DrawFn) -> Pattern:
        rows, columns = draw(st.sampled_from(_divisors(out))), draw(st.sampled_from(_divisors(inputs)))
        return Blocks(rows, columns, draw(st.integers(0, out * inputs // (rows * columns))))

    @st.composite
    def fixed(draw: DrawFn) -> Pattern:
        bits = draw(st.lists(st.booleans(), min_size=out * inputs, max_size=out * inputs))
        return Fixed(torch.tensor(bits).reshape(shape))

    return st.one_of(
        st.builds(PerLayer, st.integers(0, out * inputs)),
        st.builds(PerRow, st.integers(0, inputs)),
        n_of_m(),
        blocks(),
        st.builds(Rows, st.integers(0, out)),
        st.builds(Columns, st.integers(0, inputs)),
        fixed(),
    )


def l0_problems(
    max_outputs: int = 3, max_inputs: int = 8, max_samples: int = 30, *, hostile: bool = True
) -> SearchStrategy[L0LeastSquares]:
    """A layer with a pattern that fits it, with and without damping, with targets of its own or of another layer."""
    st = _hypothesis()

    @st.composite
    def draw_problem(draw: DrawFn) -> L0LeastSquares:
        weight, inputs = draw(layers(max_outputs, max_inputs, max_samples, hostile=hostile))
        pattern = draw(patterns((int(weight.shape[0]), int(weight.shape[1]))))
        statistics = Statistics.from_layer(weight, inputs)
        if draw(st.booleans()):
            targets = 1.5 * inputs @ weight.mT + inputs[:, :1]
            statistics = Statistics.from_samples(inputs, targets, weight)
        return L0LeastSquares(statistics, pattern, draw(st.sampled_from([0.0, 0.01, 1.0])))

    return draw_problem()


def net_trim_problems(
    max_outputs: int = 3, max_inputs: int = 6, max_samples: int = 20, *, hostile: bool = True
) -> SearchStrategy[NetTrim]:
    """A ReLU or linear layer with a joint ball or one per neuron, with and without bias."""
    st = _hypothesis()

    @st.composite
    def draw_problem(draw: DrawFn) -> NetTrim:
        weight, inputs = draw(layers(max_outputs, max_inputs, max_samples, hostile=hostile))
        relu, per_neuron, with_bias = draw(st.booleans()), draw(st.booleans()), draw(st.booleans())
        outputs = inputs @ weight.mT
        bias = 0.1 * outputs.abs().mean(0) if with_bias else None
        outputs = outputs if bias is None else outputs + bias
        kept = outputs.clamp(min=0) if relu else outputs
        share = draw(st.floats(0.01, 2.0))
        radius = share * (kept.norm(dim=0) if per_neuron else kept.norm())
        return NetTrim.from_layer(weight, inputs, radius, bias, relu=relu)

    return draw_problem()


def _divisors(n: int) -> list[int]:
    return [m for m in range(1, n + 1) if n % m == 0]


def _hypothesis() -> ModuleType:
    try:
        import hypothesis.strategies
    except ImportError as error:
        raise MissingDependencyError(
            "optprune.testing.strategies needs hypothesis; install it with: pip install 'optprune[dev]'"
        ) from error
    return hypothesis.strategies
