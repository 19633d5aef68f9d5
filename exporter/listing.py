"""The list of models that can be exported, read from a table: building every timm model would take minutes.

The table for one version of timm comes with attlas. For any other version its rows are made on demand and kept in the
user's cache folder. PyTorch and timm are imported only for rows that are missing.
"""

from __future__ import annotations

import contextlib
import fnmatch
import importlib.metadata
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from ..errors import AttlasError, UsageError
from ..files import appearing, from_json
from .models.summary import SHIPPED, Summary

__all__ = ["list_models", "summaries", "write_table"]

TABLE = 1  # version of the table's layout and contents: a cached table with another number is not used
_AT_ONCE = 25


def list_models(pattern: str = "*") -> list[str]:
    """Names of models that can be exported, sorted; if the pattern has a tag (`vit_*.dino`), names with tags.

    Args:
        pattern: shell-style; `*` gives every timm architecture with global attention over patches.

    Raises:
        AttlasError: timm is not installed.
    """
    return _matching(_Table.of_this_timm(), pattern)


def summaries(pattern: str = "*", progress: Callable[[str], None] | None = None) -> list[Summary]:
    """The summary of every model that matches. Models that are not in the table yet are built once.

    Args:
        pattern: as for `list_models`, or the exact name of any timm model.
        progress: called with a line every 25 models while models are built, a quarter of a second each.

    Raises:
        UsageError: the pattern matches nothing, or names one model that cannot be exported, with the reason.
        AttlasError: timm is not installed.
    """
    table = _Table.of_this_timm()
    names = _matching(table, pattern)
    if not names and any(c in pattern for c in "*?["):
        raise UsageError(f"{pattern}: no model that can be exported has such a name; `attlas models` lists them all")
    if not names:
        from .taps.facts import summarize

        return [summarize(pattern)]
    table.build([name for name in names if table.rows[name] is None], progress or (lambda line: None))
    return [Summary.of(name, *row) for name in names if (row := table.rows.get(name)) is not None]


def write_table(progress: Callable[[str], None]) -> Path:
    """Build every model of the installed timm and write the table that comes with attlas."""
    table = _Table(_version(), SHIPPED, _names())
    table.build(list(table.rows), progress)
    return SHIPPED


class _Table:
    """Rows by model name for one version of timm; None is a model that was not built yet."""

    def __init__(self, timm: str, path: Path | None, rows: dict[str, list[Any] | None]) -> None:
        self.timm = timm
        self.path = path
        self.rows = rows

    @classmethod
    def of_this_timm(cls) -> Self:
        """The table that comes with attlas, else the cached one, else an empty one."""
        timm = _version()
        if (rows := _read(SHIPPED, timm)) is not None:
            return cls(timm, SHIPPED, rows)
        path = _cached(timm)
        rows = None if path is None else _read(path, timm)
        return cls(timm, path, _names() if rows is None else rows)

    def build(self, names: list[str], progress: Callable[[str], None]) -> None:
        """Fill in these rows; when interrupted, the finished rows are still saved."""
        if not names:
            return
        from .taps.facts import summarize

        progress(f"timm {self.timm} is new here: looking at {len(names)} models, a quarter of a second each, once")
        try:
            for number, name in enumerate(names, 1):
                try:
                    self.rows[name] = summarize(name).row()
                except UsageError:  # other models of its module attend globally, this one does not
                    del self.rows[name]
                if number % _AT_ONCE == 0:
                    progress(f"{number} of {len(names)}")
        finally:
            self._write()

    def _write(self) -> None:
        if self.path is None:
            return
        each = ",\n".join(f"{json.dumps(name)}:{json.dumps(row)}" for name, row in sorted(self.rows.items()))
        # Without a cache the table is made again.
        with contextlib.suppress(AttlasError), appearing(self.path) as draft:
            draft.write_text(f'{{"timm":{json.dumps(self.timm)},"models":{{\n{each}\n}}}}\n', encoding="utf-8")


def _matching(table: _Table, pattern: str) -> list[str]:
    tagged = "." in pattern
    return sorted(name for name in fnmatch.filter(table.rows, pattern) if ("." in name) is tagged)


def _read(path: Path, timm: str) -> dict[str, list[Any] | None] | None:
    """The rows of the table in a file; None if there is none for this version of timm."""
    try:
        data = from_json(path.read_text(encoding="utf-8"))
        rows: dict[str, list[Any] | None] = data["models"]
        for name, row in rows.items():
            if row is not None:
                Summary.of(name, *row)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # missing or incomplete
        return None
    return rows if data["timm"] == timm else None


def _names() -> dict[str, list[Any] | None]:
    """Every name in timm, with no row yet."""
    from .libraries.timm.build import names

    return dict.fromkeys(names())


def _version() -> str:
    try:
        return importlib.metadata.version("timm")
    except importlib.metadata.PackageNotFoundError:
        raise AttlasError(
            "this needs timm, which is not installed: `pip install 'attlas[exporter]'` brings it"
        ) from None


def _cached(timm: str) -> Path | None:
    """Path of the cached table for this version of timm; None if the user has no home folder."""
    default = "~/Library/Caches" if sys.platform == "darwin" else "~/.cache"
    cache = os.environ.get("LOCALAPPDATA" if os.name == "nt" else "XDG_CACHE_HOME") or default
    try:
        return Path(cache).expanduser() / "attlas" / f"models-{TABLE}-timm-{timm}.json"
    except RuntimeError:  # no home folder
        return None
