"""A process that dies at a chosen moment, without a process: from then on nothing it does reaches the disk."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class KilledError(BaseException):
    """Not an Exception, so that nothing that mends a fault takes it for one."""


class Crash:
    """Counts what is about to change below a folder, and at the n-th change stops that and every later one.

    It listens to the interpreter's audit events, and so sees whatever is written, by whichever function and thread.
    Where a file was to be opened for writing it may be left empty, as by a process that died before its first byte.
    """

    def __init__(self) -> None:
        self._folder, self._left, self._torn = "", 0, False
        self._lock, self._own = threading.RLock(), threading.local()
        self.count = 0
        sys.addaudithook(self._hear)

    @contextlib.contextmanager
    def at(self, folder: Path, change: int | None = None, *, torn: bool = False) -> Iterator[Crash]:
        """Die at that change, counted from 1, and swallow what comes of it; with None only count.

        Args:
            folder: what lies in it counts.
            change: the first that is not made.
            torn: leave a file that was to be opened for writing empty.
        """
        self._left, self._torn, self.count = change or sys.maxsize, torn, 0
        self._folder = os.fspath(folder)
        try:
            with contextlib.suppress(KilledError):
                yield self
        finally:
            self._folder = ""

    @property
    def dead(self) -> bool:
        """Whether the last moment came."""
        return self.count >= self._left

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        if not self._folder or getattr(self._own, "busy", False) or not self._changes(event, args):
            return
        with self._lock:
            self.count += 1
            last, dead = self.count == self._left, self.dead
        if dead:
            if last and self._torn and event == "open":
                self._own.busy = True
                with contextlib.suppress(OSError), open(args[0], "ab" if "a" in (args[1] or "") else "wb"):  # noqa: PTH123
                    pass
                self._own.busy = False
            raise KilledError(f"{event} {args[0]}")

    def _changes(self, event: str, args: tuple[Any, ...]) -> bool:
        """Whether an event is about to change something below the folder."""
        match event:
            case "open":
                path, mode, flags = args
                writes = bool(flags & WRITES) if mode is None else bool(set("wax+") & set(mode))
                return writes and self._below(path)
            case "os.rename" | "os.link" | "os.symlink":
                return self._below(args[0]) or self._below(args[1])
            case "os.remove" | "os.rmdir":
                # Within a tree that is being deleted, names are relative to an open folder.
                return self._below(args[0]) or args[-1] != -1
            case "os.mkdir" | "os.truncate" | "shutil.rmtree":
                return self._below(args[0])
        return False

    def _below(self, path: Any) -> bool:
        return isinstance(path, str | os.PathLike) and os.fspath(path).startswith(self._folder)
