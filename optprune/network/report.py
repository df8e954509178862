"""What a pruning run hands back: one record per layer, the network's bound, where the numbers come from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from optprune.bounds.net_trim import ParallelBounds
from optprune.errors import InvalidInputError
from optprune.network.allocation import Allocation
from optprune.network.layer_record import LayerRecord, Part, encode, number

__all__ = ["COLUMNS", "LayerRecord", "NetworkBound", "Part", "Report"]


@dataclass(frozen=True)
class NetworkBound:
    r"""How far the pruned network is from the dense one on the calibration data, bounded and measured.

    Attributes:
        bound: upper bound of $\lVert \hat f(x) - f(x) \rVert_F$ over all calibration samples by the
            layer-wise recursion; None where `reason` says why there is none.
        measured: the same norm, measured; None where the measuring pass could not run.
        scale: $\lVert f(x) \rVert_F$ of the dense network.
        samples: first dimension of the outputs, summed over the batches.
        dtype: arithmetic of the measurement.
        terms: per pruned layer, in the order of the recursion, its `gain` (Lipschitz constant of the pruned layer),
            the discrepancy `incoming`, its `local` error, and the `bound` of its output's discrepancy: gain times
            incoming plus local. Behind an activation or a pooling the recursion goes on with the error that is left
            there. In cascade mode the gain is 0 and `local` is the discrepancy itself, which is measured; where the
            last operation is a pruned layer, bound and measurement are then one number. In a chain also `behind`, the
            layer's own error behind its activation.
        reason: why there is no bound, naming the operation; "" where there is one.
        chain: the closed forms of the sources (T07), functions of `behind` and of the layers' norms alone; None in
            cascade mode, and where the network is no plain chain of pruned layers and maps that expand nothing.
    """

    bound: float | None
    measured: float | None
    scale: float | None
    samples: int
    dtype: str
    terms: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    reason: str = ""
    chain: ParallelBounds | None = None

    @property
    def relative_bound(self) -> float | None:
        """The bound as a fraction of the dense output's norm."""
        return _ratio(self.bound, self.scale)

    @property
    def relative_measured(self) -> float | None:
        """The measured error as a fraction of the dense output's norm."""
        return _ratio(self.measured, self.scale)

    @property
    def vacuous(self) -> bool:
        """Whether the bound is no smaller than the output itself, so that it says nothing."""
        return self.bound is not None and self.scale is not None and self.bound >= self.scale > 0

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready record; inverse of `from_json`."""
        record = {f.name: getattr(self, f.name) for f in fields(self)}
        record["terms"] = {name: dict(term) for name, term in self.terms.items()}
        record["chain"] = None if self.chain is None else asdict(self.chain)
        return encode(record)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> NetworkBound:
        """Read a record written by `to_json`.

        Raises:
            InvalidInputError: a field is missing or unknown.
        """
        try:
            data: dict[str, Any] = dict(record)
            data.update({name: number(record[name]) for name in ("bound", "measured", "scale")})
            data["terms"] = {
                name: {key: float(value) for key, value in term.items()} for name, term in record["terms"].items()
            }
            if record["chain"] is not None:
                chain = dict(record["chain"])
                printed, sizes = number(chain.pop("printed")), {name: float(value) for name, value in chain.items()}
                data["chain"] = ParallelBounds(printed, **sizes)
            return cls(**data)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InvalidInputError(f"not a network bound: {error}; write it with NetworkBound.to_json") from error

    def __str__(self) -> str:
        head = f"network on the {self.samples} calibration samples ({self.dtype}):"
        measured = "not measured" if self.measured is None else f"error {_with_share(self.measured, self.scale)}"
        if self.bound is None:
            return f"{head} {measured}; no bound: {self.reason}"
        relation = "<=" if self.measured is None or self.measured <= self.bound else "EXCEEDS"
        remark = "; the bound is vacuous, larger than the output" if self.vacuous else ""
        closed = "" if self.chain is None else f"\n{self._closed_forms(self.chain)}"
        return f"{head} {measured} {relation} bound {_with_share(self.bound, self.scale)}{remark}{closed}"

    @staticmethod
    def _closed_forms(chain: ParallelBounds) -> str:
        """One line: the bound for each norm in place of a layer's gain."""
        texts = []
        for name, norm in CLOSED_FORMS.items():
            value = getattr(chain, name)
            text = "does not apply" if value is None else _with_share(value, chain.size)
            texts.append(f"{norm} {text}" + (", vacuous" if value is not None and chain.vacuous(name) else ""))
        return "closed forms of the chain (T07), by norm: " + "; ".join(texts)


@dataclass(frozen=True)
class Report:
    """A pruning run: a record per layer in execution order, the network's bound, and its provenance.

    Attributes:
        layers: one record per pruned layer.
        network: bound and measurement on the whole network; None where it was declined.
        provenance: versions, seed, settings, hash of the calibration tensors, device, dtype; JSON-ready.
    """

    layers: list[LayerRecord]
    network: NetworkBound | None
    provenance: dict[str, Any]

    @property
    def kept(self) -> int:
        """Nonzero weights in the pruned layers."""
        return sum(record.kept for record in self.layers)

    @property
    def total(self) -> int:
        """All weights of the pruned layers."""
        return sum(math.prod(record.shape) for record in self.layers)

    @property
    def allocation(self) -> Allocation | None:
        """How the plan shared one budget among the layers; None where it did not.

        Raises:
            InvalidInputError: what is recorded is malformed.
        """
        recorded = self.provenance.get("allocation")
        return None if recorded is None else Allocation.from_json(recorded)

    def layer(self, name: str) -> LayerRecord:
        """The record of one layer.

        Raises:
            InvalidInputError: no such layer was pruned.
        """
        for record in self.layers:
            if record.name == name:
                return record
        known = ", ".join(record.name for record in self.layers)
        raise InvalidInputError(f"layer '{name}' asked for; the report holds {known}")

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready record without tensors; numbers that are not finite are "inf", "-inf", "nan"."""
        return {
            "layers": [record.to_json() for record in self.layers],
            "network": None if self.network is None else self.network.to_json(),
            "provenance": encode(self.provenance),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Report:
        """Read a report written by `to_json`; the parts of the layers stay in memory and are not in it.

        Raises:
            InvalidInputError: a field is missing or unknown.
        """
        try:
            network = record["network"]
            return cls(
                [LayerRecord.from_json(layer) for layer in record["layers"]],
                None if network is None else NetworkBound.from_json(network),
                dict(record["provenance"]),
            )
        except (KeyError, TypeError) as error:
            raise InvalidInputError(f"not a report: {error!r}; write it with Report.to_json") from error

    def rows(self) -> list[tuple[str, ...]]:
        """The table as text, its head first."""
        return [COLUMNS, *(_row(record) for record in self.layers)]

    def __str__(self) -> str:
        rows = self.rows()
        widths = [max(len(row[j]) for row in rows) for j in range(len(COLUMNS))]
        lines = [
            "  ".join(_align(cell, width, j) for j, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip()
            for row in rows
        ]
        lines.insert(1, "-" * max(len(line) for line in lines))
        seconds = sum(record.seconds for record in self.layers)
        share = self.kept / self.total if self.total else math.nan
        lines.append("")
        kept = f"{self.kept} of {self.total} weights kept (density {share:.4f})"
        lines.append(f"{len(self.layers)} layers: {kept}, {seconds:.1f} s")
        lines += [
            f"{record.name}: {record.dead_inputs} inputs were zero in every sample"
            for record in self.layers
            if record.dead_inputs
        ]
        lines += [
            f"{record.name}: a gap below 0, because the stored weights exceed the constraints by "
            f"{record.certificate.primal_residual:.2g}, relative to their scale"
            for record in self.layers
            if record.certificate is not None and record.certificate.gap < 0
        ]
        lines += [f"{record.name}: {record.held_out}" for record in self.layers if record.held_out is not None]
        lines += [text for record in self.layers for text in _bounds_of_neurons(record)]
        if self.allocation is not None:
            lines.append(str(self.allocation))
        if self.network is not None:
            lines.append(str(self.network))
        return "\n".join(lines)


CLOSED_FORMS = {"spectral": "spectral", "frobenius": "Frobenius", "l1": "l1", "printed": "l1 of the dense, as printed"}
"""Fields of `ParallelBounds`, the least first, and what a report calls them."""

NEURON_BOUNDS = (
    ("exactly, on the points", "below_one", "median"),
    ("by the printed bound of what was changed", "printed_below_one", "printed_median"),
    ("by that of the draws", "draws_below_one", "draws_median"),
    ("by the exact variance, before the choice", "variance_below_one", "variance_median"),
)
"""What a report calls the bounds of sampled edges, and the details of a certificate that hold them."""

COLUMNS = (
    "layer",
    "kind",
    "shape",
    "kept",
    "density",
    "error",
    "objective",
    "lower bound",
    "gap",
    "time",
    "stopped",
)
"""Heads of the table: text first, numbers from `kept` to `time`."""


def _row(record: LayerRecord) -> tuple[str, ...]:
    certificate = record.certificate
    if certificate is None:
        objective, lower, gap = "-", "-", "no certificate"
    else:
        objective, lower = f"{certificate.objective:.4g}", f"{certificate.lower_bound:.4g}"
        gap = "vacuous" if certificate.vacuous else f"{100 * certificate.relative_gap:.3g} %"
    return (
        record.name,
        record.kind,
        " x ".join(map(str, record.shape)),
        str(record.kept),
        f"{record.density:.4f}",
        f"{record.error:.4g}" + ("" if record.relu_error is None else f" (relu {record.relu_error:.4g})"),
        objective,
        lower,
        gap,
        f"{record.seconds:.2f} s",
        record.termination.value,
    )


def _bounds_of_neurons(record: LayerRecord) -> list[str]:
    """Where edges were sampled: for which share of the neurons each bound of their relative error says anything.

    None for a layer of several groups, whose certificate holds the extremes of theirs.
    """
    found = {} if record.certificate is None else record.certificate.details
    shown = [
        f"{what} {100 * found[share]:.3g} % (median {found[median]:.3g})"
        for what, share, median in NEURON_BOUNDS
        if share in found
    ]
    return [f"{record.name}: neurons with an error below 1: {'; '.join(shown)}"] if shown else []


def _align(cell: str, width: int, column: int) -> str:
    return cell.rjust(width) if 3 <= column < len(COLUMNS) - 1 else cell.ljust(width)


def _ratio(value: float | None, scale: float | None) -> float | None:
    if value is None or scale is None:
        return None
    if scale == 0.0:
        return 0.0 if value == 0.0 else math.inf
    return value / scale


def _with_share(value: float, scale: float | None) -> str:
    share = _ratio(value, scale)
    if share is None:
        return f"{value:.4g}"
    return (
        f"{value:.4g} ({share:.3g} times the output)"
        if share >= 10
        else f"{value:.4g} ({100 * share:.3g} % of the output)"
    )
