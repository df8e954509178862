"""Methods by name and their options from text, read off the solver classes: a new solver needs nothing here."""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import optprune.solvers
from optprune.errors import InvalidInputError
from optprune.solvers import Solver

SHORT = {
    "net-trim-admm": "net-trim",
    "si-ppdet": "sipp-det",
    "si-pphybrid": "sipp-hybrid",
    "si-pprand": "sipp-rand",
}
"""Methods known by another name than their class."""


def solvers() -> dict[str, type[Solver]]:
    """Every solver of the package by its name on the command line: the class name in words."""
    found: dict[str, type[Solver]] = {}
    for exported in optprune.solvers.__all__:
        solver = getattr(optprune.solvers, exported)
        if isinstance(solver, type) and issubclass(solver, Solver) and not inspect.isabstract(solver):
            name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", exported).lower()
            found[SHORT.get(name, name)] = solver
    return found


def chosen(names: Sequence[str], options: Iterable[str]) -> dict[str, Solver]:
    """The solvers of these names with these options; an option goes to every method that has it.

    Args:
        names: as `solvers` has them.
        options: `key=value`, or `method.key=value` for one method alone.

    Raises:
        InvalidInputError: an unknown method, an option that none of them has, or a value of the wrong type.
    """
    known = solvers()
    for name in names:
        if name not in known:
            raise InvalidInputError(f"method '{name}' given; there are {', '.join(known)} (see: optprune methods)")
    settings: dict[str, dict[str, Any]] = {name: {} for name in names}
    for option in options:
        key, equals, text = option.partition("=")
        method, dot, key = key.rpartition(".")
        takers = [name for name in names if key in _fields(known[name]) and (not dot or method == name)]
        if not equals or not takers:
            listed = "; ".join(f"{name}: {', '.join(_fields(known[name])) or 'none'}" for name in names)
            raise InvalidInputError(f"option '{option}' given; give key=value with a key of {listed}")
        for name in takers:
            settings[name][key] = _value(f"{name}.{key}", text, _fields(known[name])[key])
    return {name: known[name](**settings[name]) for name in dict.fromkeys(names)}


def _fields(solver: type[Solver]) -> dict[str, Any]:
    hints = get_type_hints(solver)
    return {name: hints[name] for name in inspect.signature(solver).parameters}


def _value(name: str, text: str, hint: Any) -> Any:
    """The text as the field's type."""
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    for kind in kinds:
        if kind is type(None) and text.lower() == "none":
            return None
        if get_origin(kind) is Literal and text in map(str, get_args(kind)):
            return next(value for value in get_args(kind) if str(value) == text)
        if kind is bool and text.lower() in ("true", "false"):
            return text.lower() == "true"
        if kind in (int, float):
            try:
                return kind(text)
            except ValueError:
                continue
        if kind is str:
            return text
        if isinstance(kind, type) and issubclass(kind, Solver) and text in solvers():
            return solvers()[text]()
    raise InvalidInputError(f"{name}={text} given; {_described(kinds)} is needed")


def _described(kinds: Iterable[Any]) -> str:
    return " or ".join(
        " or ".join(map(str, get_args(kind))) if get_origin(kind) is Literal else getattr(kind, "__name__", str(kind))
        for kind in kinds
    )


def settings(solver: Solver) -> Mapping[str, Any]:
    """The settings of a solver, JSON-ready."""
    return {name: getattr(solver, name) for name in _fields(type(solver))}
