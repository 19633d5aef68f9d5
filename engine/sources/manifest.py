"""Images from a table with the column `path`, and optionally `label` and other columns to store with the images."""

from __future__ import annotations

import csv
import dataclasses
import io
import os
import posixpath
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import AttlasError, one_line
from ...files import from_json
from . import files, parquet, remote
from .columns import Columns, guessed
from .items import BaseSource, ChangedError, Item, Items, repeated, text

__all__ = ["SUFFIXES", "Manifest"]

SUFFIXES = {".csv": ",", ".tsv": "\t", ".jsonl": "", ".ndjson": "", ".json": "", ".parquet": ""}
BLOCK = 1 << 16
MAX_LINE = 2**20
TRIED = 32  # number of paths checked before a run, so that a wrong folder does not make every image unreadable


@dataclass(frozen=True, eq=False)
class Manifest(BaseSource):
    """The rows of a CSV, JSON lines or Parquet file, in their order.

    Paths that are relative to the manifest's own folder are the keys. If any path is absolute, a URL, or leads out of
    that folder, the keys are relative to the common parent folder of all paths, so that no absolute path is stored.
    Files are not checked in advance: a missing file is one unreadable image.

    Attributes:
        base: the folder or URL that keys are relative to; `location`: path or URL of the manifest itself.
        items: sizes and times are unknown (-1), because finding them would take as long as a listing.
    """

    name: str
    location: str
    base: str
    items: Items
    others: Mapping[str, int] = field(default_factory=dict)
    reads_ahead: int = 0

    def subset(self, indices: npt.NDArray[np.int64]) -> Manifest:
        """See `Source`."""
        return dataclasses.replace(self, items=self.items.take(indices).alone())

    @classmethod
    def scan(cls, where: str | os.PathLike[str]) -> Manifest:
        """Read the table.

        Raises:
            AttlasError: it cannot be read, a line is broken, there is no column `path`, a path is repeated or cannot be
                stored, or none of a few checked files exists.
        """
        path = files.expanded(where)
        suffix = os.path.splitext(path)[1].lower()  # noqa: PTH122
        try:
            if suffix == ".parquet":
                table = _Table("row", *parquet.columns(path))
            elif SUFFIXES[suffix]:
                table = _read_csv(path, SUFFIXES[suffix])
            else:
                table = _read_json_lines(path)
        except FileNotFoundError:
            raise AttlasError(f"{path}: there is no such file") from None
        except (OSError, ChangedError) as error:
            raise AttlasError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
        columns = dict(table.columns)
        if "path" not in columns:
            raise AttlasError(f"{path}: has no column path, which names the files; {_instead(columns)}")
        paths = columns.pop("path")
        if not len(paths):
            raise AttlasError(f"{path}: names no image (it has no {table.unit}s)")
        if paths.dtype.kind != "T":
            raise AttlasError(f"{path}: the column path holds no text but {paths.dtype}")
        keys, base = _keys(path, paths, table)
        twice = repeated(keys)
        if twice is not None:
            raise AttlasError(
                f"{path}: {table.where(twice[1])} names {keys[twice[1]]} again, which {table.where(twice[0])} has"
            )
        label = columns.pop("label", None)
        labels = text([""] * len(keys)) if label is None else label
        items = Items.make(keys, labels, columns=columns)
        found = cls(files.name_of(path), path, base, items, table.skipped, files.reads_ahead(base))
        found._try_some()
        return found

    def read(self, item: Item) -> bytes:
        """An image's bytes.

        Raises:
            ChangedError: there is no such file; the run continues without it.
            OSError: it cannot be read now, or the folder itself is gone.
        """
        try:
            return files.read(files.join(self.base, item.key))
        except (FileNotFoundError, NotADirectoryError):
            # If a network folder is gone, the run must end: it must not count every image as missing.
            if not files.is_url(self.base) and not os.path.isdir(self.base):  # noqa: PTH112
                raise
            raise ChangedError("there is no such file") from None

    def _try_some(self) -> None:
        """Refuse a manifest if none of `TRIED` files exists."""
        count = len(self.items)
        rows = sorted({i * count // TRIED for i in range(TRIED)})
        first = files.join(self.base, self.items[0].key)
        try:
            if any(files.stamp(files.join(self.base, self.items[i].key)) is not None for i in rows):
                return
        except OSError as error:
            raise AttlasError(f"{first}: cannot be read ({error.strerror or error})") from None
        slashes = ", and written with /" if "\\" in first else ""
        raise AttlasError(
            f"{self.location}: none of {len(rows)} files that were looked for is there (the first: {first}); relative "
            f"paths are taken from the manifest's own folder{slashes}"
        )


@dataclass(frozen=True)
class _Table:
    """Columns, and the line of each of their rows in the file."""

    unit: str
    columns: Mapping[str, npt.NDArray[Any]]
    skipped: Mapping[str, int]
    lines: Sequence[int] = ()

    def where(self, row: int) -> str:
        """A row's position as text: `line 7`, or `row 6` for a file without lines."""
        return f"{self.unit} {self.lines[row] if self.lines else row}"


def _instead(columns: Mapping[str, Any]) -> str:
    """For a table without the column `path`: the columns it has, and what to do."""
    names = list(columns)
    if len(names) == 1 and (mark := next((mark for mark in ";\t|" if mark in names[0]), "")):
        return f"its fields are separated by {mark!r}: save it with commas, or with tabs as .tsv"
    near = [n for n in names if any(word in n.lower() for word in ("path", "file", "image", "img", "name", "url"))]
    found = f"found {', '.join(names[:20]) or 'no column'}"
    return f"{found}; rename {near[0]!r} if it does" if near else found


def _lines(path: str) -> Iterator[str]:
    """The lines of a text file, checked for UTF-8 and length."""
    with remote.failures(), files.opened(path) as raw:
        file = io.BufferedReader(raw, 1 << 20)  # type: ignore[type-var]
        number = 0
        while line := file.readline(MAX_LINE + 1):
            number += 1
            if len(line) > MAX_LINE:
                raise AttlasError(f"{path}: line {number} is longer than {MAX_LINE:,} bytes")
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise AttlasError(f"{path}: line {number} is no UTF-8 text; save the file as UTF-8") from None


def _read_csv(path: str, delimiter: str) -> _Table:
    """Read a table whose first line names the columns."""
    reader = csv.reader(_lines(path), delimiter=delimiter, strict=True)
    lines = array("q")
    blocks: list[list[npt.NDArray[Any]]] = []
    header: list[str] = []
    rows: list[list[str]] = []
    try:
        # pandas writes an index without a name, and reads it as `Unnamed: 0`.
        header = [name.strip() or f"Unnamed: {i}" for i, name in enumerate(next(reader, []))]
        twice = sorted({name for name in header if header.count(name) > 1})
        if twice:
            raise AttlasError(f"{path}: has two columns of the name {twice[0]!r}")
        for row in reader:
            if not any(row):
                continue  # a blank line, or only commas, as spreadsheets write at the end
            if len(row) != len(header):
                raise AttlasError(f"{path}: line {reader.line_num} has {len(row)} fields, the header {len(header)}")
            rows.append(row)
            lines.append(reader.line_num)
            if len(rows) == BLOCK:
                blocks.append([text(column) for column in zip(*rows, strict=True)])
                rows = []
    except csv.Error as error:
        raise AttlasError(f"{path}: line {reader.line_num} does not read ({error})") from None
    if rows:
        blocks.append([text(column) for column in zip(*rows, strict=True)])
    whole = {name: np.concatenate([b[i] for b in blocks] or [text([])]) for i, name in enumerate(header)}
    typed = {name: v if name in ("path", "label") else guessed(v) for name, v in whole.items()}
    return _Table("line", typed, {}, lines)


def _read_json_lines(path: str) -> _Table:
    """Read one JSON object per line."""
    columns, lines = Columns(), array("q")
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            row = from_json(line)
        except ValueError as error:
            raise AttlasError(f"{path}: line {number} is no JSON ({one_line(error, 100)})") from None
        if not isinstance(row, dict):
            raise AttlasError(f"{path}: line {number} is no JSON object; write one object a line")
        if "path" in row and not isinstance(row["path"], str):
            raise AttlasError(f"{path}: line {number} has a path that is no text")
        columns.add(row)
        lines.append(number)
    skipped = {f"values of {name} that are no plain text or number": n for name, n in columns.skipped.items()}
    return _Table("line", columns.arrays(plain=("path", "label")), skipped, lines)


def _keys(manifest: str, paths: npt.NDArray[Any], table: _Table) -> tuple[npt.NDArray[Any], str]:
    """The keys, and the folder or URL that they are relative to."""
    found: list[str] = []
    outside = False
    for row, path in enumerate(paths):
        if not path or "\0" in path:
            raise AttlasError(f"{manifest}: {table.where(row)} has an empty path or one with a zero byte")
        if "://" in path:
            scheme, _, rest = path.partition("://")
            if scheme == "file":
                path = rest
            elif "?" in rest or "@" in rest.partition("/")[0]:
                raise AttlasError(
                    f"{manifest}: {table.where(row)} names a URL with a query or a password, which would end up in the "
                    "store; use plain addresses"
                )
        if "://" not in path:
            path = files.expanded(path)
            path = posixpath.normpath(path)
        outside = outside or path.startswith(("/", "../")) or "://" in path
        found.append(path)
    base = files.parent(manifest)
    if not outside:
        return text(found), base
    root = base if files.is_url(base) else os.path.abspath(base)  # noqa: PTH100
    whole = [p if p.startswith("/") or "://" in p else _under(root, p) for p in found]
    shared = os.path.commonprefix(  # noqa: RUF071 - of URLs, too; cut at the last slash
        [min(whole), max(whole)]
    ).rpartition("/")[0]
    if not shared.partition("://")[2] if any("://" in p for p in whole) else not shared:
        # The key would be an absolute path, which must not be stored.
        raise AttlasError(f"{manifest}: its paths share no folder or bucket; use one manifest for each")
    return text([p[len(shared) + 1 :] for p in whole]), shared


def _under(root: str, path: str) -> str:
    """A relative path made absolute."""
    scheme, mark, rest = root.rpartition("://")
    return f"{scheme}{mark}{posixpath.normpath(f'{rest}/{path}')}"
