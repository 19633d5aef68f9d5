"""What a store says of itself, and what it means when one does not read."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import AttlasError, one_line
from ...exporter.spec import FORMAT, rebuilt
from ...files import from_json
from ..plan import Plan
from .overview import SUMMED
from .storage import ROOT, Storage, Url, storage_at

__all__ = ["KIND", "DamagedError", "by_analysis", "checked", "read_attrs", "reading"]

KIND = "attlas.store"
LOST = "its zarr.json is the only copy: take it from a copy of the store, or `attlas run --overwrite`"
JUDGED = ("judged", "deletion", "insertion", "segmentation")  # arrays of `attlas judge` begin with these
# What zarr, numpy and our own code raise of values that no writer would have put down.
FAILURES = (ValueError, RuntimeError, OSError, TypeError, KeyError, AttributeError, ArithmeticError, MemoryError)
GROUPS = re.compile(r"_group(_images)?$")


class DamagedError(AttlasError):
    """Stored data are damaged."""


@dataclass(frozen=True)
class _Kept:
    """What of the attribute `kept` is read."""

    layers: tuple[int, ...]
    keep: tuple[str, ...] = ()
    store_dtype: str = ""
    codec: str = ""


@dataclass(frozen=True)
class _Attributes:
    """The attributes of the group besides spec and plan; docs/store.md says what they are."""

    attlas_format: int
    kept: _Kept
    dataset: str = ""
    selection: str | None = ""
    coordinates: str = ""
    columns: tuple[str, ...] = ()
    analyzed: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)


def read_attrs(where: str | os.PathLike[str] | Storage) -> dict[str, Any]:
    """The attributes of the store at a path or URL, or in a storage.

    Raises:
        AttlasError: there is nothing, it is not an attlas store, has a newer format, or cannot be read.
    """
    storage = storage_at(where) if isinstance(where, str | os.PathLike) else where
    path = storage.path
    try:
        data = storage.read(ROOT)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not path.exists():
            raise AttlasError(
                f"{path}: there is no such store; `attlas run GRAPH.onnx IMAGES -o {path}` makes one"
            ) from None
        if isinstance(path, Url):
            raise AttlasError(f"{path}: cannot be read ({one_line(error)})") from None
        data = b""
    try:
        attrs: dict[str, Any] = from_json(data)["attributes"]
    except (ValueError, KeyError, TypeError):
        raise AttlasError(f"{path}: is no attention store (it has no readable zarr.json)") from None
    if not isinstance(attrs, dict) or attrs.get("kind") != KIND or not {"spec", "plan"} <= attrs.keys():
        raise AttlasError(f"{path}: is a zarr group, but no attention store")
    number = attrs.get("attlas_format", 0)
    if isinstance(number, int) and number > FORMAT:
        raise AttlasError(
            f"{path}: written in format {number}, this attlas reads up to {FORMAT}; install a newer attlas"
        )
    return attrs


def checked(attrs: dict[str, Any], path: Path | Url) -> Plan:
    """The plan in a store's attributes, after all that is read of them is of its type.

    Raises:
        DamagedError: it is not.
    """
    with reading(path, "its metadata"):
        rebuilt(_Attributes, attrs)
        return Plan.from_dict(attrs["plan"])


@contextlib.contextmanager
def reading(path: Path | Url, what: str, advice: Callable[[], str] = lambda: LOST) -> Iterator[None]:
    """Convert exceptions to ours: damaged data, for which `advice` says what to do, or a store out of reach."""
    try:
        yield
    except FAILURES as error:
        if isinstance(error, OSError) and isinstance(path, Url):
            raise AttlasError(f"{path}: {what} cannot be read now ({one_line(error)})") from None
        raise DamagedError(f"{path}: {what} does not read ({one_line(error)}); {advice()}") from None


def by_analysis(name: str) -> str:
    """The command that writes an array of an analysis again: one of the dataset, of its groups, or of a judgement."""
    if name.startswith(JUDGED):
        return "the same `attlas judge`"
    summed = SUMMED.fullmatch(name)
    column = GROUPS.sub("", name) if GROUPS.search(name) else summed["column"] if summed else ""
    return f"`attlas analyze --by {column}`" if column else "`attlas analyze`"
