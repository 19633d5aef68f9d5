"""Images by name: what every source lists, kept in columns so that a million of them are arrays and not objects."""

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
    "HIDDEN", "SUFFIXES", "UNKNOWN", "BaseSource", "ChangedError", "Item", "Items", "Source", "is_hidden", "is_image",
    "label_of", "repeated", "shown", "text",
]  # fmt: skip

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pnm", ".jp2",
     ".avif"}
)  # fmt: skip
UNKNOWN = -1
HIDDEN = "images that are hidden or in system folders"
# What file managers, notebooks, archivers and network disks leave between the images, thumbnails above all.
_SYSTEM = (
    "__MACOSX", "__pycache__", "@eaDir", "@Recycle", "#recycle", "#snapshot", "$RECYCLE.BIN", "lost+found",
    "System Volume Information", "Thumbs",
)  # fmt: skip
_HIDDEN = re.compile(rf"(?:\A|/)(?:\.|(?:{'|'.join(map(re.escape, _SYSTEM))})/)")
_WORDNET_ID = re.compile(r"(n\d{8})_")


class ChangedError(Exception):
    """One item is not, or is no longer, what was listed: the run goes on without it."""


@dataclass(frozen=True, slots=True)
class Item:
    """One image.

    Attributes:
        key: its stable name within the source, POSIX style; never a path of this machine.
        label: text, or "".
        size: bytes of the encoded image; -1 where only reading would tell.
        mtime_ns: when it was last changed, nanoseconds since 1970; -1 where the source does not say.
        index: its place in the source's own list.
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
        places: (image) int64, where in the source's own list.
        columns: further (image) arrays by name, bool, int64, float64 or text, which the store keeps as coordinates.
    """

    keys: npt.NDArray[Any]
    labels: npt.NDArray[Any]
    sizes: npt.NDArray[np.int64]
    mtimes: npt.NDArray[np.int64]
    places: npt.NDArray[np.int64]
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
        """Columns from what a source found; one number for `sizes` or `mtimes` holds for all."""
        count = len(keys)
        whole = [np.ascontiguousarray(np.broadcast_to(np.asarray(v, np.int64), count)) for v in (sizes, mtimes)]
        return cls(text(keys), text(labels), whole[0], whole[1], np.arange(count), dict(columns or {}))

    @classmethod
    def of(cls, items: Sequence[Item]) -> Items:
        """The columns of any list of items."""
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
            str(self.keys[where]), str(self.labels[where]), int(self.sizes[where]), int(self.mtimes[where]),
            int(self.places[where]),
        )  # fmt: skip

    def take(self, where: Any) -> Items:
        """The items at these places: a slice, or integers."""
        columns = {name: values[where] for name, values in self.columns.items()}
        return Items(
            self.keys[where], self.labels[where], self.sizes[where], self.mtimes[where], self.places[where], columns
        )

    def alone(self) -> Items:
        """The same as a list of its own: places count from 0. Columns stay behind, since no read needs them."""
        return Items(self.keys, self.labels, self.sizes, self.mtimes, np.arange(len(self)))


class Source(Protocol):
    """What a run reads from. `BaseSource` has all but `name`, `items` and `read`."""

    @property
    def name(self) -> str:
        """A short name for records, never a path of this machine."""

    @property
    def items(self) -> Sequence[Item]:
        """The images, in the order that the plan keeps."""

    @property
    def others(self) -> Mapping[str, int]:
        """What was found and left out, counted by reason."""

    @property
    def reads_ahead(self) -> int:
        """How many reads at once are worth it, since each mostly waits; 0 where the system reads ahead itself."""

    def subset(self, places: npt.NDArray[np.int64]) -> Source:
        """A source of the items at these places alone, in this order, which travels to a worker with each unit."""

    def read(self, item: Item) -> bytes:
        """An item's bytes; called from several threads.

        Raises:
            ChangedError: this item is not what was listed: it costs one image.
            OSError: it cannot be read now: it ends the run, which the same command resumes.
            AttlasError: the source as a whole is no longer what was listed.
        """


class BaseSource(ABC):
    """A source of your own: derive from it, and give it `name`, `items` and `read`; the rest may stay."""

    name: str
    items: Sequence[Item]
    others: Mapping[str, int] = MappingProxyType({})
    reads_ahead: int = 0

    def subset(self, places: npt.NDArray[np.int64]) -> Source:
        """See `Source`. This source as it is travels; override it where that is too much."""
        return _Part(self, Items.of(self.items).take(places))

    @abstractmethod
    def read(self, item: Item) -> bytes:
        """See `Source`; `item.index` is the item's place in `items`."""


class _Part(BaseSource):
    """Some items of a source that stays whole."""

    def __init__(self, whole: Source, chosen: Items) -> None:
        self.name, self.reads_ahead = whole.name, whole.reads_ahead
        self.items: Items = chosen.alone()
        self._whole, self._chosen = whole, chosen

    def read(self, item: Item) -> bytes:
        return self._whole.read(self._chosen[item.index])


def text(values: Sequence[str] | npt.NDArray[Any]) -> npt.NDArray[Any]:
    """An array of text, which takes a fifth of the memory of as many Python strings."""
    return np.asarray(values, dtype=np.dtypes.StringDType())


def is_image(name: str) -> bool:
    """Whether a file's name says that it is an image."""
    return os.path.splitext(name)[1].lower() in SUFFIXES  # noqa: PTH122 - names by the million


def is_hidden(key: str) -> bool:
    """Whether a relative path, or a folder in it, begins with a dot or is one that a system keeps for itself."""
    return _HIDDEN.search(key) is not None


def shown(key: str) -> str:
    """A key on one line, for people: names of files may hold line breaks."""
    return key if key.isprintable() else repr(key)


def label_of(key: str) -> str:
    """The label that a relative path says: its first folder, else the WordNet id that its name begins with, else ""."""
    folder, slash, _ = key.partition("/")
    if slash:
        return folder
    match = _WORDNET_ID.match(folder)
    return match[1] if match else ""


def repeated(keys: npt.NDArray[Any]) -> tuple[int, int] | None:
    """(first place, second place) of a key that is there twice, or None. A set of a million strings would be 200 MB."""
    if len(keys) < 2:
        return None
    hashes = np.fromiter(map(hash, keys), np.int64, len(keys))
    ordered = np.sort(hashes)
    suspects = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    seen: dict[str, int] = {}
    for place in np.flatnonzero(np.isin(hashes, suspects)) if len(suspects) else ():
        first = seen.setdefault(str(keys[place]), int(place))
        if first != place:
            return first, int(place)
    return None
