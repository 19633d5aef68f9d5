"""Parquet files with a column of images, or with paths of images. The only module that uses pyarrow."""

from __future__ import annotations

import dataclasses
import posixpath
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...errors import AttlasError, one_line
from ...files import from_json
from . import files, remote
from .columns import EXACT
from .files import MAX_BYTES, Stamp
from .items import BaseSource, ChangedError, Item, Items, label_of, repeated, text

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

__all__ = ["Parquet", "columns", "image_column"]

ROWS = 1 << 16  # rows of a table that are read at once
IMAGES = 8  # rows with images, read at once: memory is a page and this many images for each worker
BUFFER = 1 << 20
_cursors = threading.local()


@dataclass(frozen=True, eq=False)
class Parquet(BaseSource):
    """The rows of Parquet files with images: a binary column, or Hugging Face's struct of `bytes` and `path`.

    Images are in the order of the files and their rows. A key is the image's own path if every row has a unique
    relative path, else `FILE.parquet/ROW`. The label is the column `label`, as a class name if Hugging Face's metadata
    has the names; without that column, the label is taken from the path. Other columns of plain values are stored. Row
    groups are read a few images at a time, when the run reaches them.

    Attributes:
        name: name of the file, or of the folder or pattern of several files.
        tables: path or URL of each file; `stamps`: the stamp of each file when it was listed.
        column: name of the column of images; `nested`: whether it is a struct.
        table: (image) int32, index of the file; `row`: (image) int64, row in that file.
        groups: for each file, the first row of each row group, and the number of rows: (group + 1) int64.
        content: bytes that each row group's images take: a copy has the same ones, a file of other images hardly.
    """

    name: str
    tables: Sequence[str]
    stamps: Sequence[Stamp]
    column: str
    nested: bool
    items: Items
    table: npt.NDArray[np.int32]
    row: npt.NDArray[np.int64]
    groups: Sequence[npt.NDArray[np.int64]]
    content: Sequence[int] = ()
    others: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def scan(cls, name: str, tables: Sequence[str]) -> Parquet:
        """Read every file's metadata and small columns.

        Raises:
            AttlasError: a file is missing or broken, has no column of images, or another one than the first file.
        """
        parts: list[dict[str, list[pa.Array]]] = []
        stamps, groups, sizes = [], [], list[int]()
        column, nested, own = "", False, False
        for number, path in enumerate(tables):
            stamp = files.stamp(path)
            if stamp is None:
                among = f" (one of {len(tables):,} that were named)" if len(tables) > 1 else ""
                raise AttlasError(f"{path}: there is no such file{among}")
            with _reading(path), _open(path) as file:
                found = _image_column(file.schema_arrow, path)
                if found is not None and _paths_only(file, found):
                    raise AttlasError(
                        f"{path}: holds the paths of images and not their bytes; give one such file at a time, by name"
                    )
                if found is None or (number and found != (column, nested, own)):
                    raise AttlasError(
                        f"{path}: has no column of images{' like that of ' + tables[0] if number else ''} (binary, or "
                        f"a struct with bytes); found {_described(file.schema_arrow)}"
                    )
                column, nested, own = found
                counts = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
                sizes += [leaf.total_compressed_size for leaf in _leaves(file, f"{column}.bytes" if nested else column)]
                parts.append(_read(file, path, f"{column}.path" if own else None))
            stamps.append(stamp)
            groups.append(np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64))
        lengths = [int(g[-1]) for g in groups]
        if not sum(lengths):
            raise AttlasError(f"{name}: holds no rows")
        shared = [n for n in parts[0] if all(n in part for part in parts)]
        whole = _columns({n: [one for part in parts for one in part[n]] for n in shared})
        uneven = {n for part in parts for n in part} - set(shared)
        table = np.repeat(np.arange(len(tables), dtype=np.int32), lengths)
        row = np.concatenate([np.arange(n) for n in lengths])
        own_paths = whole.pop(_OWN_PATH, None)
        keys = _sound(whole.pop("path", None) if own_paths is None else own_paths)
        if keys is not None and repeated(keys) is not None:
            whole |= {"path": keys} if own_paths is None else {}
            keys = None
        if keys is None:
            names = files.names_of(tables)
            keys = text([f"{names[t]}/{r}" for t, r in zip(table.tolist(), row.tolist(), strict=True)])
            guesses = [""] * len(keys)
        else:
            guesses = [label_of(key) for key in keys]
        labels = whole.pop("label", None)
        times = np.repeat([s.mtime_ns for s in stamps], lengths)
        items = Items.make(keys, guesses if labels is None else labels, mtimes=times, columns=whole)
        others = (
            {f"columns that are not in every file ({', '.join(sorted(uneven)[:5])})": len(uneven)} if uneven else {}
        )
        return cls(
            name, tuple(tables), tuple(stamps), column, nested, items, table, row, tuple(groups), tuple(sizes), others
        )

    def subset(self, indices: npt.NDArray[np.int64]) -> Parquet:
        """See `Source`."""
        return dataclasses.replace(
            self, items=self.items.take(indices).alone(), table=self.table[indices], row=self.row[indices]
        )

    def read(self, item: Item) -> bytes:
        """A row's image. Each thread reads a row group in order, so that only a few rows are in memory.

        Raises:
            ChangedError: the row has no image.
            AttlasError: the file has changed since the run was planned, or is broken.
        """
        which = int(self.table[item.index])
        path, row = self.tables[which], int(self.row[item.index])
        with _reading(path):
            data = files.persist(lambda: self._take(which, row))
        if not data:
            raise ChangedError("the row holds no image")
        if len(data) > MAX_BYTES:
            raise ChangedError(f"has {len(data):,} bytes, more than the limit of {MAX_BYTES:,} for a picture")
        return data

    def _take(self, which: int, row: int) -> bytes:
        cursor: _Cursor | None = getattr(_cursors, "cursor", None)
        _cursors.cursor = None  # a cursor that fails is not used again
        if cursor is None or not cursor.reaches(self.tables[which], self.stamps[which], row):
            cursor = self._cursor(which, row)
        data = cursor.take(row)
        _cursors.cursor = cursor
        return data

    def _cursor(self, which: int, row: int) -> _Cursor:
        path, expected = self.tables[which], self.stamps[which]
        files.check(path, files.stamp(path), expected)
        group = int(np.searchsorted(self.groups[which], row, side="right")) - 1
        first, last = (int(n) for n in self.groups[which][group : group + 2])
        return _Cursor(path, expected, self.column, self.nested, group, first, last)


class _Cursor:
    """Reads one row group forwards."""

    def __init__(self, path: str, stamp: Stamp, column: str, nested: bool, group: int, first: int, last: int) -> None:
        self.key, self.nested = (path, stamp), nested
        self.last, self.next = last, first
        self.file = _open(path)
        self.batches = self.file.iter_batches(
            IMAGES, row_groups=[group], columns=[f"{column}.bytes" if nested else column], use_threads=False
        )
        self.values: Any = []
        self.start = first

    def reaches(self, path: str, stamp: Stamp, row: int) -> bool:
        """Whether a row is in this group, at or after the rows in memory."""
        return self.key == (path, stamp) and self.start <= row < self.last

    def take(self, row: int) -> bytes:
        """The bytes of a row; b"" if it is null."""
        while row >= self.next:
            values = next(self.batches).column(0)
            self.values = values.field("bytes") if self.nested else values
            self.start, self.next = self.next, self.next + len(values)
        value: bytes | None = self.values[row - self.start].as_py()
        return value or b""


_OWN_PATH = "\0path"  # a name that no column can have


def image_column(path: str) -> str | None:
    """The name of a file's column of images, or None.

    Raises:
        AttlasError: there are several, and none has one of the usual names.
    """
    with _reading(path), _open(path) as file:
        found = _image_column(file.schema_arrow, path)
        return None if found is None or _paths_only(file, found) else found[0]


def columns(path: str) -> tuple[dict[str, npt.NDArray[Any]], dict[str, int]]:
    """A table's columns of plain values, with `label` as text; and the columns that are left out.

    If there is no column `path`, a struct of images with only paths is used for it.
    """
    with _reading(path), _open(path) as file:
        schema = file.schema_arrow
        images = _image_column(schema, path) if "path" not in schema.names else None
        if images is None and "path" not in schema.names:
            raise AttlasError(
                f"{path}: has no column path, which names the files, nor one of images (binary, or a struct with "
                f"bytes); found {_described(schema)}"
            )
        own = images[0] if images is not None and _paths_only(file, images) else None
        left = [name for name in schema.names if name != own and not _plain(schema.field(name).type)]
        others = {f"columns without plain values ({', '.join(left[:5])})": len(left)} if left else {}
        found = _columns(_read(file, path, own and f"{own}.path"))
        return (found if own is None else {"path": found.pop(_OWN_PATH), **found}), others


def _open(path: str) -> pq.ParquetFile:
    try:
        import pyarrow.parquet as pq
    except ImportError:
        raise AttlasError(
            f"{path}: needs pyarrow, which is not installed: `pip install 'attlas[parquet]'` brings it"
        ) from None
    source: Any = remote.opened(path) if files.is_url(path) else path
    return pq.ParquetFile(source, buffer_size=BUFFER, pre_buffer=False, memory_map=False)


@contextmanager
def _reading(path: str) -> Iterator[None]:
    """Convert pyarrow's exceptions, and those for a broken file, to ours."""
    try:
        with remote.failures():
            yield
    except OSError as error:
        if files.is_url(path) or isinstance(error, FileNotFoundError):
            raise
        raise AttlasError(f"{path}: does not read as Parquet ({one_line(error, 200)}); copy or make it again") from None


_Images = tuple[str, bool, bool]  # its name, whether it is a struct, whether the struct has a path


def _paths_only(file: pq.ParquetFile, images: _Images) -> bool:
    """Whether every row has a path but no bytes, by the file's statistics."""
    name, _, own = images
    if not own:
        return False
    statistics = [leaf.statistics for leaf in _leaves(file, f"{name}.bytes")]
    missing = [one.null_count if one is not None and one.has_null_count else 0 for one in statistics]
    return bool(0 < file.metadata.num_rows == sum(missing))


def _leaves(file: pq.ParquetFile, name: str) -> list[pq.ColumnChunkMetaData]:
    """What the file says of a column in each row group."""
    groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
    leaves = [group.column(i) for group in groups for i in range(group.num_columns)]
    return [leaf for leaf in leaves if leaf.path_in_schema == name]


def _image_column(schema: pa.Schema, path: str) -> _Images | None:
    """The column of images, or None."""
    import pyarrow as pa

    found = {}
    for one in schema:
        kind = one.type
        if _binary(kind):
            found[one.name] = (one.name, False, False)
        elif pa.types.is_struct(kind) and any(f.name == "bytes" and _binary(f.type) for f in kind):
            found[one.name] = (one.name, True, kind.get_field_index("path") >= 0)
    for name in ("image", "img", "jpg", "jpeg", "png", "bytes"):
        if name in found:
            return found[name]
    if len(found) > 1 and "path" not in schema.names:
        raise AttlasError(
            f"{path}: has {len(found)} columns that may hold images ({', '.join(found)}); call the one to read image"
        )
    return next(iter(found.values())) if len(found) == 1 else None


def _binary(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _described(schema: pa.Schema) -> str:
    return ", ".join(f"{one.name} ({one.type})" for one in schema)[:300] or "no columns"


def _plain(kind: pa.DataType) -> bool:
    """Whether a column of this type can be stored with the images."""
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return not (
        pa.types.is_nested(kind) or _binary(kind) or pa.types.is_fixed_size_binary(kind) or pa.types.is_null(kind)
    )


def _read(file: pq.ParquetFile, path: str, own_path: str | None = None) -> dict[str, list[pa.Array]]:
    """Parts of the columns with plain values, or with none at all; the images' own paths are under `_OWN_PATH`."""
    import pyarrow as pa

    schema = file.schema_arrow
    kinds = {name: schema.field(name).type for name in schema.names}
    wanted = [name for name, kind in kinds.items() if _plain(kind) or pa.types.is_null(kind)]
    blocks: dict[str, list[pa.Array]] = {name: [] for name in [*wanted, *([_OWN_PATH] if own_path else [])]}
    classes = _class_names(schema)
    asked = [*wanted, *([own_path] if own_path else [])]
    for batch in file.iter_batches(ROWS, columns=asked, use_threads=False) if asked else ():
        for name in wanted:
            values = batch.column(name)
            values = values.dictionary_decode() if pa.types.is_dictionary(values.type) else values
            blocks[name].append(_label(values, classes, path) if name == "label" else values)
        if own_path:
            blocks[_OWN_PATH].append(batch.column(own_path.rpartition(".")[0]).field("path"))
    return blocks


def _columns(blocks: Mapping[str, Sequence[pa.Array]]) -> dict[str, npt.NDArray[Any]]:
    """(row) arrays of the columns, without those that hold nothing in any part; labels and own paths are text."""
    import pyarrow as pa

    return {
        name: text([v for part in parts for v in _text(part)]) if name in ("label", _OWN_PATH) else _array(parts)
        for name, parts in blocks.items()
        if name == _OWN_PATH or not parts or not all(pa.types.is_null(part.type) for part in parts)
    }


def _array(parts: Sequence[pa.Array]) -> npt.NDArray[Any]:
    """A column's parts as bool, int64, float64 (a missing number is NaN), or text where numbers would lose digits."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kinds = [part.type for part in parts if not pa.types.is_null(part.type)]
    complete = not any(part.null_count for part in parts)
    if kinds and complete and all(map(pa.types.is_boolean, kinds)):
        return np.concatenate([part.to_numpy(zero_copy_only=False) for part in parts])
    if kinds and all(pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in kinds):
        whole = [pc.min_max(part) for part in parts if pa.types.is_integer(part.type)]
        ends = [end.as_py() or 0 for one in whole for end in (one["min"], one["max"])]
        if complete and len(whole) == len(parts) and min(ends) >= -(2**63) and max(ends) < 2**63:
            return np.concatenate([part.to_numpy(zero_copy_only=False).astype(np.int64) for part in parts])
        if all(abs(end) < EXACT for end in ends):
            return np.concatenate([part.cast(pa.float64()).to_numpy(zero_copy_only=False) for part in parts])
    return text([value for part in parts for value in _text(part)])


def _text(values: pa.Array) -> list[str]:
    import pyarrow as pa

    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        values = values.cast(pa.string())
    return ["" if v is None else v for v in values.to_pylist()]


def _class_names(schema: pa.Schema) -> list[str]:
    """The names of the classes of column `label` in Hugging Face's metadata."""
    try:
        data = from_json((schema.metadata or {})[b"huggingface"])
        names = data["info"]["features"]["label"]["names"]
        return [str(name) for name in names] if isinstance(names, list) else []
    except (KeyError, ValueError, TypeError):
        return []


def _label(values: pa.Array, classes: Sequence[str], path: str) -> pa.Array:
    """Labels: the class's name if the metadata has it; "" for -1, which is no label in Hugging Face's files."""
    import pyarrow as pa

    if not (classes and pa.types.is_integer(values.type)):
        return values
    numbers = np.array([-1 if v is None else v for v in values.to_pylist()], np.int64)
    if numbers.max(initial=-1) >= len(classes):
        raise AttlasError(f"{path}: has the label {numbers.max()}, but its metadata names {len(classes)} classes")
    return pa.array(["" if n < 0 else classes[n] for n in numbers.tolist()], pa.string())


def _sound(paths: npt.NDArray[Any] | None) -> npt.NDArray[Any] | None:
    """The paths as keys if all are relative and within their folder; else None."""
    if paths is None or paths.dtype.kind != "T":
        return None
    keys = [posixpath.normpath(path) if path else "" for path in paths]
    if any(not key or key.startswith(("/", "../")) or ":" in key or "\\" in key for key in keys):
        return None
    return text(keys)
