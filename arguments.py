"""What a caller passed, checked at the door and made plain: paths, names, whole numbers.

Every public function asks here, so that a mistake is one line everywhere: what was found, and what is meant. At the
root, so that every room can; it imports none, and nothing heavy.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, SupportsFloat, SupportsIndex

from .errors import UsageError

__all__ = [
    "Paths",
    "Where",
    "brief",
    "names",
    "number",
    "numbers",
    "pair",
    "path",
    "paths",
    "several",
    "text",
    "whole",
    "whole_or_none",
]


class _Store(Protocol):
    @property
    def path(self) -> Any: ...


class _Dataset(Protocol):
    @property
    def encoding(self) -> Mapping[Any, Any]: ...


# A path or URL, a `Store`, or what `attlas.open` gives.
type Where = str | os.PathLike[str] | _Store | _Dataset
type Paths = Where | Iterable[Where]


def path(value: Where, what: str = "path", wanted: str = "a path") -> str:
    """The text of a path or URL; of a `Store`, or of what `attlas.open` gives, that of the store.

    Args:
        value: what the caller passed.
        what: the argument's name; `wanted`: what it is.
        wanted: see `what`.

    Raises:
        UsageError: it is something else, or part of a store, such as fewer images, since the whole would be taken.
    """
    found = _text(value)
    if found is None:
        raise UsageError(f"{what}: pass {wanted}, not {brief(value)}")
    coordinates = getattr(value, "coords", {})
    for name, (dim, whole) in getattr(value, "encoding", {}).get("whole", {}).items():  # noted by `attlas.open`
        if name in coordinates and coordinates[name].size != whole:
            raise UsageError(
                f"{what}: this Dataset holds {coordinates[name].size:,} of {whole:,} along {dim} of {found}, and all "
                "would be taken; pass the store, or compute with the Dataset itself"
            )
    return found


def paths(value: Paths, what: str, wanted: str = "a path, or a list of them") -> list[str]:
    """Several paths; one is a list of one. Errors as for `path`."""
    if _text(value) is not None:
        return [path(value, what, wanted)]  # type: ignore[arg-type]
    return [path(one, what, wanted) for one in _each(value, what, wanted)]


def several(value: Any, what: str, kinds: tuple[type, ...], wanted: str) -> tuple[Any, ...]:
    """Several values of these types; one is a list of one, and a text is never read letter by letter.

    Raises:
        UsageError: it, or one of them, is something else.
    """
    if isinstance(value, kinds):
        return (value,)
    found = _each(value, what, wanted)
    for one in found:
        if not isinstance(one, kinds):
            raise UsageError(f"{what}: pass {wanted}, not {brief(one)}")
    return found


def text(value: str, what: str, wanted: str = "a name") -> str:
    """One text.

    Raises:
        UsageError: it is something else.
    """
    if not isinstance(value, str):
        raise UsageError(f"{what}: pass {wanted}, not {brief(value)}")
    return value


def names(value: str | Iterable[str], what: str, wanted: str = "a name, or a list of them") -> tuple[str, ...]:
    """Several texts; one is a list of one. Errors as for `several`."""
    return several(value, what, (str,), wanted)


def whole(value: SupportsIndex, what: str, wanted: str = "a whole number") -> int:
    """A whole number of any library, as Python's own.

    Raises:
        UsageError: it is something else.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise UsageError(f"{what}: pass {wanted}, not {brief(value)}") from None


def whole_or_none(value: SupportsIndex | None, what: str) -> int | None:
    """A whole number, or None for what is usual. Errors as for `whole`."""
    return None if value is None else whole(value, what)


def number(value: SupportsFloat, what: str, wanted: str = "a number") -> float:
    """A number of any library, as Python's own.

    Raises:
        UsageError: it is something else, a text too.
    """
    if isinstance(value, str | bytes) or not isinstance(value, SupportsFloat):
        raise UsageError(f"{what}: pass {wanted}, not {brief(value)}")
    return float(value)


def numbers(value: SupportsIndex | Iterable[SupportsIndex], what: str) -> tuple[int, ...]:
    """Several whole numbers, of an array too; one is a list of one. Errors as for `whole`."""
    wanted = "a list of whole numbers"
    alone = isinstance(value, SupportsIndex) and getattr(value, "ndim", 0) == 0
    each: Iterable[Any] = [value] if alone else _each(value, what, wanted)
    return tuple(whole(one, what, wanted) for one in each)


def pair(value: Any, what: str, wanted: str, *, fractions: bool = False) -> tuple[Any, Any]:
    """Two whole numbers, or with `fractions` any two.

    Raises:
        UsageError: it is something else.
    """
    found = _each(value, what, wanted)
    if len(found) != 2:
        raise UsageError(f"{what}: pass {wanted}, not {brief(value)}")
    read = number if fractions else whole
    return read(found[0], what, wanted), read(found[1], what, wanted)


def brief(value: object) -> str:
    """A value of any kind, for a message: its first line, at most 60 characters of it, and its type."""
    return f"{repr(value).partition('\n')[0][:60]} ({type(value).__name__})"


def _text(value: Any) -> str | None:
    """The text of `path`, or None where it is none."""
    if not isinstance(value, str | os.PathLike):
        encoding = getattr(value, "encoding", None)  # xarray notes there where it read a Dataset
        value = encoding.get("source") if isinstance(encoding, Mapping) else getattr(value, "path", None)
    found = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    return found if isinstance(found, str) else None


def _each(value: Any, what: str, wanted: str) -> tuple[Any, ...]:
    """The items of what is no text."""
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise UsageError(f"{what}: pass {wanted}, not {brief(value)}")
    return tuple(value)
