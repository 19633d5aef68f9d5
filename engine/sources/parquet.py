"""Parquet files: images in a column, or a table that names them. The one module that knows pyarrow."""

from __future__ import annotations

import dataclasses
import json
import posixpath
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...errors import AttlasError
from . import files, remote
from .files import MAX_BYTES, Stamp
from .items import BaseSource, ChangedError, Item, Items, label_of, repeated, text

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

__all__ = ["Parquet", "columns", "image_column"]

ROWS = 1 << 16  # of a table, read at once
IMAGES = 8  # rows with images, read at once: memory is a page and this many images for each worker
BUFFER = 1 << 20
_cursors = threading.local()


@dataclass(frozen=True, eq=False)
class Parquet(BaseSource):
    """The rows of Parquet files that hold images: a binary column, or Hugging Face's struct of `bytes` and `path`.

    The order is that of the files and of their rows. A key is the image's own path where every row has a relative one
    that is its alone, else `FILE.parquet/ROW`. The label is the column `label`, by name where Hugging Face's metadata
    names the classes, else what the path says. Other columns of plain values are columns of the store. Row groups are
    read as the run comes to them, a few images at a time.

    Attributes:
        name: of the file, or of the folder or pattern that named several.
        tables: where each file lies; `stamps`: what each was when it was listed.
        column: of the images; `nested`: it is a struct.
        table: (image) int32, which file; `row`: (image) int64, in that file.
        groups: for each file the first row of each of its row groups, (group + 1) int64.
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
    others: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def scan(cls, name: str, tables: Sequence[str]) -> Parquet:
        """Read every file's metadata, and its small columns.

        Raises:
            AttlasError: a file is not there or broken, has no column of images, or other columns than the first.
        """
        parts: list[dict[str, npt.NDArray[Any]]] = []
        stamps, groups = [], []
        column, nested, own = "", False, False
        for number, place in enumerate(tables):
            stamp = files.stamp(place)
            if stamp is None:
                among = f" (one of {len(tables):,} that were named)" if len(tables) > 1 else ""
                raise AttlasError(f"{place}: there is no such file{among}")
            with _reading(place), _open(place) as file:
                found = _image_column(file.schema_arrow, place)
                if found is not None and _paths_only(file, found):
                    raise AttlasError(
                        f"{place}: holds the paths of images and not their bytes; give one such file at a time, by name"
                    )
                if found is None or (number and found != (column, nested, own)):
                    raise AttlasError(
                        f"{place}: has no column of images{' like that of ' + tables[0] if number else ''} (binary, or "
                        f"a struct with bytes); found {_described(file.schema_arrow)}"
                    )
                column, nested, own = found
                counts = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
                parts.append(_read(file, place, f"{column}.path" if own else None))
            stamps.append(stamp)
            groups.append(np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64))
        lengths = [int(g[-1]) for g in groups]
        if not sum(lengths):
            raise AttlasError(f"{name}: holds no rows")
        shared = [n for n in parts[0] if all(n in part and part[n].dtype == parts[0][n].dtype for part in parts)]
        whole = {n: np.concatenate([part[n] for part in parts]) for n in shared}
        uneven = {n for part in parts for n in part} - set(shared)
        table = np.repeat(np.arange(len(tables), dtype=np.int32), lengths)
        row = np.concatenate([np.arange(n) for n in lengths])
        path = whole.pop(_OWN_PATH, None)
        path = whole.pop("path", None) if path is None else path
        keys = _sound(path)
        if keys is None:
            names = [files.name_of(t) for t in tables]
            keys = text([f"{names[t]}/{r}" for t, r in zip(table.tolist(), row.tolist(), strict=True)])
            said = [""] * len(keys)
        else:
            said = [label_of(key) for key in keys]
        labels = whole.pop("label", None)
        times = np.repeat([s.mtime_ns for s in stamps], lengths)
        items = Items.make(keys, said if labels is None else labels, mtimes=times, columns=whole)
        others = {f"columns that differ between files ({', '.join(sorted(uneven)[:5])})": len(uneven)} if uneven else {}
        return cls(name, tuple(tables), tuple(stamps), column, nested, items, table, row, tuple(groups), others)

    def subset(self, places: npt.NDArray[np.int64]) -> Parquet:
        """See `Source`."""
        return dataclasses.replace(
            self, items=self.items.take(places).alone(), table=self.table[places], row=self.row[places]
        )

    def read(self, item: Item) -> bytes:
        """A row's image. Each thread goes through a row group in order, so that nothing is kept but a few rows.

        Raises:
            ChangedError: the row holds no image.
            AttlasError: the file has changed since the run was planned, or is broken.
        """
        which = int(self.table[item.index])
        place, row = self.tables[which], int(self.row[item.index])
        with _reading(place):
            data = files.persist(lambda: self._take(which, row))
        if not data:
            raise ChangedError("the row holds no image")
        if len(data) > MAX_BYTES:
            raise ChangedError(f"has {len(data):,} bytes, more than the limit of {MAX_BYTES:,} for a picture")
        return data

    def _take(self, which: int, row: int) -> bytes:
        cursor: _Cursor | None = getattr(_cursors, "cursor", None)
        _cursors.cursor = None  # one that fails is not asked again
        if cursor is None or not cursor.reaches(self.tables[which], self.stamps[which], row):
            cursor = self._cursor(which, row)
        data = cursor.take(row)
        _cursors.cursor = cursor
        return data

    def _cursor(self, which: int, row: int) -> _Cursor:
        place, expected = self.tables[which], self.stamps[which]
        if files.stamp(place) != expected:
            raise AttlasError(
                f"{place}: has changed since the run was planned; run the same command again, which looks at it anew"
            )
        group = int(np.searchsorted(self.groups[which], row, side="right")) - 1
        first, last = (int(n) for n in self.groups[which][group : group + 2])
        return _Cursor(place, expected, self.column, self.nested, group, first, last)


class _Cursor:
    """A way through one row group, forwards only."""

    def __init__(self, place: str, stamp: Stamp, column: str, nested: bool, group: int, first: int, last: int) -> None:
        self.key, self.nested = (place, stamp), nested
        self.last, self.next = last, first
        self.file = _open(place)
        self.batches = self.file.iter_batches(
            IMAGES, row_groups=[group], columns=[f"{column}.bytes" if nested else column], use_threads=False
        )
        self.values: Any = []
        self.start = first

    def reaches(self, place: str, stamp: Stamp, row: int) -> bool:
        """Whether a row lies in this group, at or behind the rows at hand."""
        return self.key == (place, stamp) and self.start <= row < self.last

    def take(self, row: int) -> bytes:
        """The bytes of a row, b"" where it is null."""
        while row >= self.next:
            values = next(self.batches).column(0)
            self.values = values.field("bytes") if self.nested else values
            self.start, self.next = self.next, self.next + len(values)
        value: bytes | None = self.values[row - self.start].as_py()
        return value or b""


_OWN_PATH = "\0path"  # under a name that no column can have


def image_column(place: str) -> str | None:
    """The column of a file that holds images, or None.

    Raises:
        AttlasError: there are several, and none is called as the one is.
    """
    with _reading(place), _open(place) as file:
        found = _image_column(file.schema_arrow, place)
        return None if found is None or _paths_only(file, found) else found[0]


def columns(place: str) -> tuple[dict[str, npt.NDArray[Any]], dict[str, int]]:
    """A table's columns of plain values, and what was left out; `label` as text.

    A struct of images that holds their paths alone is the column `path` where there is no other.
    """
    with _reading(place), _open(place) as file:
        schema = file.schema_arrow
        left = [name for name in schema.names if not _plain(schema.field(name).type)]
        others = {f"columns without plain values ({', '.join(left[:5])})": len(left)} if left else {}
        images = _image_column(schema, place) if "path" not in schema.names else None
        if images is None and "path" not in schema.names:
            raise AttlasError(
                f"{place}: has no column path, which names the files, nor one of images (binary, or a struct with "
                f"bytes); found {_described(schema)}"
            )
        if images is None or not _paths_only(file, images):
            return _read(file, place), others
        found = _read(file, place, f"{images[0]}.path")
        return {"path": found.pop(_OWN_PATH), **found}, others


def _open(place: str) -> pq.ParquetFile:
    try:
        import pyarrow.parquet as pq
    except ImportError:
        raise AttlasError(
            f"{place}: needs pyarrow, which is not installed: `pip install 'attlas[parquet]'` brings it"
        ) from None
    source: Any = remote.opened(place) if files.is_url(place) else place
    return pq.ParquetFile(source, buffer_size=BUFFER, pre_buffer=False, memory_map=False)


@contextmanager
def _reading(place: str) -> Iterator[None]:
    """Turn pyarrow's exceptions, and those of a broken file, into ours."""
    try:
        with remote.failures():
            yield
    except OSError as error:
        if files.is_url(place) or isinstance(error, FileNotFoundError):
            raise
        why = " ".join(str(error).split())[:200]
        raise AttlasError(f"{place}: does not read as Parquet ({why}); copy or make it again") from None


_Images = tuple[str, bool, bool]  # name, whether it is a struct, whether that has a path


def _paths_only(file: pq.ParquetFile, images: _Images) -> bool:
    """Whether the files' own account says that every row has a path and no bytes."""
    name, _, own = images
    if not own:
        return False
    groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
    leaves = [group.column(i) for group in groups for i in range(group.num_columns)]
    said = [leaf.statistics for leaf in leaves if leaf.path_in_schema == f"{name}.bytes"]
    missing = [one.null_count if one is not None and one.has_null_count else 0 for one in said]
    return bool(0 < file.metadata.num_rows == sum(missing))


def _image_column(schema: pa.Schema, place: str) -> _Images | None:
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
            f"{place}: has {len(found)} columns that may hold images ({', '.join(found)}); call the one to read image"
        )
    return next(iter(found.values())) if len(found) == 1 else None


def _binary(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _described(schema: pa.Schema) -> str:
    return ", ".join(f"{one.name} ({one.type})" for one in schema)[:300] or "no columns"


def _plain(kind: pa.DataType) -> bool:
    """Whether a column of this type can stay with the images."""
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return not (
        pa.types.is_nested(kind) or _binary(kind) or pa.types.is_fixed_size_binary(kind) or pa.types.is_null(kind)
    )


def _read(file: pq.ParquetFile, place: str, own_path: str | None = None) -> dict[str, npt.NDArray[Any]]:
    """(row) arrays of the columns with plain values; that of the images' own paths under `_OWN_PATH`."""
    schema = file.schema_arrow
    wanted = [name for name in schema.names if _plain(schema.field(name).type)]
    blocks: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in wanted}
    classes = _class_names(schema)
    asked = [*wanted, *([own_path] if own_path else [])]
    for batch in file.iter_batches(ROWS, columns=asked, use_threads=False) if asked else ():
        for name in wanted:
            values = batch.column(name)
            if name == "label":
                blocks[name].append(_label(values, classes, place))
            else:
                blocks[name].append(_array(values))
        if own_path:
            blocks.setdefault(_OWN_PATH, []).append(_text(batch.column(own_path.rpartition(".")[0]).field("path")))
    return {name: _joined(parts) if parts else text([]) for name, parts in blocks.items()}


def _array(values: pa.Array) -> npt.NDArray[Any]:
    """As bool, int64, float64 or text; a missing number is NaN."""
    import pyarrow as pa

    kind = values.type
    if pa.types.is_boolean(kind) and not values.null_count:
        return np.asarray(values.to_numpy(zero_copy_only=False), np.bool_)
    if pa.types.is_integer(kind) and kind != pa.uint64() and not values.null_count:
        return np.asarray(values.to_numpy(zero_copy_only=False), np.int64)
    if pa.types.is_floating(kind) or (pa.types.is_integer(kind) and kind.bit_width <= 32):
        return np.asarray(values.cast(pa.float64()).to_numpy(zero_copy_only=False), np.float64)
    return _text(values)


def _text(values: pa.Array) -> npt.NDArray[Any]:
    import pyarrow as pa

    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        values = values.cast(pa.string())
    return text(["" if v is None else v for v in values.to_pylist()])


def _joined(parts: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Blocks of one column as one array; where only some blocks miss a number, all are float64."""
    if any(p.dtype.kind == "T" for p in parts):
        parts = [p if p.dtype.kind == "T" else text(p.astype(str)) for p in parts]
    return np.concatenate(parts)


def _class_names(schema: pa.Schema) -> list[str]:
    """The classes that Hugging Face's metadata names for the column `label`."""
    try:
        data = json.loads((schema.metadata or {})[b"huggingface"])
        names = data["info"]["features"]["label"]["names"]
        return [str(name) for name in names] if isinstance(names, list) else []
    except (KeyError, ValueError, TypeError, RecursionError):
        return []


def _label(values: pa.Array, classes: Sequence[str], place: str) -> npt.NDArray[Any]:
    """Labels as text: the class's name where the metadata has it; -1 is Hugging Face's word for none."""
    import pyarrow as pa

    if not (classes and pa.types.is_integer(values.type)):
        return _text(values)
    numbers = np.array([-1 if v is None else v for v in values.to_pylist()], np.int64)
    if numbers.max(initial=-1) >= len(classes):
        raise AttlasError(f"{place}: has the label {numbers.max()}, but its metadata names {len(classes)} classes")
    return text(["" if n < 0 else classes[n] for n in numbers.tolist()])


def _sound(paths: npt.NDArray[Any] | None) -> npt.NDArray[Any] | None:
    """Paths that can be keys: relative, within their folder, each there once; or None."""
    if paths is None or paths.dtype.kind != "T":
        return None
    keys = [posixpath.normpath(path) if path else "" for path in paths]
    if any(not key or key.startswith(("/", "../")) or ":" in key or "\\" in key for key in keys):
        return None
    found = text(keys)
    return None if repeated(found) is not None else found
