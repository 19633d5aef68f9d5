"""A folder of images."""

from __future__ import annotations

import dataclasses
import os
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ...errors import AttlasError
from . import files, remote
from .files import Stamp
from .items import HIDDEN, SUFFIXES, UNKNOWN, BaseSource, Item, Items, is_hidden, is_image, label_of

__all__ = ["Folder"]

NOT_IMAGES = "files without an image suffix"


@dataclass(frozen=True)
class Folder(BaseSource):
    """Every file with an image suffix below a folder, sorted by relative POSIX path.

    The label is the name of the first folder below the root; for a file that lies in the root itself, the WordNet id
    that its name begins with (`n01514859_hen.JPEG`), where there is one. Links and special files are not followed;
    hidden files and what lies in hidden or system folders are left out.
    """

    name: str
    root: str
    items: Items
    others: Mapping[str, int] = field(default_factory=dict)
    reads_ahead: int = 0

    def subset(self, places: npt.NDArray[np.int64]) -> Folder:
        """See `Source`."""
        return dataclasses.replace(self, items=self.items.take(places).alone())

    @classmethod
    def scan(cls, root: str | os.PathLike[str]) -> Folder:
        """List the folder, on this machine or by URL.

        Raises:
            AttlasError: it is no folder, cannot be listed, or holds no image.
        """
        place = files.place(root)
        found = cls.look(place)
        if not found.items:
            seen = ", ".join(f"{n} {why}" for why, n in sorted(found.others.items())) or "nothing at all"
            raise AttlasError(
                f"{place}: no images found ({seen}); images are files that end in {', '.join(sorted(SUFFIXES))}"
            )
        return found

    @classmethod
    def look(cls, place: str) -> Folder:
        """List the folder, which may hold no image.

        Raises:
            AttlasError: it is no folder, or cannot be listed.
        """
        found = _Found()
        try:
            if files.is_url(place):
                for key, size, changed in remote.listing(place):
                    found.add(key, key, size, changed)
            elif not os.path.isdir(place):  # noqa: PTH112
                what = "is a file, not a folder of images" if os.path.lexists(place) else "there is no such folder"
                raise AttlasError(f"{place}: {what}; name the folder that holds the images")
            else:
                _walk(place, "", found)
        except OSError as error:
            where = place if files.is_url(place) else error.filename or place
            raise AttlasError(f"{where}: cannot be listed ({error.strerror or error})") from None
        return cls(files.name_of(place), place, found.items(), found.others, files.reads_ahead(place))

    def read(self, item: Item) -> bytes:
        """An item's bytes; a read that fails is tried again, since networks stumble."""
        return files.read(files.join(self.root, item.key), Stamp(item.size, item.mtime_ns), follow=False)


class _Found:
    """What a walk collects: columns, since a million objects would take half a gigabyte."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.sizes, self.mtimes = array("q"), array("q")
        self.others: dict[str, int] = {}

    def add(self, key: str, name: str, size: int = UNKNOWN, changed: int = UNKNOWN) -> None:
        """A regular file."""
        if not is_image(name):
            self.leave(NOT_IMAGES)
            return
        if is_hidden(key):
            self.leave(HIDDEN)
            return
        try:
            key.encode()
        except UnicodeEncodeError:
            self.leave("files whose name is no valid text")
            return
        self.keys.append(key)
        self.sizes.append(size)
        self.mtimes.append(changed)

    def leave(self, reason: str) -> None:
        self.others[reason] = self.others.get(reason, 0) + 1

    def items(self) -> Items:
        """In the order of the keys."""
        order = sorted(range(len(self.keys)), key=self.keys.__getitem__)
        keys = [self.keys[i] for i in order]
        return Items.make(
            keys, [label_of(key) for key in keys], [self.sizes[i] for i in order], [self.mtimes[i] for i in order]
        )


def _walk(folder: str, prefix: str, found: _Found) -> None:
    """Collect the images below `folder`, whose path relative to the root is `prefix`."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_symlink():
                found.leave("symbolic links (not followed)")
            elif entry.is_dir(follow_symlinks=False):
                _walk(entry.path, f"{prefix}{entry.name}/", found)
            elif not entry.is_file(follow_symlinks=False):
                found.leave("special files")
            elif is_image(entry.name):
                status = entry.stat(follow_symlinks=False)
                found.add(f"{prefix}{entry.name}", entry.name, status.st_size, status.st_mtime_ns)
            else:
                found.leave(NOT_IMAGES)
