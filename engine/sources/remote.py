"""Remote files by URL: the only module that uses fsspec."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any, BinaryIO

from ...errors import AttlasError, one_line

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

__all__ = [
    "delete",
    "exists",
    "failures",
    "filesystem",
    "listing",
    "matches",
    "names",
    "opened",
    "read",
    "stamp",
    "write",
]

# Bytes per request: a tar has a header about every 100 kB, and a request costs as much as a megabyte.
BLOCK = 4 * 2**20


def filesystem(url: str) -> tuple[AbstractFileSystem, str]:
    """The file system of a URL, and the path within it.

    Raises:
        AttlasError: fsspec, or its package for this kind of URL, is not installed; or the kind is unknown.
    """
    scheme, _, rest = url.partition("://")
    system = _system(scheme, rest.split("/")[0], os.getpid())
    try:
        return system, str(system._strip_protocol(url))
    except ValueError as error:
        raise AttlasError(f"{url}: is no address ({one_line(error, 300)})") from None


@functools.lru_cache(maxsize=64)
def _system(scheme: str, address: str, _process: int) -> AbstractFileSystem:
    """A file system for all threads of one process; a forked process needs its own connections."""
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise AttlasError(
            f"{scheme}://...: needs fsspec, which is not installed: `pip install 'attlas[remote]'` brings it"
        ) from None
    try:
        # Listings are not cached, so that changes are noticed.
        return url_to_fs(f"{scheme}://{address}", use_listings_cache=False)[0]
    except ImportError as error:
        raise AttlasError(
            f"{scheme}://{address}: {one_line(error, 300)}; `pip install 'attlas[remote]'` brings s3fs"
        ) from None
    except ValueError as error:
        raise AttlasError(f"{scheme}://{address}: {one_line(error, 300)}") from None


def stamp(url: str) -> tuple[int, int] | None:
    """(bytes, time of change in ns or -1) of a file; None if there is no such file."""
    system, path = filesystem(url)
    with failures():
        try:
            info = system.info(path)
        except FileNotFoundError as error:
            if isinstance(cause := error.__cause__, OSError) and not isinstance(cause, FileNotFoundError):
                raise cause from None  # what fsspec says of a web server that does not answer
            return None
    return None if info["type"] == "directory" else (int(info["size"] or 0), _changed(info))


def exists(url: str) -> bool:
    """Whether a file or folder exists."""
    system, path = filesystem(url)
    with failures():
        return bool(system.exists(path))


def listing(url: str) -> Iterator[tuple[str, int, int]]:
    """(relative path, bytes, time of change in ns) of every file below a folder, in no order."""
    system, path = filesystem(url)
    with failures():
        found = system.find(path, detail=True)
    root = f"{path.rstrip('/')}/"
    for name, info in found.items():
        # A file that marks a folder ends in a slash, or has the folder's own name.
        if info["type"] == "file" and name.startswith(root) and not name.endswith("/"):
            yield name[len(root) :], int(info["size"] or 0), _changed(info)


def matches(url: str) -> list[str]:
    """The URLs that match a pattern with `*` or `?`, sorted."""
    system, path = filesystem(url)
    with failures():
        found = system.glob(path)
    return sorted(str(system.unstrip_protocol(name)) for name in found)


def opened(url: str) -> BinaryIO:
    """Open a file for reading and seeking, mostly forwards."""
    system, path = filesystem(url)
    with failures():
        file: BinaryIO = system.open(path, "rb", block_size=BLOCK, cache_type="readahead")
        return file


def read(url: str, most: int | None = None) -> bytes:
    """A file's bytes, or its first `most`."""
    system, path = filesystem(url)
    with failures():
        try:
            # With a start it is one request; otherwise s3fs requests the size first.
            return bytes(system.cat_file(path, start=0, end=most))
        except OSError as error:
            if "not satisfiable" in str(error):  # S3 has no ranges of an empty file
                return b""
            raise


def names(url: str) -> list[str]:
    """The names directly in a folder, in no order; empty if there is no such folder."""
    system, path = filesystem(url)
    with failures():
        try:
            found = system.ls(path, detail=False)
        except FileNotFoundError:
            return []
    return [name.rstrip("/").rpartition("/")[2] for name in found if name.rstrip("/") != path.rstrip("/")]


def write(url: str, data: bytes, *, exclusive: bool = False) -> None:
    """Write a whole file.

    Raises:
        FileExistsError: it exists, and `exclusive` is true.
        OSError: it cannot be written.
    """
    system, path = filesystem(url)
    with failures():
        system.pipe_file(path, data, mode="create" if exclusive else "overwrite")


def delete(urls: Sequence[str]) -> None:
    """Delete files of one file system, as far as they exist."""
    with failures():
        found = [filesystem(url) for url in urls]
        try:
            found[0][0].rm([path for _, path in found])
        except FileNotFoundError:
            for system, path in found if len(found) > 1 else ():
                with suppress(FileNotFoundError):
                    system.rm(path)


@contextmanager
def failures() -> Iterator[None]:
    """Convert the exceptions of network libraries to OSError."""
    try:
        yield
    except (OSError, AttlasError):
        raise
    except Exception as error:
        raise OSError(one_line(error, 300)) from None


def _changed(info: dict[str, Any]) -> int:
    """The time of change in ns; every file system has its own name for it."""
    for name in ("LastModified", "mtime", "updated", "last_modified", "modified"):
        value = info.get(name)
        if isinstance(value, datetime):
            return round(value.timestamp() * 1e6) * 1000
        if isinstance(value, int | float) and not isinstance(value, bool):
            return round(value * 1e6) * 1000
    return -1
