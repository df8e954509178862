"""What became of one layer: its record, and the solved problems behind it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor

from optprune.errors import InvalidInputError
from optprune.network.damping import DampingChoice
from optprune.problems._base import Problem
from optprune.solution import Certificate, Termination

FLOATS = ("density", "error", "discrepancy", "seconds", "damping")


@dataclass(frozen=True, eq=False)
class Part:
    """One solved problem behind a layer: the layer itself, or one group of a grouped convolution.

    Attributes:
        problem: the statement.
        matrix: the shipped weights as the problem's variable: cast to the model's dtype, then to float64.
        evidence: the dual point behind the certificate; with problem and matrix enough to recompute it.
        certificate: what the checker found of `matrix`.
    """

    problem: Problem
    matrix: Tensor
    evidence: Mapping[str, Tensor]
    certificate: Certificate


@dataclass(frozen=True)
class LayerRecord:
    r"""What became of one layer; every number is about the weights as they ship.

    Attributes:
        name: as in `model.named_modules()`.
        kind: the module's type.
        shape: of the weight parameter.
        target: what the plan asked for, as text.
        pattern: the admissible supports of the solved problem, as text; "" where it has none (Net-Trim).
        problem: name of the problem that was solved.
        solver: its settings, as text.
        kept: nonzero weights; a bias is not counted.
        density: `kept` divided by the number of weights.
        error: $\lVert \hat Z - Z \rVert_F / \lVert Z_0 \rVert_F$ on all calibration rows, with $Z$ the dense
            pre-activations, $Z_0$ the same without bias, $\hat Z$ those of the pruned layer on the inputs of
            the mode.
        discrepancy: $\lVert \hat Z - Z \rVert_F$, the numerator.
        rows: calibration rows (samples times positions of a convolution).
        certificate: summed over the parts; None where no checker exists or certification was declined.
        termination: why the solver stopped; the least favourable over the parts.
        steps: iterations, the largest over the parts.
        seconds: wall time of the solver and the certificates of this layer.
        dead_inputs: inputs that were zero in every calibration row: nothing is known of their weights.
        relu_error: relative error of the outputs behind the layer's ReLU, on the sampled rows of its Net-Trim problem,
            which binds active outputs alone; None for other layers.
        damping: of the l0 problem that was solved; 0 for others.
        held_out: how the damping was chosen, where it was chosen on held-out samples.
        parts: the solved problems, in memory only.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    target: str
    pattern: str
    problem: str
    solver: str
    kept: int
    density: float
    error: float
    discrepancy: float
    rows: int
    certificate: Certificate | None
    termination: Termination
    steps: int
    seconds: float
    dead_inputs: int = 0
    relu_error: float | None = None
    damping: float = 0.0
    held_out: DampingChoice | None = None
    parts: Sequence[Part] = field(default=(), repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready record without the parts; inverse of `from_json`."""
        record = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "parts"}
        record["shape"] = list(self.shape)
        record["certificate"] = None if self.certificate is None else self.certificate.to_json()
        record["held_out"] = None if self.held_out is None else self.held_out.to_json()
        record["termination"] = self.termination.value
        return encode(record)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> LayerRecord:
        """Read a record written by `to_json`.

        Raises:
            InvalidInputError: a field is missing or unknown.
        """
        try:
            data: dict[str, Any] = dict(record)
            data.update({name: float(record[name]) for name in FLOATS})
            data["certificate"] = None if record["certificate"] is None else certificate_from(record["certificate"])
            data["relu_error"] = number(record["relu_error"])
            data["held_out"] = None if record["held_out"] is None else DampingChoice.from_json(record["held_out"])
            data["termination"] = Termination(record["termination"])
            data["shape"] = tuple(record["shape"])
            return cls(**data)
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidInputError(f"not a layer record: {error}; write it with LayerRecord.to_json") from error


def encode(value: Any) -> Any:
    """JSON has no infinity and no NaN: write them as text, and refuse what JSON cannot hold."""
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    json.dumps(value)
    return value


def number(value: Any) -> float | None:
    """A float from JSON, where infinities are text; None stays."""
    return None if value is None else float(value)


def certificate_from(record: Mapping[str, Any]) -> Certificate:
    """A certificate from JSON, where infinities are text."""
    numbers = {name: float(record[name]) for name in ("objective", "lower_bound", "primal_residual", "dual_residual")}
    details = {name: float(value) for name, value in record["details"].items()}
    error = number(record["objective_error"])
    return Certificate.from_json({**record, **numbers, "details": details, "objective_error": error})
