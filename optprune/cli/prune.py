"""`optprune prune`."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated, Literal

import typer

from optprune.cli.codes import Code, reported_errors

DENSITY = 0.2
EPOCHS = 15
SAMPLES = 300


class Mode(enum.StrEnum):
    """What a layer's inputs are."""

    PARALLEL = "parallel"
    CASCADE = "cascade"


class Allocation(enum.StrEnum):
    """How one density of the whole network becomes a density per layer."""

    UNIFORM = "uniform"
    ERK = "erk"
    MAGNITUDE = "magnitude"
    OWL = "owl"
    SENSITIVITY = "sensitivity"
    BOUNDS = "bounds"
    OPTIMAL = "optimal"


class Budget(enum.StrEnum):
    """What a density of the whole network is a fraction of."""

    WEIGHTS = "weights"
    MACS = "macs"


class Dtype(enum.StrEnum):
    """What the model computes in and ships."""

    FLOAT64 = "float64"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


def prune(
    data: Annotated[
        str,
        typer.Option(
            help="`digits`, or an .npz or .safetensors file with `inputs` (and `targets`, `test_inputs`, ...)."
        ),
    ] = "digits",
    model: Annotated[
        str,
        typer.Option(
            help="`lenet300`, trained on the data; `module:function`, a Python factory; or an exported `program.pt2`."
        ),
    ] = "lenet300",
    weights: Annotated[
        Path | None, typer.Option(help="Safetensors file with the model's state dict; then nothing is trained.")
    ] = None,
    epochs: Annotated[int, typer.Option(min=0, help="Of lenet300's training; 0 prunes it at initialisation.")] = EPOCHS,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="A method of `optprune methods`; may be repeated. By default net-trim and portfolio, where both apply."
        ),
    ] = None,
    density: Annotated[
        float | None,
        typer.Option(help=f"Fraction of each layer's weights kept; {DENSITY} unless something else is asked."),
    ] = None,
    allocation: Annotated[
        Allocation,
        typer.Option(
            help="Share the density among the layers: alike, by shape (erk), by one threshold on weights (magnitude) "
            "or on what edges carry (sensitivity), by the bounds of drawn edges (bounds), by outliers (owl), or so "
            "that the outputs err least (optimal: error curves by the method, or by portfolio where it does not "
            "solve the l0 problem)."
        ),
    ] = Allocation.UNIFORM,
    budget: Annotated[
        Budget, typer.Option(help="What a density that is shared is a fraction of: weights, or multiplications.")
    ] = Budget.WEIGHTS,
    pattern: Annotated[
        str | None,
        typer.Option(help="N:M (N kept of M), per-row:K, rows:K, columns:K, blocks:RxC:K; K a count, or a fraction."),
    ] = None,
    radius: Annotated[
        float | None, typer.Option(help="Net-Trim: relative error that every layer may make, in place of a density.")
    ] = None,
    mode: Annotated[
        Mode, typer.Option(help="Inputs of a layer: from the dense network, or the pruned prefix.")
    ] = Mode.PARALLEL,
    skip: Annotated[list[str] | None, typer.Option(help="Layer, or glob, to leave alone; may be repeated.")] = None,
    override: Annotated[
        list[str] | None,
        typer.Option(help="layer=target for a layer or glob, as 'fc3=0.5' or 'conv*=2:4'; may be repeated."),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(help="key=value, a setting of the solver (or method.key=value); may be repeated."),
    ] = None,
    dtype: Annotated[Dtype, typer.Option(help="Dtype of the model; certificates are always float64.")] = Dtype.FLOAT32,
    device: Annotated[str, typer.Option(help="Device of the model, as torch names it.")] = "cpu",
    samples: Annotated[int, typer.Option(help="Rows per layer that Net-Trim works on, drawn by the seed.")] = SAMPLES,
    damping: Annotated[
        str,
        typer.Option(
            help="Of the l0 problem, relative to the mean diagonal of the Gram matrix; or `held-out`, to choose it for "
            "each layer by the error on samples held out."
        ),
    ] = "0",
    held_out: Annotated[
        bool,
        typer.Option(
            "--held-out",
            help="Certify what the pruned network does on new rows by the data's test rows, which must have been used "
            "neither for pruning nor for choosing.",
        ),
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the split, the training and the subsampling.")] = 0,
    output: Annotated[
        Path, typer.Option("--output", "--out", help="Folder to write; one folder per method in it.")
    ] = Path("runs/digits"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run that is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout, nothing else.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Prune a network layer by layer, certify every layer, and write a run that `optprune verify` can check.

    Without arguments: trains a LeNet-300-100 on scikit-learn's digits, prunes it with Net-Trim and with the l0 solver,
    prints every layer's density, error, lower bound, gap and time, and writes runs/digits.
    """
    with reported_errors(debug):
        from optprune.cli.job import Job, run
        from optprune.cli.output import print_json, print_outcome

        job = Job(
            data=data,
            model=model,
            weights=weights,
            epochs=epochs,
            methods=tuple(method or ()),
            target=_target(density, pattern, radius),
            allocation=allocation.value,
            budget=budget.value,
            mode=mode.value,
            skip=tuple(skip or ()),
            override=tuple(override or ()),
            options=tuple(option or ()),
            dtype=dtype.value,
            device=device,
            samples=samples,
            damping=_damping(damping),
            held_out=held_out,
            seed=seed,
            output=output,
            overwrite=overwrite,
        )
        outcome = run(job)
    if as_json:
        print_json(outcome.to_json())
    else:
        print_outcome(outcome)
    if not outcome.ok:
        raise typer.Exit(Code.NOT_SOLVED)


def _target(density: float | None, pattern: str | None, radius: float | None) -> str:
    """The one target that was asked for, as text."""
    given = [
        text
        for value, text in ((density, f"{density}"), (pattern, f"{pattern}"), (radius, f"radius:{radius}"))
        if value is not None
    ]
    if len(given) > 1:
        raise typer.BadParameter("--density, --pattern and --radius exclude one another; give one of them")
    return given[0] if given else str(DENSITY)


def _damping(text: str) -> float | Literal["held-out"]:
    """A number, or that it is to be chosen."""
    if text == "held-out":
        return "held-out"
    try:
        return float(text)
    except ValueError as error:
        raise typer.BadParameter(f"--damping '{text}': a number or held-out is accepted") from error
