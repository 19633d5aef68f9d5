"""Who writes a store: locks that end with the process that holds them.

An object store has no such locks, since nobody can tell a dead process's lock from a living one's; a store in a bucket
has none. Two runs that do the same unit there write the same bytes, each file whole, and mark it when all are there:
they lose time and nothing else. Only the record of one of two runs that end at once may be lost.
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
    """Hold the slice (k, n) of the store at `path`; (1, 1) holds all of it, other slices only refuse (1, 1).

    Raises:
        AttlasError: another process holds it, or the store cannot be written.
    """
    if isinstance(path, Url):
        yield
        return
    one = shard == (1, 1)
    own = path / "run" / f".lock-{shard[0]}-of-{shard[1]}"
    with contextlib.ExitStack() as held:
        try:
            whole = held.enter_context((path / "run" / ".lock").open("a"))
            part = None if one else held.enter_context(own.open("a"))
        except OSError as error:
            raise AttlasError(f"{path}: cannot be written ({error.strerror})") from None
        if not _take(whole, shared=not one) or not (part is None or _take(part)):
            raise AttlasError(
                f"{path}: another run is writing shard {shard[0]}/{shard[1]} of it; wait, or take another shard"
            )
        yield
        if not one:
            with contextlib.suppress(OSError):
                own.unlink()


@contextlib.contextmanager
def unwritten(path: Path | Url) -> Iterator[None]:
    """Hold all of a store that is about to go away; in a bucket nobody can tell whether a run is writing it.

    Raises:
        AttlasError: a run is writing it.
    """
    if isinstance(path, Url) or not (path / "run" / ".lock").exists():  # nothing ever wrote to it
        yield
        return
    with (path / "run" / ".lock").open("a") as whole:
        if not _take(whole):
            raise AttlasError(f"{path}: a run is writing it; stop that run first, or choose another output")
        yield


@contextlib.contextmanager
def recording(path: Path | Url) -> Iterator[None]:
    """Hold the record of a store's runs while one adds its own; waits, since shards may end at once.

    Raises:
        OSError: the store cannot be written.
    """
    if isinstance(path, Url):
        yield
        return
    with (path / "run" / ".lock-record").open("a") as record:
        _take(record, wait=True)
        yield


def _take(handle: Any, *, shared: bool = False, wait: bool = False) -> bool:
    """Lock an open file: at once or not at all, or as soon as it is free where `wait` is true."""
    try:
        import fcntl

        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except ImportError:
        return True  # no such locks on Windows
    except OSError:
        return False
    return True
