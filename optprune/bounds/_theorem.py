"""The link from a function to the theorem that it computes.

A bound is worth as much as its proof. `theorem` writes the proof's identifier on the function and nothing
else; the tests follow the link both ways: every public bound names a proof, and every proof names the code
that it was read against.
"""

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

from optprune.errors import InvalidInputError

_Target = TypeVar("_Target", bound=Callable)
_registry: dict[str, tuple[str, ...]] = {}

THEOREMS: Mapping[str, tuple[str, ...]] = MappingProxyType(_registry)
"""Identifier -> qualified names of the functions that compute it, as far as their modules are imported."""


def theorem(identifier: str) -> Callable[[_Target], _Target]:
    """Mark a function or class as the computation of one theorem, for example `@theorem("T03")`.

    The identifier is kept in the attribute `__theorem__` and in `THEOREMS`; the target comes back as it was.

    Args:
        identifier: T and two digits; the proof is the file `proofs/<identifier>-*.md`.

    Raises:
        InvalidInputError: the identifier has another form.
    """
    if not re.fullmatch(r"T\d\d", identifier):
        raise InvalidInputError(
            f"theorem identifier {identifier!r}: give T and two digits, as in the name of a file in proofs/"
        )

    def mark(target: _Target) -> _Target:
        marked: Any = target
        marked.__theorem__ = identifier
        name = f"{target.__module__}.{target.__qualname__}"
        _registry[identifier] = tuple(sorted({*_registry.get(identifier, ()), name}))
        return target

    return mark


def theorem_of(target: object) -> str | None:
    """The identifier that `theorem` wrote on a function or class, or None."""
    return getattr(target, "__theorem__", None)
