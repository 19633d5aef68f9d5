"""Files elsewhere, by URL: the one module that knows fsspec."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any, BinaryIO

from ...errors import AttlasError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

__all__ = [
    "delete", "exists", "failures", "filesystem", "listing", "matches", "names", "opened", "read", "stamp", "write",
]  # fmt: skip

# One request brings this much: a header lies every 100 kB in a tar, and a request costs as much as a megabyte.
BLOCK = 4 * 2**20


def filesystem(url: str) -> tuple[AbstractFileSystem, str]:
    """The file system of a URL, and the path within it.

    Raises:
        AttlasError: fsspec, or what it needs for this kind of URL, is not installed; or it knows no such kind.
    """
    scheme, _, rest = url.partition("://")
    system = _system(scheme, rest.split("/")[0], os.getpid())
    try:
        return system, str(system._strip_protocol(url))
    except ValueError as error:
        raise AttlasError(f"{url}: is no address ({_why(error)})") from None


@functools.lru_cache(maxsize=64)
def _system(scheme: str, place: str, _process: int) -> AbstractFileSystem:
    """One for all threads; a process that was forked needs connections of its own."""
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise AttlasError(
            f"{scheme}://...: needs fsspec, which is not installed: `pip install 'attlas[remote]'` brings it"
        ) from None
    try:
        # Listings are not kept: what has changed is to be seen.
        return url_to_fs(f"{scheme}://{place}", use_listings_cache=False)[0]
    except ImportError as error:
        raise AttlasError(f"{scheme}://{place}: {_why(error)}; `pip install 'attlas[remote]'` brings s3fs") from None
    except ValueError as error:
        raise AttlasError(f"{scheme}://{place}: {_why(error)}") from None


def stamp(url: str) -> tuple[int, int] | None:
    """(bytes, time of change in ns, or -1) of a file; None where there is none."""
    system, path = filesystem(url)
    with failures():
        try:
            info = system.info(path)
        except FileNotFoundError:
            return None
    return None if info["type"] == "directory" else (int(info["size"] or 0), _changed(info))


def exists(url: str) -> bool:
    """Whether anything lies there, a folder included."""
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
        # A marker that stands for a folder ends in a slash, or has the folder's own name.
        if info["type"] == "file" and name.startswith(root) and not name.endswith("/"):
            yield name[len(root) :], int(info["size"] or 0), _changed(info)


def matches(url: str) -> list[str]:
    """The URLs that a pattern with `*` or `?` names, sorted."""
    system, path = filesystem(url)
    with failures():
        found = system.glob(path)
    return sorted(str(system.unstrip_protocol(name)) for name in found)


def opened(url: str) -> BinaryIO:
    """A file to read and to seek in, forwards above all."""
    system, path = filesystem(url)
    with failures():
        file: BinaryIO = system.open(path, "rb", block_size=BLOCK, cache_type="readahead")
        return file


def read(url: str, most: int | None = None) -> bytes:
    """A file's bytes, or its first `most`."""
    system, path = filesystem(url)
    with failures():
        try:
            # With a start there is one request where s3fs otherwise asks for the size first.
            return bytes(system.cat_file(path, start=0, end=most))
        except OSError as error:
            if "not satisfiable" in str(error):  # S3 has no range of an empty file
                return b""
            raise


def names(url: str) -> list[str]:
    """The names of what lies directly in a folder, in no order; none where there is no folder."""
    system, path = filesystem(url)
    with failures():
        try:
            found = system.ls(path, detail=False)
        except FileNotFoundError:
            return []
    return [name.rstrip("/").rpartition("/")[2] for name in found if name.rstrip("/") != path.rstrip("/")]


def write(url: str, data: bytes, *, exclusive: bool = False) -> None:
    """Put a whole file.

    Raises:
        FileExistsError: `exclusive`, and there is one already.
        OSError: it cannot be put.
    """
    system, path = filesystem(url)
    with failures():
        system.pipe_file(path, data, mode="create" if exclusive else "overwrite")


def delete(urls: Sequence[str]) -> None:
    """Delete files of one file system, those that are there."""
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
    """Network libraries have exceptions of their own; outside this module they are all OSError."""
    try:
        yield
    except (OSError, AttlasError):
        raise
    except Exception as error:
        raise OSError(_why(error)) from None


def _changed(info: dict[str, Any]) -> int:
    """The time of change in ns; every file system has its own word for it."""
    for name in ("LastModified", "mtime", "updated", "last_modified", "modified"):
        value = info.get(name)
        if isinstance(value, datetime):
            return round(value.timestamp() * 1e6) * 1000
        if isinstance(value, int | float) and not isinstance(value, bool):
            return round(value * 1e6) * 1000
    return -1


def _why(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
