"""Files by path or URL: read all or part of a file, and notice changes. Argument `where` is a path or URL."""

from __future__ import annotations

import errno
import glob
import io
import os
import re
import stat
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO, NamedTuple

from ... import arguments
from ...arguments import Where
from ...errors import AttlasError
from . import remote
from .items import UNKNOWN, ChangedError, is_hidden

__all__ = [
    "MAX_BYTES",
    "READERS",
    "Stamp",
    "check",
    "expand",
    "expanded",
    "is_url",
    "join",
    "leads_out",
    "name_of",
    "names_of",
    "opened",
    "parent",
    "persist",
    "read",
    "read_part",
    "reads_ahead",
    "stamp",
]

ATTEMPTS = 3
READERS = 16  # concurrent reads of small remote files: each mostly waits
MAX_BYTES = 2**30  # limit for one encoded image: a larger file is not a picture, and would fill the memory
MAX_PATTERN = 1_000_000
# What another attempt cannot change: the path leads through a file, in a circle, is too long, or to no file at all.
NO_FILE = (errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EISDIR, errno.ENXIO)
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_kept = threading.local()


class Stamp(NamedTuple):
    """Size and time of change, to notice that a listed file has changed; -1 if the storage has no times."""

    size: int
    mtime_ns: int


def is_url(where: str) -> bool:
    """Whether it is a URL, which fsspec opens."""
    return "://" in where


def expanded(where: Where, what: str = "path", wanted: str = "a path") -> str:
    """A path or URL as text, checked by `arguments.path`; `file://` is removed and `~` is expanded."""
    return os.path.expanduser(arguments.path(where, what, wanted).removeprefix("file://"))  # noqa: PTH111 - or a URL


def leads_out(path: str) -> bool:
    """Whether an image's path, below a folder, would leave it: a store from somebody else may hold any text."""
    parts = PurePosixPath(path)
    return parts.is_absolute() or ".." in parts.parts or PureWindowsPath(path).anchor != "" or "..\\" in path


def join(base: str, key: str) -> str:
    """The path or URL of `key` below `base`."""
    return f"{base.rstrip('/')}/{key}" if is_url(base) else os.path.join(base, key)  # noqa: PTH118 - by the million


def parent(where: str) -> str:
    """The folder of a file."""
    return where.rpartition("/")[0] if is_url(where) else str(Path(where).parent)


def name_of(where: str) -> str:
    """The last part of a path or URL, for records."""
    if is_url(where):
        return where.rstrip("/").rpartition("/")[2]
    return Path(os.path.realpath(where)).name  # resolve() raises on circular links


def names_of(wheres: Sequence[str]) -> list[str]:
    """The last part of each path or URL; where two are equal, all parts below the folder that all share.

    Raises:
        AttlasError: one file is named twice.
    """
    names = [name_of(where) for where in wheres]
    if len(set(names)) == len(names):
        return names
    whole = [where if is_url(where) else Path(os.path.abspath(where)).as_posix() for where in wheres]  # noqa: PTH100
    shared = os.path.commonprefix([min(whole), max(whole)]).rpartition("/")[0]  # noqa: RUF071 - of URLs, too
    if len(set(whole)) < len(whole):
        twice = next(where for where, one in zip(wheres, whole, strict=True) if whole.count(one) > 1)
        raise AttlasError(f"{twice}: is named twice")
    return [one[len(shared) + 1 :] for one in whole]


def reads_ahead(where: str) -> int:
    """Number of small files to read ahead: 0 for local files.

    For these the system reads ahead itself, and threads would cost more than they gain.
    """
    return READERS if is_url(where) else 0


def stamp(where: str) -> Stamp | None:
    """The stamp of a regular file, following links; None if there is no such file.

    Raises:
        OSError: it cannot be determined.
    """
    if is_url(where):
        found = remote.stamp(where)
        return None if found is None else Stamp(*found)
    try:
        status = os.stat(where)  # noqa: PTH116
    except OSError as error:
        if error.errno in (errno.ENOENT, *NO_FILE):
            return None
        raise
    return Stamp(status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None


def opened(where: str) -> BinaryIO:
    """Open a regular file, or one that a link leads to, for reading and seeking.

    Raises:
        ChangedError: it is not a regular file, or no file can have that path.
        OSError: it cannot be opened.
    """
    if is_url(where):
        return remote.opened(where)
    # Without O_NONBLOCK a named pipe would block the run forever.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(where, flags)
    except OSError as error:
        if error.errno in NO_FILE and error.errno != errno.ENOTDIR:
            raise ChangedError(f"is no regular file ({error.strerror})") from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)  # FileIO would raise for a folder, and keep it open
        raise ChangedError("is no regular file")
    return io.FileIO(descriptor, "rb")


def read(where: str, expected: Stamp | None = None) -> bytes:
    """All bytes of a file.

    Args:
        where: its path or URL.
        expected: its stamp when it was listed; None for no check.

    Raises:
        ChangedError: it is not a regular file, has changed, or is too large for a picture.
        OSError: it cannot be read, after three attempts.
    """
    return persist(lambda: _read(where, expected))


def _read(where: str, expected: Stamp | None) -> bytes:
    if is_url(where):
        if expected is not None:
            _bounded(expected.size)
        data = remote.read(where, MAX_BYTES + 1)
        # The time is not checked: it would cost a second request for every image.
        if expected is not None and len(data) != expected.size:
            raise ChangedError("has changed since the run was planned")
        _bounded(len(data))
        return data
    with opened(where) as file:
        status = os.fstat(file.fileno())
        if expected is not None and (status.st_size, status.st_mtime_ns) != expected:
            raise ChangedError("has changed since the run was planned")
        _bounded(status.st_size)
        return file.read()


def read_part(where: str, offset: int, length: int, expected: Stamp) -> bytes:
    """`length` bytes of a file from `offset` on. This thread keeps the file open, because it reads the next part soon.

    Raises:
        AttlasError: the file has changed.
        ChangedError: the part is too large for a picture.
        OSError: it cannot be read, after three attempts.
    """
    _bounded(length)
    try:
        return persist(lambda: _read_part(where, offset, length, expected))
    except BaseException:
        _let_go()
        raise


def _read_part(where: str, offset: int, length: int, expected: Stamp) -> bytes:
    if getattr(_kept, "where", None) != (where, expected):
        _let_go()
        check(where, stamp(where), expected)
        _kept.file = opened(where)
        _kept.where = (where, expected)
    file: BinaryIO = _kept.file
    try:
        if not is_url(where):
            status = os.fstat(file.fileno())
            check(where, Stamp(status.st_size, status.st_mtime_ns), expected)
        with remote.failures():
            file.seek(offset)
            data = file.read(length)
    except OSError:
        _let_go()
        raise
    if len(data) != length:
        _let_go()
        raise OSError(f"{where}: gave {len(data)} of {length} bytes")
    return data


def check(where: str, found: Stamp | None, expected: Stamp) -> None:
    """Refuse a file that is not what it was when it was listed.

    Raises:
        FileNotFoundError: it is gone.
        AttlasError: it has changed.
    """
    if found is None:
        raise FileNotFoundError(2, "No such file or directory", where)
    if found != expected:
        raise AttlasError(
            f"{where}: has changed since the run was planned; run the same command again, which looks at it anew"
        )


def _let_go() -> None:
    """Close the file that this thread keeps open."""
    file = getattr(_kept, "file", None)
    _kept.file = _kept.where = None
    if file is not None:
        file.close()


def persist[T](action: Callable[[], T]) -> T:
    """Call `action`, and repeat it after network errors; not if a file is missing or not allowed."""
    for attempt in range(ATTEMPTS):
        try:
            return action()
        except (FileNotFoundError, FileExistsError, PermissionError):
            raise
        except OSError:
            if attempt == ATTEMPTS - 1:
                raise
            time.sleep(0.1 * 4**attempt)
    raise AssertionError("unreachable")


def expand(pattern: str) -> list[str]:
    """The paths or URLs of a pattern: `{000..012}` and `{a,b}` in the order written, then `*`, `?` and `**`, sorted.

    Raises:
        AttlasError: there are more than a million.
    """
    found = [pattern]
    while any(_BRACES.search(one) for one in found):
        found = [whole for one in found for whole in _first_braces(one)]
        if len(found) > MAX_PATTERN:
            raise AttlasError(f"{pattern}: names more than {MAX_PATTERN:,} files")
    paths = []
    for one in found:
        if "*" not in one and "?" not in one:
            paths.append(one)
        else:
            found = remote.matches(one) if is_url(one) else sorted(glob.glob(one, recursive=True))  # noqa: PTH207
            paths += [match for match in found if not is_hidden(match.rpartition("/")[2])]
    return paths


def _first_braces(text: str) -> list[str]:
    match = _BRACES.search(text)
    if match is None:
        return [text]
    numbers = _RANGE.fullmatch(match[1])
    if numbers is None:
        choices = match[1].split(",")
    else:
        first, last = int(numbers[1]), int(numbers[2])
        if abs(last - first) >= MAX_PATTERN:
            raise AttlasError(f"{text}: names more than {MAX_PATTERN:,} files")
        step = 1 if first <= last else -1
        choices = [str(n).zfill(len(numbers[1])) for n in range(first, last + step, step)]
    return [f"{text[: match.start()]}{choice}{text[match.end() :]}" for choice in choices]


def _bounded(size: int) -> None:
    if size > MAX_BYTES and size != UNKNOWN:
        raise ChangedError(f"has {size:,} bytes, more than the limit of {MAX_BYTES:,} for a picture")
