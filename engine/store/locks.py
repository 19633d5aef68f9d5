"""Locks for writing a store; the system releases them when their process ends.

A run and an analysis have locks of their own, because they write other files: either may go on beside the other.

Object stores have no such locks: a dead process's lock could not be told from a living one's. So a store in a bucket is
not locked. Two runs that do the same unit there write the same bytes, each file as a whole, and mark the unit when all
files exist. They only lose time. If two runs end at the same moment, one of their records may be lost. The same holds
on Windows, and on a file system without such locks.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...errors import AttlasError
from .storage import Url

__all__ = ["BusyError", "analysing", "locked", "recording", "unwritten"]

RUN, ANALYSIS = ".lock", ".lock-analysis"


class BusyError(AttlasError):
    """Another process is writing the store."""


_open = set[Any]()  # files that are locked here
_analysed = set[tuple[Path, int]]()  # stores whose analysis is locked here, and by which thread


@contextlib.contextmanager
def locked(path: Path | Url, shard: tuple[int, int]) -> Iterator[None]:
    """Lock shard (k, n) of the store at `path`; (1, 1) locks the whole store. Other shards exclude only (1, 1).

    Raises:
        BusyError: another process has locked it.
        AttlasError: the store cannot be written.
    """
    if isinstance(path, Url):
        yield
        return
    one = shard == (1, 1)
    own = path / "run" / f".lock-{shard[0]}-of-{shard[1]}"
    with contextlib.ExitStack() as held:
        try:
            whole = held.enter_context(_lock(path / "run" / RUN, shared=not one))
            part = None if one else held.enter_context(_lock(own))
        except OSError as error:
            raise AttlasError(f"{path}: cannot be written ({error.strerror})") from None
        if whole is False or part is False:
            raise BusyError(
                f"{path}: another run is writing shard {shard[0]}/{shard[1]} of it; wait, or take another shard"
            )
        yield
        if not one:
            with contextlib.suppress(OSError):
                own.unlink()


@contextlib.contextmanager
def analysing(path: Path | Url) -> Iterator[bool]:
    """Lock the analysis of a store. Within itself it does nothing, because a judgement also analyses.

    Yields:
        Whether it is locked now. It is not in a bucket, where the system has no locks, and where there is no store.

    Raises:
        BusyError: another analysis is writing.
        AttlasError: the store cannot be written.
    """
    if isinstance(path, Url) or not (path / "run").is_dir():
        yield False
        return
    mine = (path.resolve(), threading.get_ident())
    if mine in _analysed:
        yield False
        return
    with contextlib.ExitStack() as held:
        try:
            alone = held.enter_context(_lock(path / "run" / ANALYSIS))
        except OSError as error:
            raise AttlasError(f"{path}: cannot be written ({error.strerror})") from None
        if alone is False:
            raise BusyError(
                f"{path}: another analysis or judgement is writing it; wait until it has ended, and run this again"
            )
        _analysed.add(mine)
        held.callback(_analysed.discard, mine)
        yield bool(alone)


@contextlib.contextmanager
def unwritten(path: Path | Url) -> Iterator[None]:
    """Lock a whole store before it is deleted; in a bucket it is unknown whether anything is writing it.

    Raises:
        BusyError: a run or an analysis is writing it.
    """
    with contextlib.ExitStack() as held:
        for name, who in ((RUN, "a run"), (ANALYSIS, "an analysis")):
            if isinstance(path, Url) or not (path / "run" / name).exists():  # none has written to it
                continue
            if held.enter_context(_lock(path / "run" / name)) is False:
                raise BusyError(f"{path}: {who} is writing it; stop that first, or choose another output")
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
    with _lock(path / "run" / ".lock-record", wait=True):
        yield


@contextlib.contextmanager
def _lock(path: Path, *, shared: bool = False, wait: bool = False) -> Iterator[bool | None]:
    """Lock a file; if another process has locked it, wait for it or yield False, according to `wait`.

    Yields None where there are no such locks: on Windows, and on some file systems of clusters. NFS gives a shared lock
    only of a file that is open for reading, too.
    """
    try:
        import fcntl
    except ImportError:
        yield None
        return
    with path.open("a+") as file:
        _open.add(file)
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
            taken: bool | None = True
        except BlockingIOError:
            taken = False
        except OSError:
            taken = None
        try:
            yield taken
        finally:
            _open.discard(file)
            if taken:
                fcntl.flock(file, fcntl.LOCK_UN)  # which a process that was just forked has open, too


if hasattr(os, "register_at_fork"):
    # Such a process, an executor's for one, may outlive this one, and would keep its locks.
    os.register_at_fork(after_in_child=lambda: [file.close() for file in _open])
