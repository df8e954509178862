"""Data and models that the command line is given: arrays from files, models from Python."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from optprune.cli import embedded
from optprune.cli.program import read_program
from optprune.errors import FileFormatError, InvalidInputError
from optprune.network import files

LENET = "lenet300"
DIGITS = "digits"


@dataclass(frozen=True, eq=False)
class Data:
    """Calibration rows, and rows with classes to measure accuracy on, where there are any.

    Attributes:
        name: as it was asked for.
        inputs: what the model is calibrated (and the built-in one trained) on.
        targets: their classes, or None.
        test_inputs: held-out rows; `inputs` where none are given.
        test_targets: their classes, or None.
    """

    name: str
    inputs: Float[Tensor, "n *features"]
    targets: Int[Tensor, "n"] | None
    test_inputs: Float[Tensor, "m *features"]
    test_targets: Int[Tensor, "m"] | None

    def to(self, dtype: torch.dtype, device: torch.device) -> Data:
        """With inputs in a dtype, and everything on a device."""
        return Data(
            self.name,
            self.inputs.to(device, dtype),
            None if self.targets is None else self.targets.to(device),
            self.test_inputs.to(device, dtype),
            None if self.test_targets is None else self.test_targets.to(device),
        )


def read_data(source: str, seed: int) -> Data:
    """The digits, or the arrays of a file: `inputs`, and where given `targets`, `test_inputs`, `test_targets`.

    Raises:
        InvalidInputError: neither `digits` nor a file; or arrays that do not fit together.
        FileFormatError: the file cannot be read.
    """
    if source == DIGITS:
        split = embedded.digits(seed)
        return Data(source, split.train_inputs, split.train_targets, split.test_inputs, split.test_targets)
    path = Path(source)
    if path.suffix not in (".npz", ".safetensors") or not path.is_file():
        raise InvalidInputError(
            f"data '{source}' given; give '{DIGITS}', or an .npz or .safetensors file that is there"
        )
    arrays = _npz(path) if path.suffix == ".npz" else files.read_tensors(path)[0]
    return _checked(source, arrays)


def _npz(path: Path) -> dict[str, Tensor]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: torch.as_tensor(archive[name]) for name in archive.files}
    except (OSError, ValueError, TypeError, EOFError, BadZipFile) as error:
        raise FileFormatError(f"{path}: not a readable .npz file ({error})") from error


def _checked(source: str, arrays: Mapping[str, Tensor]) -> Data:
    if "inputs" not in arrays:
        raise InvalidInputError(f"data '{source}' holds {', '.join(arrays) or 'nothing'}; an array 'inputs' is needed")
    inputs, targets = arrays["inputs"], arrays.get("targets")
    held_out = "test_inputs" in arrays
    test_inputs = arrays["test_inputs"] if held_out else inputs
    test_targets = arrays.get("test_targets") if held_out else targets
    for rows, classes in ((inputs, targets), (test_inputs, test_targets)):
        if rows.dim() == 0 or len(rows) == 0:
            raise InvalidInputError(f"data '{source}' has no rows; at least one is needed")
        if classes is not None and (tuple(classes.shape) != (len(rows),) or classes.is_floating_point()):
            raise InvalidInputError(
                f"data '{source}': targets of shape {tuple(classes.shape)} and {classes.dtype} for {len(rows)} rows; "
                "one integer class per row is needed"
            )

    def classes_of(targets: Tensor | None) -> Tensor | None:
        return None if targets is None else targets.to(torch.int64)

    return Data(source, inputs, classes_of(targets), test_inputs, classes_of(test_targets))


def read_model(source: str, weights: Path | None, data: Data, seed: int) -> tuple[nn.Module, bool]:
    """The model, and whether it still has to be trained.

    Args:
        source: `lenet300` for the built-in shape, `module:function` for a function without arguments, or the file of
            an exported program (.pt2).
        weights: a safetensors file with its state dict.
        data: gives the built-in shape its sizes.
        seed: of the built-in initial weights.

    Raises:
        InvalidInputError: the factory cannot be imported or gives no module, or the weights do not fit.
        FileFormatError: the weights cannot be read.
    """
    if source == LENET:
        model = _lenet(data, seed)
    else:
        model = read_program(Path(source)) if source.endswith(".pt2") else _factory(source)
    if weights is not None:
        state, _ = files.read_tensors(weights)
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            raise InvalidInputError(f"weights '{weights}' do not fit the model: {error}") from error
    return model.eval(), source == LENET and weights is None


def _lenet(data: Data, seed: int) -> nn.Module:
    if data.targets is None or data.inputs.dim() != 2:
        raise InvalidInputError(
            f"model '{LENET}' takes flat rows with classes, and data '{data.name}' has inputs of shape "
            f"{tuple(data.inputs.shape)}{' and no targets' if data.targets is None else ''}; "
            "give --model module:function"
        )
    return embedded.mlp((data.inputs.shape[1], 300, 100, int(data.targets.max()) + 1), seed)


def _factory(source: str) -> nn.Module:
    module, colon, function = source.partition(":")
    if not colon:
        raise InvalidInputError(f"model '{source}' given; give '{LENET}', an exported program.pt2 or module:function")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as python itself does for a script
    try:
        model = getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError, TypeError) as error:
        raise InvalidInputError(f"model '{source}' cannot be made: {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise InvalidInputError(
            f"model '{source}' gave a {type(model).__name__}; the function must return an nn.Module"
        )
    return model
