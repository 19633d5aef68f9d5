"""Columns of plain values, collected row by row from a manifest or from the JSON of samples."""

from __future__ import annotations

import json
from collections.abc import Container, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from .items import text

__all__ = ["EXACT", "MAX_COLUMNS", "Columns", "guessed"]

BLOCK = 1 << 16
MAX_COLUMNS = 256  # a file whose million rows each have other names would fill the memory
EXACT = 2**53  # integers up to this are exact in float64
_KINDS = {bool: "bool", int: "int", float: "float", str: "str"}


class Columns:
    """Rows of JSON scalars as arrays: bool, int64, float64 (NaN if missing), otherwise text ("" if missing).

    Attributes:
        skipped: values that are not scalars, and columns beyond `MAX_COLUMNS`, counted by name.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.skipped: dict[str, int] = {}
        self._kinds: dict[str, set[str]] = {}
        self._present: dict[str, int] = {}
        self._blocks: dict[str, list[npt.NDArray[Any]]] = {}
        self._closed = 0  # number of rows that are in finished blocks
        self._open: dict[str, list[str]] = {}

    def add(self, row: Mapping[str, Any]) -> None:
        """Add the values of one image; null counts as missing."""
        here = self.rows - self._closed
        for name, value in row.items():
            if value is None:
                continue
            kind = _KINDS.get(type(value))
            if kind is None or (name not in self._kinds and len(self._kinds) >= MAX_COLUMNS):
                self._skip(name, 1)
                continue
            self._kinds.setdefault(name, set()).add(kind)
            self._present[name] = self._present.get(name, 0) + 1
            column = self._open.setdefault(name, [])
            column.extend([""] * (here - len(column)))
            # Kept as text, so that a column with mixed types shows the text of the file.
            column.append(_sound(value) if kind == "str" else json.dumps(value))
        self.rows += 1
        if here + 1 == BLOCK:
            self._close()

    def extend(self, other: Columns) -> None:
        """Append the rows of another collection."""
        self._close()
        other._close()
        for name in {**self._kinds, **other._kinds}:
            mine = self._blocks.setdefault(name, _missing(self.rows))
            mine += other._blocks.get(name, _missing(other.rows))
        self.rows = self._closed = self.rows + other.rows
        for name, kinds in other._kinds.items():
            self._kinds.setdefault(name, set()).update(kinds)
            self._present[name] = self._present.get(name, 0) + other._present[name]
        for name, count in other.skipped.items():
            self._skip(name, count)

    def _skip(self, name: str, count: int) -> None:
        name = name if name in self.skipped or len(self.skipped) < MAX_COLUMNS else "others"
        self.skipped[name] = self.skipped.get(name, 0) + count

    def arrays(self, plain: Container[str] = ()) -> dict[str, npt.NDArray[Any]]:
        """(row) arrays by name, in order of first appearance; columns in `plain` are always text."""
        self._close()
        whole = {name: np.concatenate(self._blocks[name]) for name in self._kinds}
        return {name: values if name in plain else self._typed(name, values) for name, values in whole.items()}

    def _typed(self, name: str, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        kinds, complete = self._kinds[name], self._present[name] == self.rows
        if kinds == {"bool"} and complete:
            return np.asarray(values == "true")
        if kinds <= {"int", "float"}:
            return _number(values, integers=kinds == {"int"} and complete)
        return values

    def _close(self) -> None:
        """Convert the open rows of every column to an array, and fill missing values."""
        here = self.rows - self._closed
        for name in self._kinds:
            blocks = self._blocks.setdefault(name, _missing(self._closed))
            values = self._open.pop(name, [])
            if here:
                blocks.append(text(values + [""] * (here - len(values))))
        self._closed = self.rows


def _sound(value: str) -> str:
    """Text that can be encoded: JSON may contain half a surrogate pair."""
    return value if value.isascii() else value.encode("utf-8", "replace").decode("utf-8")


def _missing(rows: int) -> list[npt.NDArray[Any]]:
    """Blocks of a new column, for the rows before it, where it is missing."""
    return [np.full(rows, "", np.dtypes.StringDType())]


def guessed(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A column of text as int64, float64 or bool if every value is one; otherwise unchanged.

    Integers must have their usual form, so that "007" stays text. An empty field among numbers is NaN.
    """
    given = values != ""
    if not given.any():
        return values
    if str(values[0]).lower() in ("true", "false"):
        lower = np.strings.lower(values)  # Python writes True, R and spreadsheets TRUE
        if ((lower == "true") | (lower == "false")).all():
            return np.asarray(lower == "true")
    try:
        numbers = values[given].astype(np.int64)
        if (numbers.astype(values.dtype) == values[given]).all():
            return _number(values, integers=bool(given.all()))
        return values
    except (ValueError, OverflowError):
        pass
    if all(map(_decimal, values[given])):
        return _number(values, integers=False)
    return values


def _decimal(value: str) -> bool:
    """Whether it is a number in a usual form: 0.5, -1e-05, nan; but not 007 or 1_000."""
    bare = value.lstrip("-").lower()
    if bare in ("nan", "inf", "infinity"):
        return True
    head = bare.partition("e")[0].partition(".")[0]
    if "_" in value or value != value.strip() or (len(head) > 1 and head[0] == "0"):
        return False
    try:
        return abs(float(value)) < EXACT or not bare.isdecimal()
    except ValueError:
        return False


def _number(values: npt.NDArray[Any], *, integers: bool) -> npt.NDArray[Any]:
    """Text as int64 or float64; unchanged if that would lose digits."""
    try:
        if integers:
            return np.asarray(values.astype(np.int64))
        whole = np.where(values == "", text(["nan"]), values).astype(np.float64)
    except (ValueError, OverflowError):
        return values
    large = np.flatnonzero(np.abs(whole) >= EXACT)
    return values if any(str(values[i]).lstrip("-").isdecimal() for i in large) else whole
