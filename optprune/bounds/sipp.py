r"""Relative errors of half-neurons, of layers and of networks: what sensitivities bound, and how errors multiply.

A half-neuron is the edges of one neuron whose weights have one sign. Its sums over nonnegative inputs have no
cancellation; those of the whole neuron do, and its condition number says how much.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from optprune.bounds._theorem import theorem
from optprune.errors import InvalidInputError


@theorem("T16")
def deterministic_errors(
    weight: Float[Tensor, "*batch out d"],
    changed: Float[Tensor, "*batch out d"],
    sensitivity: Float[Tensor, "*batch out d"],
    constant: float = 1.0,
) -> Float[Tensor, "*batch out 2"]:
    r"""$\varepsilon_i^\pm = C \sum_{j : \pm w_{ij} > 0} |u_{ij} / w_{ij} - 1| \, s_{ij}$, positive weights first.

    For edges that are kept as they are or dropped it is $C (S - S_I)$, the deterministic variant's bound.

    Guarantees:
        T16 (a): where $g_{ij}(x) \le C s_{ij}$, each half-neuron moves by at most this fraction of its sum, and the
        neuron by at most the larger one of what flows through it.

    References:
        Baykal et al. 2019 (SiPP), deterministic variant.
    """
    live = weight != 0
    moved = torch.where(live, (changed / torch.where(live, weight, 1.0) - 1).abs() * sensitivity, 0.0)
    return constant * torch.stack([(moved * (weight > 0)).sum(-1), (moved * (weight < 0)).sum(-1)], -1)


@theorem("T17")
def condition_numbers(
    weight: Float[Tensor, "out d"], inputs: Float[Tensor, "n d"], bias: Float[Tensor, " out"] | None = None
) -> Float[Tensor, "n out"]:
    r"""$\Delta_i(x) = \max(1, \sum_j |w_{ij} x_j| / |\sum_j w_{ij} x_j + b_i|)$, with $0/0 := 1$.

    How much larger the relative error of a neuron is than that of what flows through it. Without a bias it is at
    least 1 by itself.

    Guarantees:
        T17 (a).
    """
    flow, value = inputs.abs() @ weight.abs().mT, inputs @ weight.mT
    value = value if bias is None else value + bias
    return torch.where(flow > 0, flow / value.abs(), 1.0).clamp(min=1.0)


@theorem("T17")
def layer_error(before: float, local: float, condition: float) -> float:
    r"""$e_l = \Delta^l (e_{l-1} + \varepsilon_l + e_{l-1} \varepsilon_l)$, rounded as it falls.

    Args:
        before: $e_{l-1}$, the entrywise relative error of the layer's inputs.
        local: $\varepsilon_l$, of each half-neuron.
        condition: $\Delta^l = \max_i \Delta_i(x)$.

    Guarantees:
        T17 (b): behind a ReLU the same holds if it is at most 1; it is infinite otherwise.
    """
    return condition * (before + local + before * local)


@theorem("T17")
def network_error(locals_: Sequence[float], conditions: Sequence[float]) -> float:
    r"""$e_L$ by the recursion; infinite where the error of a hidden layer exceeds 1.

    Guarantees:
        T17 (b), at the points for which the local errors and the condition numbers hold.

    Raises:
        InvalidInputError: lists of different lengths, or none.
    """
    _require_layers(locals_, conditions)
    error = 0.0
    for number, (local, condition) in enumerate(zip(locals_, conditions, strict=True)):
        error = layer_error(error, local, condition)
        if error > 1 and number < len(conditions) - 1:
            return math.inf
    return error


@theorem("T17")
def local_errors(error: float, conditions: Sequence[float]) -> list[float]:
    r"""$\varepsilon_l = \varepsilon / (2 \ell \prod_{k \ge l} \Delta^k)$, the errors that $\ell$ layers may make.

    Args:
        error: $\varepsilon \in (0, 1]$ of the network's output, entrywise and relative.
        conditions: $\Delta^l \ge 1$ of each layer.

    Guarantees:
        T17 (c): the recursion then ends below $\varepsilon$.

    Raises:
        InvalidInputError: an error outside of (0, 1], a condition number below 1, or none.

    References:
        Baykal et al. 2019 (CoreNet), theorem 4.
    """
    _require_layers(conditions, conditions)
    if not 0 < error <= 1:
        raise InvalidInputError(f"error {error} given; a relative error in (0, 1] is needed")
    behind = [math.prod(conditions[l:]) for l in range(len(conditions))]
    return [error / (2 * len(conditions) * product) for product in behind]


@theorem("T17")
def corenet_draws(
    error: float, total: Float[Tensor, "*neurons"], neurons: int, widest: int, delta: float
) -> Float[Tensor, "*neurons"]:
    r"""$m = 8 S \ln(\eta \eta^*) \ln(8 \eta / \delta) / \varepsilon^2$ draws of a half-neuron, as printed.

    Args:
        error: $\varepsilon_l \in (0, 1]$.
        total: $S$ of each half-neuron.
        neurons: $\eta$, of the network.
        widest: $\eta^*$, of the widest layer.
        delta: of the network.

    Guarantees:
        T17 (d): at least as many as T14 (c) asks for with $C \le 3 \ln(\eta \eta^*)$ and $\delta / (4 \eta)$.

    References:
        Baykal et al. 2019 (CoreNet), theorem 4.
    """
    return 8 * total * math.log(neurons * widest) * math.log(8 * neurons / delta) / error**2


@theorem("T17")
def points_needed(edges: int, delta: float, constant: float = 3.0) -> int:
    r"""$|S| = \lceil K' \ln(8 E / \delta) \rceil$ points that sensitivities are to be taken over, as printed.

    Args:
        edges: $E$, of all neurons that are to hold at once; $\eta \eta^*$ in the source, no fewer than there are.
        delta: of the network; an eighth of it is spent here.
        constant: $K'$ of the assumption; 3 in the published settings.

    Guarantees:
        T17 (e), under an assumption on the law of the data that cannot be checked; T15 needs none.

    Raises:
        InvalidInputError: no edges, a probability outside of (0, 1), or a constant that is not positive.

    References:
        Baykal et al. 2019 (SiPP), section 3.
    """
    if edges < 1 or not 0 < delta < 1 or not 0 < constant < math.inf:
        raise InvalidInputError(
            f"edges={edges}, delta={delta}, constant={constant} given; at least one edge, a probability in (0, 1) and "
            "a positive constant are needed"
        )
    return math.ceil(constant * math.log(8 * edges / delta))


def _require_layers(locals_: Sequence[float], conditions: Sequence[float]) -> None:
    if len(locals_) != len(conditions) or not conditions or not all(c >= 1 for c in conditions):
        raise InvalidInputError(
            f"{len(locals_)} errors and condition numbers {list(conditions)} given; one of each per layer is needed, "
            "the latter at least 1"
        )
