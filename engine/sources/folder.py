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
from ...words import left_out
from . import files, remote
from .files import Stamp
from .items import HIDDEN, SUFFIXES, UNKNOWN, BaseSource, Item, Items, is_hidden, is_image, label_of

__all__ = ["Folder"]

NOT_IMAGES = "files without an image suffix"


@dataclass(frozen=True)
class Folder(BaseSource):
    """Every file with an image suffix below a folder, sorted by relative POSIX path.

    The label is the name of the first folder below the root; for a file in the root itself, the WordNet id at the start
    of its name (`n01514859_hen.JPEG`), if there is one. A link to a file is an image under its own name; links to
    folders, which may lead in circles, special files, hidden files and files in hidden or system folders are left out.
    """

    name: str
    root: str
    items: Items
    others: Mapping[str, int] = field(default_factory=dict)
    reads_ahead: int = 0

    def subset(self, indices: npt.NDArray[np.int64]) -> Folder:
        """See `Source`."""
        return dataclasses.replace(self, items=self.items.take(indices).alone())

    @classmethod
    def scan(cls, root: str | os.PathLike[str]) -> Folder:
        """List the folder at a path or URL.

        Raises:
            AttlasError: it is not a folder, cannot be listed, or contains no image.
        """
        path = files.expanded(root)
        found = cls.look(path)
        if not found.items:
            seen = left_out(found.others) or "nothing at all"
            raise AttlasError(
                f"{path}: no images found ({seen}); images are files that end in {', '.join(sorted(SUFFIXES))}"
            )
        return found

    @classmethod
    def look(cls, path: str) -> Folder:
        """List the folder, which may contain no image.

        Raises:
            AttlasError: it is not a folder, or cannot be listed.
        """
        found = _Found()
        try:
            if files.is_url(path):
                for key, size, changed in remote.listing(path):
                    found.add(key, key, size, changed)
            elif not os.path.isdir(path):  # noqa: PTH112
                what = "is a file, not a folder of images" if os.path.lexists(path) else "there is no such folder"
                raise AttlasError(f"{path}: {what}; name the folder that holds the images")
            else:
                _walk(path, "", found)
        except OSError as error:
            where = path if files.is_url(path) else error.filename or path
            raise AttlasError(f"{where}: cannot be listed ({error.strerror or error})") from None
        return cls(files.name_of(path), path, found.items(), found.others, files.reads_ahead(path))

    def read(self, item: Item) -> bytes:
        """An item's bytes; a failed read is repeated, for unreliable networks."""
        return files.read(files.join(self.root, item.key), Stamp(item.size, item.mtime_ns))


class _Found:
    """Collects the files of a walk, in columns: a million objects would take half a gigabyte."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.sizes, self.mtimes = array("q"), array("q")
        self.others: dict[str, int] = {}

    def add(self, key: str, name: str, size: int = UNKNOWN, changed: int = UNKNOWN) -> None:
        """Add a regular file."""
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
        """The images, sorted by key."""
        order = sorted(range(len(self.keys)), key=self.keys.__getitem__)
        keys = [self.keys[i] for i in order]
        return Items.make(
            keys, [label_of(key) for key in keys], [self.sizes[i] for i in order], [self.mtimes[i] for i in order]
        )


def _walk(folder: str, prefix: str, found: _Found) -> None:
    """Collect the images below `folder`, whose path relative to the root is `prefix`."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                _walk(entry.path, f"{prefix}{entry.name}/", found)
            elif entry.is_symlink() and (why := _not_followed(entry.path)):
                found.leave(why)
            elif not entry.is_file():
                found.leave("special files")
            elif is_image(entry.name):
                status = entry.stat()
                found.add(f"{prefix}{entry.name}", entry.name, status.st_size, status.st_mtime_ns)
            else:
                found.leave(NOT_IMAGES)


def _not_followed(link: str) -> str:
    """Why a link is left out; empty if it leads to something that is no folder."""
    if os.path.isdir(link):  # noqa: PTH112 - links by the million
        return "links to folders (not followed)"
    return "" if os.path.exists(link) else "links that lead nowhere"  # noqa: PTH110
