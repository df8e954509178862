"""Net-Trim: the sparsest matrix, in the l1 sense, that keeps what a ReLU layer does on its samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from optprune.errors import InvalidInputError
from optprune.numerics.checks import as_rows, require_columns, require_finite, require_one_device
from optprune.numerics.linear import LinearMap, PatchMap, as_map
from optprune.numerics.rounding import power_of_two_below
from optprune.patterns import Shape
from optprune.problems._base import Problem
from optprune.problems._net_trim_checks import validate


@dataclass(frozen=True, eq=False)
class NetTrim(Problem):
    r"""The least l1 norm among the matrices that reproduce a ReLU layer on its samples.

    $$\min_U \; \sum_m \sum_{j \in P} |U_{mj}| \quad \text{s.t.} \quad
      \lVert (X U^\top - Y)_\Omega \rVert_F \le \varepsilon, \qquad (X U^\top)_{pm} \le V_{pm} \;\text{ off
      } \Omega$$

    with inputs $X$ `(n, d)`, targets $Y$ `(n, out)`, the set $\Omega$ = `active` where the dense layer is
    positive, the ceiling $V$ (0 when None), and $P$ = `penalised`, all columns but that of the bias. A
    scalar `radius` is one ball for the whole layer; a vector is one ball per neuron, $\lVert (X u_m -
    y_m)_{\Omega_m} \rVert \le \varepsilon_m$. With `penalty` $\mu > 0$ in place of the radius the ball
    enters the objective instead, as $\tfrac1{2\mu} \lVert (X U^\top - Y)_\Omega \rVert_F^2$: the neurons
    decouple, and a joint ball is solved by the $\mu$ common to all neurons at which its radius is attained.

    Every admissible $U$ has $\lVert \operatorname{relu}(X U^\top) - \operatorname{relu}(Y) \rVert_F \le
    \varepsilon$ on the samples when $V = 0$.

    Attributes:
        inputs: $X$, with a last column of ones where the bias is a variable; a tensor, or a linear map where the
            matrix is not to be in memory (patches of a convolution, a file). A problem with a map is single.
        targets: $Y$; entries off $\Omega$ are not read and stored as 0.
        active: $\Omega$.
        ceiling: $V$, or None for 0; entries on $\Omega$ are not read and stored as 0.
        radius: $\varepsilon$, in the units of $\lVert Y \rVert_F$; `(*batch)` joint or `(*batch, out)` per
            neuron; None with `penalty`.
        penalised: which columns the objective counts; the one it may leave out, the bias, must be constant
            over the samples.
        penalty: $\mu$ `(*batch)`, or None with `radius`.

    Raises:
        InvalidInputError: shapes that do not fit, no samples, a negative radius, a penalty that is not
            positive, both or neither of radius and penalty, or an unpenalised column that is not a bias.
        NonFiniteError: NaN or infinity in the data.

    References:
        Aghasi, Abdi, Nguyen, Romberg 2017 (Net-Trim), eq. (5) and (9); Aghasi, Abdi, Romberg 2020, eq. (3).
        There the bias is penalised, here it is not, so that the program commutes with rescaling the layer.
    """

    inputs: Float[Tensor, "*batch n d"] | LinearMap
    targets: Float[Tensor, "*batch n out"]
    active: Bool[Tensor, "*batch n out"]
    ceiling: Float[Tensor, "*batch n out"] | None
    radius: Float[Tensor, "..."] | None
    penalised: Bool[Tensor, "*batch d"]
    penalty: Float[Tensor, "*batch"] | None = None

    def __post_init__(self) -> None:
        validate(self)
        wide = {
            "inputs": self.inputs.to(torch.float64),
            "targets": torch.where(self.active, self.targets.double(), 0.0),
            "ceiling": None if self.ceiling is None else torch.where(self.active, 0.0, self.ceiling.double()),
            "radius": None if self.radius is None else self.radius.double(),
            "penalty": None if self.penalty is None else self.penalty.double(),
        }
        for name, tensor in wide.items():
            object.__setattr__(self, name, tensor)

    @classmethod
    def from_layer(
        cls,
        weight: Float[Tensor, "out in"],
        inputs: Float[Tensor, "n in"] | LinearMap,
        radius: float | Tensor | None = None,
        bias: Float[Tensor, " out"] | None = None,
        *,
        penalty: float | None = None,
        relu: bool = True,
    ) -> Self:
        r"""The problem of replacing a dense layer: $Y = \operatorname{relu}(X W^\top + b)$, $\Omega$ where
        it is positive, $V = 0$.

        Args:
            weight: $W$.
            inputs: $X$, what the layer sees.
            radius: a number for a joint ball, a vector for a ball per neuron; in the units of $\lVert Y
                \rVert_F$.
            bias: $b$; given, it becomes the last, unpenalised, column of the variable.
            penalty: in place of the radius.
            relu: False for a linear layer: every entry is active.
        """
        data, dense = _with_bias(weight, inputs, bias)
        outputs = as_map(data).outputs(dense)
        active = outputs > 0 if relu else torch.ones_like(outputs, dtype=torch.bool)
        return cls(
            data, outputs, active, None, _number(radius, outputs), _penalised(dense, bias), _number(penalty, outputs)
        )

    @classmethod
    def cascade(
        cls,
        weight: Float[Tensor, "out in"],
        inputs: Float[Tensor, "n in"] | LinearMap,
        targets: Float[Tensor, "n out"],
        gamma: float = 1.0,
        gain: float = 0.0,
        bias: Float[Tensor, " out"] | None = None,
        kappa: float | None = None,
        *,
        relu: bool = True,
        per_neuron: bool = False,
    ) -> Self:
        r"""The problem of a layer behind an already pruned prefix: $X = \hat Y$, $V = \hat Y W^\top + b$
        off $\Omega$, and

        $$\varepsilon = \kappa \max\bigl(\sqrt\gamma\, \lVert (\hat Y W^\top + b - Y)_\Omega \rVert_F,\;
          g\, \lVert Y_\Omega \rVert_F\bigr).$$

        With $\kappa = 1$ the dense weight is admissible. The gain keeps a layer from staying dense because
        its prefix is nearly exact.

        Args:
            weight: $W$, the dense weight.
            inputs: $\hat Y$, what the layer sees behind the pruned prefix.
            targets: $Z$, the dense network's values before the activation; $Y$ and $\Omega$ come from them.
            gamma: $\gamma \ge 1$.
            gain: $g \ge 0$.
            bias: $b$; given, it becomes the last, unpenalised, column of the variable.
            kappa: the risk coefficient $\kappa$ in (0, 1]; below 1 the problem may be infeasible. None is 1.
            relu: False for a linear layer: every entry is active.
            per_neuron: a ball per neuron, each by the same rule.
        """
        if not (gamma >= 1 and gain >= 0 and (kappa is None or 0 < kappa <= 1)):
            raise InvalidInputError(
                f"gamma = {gamma}, gain = {gain}, kappa = {kappa} given; accepted are gamma >= 1, gain >= 0 and "
                "0 < kappa <= 1"
            )
        data, dense = _with_bias(weight, inputs, bias)
        dense_targets = targets.double()
        if dense_targets.shape != (*data.shape[:-1], dense.shape[-2]):
            raise InvalidInputError(
                f"targets of shape {tuple(targets.shape)} given; {(*data.shape[:-1], dense.shape[-2])}, "
                "(samples, out), fits the layer"
            )
        active = dense_targets > 0 if relu else torch.ones_like(dense_targets, dtype=torch.bool)
        passed = as_map(data).outputs(dense)
        dims = (-2,) if per_neuron else (-2, -1)
        missed = torch.where(active, passed - dense_targets, 0.0).square().sum(dims).sqrt()
        size = torch.where(active, dense_targets, 0.0).square().sum(dims).sqrt()
        radius = (1.0 if kappa is None else kappa) * torch.maximum(gamma**0.5 * missed, gain * size)
        return cls(data, dense_targets, active, passed, radius, _penalised(dense, bias))

    @classmethod
    def from_conv2d(
        cls,
        weight: Float[Tensor, "out ing kh kw"],
        images: Float[Tensor, "N C H W"],
        radius: float | Tensor | None = None,
        bias: Float[Tensor, " out"] | None = None,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        *,
        padding_mode: str = "zeros",
        penalty: float | None = None,
        relu: bool = True,
    ) -> list[Self]:
        r"""The problems of replacing a convolution, one per group, without its patches in memory:

        $$X_g = \operatorname{patches}(\text{images}_g), \qquad Y_g = \operatorname{relu}(X_g W_g^\top + b_g).$$

        Args:
            weight: $W$ `(out, in / groups, kh, kw)`.
            images: what the convolution sees.
            radius: of every group's joint ball, or a vector over all outputs for a ball per neuron.
            bias: $b$ `(out,)`; given, it becomes the last, unpenalised, column of the variable.
            stride: as of `torch.nn.Conv2d`; likewise `padding`, `dilation`, `groups`, `padding_mode`.
            padding: see there.
            dilation: see there.
            groups: see there.
            padding_mode: see there.
            penalty: in place of the radius.
            relu: False for a linear layer: every entry is active.
        """
        if weight.dim() != 4 or images.dim() != 4 or groups < 1 or weight.shape[0] % groups:
            raise InvalidInputError(
                f"weight of shape {tuple(weight.shape)}, images of shape {tuple(images.shape)} and {groups} groups "
                "given; (out, in / groups, kh, kw), (N, in, H, W) and groups that divide out are needed"
            )
        if weight.shape[1] * groups != images.shape[1]:
            raise InvalidInputError(
                f"images with {images.shape[1]} channels given; {weight.shape[1] * groups} fit a weight of shape "
                f"{tuple(weight.shape)} in {groups} groups"
            )
        kernel = (int(weight.shape[2]), int(weight.shape[3]))
        size = weight.shape[0] // groups
        balls = None if radius is None else torch.as_tensor(radius, dtype=torch.float64, device=weight.device)
        problems = []
        for g, part in enumerate(images.double().chunk(groups, 1)):
            own = slice(g * size, (g + 1) * size)
            patches = PatchMap(part, kernel, stride, padding, dilation, padding_mode)
            ball = balls if balls is None or balls.dim() == 0 else balls[own]
            problems.append(
                cls.from_layer(
                    weight[own].flatten(1),
                    patches,
                    ball,
                    None if bias is None else bias[own],
                    penalty=penalty,
                    relu=relu,
                )
            )
        return problems

    @cached_property
    def linear(self) -> LinearMap:
        """The inputs as a linear map, whatever they are held in."""
        return as_map(self.inputs)

    @property
    def stackable(self) -> bool:
        """A stack is of tensors."""
        return isinstance(self.inputs, Tensor)

    @property
    def shape(self) -> Shape:
        return (int(self.targets.shape[-1]), int(self.inputs.shape[-1]))

    @property
    def batch_shape(self) -> tuple[int, ...]:
        return tuple(self.inputs.shape[:-2])

    @property
    def per_neuron(self) -> bool:
        """Whether every neuron has a ball of its own."""
        return self.radius is not None and self.radius.dim() > len(self.batch_shape)

    @cached_property
    def size(self) -> Float[Tensor, "*batch"]:
        r"""$\lVert Y_\Omega \rVert_F$, the scale of the joint ball; $\sqrt{\text{out}}$ times that of a neuron's."""
        return _norm(self.targets, (-2, -1))

    @cached_property
    def scale(self) -> Float[Tensor, "*batch"]:
        r"""$\max(\max_\Omega |Y|, \max_{\Omega^c} |V|)$, the scale of single outputs."""
        largest = self.targets.abs().amax((-2, -1))
        return largest if self.ceiling is None else torch.maximum(largest, self.ceiling.abs().amax((-2, -1)))

    def residual(self, matrix: Float[Tensor, "*batch out d"]) -> Float[Tensor, "*batch n out"]:
        r"""$X U^\top - Y$ on $\Omega$, whose norm the ball bounds; $X U^\top - V$ off it, nowhere positive."""
        outputs = self.linear.outputs(matrix.double())
        outputs -= self.targets
        return outputs if self.ceiling is None else outputs.sub_(self.ceiling)

    def objective(self, matrix: Float[Tensor, "*batch out d"]) -> Float[Tensor, "*batch"]:
        norm = (matrix.double().abs() * self.penalised[..., None, :]).sum((-2, -1))
        if self.penalty is None:
            return norm
        return norm + torch.where(self.active, self.residual(matrix), 0.0).square().sum((-2, -1)) / (2 * self.penalty)

    def violation(self, matrix: Float[Tensor, "*batch out d"]) -> Mapping[str, Tensor]:
        r"""`ball`: excess over the radius, relative to $\max(\varepsilon, \lVert Y_\Omega \rVert_F)$, for a
        neuron's ball the root mean square over neurons of $\lVert y_m \rVert$ in place of the norm; `sign`:
        the largest excess over $V$, relative to `scale`.
        """
        residual = self.residual(matrix)
        excess = torch.where(self.active, 0.0, residual).clamp(min=0).amax((-2, -1))
        found = {"sign": _relative(excess, self.scale)}
        if self.radius is not None:
            norm = _norm(torch.where(self.active, residual, 0.0), (-2,) if self.per_neuron else (-2, -1))
            size = self.size[..., None] / self.shape[0] ** 0.5 if self.per_neuron else self.size
            ball = _relative((norm - self.radius).clamp(min=0), torch.maximum(self.radius, size))
            found["ball"] = ball.amax(-1) if self.per_neuron else ball
        return found

    def split(self, matrix: Float[Tensor, "out d"]) -> tuple[Float[Tensor, "out in"], Float[Tensor, " out"] | None]:
        if bool(self.penalised.all()):
            return matrix, None
        return matrix[:, :-1], matrix[:, -1]

    def tensors(self) -> dict[str, Tensor]:
        named = {
            "targets": self.targets,
            "active": self.active,
            "ceiling": self.ceiling,
            "radius": self.radius,
            "penalised": self.penalised,
            "penalty": self.penalty,
        }
        own = self.inputs.tensors() if isinstance(self.inputs, LinearMap) else {"": self.inputs}
        held = {f"inputs.{name}" if name else "inputs": tensor for name, tensor in own.items()}
        return held | {name: tensor for name, tensor in named.items() if tensor is not None}

    def settings(self) -> dict[str, Any]:
        return {"inputs": self.inputs.record()} if isinstance(self.inputs, LinearMap) else {}

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Self:
        inputs = tensors["inputs"] if "inputs" not in settings else None
        if inputs is None:
            own = {name.removeprefix("inputs."): t for name, t in tensors.items() if name.startswith("inputs.")}
            inputs = LinearMap.read(own, settings["inputs"])
        return cls(
            inputs,
            tensors["targets"],
            tensors["active"],
            tensors.get("ceiling"),
            tensors.get("radius"),
            tensors["penalised"],
            tensors.get("penalty"),
        )


def _with_bias(weight: Tensor, inputs: Tensor | LinearMap, bias: Tensor | None) -> tuple[Tensor | LinearMap, Tensor]:
    """Inputs and dense weight in float64, with the bias as a last column where there is one."""
    dense = as_rows("weight", weight, weight.device).double()
    data = inputs if isinstance(inputs, LinearMap) else as_rows("inputs", inputs, weight.device)
    data = data.to(torch.float64)
    require_columns(data, dense)
    require_one_device(weight=dense, inputs=data, bias=bias)
    if bias is None:
        return data, dense
    require_finite("bias", bias, "Give finite numbers.")
    if tuple(bias.shape) != tuple(weight.shape[:-1]):
        raise InvalidInputError(f"bias of shape {tuple(bias.shape)} given; {tuple(weight.shape[:-1])} fits the weight")
    dense = torch.cat((dense, bias.detach().double()[..., None]), -1)
    if isinstance(data, LinearMap):
        return data.with_ones(), dense
    return torch.cat((data, torch.ones_like(data[..., :1])), -1), dense


def _penalised(dense: Tensor, bias: Tensor | None) -> Tensor:
    penalised = torch.ones((*dense.shape[:-2], dense.shape[-1]), dtype=torch.bool, device=dense.device)
    penalised[..., -1] = bias is None
    return penalised


def _number(value: float | Tensor | None, like: Tensor) -> Tensor | None:
    return None if value is None else torch.as_tensor(value, dtype=torch.float64, device=like.device)


def _norm(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Euclidean norms, squared at unit scale: none is lost to underflow."""
    size = power_of_two_below(x.abs().amax(dims, keepdim=True))
    return (x / size).square().sum(dims).sqrt() * size.squeeze(dims)


def _relative(excess: Tensor, scale: Tensor) -> Tensor:
    """Excess over scale; 0 where nothing is exceeded, infinite where the scale is 0 and something is."""
    return torch.where(excess > 0, excess / scale, 0.0)
