"""Where images come from: an ordered list of items with a stable key, an optional label, and bytes by index."""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from ..exporter.errors import AttlasError

__all__ = ["SUFFIXES", "ChangedError", "Folder", "Item", "Source"]

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pnm", ".jp2",
     ".avif"}
)  # fmt: skip
ATTEMPTS = 3
_WORDNET_ID = re.compile(r"(n\d{8})_")


class ChangedError(Exception):
    """An item is no longer what the plan was made from."""


@dataclass(frozen=True, slots=True)
class Item:
    """One image: `key` is its path relative to the source, POSIX style; `label` is text or ""."""

    key: str
    label: str
    size: int
    mtime_ns: int


class Source(Protocol):
    """What a run reads from."""

    @property
    def name(self) -> str:
        """A short name for records, never a path of this machine."""

    @property
    def items(self) -> Sequence[Item]:
        """The images, in the order that the plan keeps."""

    @property
    def others(self) -> Mapping[str, int]:
        """What was found and left out, counted by reason."""

    def read(self, item: Item) -> bytes:
        """An item's bytes.

        Raises:
            ChangedError: it differs from what was listed.
            OSError: it cannot be read now.
        """


@dataclass(frozen=True)
class Folder:
    """Every file with an image suffix below a folder, sorted by relative POSIX path.

    The label is the name of the first folder below the root; for a file that lies in the root itself, the WordNet id
    that its name begins with (`n01514859_hen.JPEG`), where there is one. Links and special files are not followed.
    """

    root: Path
    items: Sequence[Item] = field(default=())
    others: Mapping[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.root.resolve().name

    @classmethod
    def scan(cls, root: str | os.PathLike[str]) -> Folder:
        """List the folder.

        Raises:
            AttlasError: it is no folder, cannot be listed, or holds no image.
        """
        root = Path(root)
        if not root.is_dir():
            what = "is a file, not a folder of images" if root.exists() else "there is no such folder"
            raise AttlasError(f"{root}: {what}; name the folder that holds the images")
        items: list[Item] = []
        others: dict[str, int] = {}
        try:
            _walk(root, "", items, others)
        except OSError as error:
            raise AttlasError(f"{error.filename}: cannot be listed ({error.strerror})") from None
        if not items:
            found = ", ".join(f"{n} {why}" for why, n in sorted(others.items())) or "nothing at all"
            raise AttlasError(
                f"{root}: no images found ({found}); images are files that end in {', '.join(sorted(SUFFIXES))}"
            )
        items.sort(key=lambda item: item.key)
        return cls(root, items, others)

    def read(self, item: Item) -> bytes:
        """An item's bytes; a read that fails is tried again, since networks stumble."""
        for attempt in range(ATTEMPTS):
            try:
                return self._read(item)
            except OSError:
                if attempt == ATTEMPTS - 1:
                    raise
                time.sleep(0.1 * 4**attempt)
        raise AssertionError("unreachable")

    def _read(self, item: Item) -> bytes:
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        with os.fdopen(os.open(self.root / item.key, flags), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise ChangedError("is no regular file any more")
            if (found.st_size, found.st_mtime_ns) != (item.size, item.mtime_ns):
                raise ChangedError("has changed since the run was planned")
            return file.read()


def _walk(folder: Path, prefix: str, items: list[Item], others: dict[str, int]) -> None:
    """Collect the images below `folder`, whose path relative to the root is `prefix`."""
    with os.scandir(folder) as entries:
        for entry in entries:
            key = f"{prefix}{entry.name}"
            reason = None
            if entry.is_symlink():
                reason = "symbolic links (not followed)"
            elif entry.is_dir(follow_symlinks=False):
                _walk(Path(entry.path), f"{key}/", items, others)
                continue
            elif not entry.is_file(follow_symlinks=False):
                reason = "special files"
            elif os.path.splitext(entry.name)[1].lower() not in SUFFIXES:  # noqa: PTH122 - names by the million
                reason = "files without an image suffix"
            else:
                try:
                    key.encode()
                except UnicodeEncodeError:
                    reason = "files whose name is no valid text"
            if reason:
                others[reason] = others.get(reason, 0) + 1
                continue
            found = entry.stat(follow_symlinks=False)
            items.append(Item(key, _label(key), found.st_size, found.st_mtime_ns))


def _label(key: str) -> str:
    folder, slash, _ = key.partition("/")
    if slash:
        return folder
    match = _WORDNET_ID.match(folder)
    return match[1] if match else ""
