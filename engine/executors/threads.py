"""Do units in threads of this process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

from ..runtime.providers import cores
from ..unit import Unit, UnitResult
from .base import Local, Task, WorkerInfo
from .worker import Worker, units_at_once

__all__ = ["Threads"]


class Threads(Local):
    """This process does all the work, by default with a thread per core, and on an accelerator a few more."""

    kind = "threads"
    description = ""
    workers = 1

    def __init__(self, threads: int | None = None) -> None:
        """`threads`: number of units processed at once."""
        self._wanted = threads
        self.threads = threads or cores()
        self._worker: Worker | None = None

    def __exit__(self, *_: object) -> None:
        self._worker = None

    def open(self, task: Task, units: int, first: Unit, stop: threading.Event) -> WorkerInfo:
        """Load the graph."""
        self.threads = max(1, min(self._wanted or units_at_once(cores(), task.provider), units))
        # One core per thread, so that all threads together use each core once.
        self._worker = Worker(task, threads=self.threads, cores=max(1, cores() // self.threads))
        return self._worker.info

    def units(self, todo: Sequence[int], unit: Callable[[int], Unit], stop: threading.Event) -> Iterator[UnitResult]:
        """See `Executor`."""
        assert self._worker is not None
        waiting = iter(todo)

        def take() -> Unit | None:
            k = None if stop.is_set() else next(waiting, None)
            return None if k is None else unit(k)

        for _, result in self._worker.units(take):
            yield result
