"""Locks for writing a store; the system releases them when their process ends.

Object stores have no such locks: a dead process's lock could not be told from a living one's. So a store in a bucket is
not locked. Two runs that do the same unit there write the same bytes, each file as a whole, and mark the unit when all
files exist. They only lose time. If two runs end at the same moment, one of their records may be lost. The same holds
on Windows, and on a file system without such locks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...errors import AttlasError
from .storage import Url

__all__ = ["locked", "recording", "unwritten"]


@contextlib.contextmanager
def locked(path: Path | Url, shard: tuple[int, int]) -> Iterator[None]:
    """Lock shard (k, n) of the store at `path`; (1, 1) locks the whole store. Other shards exclude only (1, 1).

    Raises:
        AttlasError: another process has locked it, or the store cannot be written.
    """
    if isinstance(path, Url):
        yield
        return
    one = shard == (1, 1)
    own = path / "run" / f".lock-{shard[0]}-of-{shard[1]}"
    with contextlib.ExitStack() as held:
        try:
            whole = held.enter_context((path / "run" / ".lock").open("a+"))
            part = None if one else held.enter_context(own.open("a+"))
        except OSError as error:
            raise AttlasError(f"{path}: cannot be written ({error.strerror})") from None
        if _take(whole, shared=not one) is False or (part is not None and _take(part) is False):
            raise AttlasError(
                f"{path}: another run is writing shard {shard[0]}/{shard[1]} of it; wait, or take another shard"
            )
        yield
        if not one:
            with contextlib.suppress(OSError):
                own.unlink()


@contextlib.contextmanager
def unwritten(path: Path | Url) -> Iterator[None]:
    """Lock a whole store before it is deleted; in a bucket it is unknown whether a run is writing it.

    Raises:
        AttlasError: a run is writing it.
    """
    if isinstance(path, Url) or not (path / "run" / ".lock").exists():  # no run has written to it
        yield
        return
    with (path / "run" / ".lock").open("a+") as whole:
        if _take(whole) is False:
            raise AttlasError(f"{path}: a run is writing it; stop that run first, or choose another output")
        yield


@contextlib.contextmanager
def recording(path: Path | Url) -> Iterator[None]:
    """Lock the record of a store's runs while a run adds its own; waits, because shards may end at the same time.

    Raises:
        OSError: the store cannot be written.
    """
    if isinstance(path, Url):
        yield
        return
    with (path / "run" / ".lock-record").open("a+") as record:
        _take(record, wait=True)
        yield


def _take(handle: Any, *, shared: bool = False, wait: bool = False) -> bool | None:
    """Lock an open file; if it is locked, wait for it or return False, according to `wait`.

    None where there are no such locks: on Windows, and on some file systems of clusters. NFS gives a shared lock only
    of a file that is open for reading, too.
    """
    try:
        import fcntl

        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        return None
    return True
