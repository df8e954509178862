"""Progress on stderr, where it does not mix with results; nothing where stderr is no terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Bars:
    """Bars with the name of what is done, how far it is and how long it will take."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    @contextmanager
    def steps(self, name: str) -> Iterator[Callable[[int, int], None]]:
        """A bar moved by (steps made, all steps)."""
        task = self._progress.add_task(name, total=None)

        def advance(made: int, total: int) -> None:
            self._progress.update(task, completed=made, total=total)

        yield advance
        self._finish(task)

    @contextmanager
    def layers(self, method: str) -> Iterator[Callable[[str, int, int], None]]:
        """A bar moved by (layer in work, layers finished, all layers)."""
        task = self._progress.add_task(method, total=None)

        def advance(layer: str, finished: int, total: int) -> None:
            description = f"{method}: {layer}" if layer else method
            self._progress.update(task, description=description, completed=finished, total=total)

        yield advance
        self._finish(task)

    def _finish(self, task: TaskID) -> None:
        """Leave a complete bar behind; a bar whose work broke off stays as it was."""
        done = self._progress.tasks[self._progress.task_ids.index(task)]
        self._progress.update(task, total=done.completed)
