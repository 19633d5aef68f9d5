"""The list of images of a source, kept in columns, so that a million images are arrays and not objects."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol, overload

import numpy as np
import numpy.typing as npt

__all__ = [
    "HIDDEN",
    "SUFFIXES",
    "UNKNOWN",
    "BaseSource",
    "ChangedError",
    "Item",
    "Items",
    "Source",
    "is_hidden",
    "is_image",
    "label_of",
    "repeated",
    "shown",
    "text",
]

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pnm", ".jp2", ".avif"}
)
UNKNOWN = -1
HIDDEN = "images that are hidden or in system folders"
# Folders that file managers, notebooks, archivers and network disks create, mostly with thumbnails.
_SYSTEM = (
    "__MACOSX",
    "__pycache__",
    "@eaDir",
    "@Recycle",
    "#recycle",
    "#snapshot",
    "$RECYCLE.BIN",
    "lost+found",
    "System Volume Information",
    "Thumbs",
)
_HIDDEN = re.compile(rf"(?:\A|/)(?:\.|(?:{'|'.join(map(re.escape, _SYSTEM))})/)")
_WORDNET_ID = re.compile(r"(n\d{8})_")


class ChangedError(Exception):
    """One item differs from what was listed: the run continues without it."""


@dataclass(frozen=True, slots=True)
class Item:
    """One image.

    Attributes:
        key: its stable name within the source, POSIX style; never an absolute path.
        label: text, or "".
        size: bytes of the encoded image; -1 if unknown.
        mtime_ns: time of its last change, nanoseconds since 1970; -1 if unknown.
        index: its index in the source's own list.
    """

    key: str
    label: str
    size: int = UNKNOWN
    mtime_ns: int = UNKNOWN
    index: int = 0


@dataclass(frozen=True, eq=False)
class Items(Sequence[Item]):
    """A list of `Item` as columns.

    Attributes:
        keys: (image) text.
        labels: (image) text.
        sizes: (image) int64, bytes.
        mtimes: (image) int64, nanoseconds.
        indices: (image) int64, index in the source's own list.
        columns: other (image) arrays by name, bool, int64, float64 or text; the store keeps them as coordinates.
    """

    keys: npt.NDArray[Any]
    labels: npt.NDArray[Any]
    sizes: npt.NDArray[np.int64]
    mtimes: npt.NDArray[np.int64]
    indices: npt.NDArray[np.int64]
    columns: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)

    @classmethod
    def make(
        cls,
        keys: Sequence[str] | npt.NDArray[Any],
        labels: Sequence[str] | npt.NDArray[Any],
        sizes: Any = UNKNOWN,
        mtimes: Any = UNKNOWN,
        columns: Mapping[str, npt.NDArray[Any]] | None = None,
    ) -> Items:
        """Make items from columns; a single number for `sizes` or `mtimes` applies to all."""
        count = len(keys)
        whole = [np.ascontiguousarray(np.broadcast_to(np.asarray(v, np.int64), count)) for v in (sizes, mtimes)]
        return cls(text(keys), text(labels), whole[0], whole[1], np.arange(count), dict(columns or {}))

    @classmethod
    def of(cls, items: Sequence[Item]) -> Items:
        """Convert any list of items to columns."""
        if isinstance(items, Items):
            return items
        return cls.make(
            [i.key for i in items], [i.label for i in items], [i.size for i in items], [i.mtime_ns for i in items]
        )

    def __len__(self) -> int:
        return len(self.keys)

    @overload
    def __getitem__(self, where: int) -> Item: ...
    @overload
    def __getitem__(self, where: slice) -> Items: ...
    def __getitem__(self, where: int | slice) -> Item | Items:
        if isinstance(where, slice):
            return self.take(where)
        return Item(
            str(self.keys[where]),
            str(self.labels[where]),
            int(self.sizes[where]),
            int(self.mtimes[where]),
            int(self.indices[where]),
        )

    def take(self, where: Any) -> Items:
        """The items at these indices: a slice, or integers."""
        columns = {name: values[where] for name, values in self.columns.items()}
        return Items(
            self.keys[where], self.labels[where], self.sizes[where], self.mtimes[where], self.indices[where], columns
        )

    def alone(self) -> Items:
        """The same items as a separate list, with `indices` from 0 and without columns, which no read needs."""
        return Items(self.keys, self.labels, self.sizes, self.mtimes, np.arange(len(self)))


class Source(Protocol):
    """A source of images for a run. `BaseSource` implements everything except `name`, `items` and `read`."""

    @property
    def name(self) -> str:
        """A short name for records, never an absolute path."""

    @property
    def items(self) -> Sequence[Item]:
        """The images, in the order of the plan."""

    @property
    def others(self) -> Mapping[str, int]:
        """Files that were found but left out, counted by reason."""

    @property
    def reads_ahead(self) -> int:
        """Number of concurrent reads for remote sources; 0 if the system reads ahead itself."""

    def subset(self, indices: npt.NDArray[np.int64]) -> Source:
        """A source of only the items at these indices, in this order; it is sent to a worker with each unit."""

    def read(self, item: Item) -> bytes:
        """An item's bytes; called from several threads.

        Raises:
            ChangedError: this item differs from what was listed; the run continues without it.
            OSError: it cannot be read now; this ends the run, and the same command resumes it.
            AttlasError: the whole source differs from what was listed.
        """


class BaseSource(ABC):
    """Base class for your own source: define `name`, `items` and `read`; the rest is optional."""

    name: str
    items: Sequence[Item]
    others: Mapping[str, int] = MappingProxyType({})
    reads_ahead: int = 0

    def subset(self, indices: npt.NDArray[np.int64]) -> Source:
        """See `Source`. The whole source is sent to workers; override this if it is too large."""
        return _Part(self, Items.of(self.items).take(indices))

    @abstractmethod
    def read(self, item: Item) -> bytes:
        """See `Source`; `item.index` is the item's index in `items`."""


class _Part(BaseSource):
    """Some items of a source, which it keeps as a whole."""

    def __init__(self, whole: Source, chosen: Items) -> None:
        self.name, self.reads_ahead = whole.name, whole.reads_ahead
        self.items: Items = chosen.alone()
        self._whole, self._chosen = whole, chosen

    def read(self, item: Item) -> bytes:
        return self._whole.read(self._chosen[item.index])


def text(values: Sequence[str] | npt.NDArray[Any]) -> npt.NDArray[Any]:
    """An array of text: a fifth of the memory of Python strings."""
    return np.asarray(values, dtype=np.dtypes.StringDType())


def is_image(name: str) -> bool:
    """Whether a file's name has an image suffix."""
    return os.path.splitext(name)[1].lower() in SUFFIXES  # noqa: PTH122 - names by the million


def is_hidden(key: str) -> bool:
    """Whether a file, or a folder in its relative path, begins with a dot or is a system folder."""
    return _HIDDEN.search(key) is not None


def shown(key: str) -> str:
    """A key on one line, for messages: file names may contain line breaks."""
    return key if key.isprintable() else repr(key)


def label_of(key: str) -> str:
    """The label from a relative path: its first folder, else the WordNet id at the start of its name, else ""."""
    folder, slash, _ = key.partition("/")
    if slash:
        return folder
    match = _WORDNET_ID.match(folder)
    return match[1] if match else ""


def repeated(keys: npt.NDArray[Any]) -> tuple[int, int] | None:
    """The two indices of a repeated key, or None. It compares hashes: a set of a million strings would take 200 MB."""
    if len(keys) < 2:
        return None
    hashes = np.fromiter(map(hash, keys), np.int64, len(keys))
    ordered = np.sort(hashes)
    suspects = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    seen: dict[str, int] = {}
    for index in np.flatnonzero(np.isin(hashes, suspects)) if len(suspects) else ():
        first = seen.setdefault(str(keys[index]), int(index))
        if first != index:
            return first, int(index)
    return None
