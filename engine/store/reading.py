"""What a store says of itself, and what it means when one does not read."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ...errors import AttlasError, one_line
from ...exporter.spec import FORMAT
from .overview import SUMMED
from .storage import ROOT, Storage, Url, storage_at

__all__ = ["KIND", "DamagedError", "by_analysis", "read_attrs", "reading"]

KIND = "attlas.store"
LOST = "its zarr.json is the only copy: take it from a copy of the store, or `attlas run --overwrite`"
JUDGED = ("judged", "deletion", "insertion", "segmentation")  # arrays of `attlas judge` begin with these
GROUPS = re.compile(r"_group(_images)?$")


class DamagedError(AttlasError):
    """Stored data are damaged."""


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
        attrs: dict[str, Any] = json.loads(data)["attributes"]
    except (ValueError, KeyError, TypeError):
        raise AttlasError(f"{path}: is no attention store (it has no readable zarr.json)") from None
    if attrs.get("kind") != KIND or not {"spec", "plan"} <= attrs.keys():
        raise AttlasError(f"{path}: is a zarr group, but no attention store")
    if attrs.get("attlas_format", 0) > FORMAT:
        raise AttlasError(
            f"{path}: written in format {attrs['attlas_format']}, this attlas reads up to {FORMAT}; "
            "install a newer attlas"
        )
    return attrs


@contextlib.contextmanager
def reading(path: Path | Url, what: str, advice: Callable[[], str] = lambda: LOST) -> Iterator[None]:
    """Convert exceptions to ours: damaged data, for which `advice` says what to do, or a store out of reach."""
    try:
        yield
    except (ValueError, RuntimeError, OSError) as error:
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
