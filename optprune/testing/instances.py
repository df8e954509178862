"""Golden instances: small problems made from seeds, each with its optimum, computed once when first asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property, singledispatch
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from optprune.errors import UnsupportedError
from optprune.patterns import Blocks, Columns, Fixed, NOfM, Pattern, PerLayer, PerRow, Rows
from optprune.problems import EdgeSampling, L0LeastSquares, L0ReLU, NetTrim, Problem
from optprune.solvers import CuttingPlane, EdgeMinimax, Exhaustive, Solver, solve
from optprune.solvers.cvxpy_reference import Cvxpy
from optprune.statistics import Statistics

Layer = tuple[Tensor, Tensor]
"""A dense weight (out, in) and rows of inputs (n, in)."""

OUT, IN, SAMPLES = 2, 8, 40
"""Shape of an instance unless its name says otherwise: small enough to enumerate every support."""


@dataclass(frozen=True, eq=False)
class Golden:
    """A problem and what is known of it.

    Attributes:
        name: unique among the instances.
        problem: the statement.
        tolerance: relative accuracy of `optimum`.
        regular: generic and well conditioned: no ties, no two inputs alike, more samples than inputs. Answers, not only
            objectives, can then be compared, and to many digits.
        convex: a solver that claims to be done has the optimum.
        scale: a value of the objective that is not small; `tolerance` times it is how far numbers near zero may be off.
    """

    name: str
    problem: Problem
    tolerance: float
    regular: bool
    convex: bool
    scale: float

    @property
    def floor(self) -> float:
        """Absolute accuracy: what rounding can do to a difference of numbers of the size of `scale`."""
        return self.tolerance * self.scale

    @cached_property
    def optimum(self) -> float:
        """The least objective of an admissible matrix: by enumeration, or by an interior-point method."""
        reference = next(solver for solver in _REFERENCES if isinstance(self.problem, solver.accepts))
        solution = solve(self.problem, reference, certified=False, throw=True)
        return float(self.problem.objective(solution.matrix))


_REFERENCES: tuple[Solver, ...] = (Cvxpy("CLARABEL"), Exhaustive(), EdgeMinimax(), CuttingPlane())
"""One that promises the optimum for each problem."""


def data(
    seed: int, out: int = OUT, inputs: int = IN, samples: int = SAMPLES
) -> tuple[Float[Tensor, "out in"], Float[Tensor, "n in"]]:
    """A dense weight and Gaussian rows of inputs, float64, from a seed."""
    rng = torch.Generator().manual_seed(seed)
    weight = torch.randn(out, inputs, generator=rng, dtype=torch.float64)
    return weight, torch.randn(samples, inputs, generator=rng, dtype=torch.float64)


def every_pattern() -> list[Pattern]:
    """One pattern of each type for the shape (OUT, IN), none of them trivial."""
    chessboard = torch.arange(OUT * IN).reshape(OUT, IN) % 3 == 0
    return [
        PerLayer(5),
        PerRow(3),
        NOfM(2, 4),
        NOfM(1, 2),
        Blocks(1, 2, 3),
        Blocks(2, 2, 2),
        Rows(1),
        Columns(3),
        Fixed(chessboard),
    ]


@singledispatch
def rescaled(problem: Problem, inputs: float, weights: float) -> Problem:
    """The problem with inputs and weights multiplied; its answer is the answer of the original times `weights`.

    Register the rule of another problem type with `rescaled.register`.

    Raises:
        UnsupportedError: no rule is registered.
    """
    raise UnsupportedError(
        f"no scaling rule for {type(problem).__name__}; register one: @optprune.testing.rescaled.register"
    )


@rescaled.register
def _(problem: L0LeastSquares, inputs: float, weights: float) -> Problem:
    powers = {"gram": (2, 0), "cross": (2, 1), "energy": (2, 2), "reference": (0, 1)}
    return _rescaled(problem, powers, inputs, weights)


@rescaled.register
def _(problem: NetTrim, inputs: float, weights: float) -> Problem:
    powers = {"inputs": (1, 0), "targets": (1, 1), "ceiling": (1, 1), "radius": (1, 1), "penalty": (2, 1)}
    return _rescaled(problem, powers, inputs, weights)


@rescaled.register
def _(problem: EdgeSampling, inputs: float, weights: float) -> Problem:
    return _rescaled(problem, {"inputs": (1, 0), "weight": (0, 1)}, inputs, weights)


@rescaled.register
def _(problem: L0ReLU, inputs: float, weights: float) -> Problem:
    powers = {"inputs": (1, 0), "targets": (1, 1), "bias": (1, 1), "reference": (0, 1)}
    return _rescaled(problem, powers, inputs, weights)


def _rescaled(problem: Problem, powers: Mapping[str, tuple[int, int]], inputs: float, weights: float) -> Problem:
    def scaled(name: str, tensor: Tensor) -> Tensor:
        if name not in powers:
            return tensor.clone()
        of_inputs, of_weights = powers[name]
        return tensor * (inputs**of_inputs * weights**of_weights)

    return problem.restore({name: scaled(name, t) for name, t in problem.tensors().items()}, problem.settings())


@cache
def l0_instances() -> tuple[Golden, ...]:
    """Golden instances of `L0LeastSquares`."""
    return tuple(_l0())


@cache
def net_trim_instances() -> tuple[Golden, ...]:
    """Golden instances of `NetTrim`."""
    return tuple(_net_trim())


@cache
def edge_instances() -> tuple[Golden, ...]:
    """Golden instances of `EdgeSampling`."""
    return tuple(_edges())


@cache
def relu_instances() -> tuple[Golden, ...]:
    """Golden instances of `L0ReLU`."""
    return tuple(_relu())


def all_instances() -> tuple[Golden, ...]:
    """Every golden instance of this package."""
    return (*l0_instances(), *net_trim_instances(), *edge_instances(), *relu_instances())


def _l0() -> Iterator[Golden]:
    def golden(name: str, problem: L0LeastSquares, regular: bool = False) -> Golden:
        return Golden(name, problem, 1e-9, regular, convex=False, scale=float(problem.objective(0 * problem.dense)))

    for index, pattern in enumerate(every_pattern()):
        # Two of a kind make a stack; four patterns span the layouts of budgets and units.
        twice = isinstance(pattern, (PerLayer, NOfM, Blocks, Columns))
        for seed in (index, 100 + index)[: 1 + twice]:
            yield golden(f"gaussian, {pattern}, seed {seed}", L0LeastSquares.from_layer(*data(seed), pattern), True)
    for k in (0, IN):
        yield golden(f"density {k // IN}", L0LeastSquares.from_layer(*data(10), PerRow(k)), True)
    for shape in ((1, IN), (OUT, 1), (1, 1)):
        problem = L0LeastSquares.from_layer(*data(11, *shape), PerLayer(1))
        yield golden(f"{shape[0]} outputs x {shape[1]} inputs", problem, True)
    weight, inputs = data(12)
    narrow = L0LeastSquares.from_layer(weight.float(), inputs.float(), PerRow(3))
    yield golden("float32 tensors", narrow, True)
    yield golden("bfloat16 weight", L0LeastSquares.from_layer(weight.bfloat16(), inputs, PerRow(3)), True)
    damped = L0LeastSquares.from_layer(*data(13, samples=4), PerRow(3), damping=0.1)
    yield golden("damped, fewer samples than inputs", damped, True)
    yield golden("cascade targets", _cascade(14, PerLayer(5)), True)
    for name, make in _HARD_LAYERS.items():
        for pattern in (PerLayer(5), NOfM(2, 4))[: 1 + (name in _HARD_FOR_GROUPS)]:
            yield golden(f"{name}, {pattern}", L0LeastSquares.from_layer(*make(), pattern))


def _cascade(seed: int, pattern: Pattern) -> L0LeastSquares:
    """The layer sees inputs changed by a pruned prefix; the targets are the dense network's."""
    weight, inputs = data(seed)
    _, noise = data(seed + 1)
    return L0LeastSquares(Statistics.from_samples(inputs + 0.1 * noise, inputs @ weight.T, weight), pattern)


def _ill_conditioned() -> Layer:
    weight, inputs = data(20)
    left, _, right = torch.linalg.svd(inputs, full_matrices=False)
    return weight, left * torch.logspace(0, -4, IN, dtype=torch.float64) @ right


def _correlated() -> Layer:
    """Rectified rows of an autoregressive process, as behind a ReLU."""
    weight, noise = data(21)
    columns = [noise[:, 0]]
    for j in range(1, IN):
        columns.append(0.95 * columns[-1] + (1 - 0.95**2) ** 0.5 * noise[:, j])
    return weight, torch.stack(columns, -1).clamp(min=0)


def _dead_inputs() -> Layer:
    weight, inputs = data(22)
    inputs[:, [2, 5]] = 0.0
    return weight, inputs


def _duplicated_columns() -> Layer:
    weight, inputs = data(23)
    inputs[:, 4] = inputs[:, 1]
    inputs[:, 6] = -2.0 * inputs[:, 3]
    return weight, inputs


def _few_samples() -> Layer:
    return data(24, samples=4)


def _bad_scales() -> Layer:
    """Inputs of scale 1e-6 to 1e6, all of them equally important."""
    weight, inputs = data(25)
    scales = torch.logspace(-6, 6, IN, dtype=torch.float64)
    return weight / scales, inputs * scales


def _ties() -> Layer:
    """Orthogonal inputs of one length and weights of one magnitude: every support of full size is optimal."""
    weight, inputs = data(26)
    left, _ = torch.linalg.qr(inputs)
    return weight.sign(), left


def _zero_weight_row() -> Layer:
    weight, inputs = data(27)
    weight[0] = 0.0
    return weight, inputs


def _all_zero_samples() -> Layer:
    weight, inputs = data(28)
    return weight, torch.zeros_like(inputs)


_HARD_LAYERS: dict[str, Callable[[], Layer]] = {
    "ill-conditioned": _ill_conditioned,
    "correlated": _correlated,
    "dead inputs": _dead_inputs,
    "duplicated columns": _duplicated_columns,
    "fewer samples than inputs": _few_samples,
    "scales 1e-6 to 1e6": _bad_scales,
    "ties": _ties,
    "zero weight row": _zero_weight_row,
    "all samples zero": _all_zero_samples,
}

_HARD_FOR_GROUPS = {"dead inputs", "duplicated columns", "ties"}
"""Layers that are also hard where a budget is as small as a group."""


def _net_trim() -> Iterator[Golden]:
    def golden(
        name: str,
        layer: Layer,
        regular: bool = False,
        make: Callable[..., NetTrim] = NetTrim.from_layer,
        **settings: Any,
    ) -> Golden:
        return Golden(name, make(*layer, **settings), 1e-7, regular, convex=True, scale=float(layer[0].abs().sum()))

    def outputs(layer: Layer) -> Tensor:
        weight, inputs = layer
        return (inputs @ weight.T).clamp(min=0)

    for seed in (30, 130):
        layer = data(seed, out=4)
        radius, each = 0.2 * float(outputs(layer).norm()), 0.2 * outputs(layer).norm(dim=0)
        bias = data(seed + 1, out=4)[0][:, 0]
        yield golden(f"joint, seed {seed}", layer, True, radius=radius)
        yield golden(f"joint with bias, seed {seed}", layer, True, radius=radius, bias=bias)
        yield golden(f"per neuron, seed {seed}", layer, True, radius=each)
        yield golden(f"per neuron with bias, seed {seed}", layer, True, radius=each, bias=bias)
        yield golden(f"linear, seed {seed}", layer, True, radius=radius, relu=False)
    weight, inputs = data(32, out=4)
    behind = inputs + 0.05 * data(33)[1]
    cascade = {"make": NetTrim.cascade, "targets": inputs @ weight.T}
    yield golden("cascade", (weight, behind), True, gamma=1.1, **cascade)
    yield golden("cascade with gain", (weight, behind), True, gain=0.3, **cascade)
    yield golden("cascade per neuron", (weight, behind), True, gamma=1.1, per_neuron=True, **cascade)
    yield golden("penalised", (weight, inputs), True, penalty=1.0)
    yield golden(
        "float32 tensors", (weight.float(), inputs.float()), True, radius=0.1 * float(outputs(data(32)).norm())
    )
    yield golden("radius large", (weight, inputs), radius=2.0 * float(outputs((weight, inputs)).norm()))
    dead = weight.clone()
    dead[1] = -dead[1].abs()
    layers = {"dead neuron": (dead, inputs.abs())}
    layers |= {f"{shape[0]} outputs x {shape[1]} inputs": data(34, *shape) for shape in ((1, IN), (4, 1), (1, 1))}
    # Weights that differ by a factor of 1e12 have no common l1 norm that means something, and no reference solver.
    layers |= {name: make() for name, make in _HARD_LAYERS.items() if name != "scales 1e-6 to 1e6"}
    for name, layer in layers.items():
        yield golden(name, layer, radius=0.2 * float(outputs(layer).norm()))


def _edges() -> Iterator[Golden]:
    """Fewer inputs and points than elsewhere: a linear program belongs to every support of every row."""

    def golden(name: str, layer: Layer, pattern: Pattern, regular: bool = False) -> Golden:
        # Dropping every edge has objective 1/2, whatever the layer.
        return Golden(name, EdgeSampling(*layer, pattern), 1e-7, regular, convex=False, scale=0.5)

    for seed in (40, 140):
        weight, inputs = data(seed, inputs=4, samples=9)
        yield golden(f"signed inputs, per layer, seed {seed}", (weight, inputs), PerLayer(4), True)
        yield golden(f"behind a ReLU, per row, seed {seed}", (weight, inputs.clamp(min=0)), PerRow(2), True)
    weight, inputs = data(41, inputs=4, samples=9)
    yield golden("edges, nothing kept", (weight, inputs), PerLayer(0), True)
    yield golden("edges, everything kept", (weight, inputs), PerRow(4), True)
    yield golden("edges, one output", (weight[:1], inputs), PerLayer(2), True)
    yield golden("edges, one input", (weight[:, :1], inputs[:, :1]), PerLayer(1), True)
    yield golden("edges, float32 tensors", (weight.float(), inputs.float()), PerRow(2), True)
    yield golden("edges, weights of one sign", (weight.abs(), inputs.abs()), PerLayer(4), True)
    for name, make in _HARD_LAYERS.items():
        weight, inputs = make()
        yield golden(f"edges, {name}", (weight[:, :4], inputs[:9, :4]), PerLayer(4))


def _relu() -> Iterator[Golden]:
    def golden(name: str, layer: Layer, pattern: Pattern, regular: bool = False, **settings: Any) -> Golden:
        problem = L0ReLU.from_layer(*layer, pattern, **settings)
        scale = float(problem.objective(0 * problem.reference))
        return Golden(f"relu, {name}", problem, 1e-9, regular, convex=False, scale=scale)

    for seed in (50, 150):
        layer, bias = data(seed), data(seed + 1)[0][:, 0]
        yield golden(f"per row, seed {seed}", layer, PerRow(3), True)
        yield golden(f"per layer with bias, seed {seed}", layer, PerLayer(5), True, bias=bias)
    yield golden("groups", data(52), NOfM(2, 4), True, damping=0.1)
    yield golden("tiles", data(53), Blocks(2, 2, 2), True)
    yield golden("one mask", data(54), Fixed(torch.arange(OUT * IN).reshape(OUT, IN) % 3 == 0), True)
    for k in (0, IN):
        yield golden(f"density {k // IN}", data(55), PerRow(k), True)
    weight, inputs = data(56)
    yield golden("float32 tensors", (weight.float(), inputs.float()), PerRow(3), True)
    dead = weight.clone()
    dead[1] = -dead[1].abs()
    yield golden("dead neuron", (dead, inputs.abs()), PerRow(3))
    yield golden("one output, one input", data(57, 1, 1), PerLayer(1), True)
    for name, make in _HARD_LAYERS.items():
        yield golden(name, make(), PerRow(3))
