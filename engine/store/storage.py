"""The storage of a store, a folder or a bucket, and its guarantees for written files.

A folder has renames, locks, and a page cache that is lost on a power failure. An object store has none of these: after
a successful put the file is complete and permanent, and a put can be made to fail if the file exists. The key of a file
is its path within the store, with `/`.
"""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ...arguments import Where
from ...errors import AttlasError
from ...files import drafting
from ..sources import files, remote
from .syncing import sync, sync_entries

__all__ = ["ROOT", "Bucket", "Disk", "Part", "Storage", "Url", "locate", "storage_at"]

ROOT = "zarr.json"  # written last: a store exists if this file exists
CLAIM = "run/.layout"
DELETED = b"deleted"
REQUESTS = 16  # concurrent requests
GONE = (
    "is no longer there (moved or deleted while it was written); what was done stays in it, and the same command with "
    "its new place as STORE goes on"
)
SYNCS = 4  # concurrent syncs: a file system writes several files to the disk together

type Part = bytes | npt.NDArray[np.uint8]  # of a file


class Url(str):
    """A URL that fsspec supports, such as `s3://bucket/name.zarr`."""

    __slots__ = ()

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.rpartition("/")[2]

    def exists(self) -> bool:
        """Whether there is a store at the URL.

        Raises:
            AttlasError: it cannot be reached.
        """
        try:
            return Bucket(self).occupied()
        except OSError as error:
            raise AttlasError(f"{self}: cannot be read ({error})") from None


def locate(where: Where) -> Path | Url:
    """A URL unchanged; anything else, including `file://`, as a local path; of a `Store` or a Dataset, its store's."""
    text = files.expanded(where, "store", "the path of a store, a Store, or what `attlas.open` gives")
    return Url(text.rstrip("/")) if files.is_url(text) else Path(text)


class Storage(Protocol):
    """A folder or a bucket. All failures raise OSError, but for a store that went away meanwhile: AttlasError."""

    @property
    def path(self) -> Path | Url:
        """Its path or URL."""

    def occupied(self) -> bool:
        """Whether there is a store, or something else that must not be overwritten."""

    def claimed(self) -> bool:
        """Whether a store is being created or deleted there."""

    def exists(self, key: str) -> bool:
        """Whether there is a file with that key."""

    def read(self, key: str) -> bytes:
        """A file's bytes.

        Raises:
            FileNotFoundError: there is no such file.
        """

    def names(self, folder: str) -> list[str]:
        """The names directly in a folder, in no order; empty if there is no such folder."""

    def inside(self, folders: Sequence[str]) -> Iterator[tuple[str, Collection[str]]]:
        """`names` of several folders, each with its folder."""

    def listing(self, folder: str = "") -> Iterator[tuple[str, int]]:
        """(key, bytes) of every file below a folder, in no order."""

    def check_there(self) -> None:
        """Check that the store was not moved or deleted.

        Raises:
            AttlasError: it was.
        """

    def make(self, folder: str) -> None:
        """Make the folder of a new array, never the store's own: nothing else makes a folder in a store."""

    def write(self, key: str, *parts: Part) -> None:
        """Write a file atomically: no reader sees half of it, also after a crash."""

    def send(self, key: str, *parts: Part) -> None:
        """Write a file in the background; `keep` waits for it, or raises its error."""

    def keep(self, keys: Iterable[str]) -> None:
        """Make written or sent files survive a power failure. They are not expected to be read soon."""

    def mark(self, key: str, data: bytes) -> None:
        """Write a small file that survives a power failure, into a store that is still there."""

    def delete(self, key: str) -> None:
        """Delete a file, if it is there."""

    def clear(self, folder: str) -> None:
        """Delete everything below a folder."""

    def lay_out(self, objects: Mapping[str, bytes], identity: bytes) -> bool:
        """Write a new store's files if nothing is there, `ROOT` last; returns whether this call did it.

        Args:
            objects: bytes by key.
            identity: equal for all processes that create the same store.

        Raises:
            AttlasError: something else is there, or another store is being created.
        """

    def remove(self) -> None:
        """Delete the store; while this runs, its remains never look like a complete store."""

    def sweep(self, wanted: Callable[[str], bool]) -> int:
        """Delete half-written files of killed writers whose key begins with a wanted name; returns their number."""


def storage_at(where: Where) -> Storage:
    """The `Disk` or `Bucket` for a path or URL."""
    path = locate(where)
    return Disk(path) if isinstance(path, Path) else Bucket(path)


class Disk:
    """A folder on a local file system, or on one that behaves like it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._syncs = ThreadPoolExecutor(SYNCS, "sync")
        self._sent: dict[str, Future[None]] = {}

    def occupied(self) -> bool:
        """See `Storage`."""
        return self.path.exists()

    def claimed(self) -> bool:
        """See `Storage`. Both happen in a temporary folder next to its path."""
        return False

    def exists(self, key: str) -> bool:
        """See `Storage`."""
        return (self.path / key).is_file()

    def read(self, key: str) -> bytes:
        """See `Storage`."""
        return (self.path / key).read_bytes()

    def names(self, folder: str) -> list[str]:
        """See `Storage`."""
        try:
            with os.scandir(self.path / folder) as entries:
                return [entry.name for entry in entries]
        except (FileNotFoundError, NotADirectoryError):
            return []

    def inside(self, folders: Sequence[str]) -> Iterator[tuple[str, Collection[str]]]:
        """See `Storage`."""
        return ((folder, self.names(folder)) for folder in folders)

    def listing(self, folder: str = "") -> Iterator[tuple[str, int]]:
        """See `Storage`."""
        for found in (self.path / folder).rglob("*"):
            if found.is_file():
                yield found.relative_to(self.path).as_posix(), found.stat().st_size

    def check_there(self) -> None:
        """See `Storage`."""
        if not self.exists(ROOT):
            raise AttlasError(f"{self.path}: {GONE}")

    def make(self, folder: str) -> None:
        """See `Storage`."""
        with self._there(folder):
            (self.path / folder).mkdir(exist_ok=True)

    def write(self, key: str, *parts: Part) -> None:
        """See `Storage`."""
        target = self.path / key
        beside = target.with_name(f"{target.name}.{os.getpid()}-{threading.get_ident()}.partial")
        with self._there(key):
            with beside.open("wb") as file:
                file.writelines(parts)
            beside.replace(target)

    def send(self, key: str, *parts: Part) -> None:
        """See `Storage`. It is in the page cache at once, and the system starts to write it to the disk."""
        self.write(key, *parts)
        self._sent[key] = self._syncs.submit(sync, self.path / key, forget=True)

    def keep(self, keys: Iterable[str]) -> None:
        """See `Storage`."""
        for key in keys:
            sent = self._sent.pop(key, None)
            with self._there(key):
                if sent is None:
                    sync(self.path / key, forget=True)
                else:
                    sent.result()

    def mark(self, key: str, data: bytes) -> None:
        """See `Storage`."""
        self.check_there()
        self.write(key, data)
        with self._there(key):
            sync(self.path / key)
            sync_entries((self.path / key).parent)

    @contextlib.contextmanager
    def _there(self, key: str) -> Iterator[None]:
        """Say which is gone if a file cannot be written because there is no folder: the store, or an array's own."""
        try:
            yield
        except FileNotFoundError:
            self.check_there()
            folder = key.rpartition("/")[0]
            if (self.path / folder).is_dir():
                raise
            raise AttlasError(
                f"{self.path}: {folder} is no longer in it; `attlas verify --repair` makes its folder again"
            ) from None

    def delete(self, key: str) -> None:
        """See `Storage`. A folder in a file's place is no file, and nothing could be written there."""
        target = self.path / key
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)

    def clear(self, folder: str) -> None:
        """See `Storage`."""
        if (self.path / folder).exists():
            shutil.rmtree(self.path / folder)

    def lay_out(self, objects: Mapping[str, bytes], identity: bytes) -> bool:
        """See `Storage`. It is created next to its path, by a name that no other machine has, and renamed."""
        beside = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex}.partial")
        try:
            beside.mkdir(parents=True)
            with drafting(beside, self.path):
                for key, data in objects.items():
                    (beside / key).parent.mkdir(parents=True, exist_ok=True)
                    (beside / key).write_bytes(data)
                    sync(beside / key)
                beside.rename(self.path)
        except OSError:
            shutil.rmtree(beside, ignore_errors=True)
            if self.exists(ROOT):
                return False
            raise
        sync_entries(self.path.parent)
        return True

    def remove(self) -> None:
        """See `Storage`."""
        aside = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex}.deleted")
        self.path.rename(aside)
        # With it goes what a killed deletion left behind.
        for leftover in self.path.parent.glob(f".{glob.escape(self.path.name)}.*.deleted"):
            shutil.rmtree(leftover, ignore_errors=leftover != aside)

    def sweep(self, wanted: Callable[[str], bool]) -> int:
        """See `Storage`."""
        places = [self.path / name for name in self.names("") if wanted(name)]
        below = [folder / name for place in places for folder, _, names in place.walk() for name in names]
        leftovers = [file for file in (*places, *below) if file.suffix == ".partial" and file.is_file()]
        for leftover in leftovers:
            leftover.unlink(missing_ok=True)
        return len(leftovers)


class Bucket:
    """An object store by URL. Failed requests are repeated, first by its library and then here."""

    def __init__(self, path: Url) -> None:
        self.path = path
        self._requests = ThreadPoolExecutor(REQUESTS)
        self._room = threading.Semaphore(2 * REQUESTS)  # limits the data in memory
        self._sent: dict[str, Future[None]] = {}

    def __reduce__(self) -> tuple[type[Bucket], tuple[Url]]:
        return Bucket, (self.path,)

    def occupied(self) -> bool:
        """See `Storage`."""
        return self.exists(ROOT)

    def claimed(self) -> bool:
        """See `Storage`."""
        return self._claim() is not None

    def exists(self, key: str) -> bool:
        """See `Storage`."""
        return files.persist(lambda: remote.stamp(self._url(key))) is not None

    def read(self, key: str) -> bytes:
        """See `Storage`."""
        return files.persist(lambda: remote.read(self._url(key)))

    def names(self, folder: str) -> list[str]:
        """See `Storage`."""
        return files.persist(lambda: remote.names(self._url(folder)))

    def inside(self, folders: Sequence[str]) -> Iterator[tuple[str, Collection[str]]]:
        """See `Storage`. A listing of everything is one request for a thousand files, whatever their folders."""
        if len(folders) == 1:
            yield folders[0], self.names(folders[0])
            return
        found: dict[str, list[str]] = {folder: [] for folder in folders}
        for key, _ in self.listing() if folders else ():
            folder, _, name = key.rpartition("/")
            if folder in found:
                found[folder].append(name)
        yield from found.items()

    def listing(self, folder: str = "") -> Iterator[tuple[str, int]]:
        """See `Storage`."""
        for key, size, _ in files.persist(lambda: list(remote.listing(self._url(folder)))):
            yield f"{folder}/{key}" if folder else key, size

    def check_there(self) -> None:
        """See `Storage`."""
        if not self.exists(ROOT):
            raise AttlasError(f"{self.path}: {GONE}")

    def make(self, folder: str) -> None:
        """See `Storage`. A bucket has no folders."""

    def write(self, key: str, *parts: Part) -> None:
        """See `Storage`."""
        data = b"".join(parts)
        files.persist(lambda: remote.write(self._url(key), data))

    def send(self, key: str, *parts: Part) -> None:
        """See `Storage`. Even a small put takes about 50 ms, so many run at the same time."""
        self._room.acquire()
        # Joined now, since a part may be memory that the caller uses again.
        sent = self._requests.submit(self.write, key, b"".join(parts))
        sent.add_done_callback(lambda _: self._room.release())
        self._sent[key] = sent

    def keep(self, keys: Iterable[str]) -> None:
        """See `Storage`. A successful put is permanent."""
        for key in keys:
            if (sent := self._sent.pop(key, None)) is not None:
                sent.result()

    def mark(self, key: str, data: bytes) -> None:
        """See `Storage`."""
        self.check_there()
        self.write(key, data)

    def delete(self, key: str) -> None:
        """See `Storage`."""
        files.persist(lambda: remote.delete([self._url(key)]))

    def clear(self, folder: str) -> None:
        """See `Storage`."""
        self._delete([key for key, _ in self.listing(folder)])

    def lay_out(self, objects: Mapping[str, bytes], identity: bytes) -> bool:
        """See `Storage`.

        The claim is written first, so that only runs with the same layout write at the same time; the root is written
        last. Both are created only if they do not exist. The same call completes an interrupted layout.
        """
        claim = self._claim()
        if claim == DELETED:
            self._empty()
        # Another run may start its layout between these checks. Its claim precedes all its other files: check again.
        elif claim is None and not self.exists(ROOT) and any(self.listing()) and self._claim() is None:
            raise AttlasError(f"{self.path}: holds something that is no attention store; choose another output")
        if not self._create(CLAIM, identity) and self._claim() != identity:
            if self.exists(ROOT):
                return False
            raise AttlasError(
                f"{self.path}: another run is being laid out here, or was stopped while it was; run again in a moment, "
                "choose another output, or --overwrite"
            )
        list(self._requests.map(lambda key: self._create(key, objects[key]), (k for k in objects if k != ROOT)))
        return self._create(ROOT, objects[ROOT])

    def remove(self) -> None:
        """See `Storage`. The claim becomes a mark of deletion, so that the next layout completes the deletion."""
        self.write(CLAIM, DELETED)
        self._empty()

    def sweep(self, wanted: Callable[[str], bool]) -> int:
        """See `Storage`. An interrupted put leaves nothing."""
        return 0

    def _url(self, key: str) -> str:
        return f"{self.path}/{key}" if key else self.path

    def _claim(self) -> bytes | None:
        try:
            return self.read(CLAIM)
        except FileNotFoundError:
            return None

    def _create(self, key: str, data: bytes) -> bool:
        """Write a file if it does not exist; returns whether it was written."""
        try:
            files.persist(lambda: remote.write(self._url(key), data, exclusive=True))
        except FileExistsError:
            return False
        return True

    def _empty(self) -> None:
        """Delete everything: the root first, the mark of deletion last."""
        self.delete(ROOT)
        self._delete([key for key, _ in self.listing() if key != CLAIM])
        self.delete(CLAIM)

    def _delete(self, keys: list[str]) -> None:
        if keys:
            files.persist(lambda: remote.delete([self._url(key) for key in keys]))
