"""Images by a list: a table with the column `path`, perhaps `label`, and whatever else is to stay with the images."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import posixpath
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import AttlasError
from . import files, parquet, remote
from .columns import Columns, guessed
from .items import BaseSource, ChangedError, Item, Items, repeated, text

__all__ = ["SUFFIXES", "Manifest"]

SUFFIXES = {".csv": ",", ".tsv": "\t", ".jsonl": "", ".ndjson": "", ".json": "", ".parquet": ""}
BLOCK = 1 << 16
MAX_LINE = 2**20
TRIED = 32  # paths looked for before a run begins: one mistaken folder would else cost every image


@dataclass(frozen=True, eq=False)
class Manifest(BaseSource):
    """The rows of a CSV, JSON lines or Parquet file, in their order.

    Relative paths are taken from the manifest's own folder, and are the keys. Where one is absolute, a URL, or leads
    out of that folder, the keys are what follows the folder that all share, so that no place of this machine is
    stored. Whether each file is there is not asked: one that is absent costs that image.

    Attributes:
        base: the folder or URL that keys are relative to; `place`: of the manifest itself.
        items: its sizes and times are unknown (-1): asking for them would take as long as a listing.
    """

    name: str
    place: str
    base: str
    items: Items
    others: Mapping[str, int] = field(default_factory=dict)
    reads_ahead: int = 0

    def subset(self, places: npt.NDArray[np.int64]) -> Manifest:
        """See `Source`."""
        return dataclasses.replace(self, items=self.items.take(places).alone())

    @classmethod
    def scan(cls, where: str | os.PathLike[str]) -> Manifest:
        """Read the table.

        Raises:
            AttlasError: it cannot be read, a line is broken, there is no column `path`, a path is there twice or has no
                place in a store, or of a few that were tried none is there.
        """
        place = files.place(where)
        suffix = os.path.splitext(place)[1].lower()  # noqa: PTH122
        try:
            if suffix == ".parquet":
                table = _Table("row", *parquet.columns(place))
            elif SUFFIXES[suffix]:
                table = _read_csv(place, SUFFIXES[suffix])
            else:
                table = _read_json_lines(place)
        except FileNotFoundError:
            raise AttlasError(f"{place}: there is no such file") from None
        except (OSError, ChangedError) as error:
            raise AttlasError(f"{place}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
        columns = dict(table.columns)
        if "path" not in columns:
            raise AttlasError(f"{place}: has no column path, which names the files; {_instead(columns)}")
        paths = columns.pop("path")
        if not len(paths):
            raise AttlasError(f"{place}: names no image (it has no {table.unit}s)")
        if paths.dtype.kind != "T":
            raise AttlasError(f"{place}: the column path holds no text but {paths.dtype}")
        keys, base = _keys(place, paths, table)
        twice = repeated(keys)
        if twice is not None:
            raise AttlasError(
                f"{place}: {table.where(twice[1])} names {keys[twice[1]]} again, which {table.where(twice[0])} has"
            )
        label = columns.pop("label", None)
        labels = text([""] * len(keys)) if label is None else label
        items = Items.make(keys, labels, columns=columns)
        found = cls(files.name_of(place), place, base, items, table.skipped, files.reads_ahead(base))
        found._try_some()
        return found

    def read(self, item: Item) -> bytes:
        """An image's bytes.

        Raises:
            ChangedError: there is no such file: it costs one image.
            OSError: it cannot be read now, or the folder itself is gone.
        """
        try:
            return files.read(files.join(self.base, item.key))
        except (FileNotFoundError, NotADirectoryError):
            # A network folder that fell off would else turn every image into an absent one.
            if not files.is_url(self.base) and not os.path.isdir(self.base):  # noqa: PTH112
                raise
            raise ChangedError("there is no such file") from None

    def _try_some(self) -> None:
        """Refuse a manifest whose paths lead nowhere."""
        count = len(self.items)
        places = sorted({i * count // TRIED for i in range(TRIED)})
        first = files.join(self.base, self.items[0].key)
        try:
            if any(files.stamp(files.join(self.base, self.items[i].key)) is not None for i in places):
                return
        except OSError as error:
            raise AttlasError(f"{first}: cannot be read ({error.strerror or error})") from None
        slashes = ", and written with /" if "\\" in first else ""
        raise AttlasError(
            f"{self.place}: none of {len(places)} files that were looked for is there (the first: {first}); relative "
            f"paths are taken from the manifest's own folder{slashes}"
        )


@dataclass(frozen=True)
class _Table:
    """Columns, and where each of their rows stood."""

    unit: str
    columns: Mapping[str, npt.NDArray[Any]]
    skipped: Mapping[str, int]
    lines: Sequence[int] = ()

    def where(self, row: int) -> str:
        """`line 7`, or `row 6` of a file without lines."""
        return f"{self.unit} {self.lines[row] if self.lines else row}"


def _instead(columns: Mapping[str, Any]) -> str:
    """What a table has where `path` is missing, and what to do."""
    names = list(columns)
    if len(names) == 1 and (mark := next((mark for mark in ";\t|" if mark in names[0]), "")):
        return f"its fields are separated by {mark!r}: save it with commas, or with tabs as .tsv"
    near = [n for n in names if any(word in n.lower() for word in ("path", "file", "image", "img", "name", "url"))]
    found = f"found {', '.join(names[:20]) or 'no column'}"
    return f"{found}; rename {near[0]!r} if it does" if near else found


def _lines(place: str) -> Iterator[str]:
    """A text file's lines, each checked: UTF-8, of bounded length."""
    with remote.failures(), files.opened(place) as raw:
        file = io.BufferedReader(raw, 1 << 20)  # type: ignore[type-var]
        number = 0
        while line := file.readline(MAX_LINE + 1):
            number += 1
            if len(line) > MAX_LINE:
                raise AttlasError(f"{place}: line {number} is longer than {MAX_LINE:,} bytes")
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise AttlasError(f"{place}: line {number} is no UTF-8 text; save the file as UTF-8") from None


def _read_csv(place: str, delimiter: str) -> _Table:
    """A table whose first line names the columns."""
    reader = csv.reader(_lines(place), delimiter=delimiter, strict=True)
    lines = array("q")
    blocks: list[list[npt.NDArray[Any]]] = []
    header: list[str] = []
    rows: list[list[str]] = []
    try:
        # pandas leaves the name of an index blank, and calls it so when it reads the file.
        header = [name.strip() or f"Unnamed: {i}" for i, name in enumerate(next(reader, []))]
        twice = sorted({name for name in header if header.count(name) > 1})
        if twice:
            raise AttlasError(f"{place}: has two columns of the name {twice[0]!r}")
        for row in reader:
            if not any(row):
                continue  # a blank line, or commas alone, as spreadsheets leave them at the end
            if len(row) != len(header):
                raise AttlasError(f"{place}: line {reader.line_num} has {len(row)} fields, the header {len(header)}")
            rows.append(row)
            lines.append(reader.line_num)
            if len(rows) == BLOCK:
                blocks.append([text(column) for column in zip(*rows, strict=True)])
                rows = []
    except csv.Error as error:
        raise AttlasError(f"{place}: line {reader.line_num} does not read ({error})") from None
    if rows:
        blocks.append([text(column) for column in zip(*rows, strict=True)])
    whole = {name: np.concatenate([b[i] for b in blocks] or [text([])]) for i, name in enumerate(header)}
    typed = {name: v if name in ("path", "label") else guessed(v) for name, v in whole.items()}
    return _Table("line", typed, {}, lines)


def _read_json_lines(place: str) -> _Table:
    """One object a line."""
    columns, lines = Columns(), array("q")
    for number, line in enumerate(_lines(place), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise AttlasError(f"{place}: line {number} is no JSON ({' '.join(str(error).split())[:100]})") from None
        if not isinstance(row, dict):
            raise AttlasError(f"{place}: line {number} is no JSON object; write one object a line")
        if "path" in row and not isinstance(row["path"], str):
            raise AttlasError(f"{place}: line {number} has a path that is no text")
        columns.add(row)
        lines.append(number)
    skipped = {f"values of {name} that are no plain text or number": n for name, n in columns.skipped.items()}
    return _Table("line", columns.arrays(plain=("path", "label")), skipped, lines)


def _keys(place: str, paths: npt.NDArray[Any], table: _Table) -> tuple[npt.NDArray[Any], str]:
    """The keys, and the folder or URL that they are relative to."""
    found: list[str] = []
    outside = False
    for row, path in enumerate(paths):
        if not path or "\0" in path:
            raise AttlasError(f"{place}: {table.where(row)} has an empty path or one with a zero byte")
        if "://" in path:
            scheme, _, rest = path.partition("://")
            if scheme == "file":
                path = rest
            elif "?" in rest or "@" in rest.partition("/")[0]:
                raise AttlasError(
                    f"{place}: {table.where(row)} names a URL with a query or a password, which would end up in the "
                    "store; use plain addresses"
                )
        if "://" not in path:
            path = files.place(path)
            path = posixpath.normpath(path)
        outside = outside or path.startswith(("/", "../")) or "://" in path
        found.append(path)
    base = files.parent(place)
    if not outside:
        return text(found), base
    root = base if files.is_url(base) else os.path.abspath(base)  # noqa: PTH100
    whole = [p if p.startswith("/") or "://" in p else _under(root, p) for p in found]
    shared = os.path.commonprefix(  # noqa: RUF071 - of URLs, too; cut at the last slash
        [min(whole), max(whole)]
    ).rpartition("/")[0]
    if not shared.partition("://")[2] if any("://" in p for p in whole) else not shared:
        # The key would be the whole place, which belongs to this machine and not into a store.
        raise AttlasError(f"{place}: its paths share no folder or bucket; use one manifest for each")
    return text([p[len(shared) + 1 :] for p in whole]), shared


def _under(root: str, path: str) -> str:
    """A relative path as a whole one."""
    scheme, mark, rest = root.rpartition("://")
    return f"{scheme}{mark}{posixpath.normpath(f'{rest}/{path}')}"
