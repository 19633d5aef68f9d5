"""A worker: the state that one process needs to do units, whichever executor sends them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from queue import SimpleQueue

from ...errors import AttlasError
from ..contents import Contents
from ..runtime.decoders import HOST
from ..runtime.graph import read_spec
from ..runtime.providers import accelerates
from ..runtime.session import Session
from ..runtime.slots import RING
from ..sources.files import is_url
from ..sources.items import ChangedError
from ..store.store import Store
from ..unit import Buffers, Unit, UnitResult, commit_unit, write_unit
from ..versions import check_versions
from .base import Task, WorkerInfo

__all__ = ["Worker", "forget", "shared_worker", "try_first", "units_at_once"]


def units_at_once(cores: int, provider: str) -> int:
    """How many threads keep that many cores busy.

    With an accelerator, as many threads as it holds batches copy or wait for it, and decode nothing.
    """
    return cores + RING if accelerates(provider) else cores


class Worker:
    """The store, one session, and buffers for each thread.

    Attributes:
        threads: number of units processed at once.
        info: its setup.
    """

    def __init__(self, task: Task, *, threads: int, cores: int) -> None:
        """Load the graph and open the store.

        Args:
            task: the task of the run.
            threads: number of units processed at once.
            cores: number of cores that onnxruntime may use for each of them.

        Raises:
            AttlasError: graph or store do not exist here, the store has another plan, or the provider does not work.
        """
        for path in (task.graph, task.store):
            if not is_url(path) and not os.path.exists(path):  # noqa: PTH110 - may be a URL
                raise AttlasError(f"sees no {path}: give it a file system that it shares with the one who asked")
        self.store = Store(task.store, writable=True)
        if self.store.plan != task.plan:
            raise AttlasError(f"sees another store at {task.store}: give it a file system that it shares")
        contents = Contents.derive(read_spec(task.graph), task.choices)
        notes: list[str] = []
        session = _session(task, task.provider, contents, cores, notes)
        self.threads = threads
        precision = task.plan.identity.get("precision", "")
        provider = f"{session.provider}, {precision}" if precision else session.provider
        self.info = WorkerInfo(provider, session.statistics, tuple(notes))

        def buffers() -> Buffers:
            # A separate pool per thread, because readers keep an archive open and read it in order.
            pool = ThreadPoolExecutor(task.readers, "read") if task.readers else None
            return Buffers(session, self.store, contents, pool)

        # Each thread makes its own when it has its first unit: pinned memory takes a second for two GB.
        self._buffers = buffers
        self._idle: SimpleQueue[Buffers | None] = SimpleQueue()
        for first in (buffers(), *[None] * (threads - 1)):
            self._idle.put(first)
        self._disk = threading.Lock()
        # Limits the units that wait for a slow disk, so that little is lost if the worker is killed.
        self._unmarked = threading.BoundedSemaphore(2 * threads + 1)

    def do(self, unit: Unit, between: Callable[[], None] = lambda: None) -> UnitResult:
        """Do one unit in this thread; `between` is called when only the disk is left to wait for.

        A unit that is already marked is not done again: then only the answer was lost.
        """
        if self.store.is_done(unit.k):
            return UnitResult(images=len(unit.items))
        with self._unmarked:
            result = self._write(unit)
            between()
            with self._disk:
                commit_unit(unit.k, self.store, result)
            return result

    def units(self, take: Callable[[], Unit | None]) -> Iterator[tuple[int, UnitResult]]:
        """Do the units that `take` returns until it returns None, `threads` at once; yield (k, result) when done.

        A separate thread waits for the disk and marks units done, while the others go on with the next.
        """

        def work(unit: Unit) -> tuple[int, UnitResult]:
            return unit.k, self._write(unit)

        def commit(k: int, result: UnitResult) -> tuple[int, UnitResult]:
            commit_unit(k, self.store, result)
            return k, result

        working: set[Future[tuple[int, UnitResult]]] = set()
        committing: set[Future[tuple[int, UnitResult]]] = set()
        more = True
        with ThreadPoolExecutor(self.threads) as pool, ThreadPoolExecutor(1) as disk:
            try:
                while True:
                    while more and len(working) < self.threads and len(committing) <= self.threads:
                        unit = take()
                        more = unit is not None
                        if unit is not None:
                            working.add(pool.submit(work, unit))
                    if not working | committing:
                        return
                    ended, _ = wait(working | committing, return_when=FIRST_COMPLETED)
                    for written in ended & working:
                        working.remove(written)
                        committing.add(disk.submit(commit, *written.result()))
                    for marked in ended & committing:
                        committing.remove(marked)
                        yield marked.result()
            finally:
                wait(working)
                for written in working:
                    if not written.exception():
                        committing.add(disk.submit(commit, *written.result()))
                wait(committing)

    def _write(self, unit: Unit) -> UnitResult:
        buffers = self._idle.get()
        try:
            buffers = buffers or self._buffers()
            return write_unit(self.store.plan, unit, buffers)
        finally:
            self._idle.put(buffers)


def _session(task: Task, provider: str, contents: Contents, cores: int, notes: list[str]) -> Session:
    """A session of the graph, with the statistics wherever they are computed best."""
    automatic = contents.statistics == "auto"
    choices = contents.placed(provider)
    elsewhere = choices["card"] is not None or choices["appended"] is not None
    if not elsewhere and accelerates(provider) and automatic and contents.reducer is not None:
        notes.append("statistics on the host, which is slower (`pip install 'attlas[gpu]'` puts them on the card)")
    session = Session(
        task.graph,
        provider=provider,
        threads=cores,
        batch=task.plan.at_once,
        precision=task.plan.identity.get("precision", "float32"),
        decoder=task.plan.identity.get("decoder", HOST),
        **choices,
    )
    if session.on_cpu and elsewhere and automatic:
        # The card does not work. On a CPU, statistics on the host are ten times as fast as in the graph.
        return _session(task, "cpu", contents, cores, notes)
    return session


# -- for schedulers that call functions in processes of their own ------------------------------------------------------

_lock = threading.Lock()
_kept: list[tuple[Task, Worker]] = []  # the worker of the last run


def shared_worker(task: Task, threads: int) -> Worker:
    """This process's worker, made once per run; onnxruntime gets one core per thread.

    Raises:
        AttlasError: as `Worker`, or another version is installed here.
    """
    with _lock:
        if not _kept or _kept[0][0] != task:
            _kept.clear()
            check_versions(task.versions)
            _kept.append((task, Worker(task, threads=threads, cores=1)))
        return _kept[0][1]


def try_first(task: Task, first: Unit, threads: int) -> WorkerInfo:
    """Load the graph here, and check that an image can be read.

    Raises:
        AttlasError: as `shared_worker`, or the image does not exist here.
    """
    worker = shared_worker(task, threads)
    item = first.items[0]
    try:
        first.source.read(item)
    except OSError as error:
        raise AttlasError(
            f"sees no image {item.key} ({error.strerror or error}): give it a file system that it shares"
        ) from None
    except ChangedError:
        pass  # an unreadable image costs only itself, as in any run
    return worker.info


def forget() -> None:
    """Free the worker's memory after a run."""
    with _lock:
        _kept.clear()
