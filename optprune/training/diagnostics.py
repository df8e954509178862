"""What a method noted of its periods, drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from optprune.errors import InvalidInputError, MissingDependencyError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONDITIONS = ("first", "second")
"""Drawn as marks where they are 1."""


def plot(history: Sequence[Mapping[str, float]], names: Sequence[str] | None = None) -> Figure:
    """One panel per number of a method's history over the steps of training; surrogate conditions as marks below.

    Args:
        history: `method.history`.
        names: which numbers; all by default.

    Returns:
        A figure of its own, which `savefig` writes; no window is opened and no global state of matplotlib used.

    Raises:
        InvalidInputError: an empty history, or a number that no period has.
        MissingDependencyError: matplotlib cannot be imported.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("plotting needs matplotlib, which cannot be imported; install it") from error
    known = list(dict.fromkeys(name for facts in history for name in facts if name != "step"))
    unknown = [name for name in names or () if name not in known]
    if not known or unknown:
        given = f"{unknown[0]!r} asked for" if known else "an empty history given"
        raise InvalidInputError(
            f"{given}; a history holds a record per period, here of {', '.join(known) or 'nothing'}; train on, or name "
            "some of these"
        )
    shown = [name for name in names or known if name not in CONDITIONS]
    tests = [name for name in names or known if name in CONDITIONS]
    panels = len(shown) + bool(tests)
    figure = Figure(figsize=(7, 1.6 * panels), layout="constrained")
    axes = figure.subplots(panels, 1, sharex=True, squeeze=False)[:, 0]
    for axis, name in zip(axes, shown, strict=False):
        points = [(facts["step"], facts[name]) for facts in history if name in facts]
        axis.plot(*zip(*points, strict=True), marker=".", markersize=3)
        axis.set_ylabel(name.replace("_", " "))
    for height, name in enumerate(tests):
        met = [facts["step"] for facts in history if facts.get(name) == 1.0]
        axes[-1].plot(met, [height] * len(met), "|", label=name)
    if tests:
        axes[-1].set_yticks(range(len(tests)), [f"{name} met" for name in tests])
        axes[-1].set_ylim(-0.5, len(tests) - 0.5)
    axes[-1].set_xlabel("step")
    return figure
