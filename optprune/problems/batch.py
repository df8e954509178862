"""Stacking problems of one shape, so that a solver treats many layers as one."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TypeVar

import torch

from optprune.errors import InvalidInputError
from optprune.problems._base import Problem

P = TypeVar("P", bound=Problem)


def stack_key(problem: Problem) -> Hashable:
    """Problems with equal keys can be stacked: same type, tensor shapes, dtypes, devices and settings.

    A problem that cannot be stacked has a key of its own.
    """
    if not problem.stackable:
        return (type(problem), id(problem))
    tensors = tuple((name, tuple(t.shape), t.dtype, t.device) for name, t in problem.tensors().items())
    return (type(problem), tensors, repr(sorted(problem.settings().items())))


def stack(problems: Sequence[P]) -> P:
    """One problem with a leading batch dimension.

    Raises:
        InvalidInputError: nothing given, a problem that cannot be stacked, or the problems differ in type, shape or
            settings.
    """
    if not problems:
        raise InvalidInputError("no problem given; stack needs at least one")
    if not all(problem.stackable for problem in problems):
        raise InvalidInputError("a problem on a linear map given; it cannot be stacked, pass it to solve_all as it is")
    if len({stack_key(problem) for problem in problems}) > 1:
        raise InvalidInputError("problems of different type, shape or settings given; stack those with equal stack_key")
    parts = [problem.tensors() for problem in problems]
    return problems[0].restore(
        {name: torch.stack([part[name] for part in parts]) for name in parts[0]}, problems[0].settings()
    )


def unstack(problem: P) -> list[P]:
    """The problems of a stack along its first batch dimension.

    Raises:
        InvalidInputError: the problem has no batch dimension.
    """
    if not problem.batch_shape:
        raise InvalidInputError("a single problem given; unstack needs a leading batch dimension")
    tensors, settings = problem.tensors(), problem.settings()
    return [
        problem.restore({name: t[i] for name, t in tensors.items()}, settings) for i in range(problem.batch_shape[0])
    ]
