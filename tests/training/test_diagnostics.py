"""A history is drawn as it was noted."""

import numpy as np
import pytest

from optprune.errors import InvalidInputError
from optprune.training.diagnostics import plot

HISTORY = [
    {"step": 3.0, "loss": 2.0, "violation": 5.0, "first": 1.0, "second": 0.0},
    {"step": 6.0, "loss": 1.5, "violation": 4.0, "first": 0.0, "second": 1.0},
    {"step": 9.0, "loss": 1.0},
]


def test_every_number_has_a_panel(tmp_path):
    figure = plot(HISTORY)
    assert [axis.get_ylabel() for axis in figure.axes[:2]] == ["loss", "violation"]
    (loss,) = figure.axes[0].lines
    assert np.array_equal(loss.get_xydata(), [[3.0, 2.0], [6.0, 1.5], [9.0, 1.0]])
    first, second = figure.axes[2].lines
    assert np.array_equal(first.get_xydata(), [[3.0, 0.0]])
    assert np.array_equal(second.get_xydata(), [[6.0, 1.0]])
    figure.savefig(tmp_path / "history.png")
    assert (tmp_path / "history.png").stat().st_size > 1000


def test_some_numbers():
    assert len(plot(HISTORY, ["violation"]).axes) == 1


def test_refusals():
    with pytest.raises(InvalidInputError, match="empty history"):
        plot([])
    with pytest.raises(InvalidInputError, match=r"'gap' asked for.*loss, violation"):
        plot(HISTORY, ["gap"])
