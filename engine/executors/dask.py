"""Do the units on a Dask cluster."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Self

from ...errors import AttlasError, Interrupted
from ..runtime.probe import probe_batch
from ..runtime.providers import resolve_provider
from ..store.store import Store
from ..unit import Unit, UnitResult
from .base import Task, WorkerInfo
from .cluster import LOOK, Cluster, in_words, leave_thread, this_worker
from .dispatch import TRIES, Outcome, dispatch
from .worker import forget, shared_worker, try_first

__all__ = ["Dask"]


class Dask:
    """The workers of a Dask scheduler, each of which loads the graph once."""

    kind = "dask"
    loss = f"failed on {TRIES} workers"

    def __init__(self, address: str) -> None:
        """Use the scheduler at `address`."""
        self._cluster = Cluster(address)
        self._run = uuid.uuid4().hex[:8]
        self._flying: dict[str, tuple[int, Any]] = {}
        self._ended: SimpleQueue[Any] = SimpleQueue()

    def __enter__(self) -> Self:
        self._cluster.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._cluster.forget(forget)
        self._cluster.__exit__()

    @property
    def description(self) -> str:
        """The current workers, and where to watch them."""
        return self._cluster.description

    @property
    def workers(self) -> int:
        """Number of current workers, at least 1."""
        return max(1, len(self._cluster.there))

    @property
    def threads(self) -> int:
        """Number of threads of all workers."""
        return self._cluster.threads

    def provider(self, asked: str) -> str:
        """The provider for `auto` on a worker: workers may have a card that this machine does not have."""
        if asked.lower() != "auto" or not self._cluster.there:
            return asked
        return str(self._cluster.ask(resolve_provider, "auto")[0])

    def probe(self, graph: Path, batch: int, **choices: Any) -> int:
        """`session.probe_batch` on a worker."""
        return int(self._cluster.ask(probe_batch, str(graph.resolve()), batch, **choices))

    def open(self, task: Task, units: int, first: Unit, stop: threading.Event) -> WorkerInfo:
        """Wait for a worker, then load the graph on all current workers.

        Raises:
            AttlasError: a worker has other versions, does not see the files, or lacks the provider.
        """
        cluster = self._cluster
        while not cluster.there:
            if stop.wait(LOOK):
                raise Interrupted(f"{cluster.address}: stopped while no worker was there; the same command goes on")
            cluster.look()
        cluster.check_versions()
        self._task = task
        found: dict[str, WorkerInfo] = cluster.each(_ready, task, first.alone())
        info = next(iter(found.values()))
        for address, other in found.items():
            if other.provider != info.provider:
                raise AttlasError(
                    f"worker {address}: runs on {other.provider}, others on {info.provider}; name one with --provider"
                )
        return info

    def units(self, todo: Sequence[int], unit: Callable[[int], Unit], stop: threading.Event) -> Iterator[UnitResult]:
        """See `Executor`."""
        return dispatch(self, todo, unit, Store(self._task.store), stop)

    def room(self) -> int:
        """See `Scheduler`. Up to twice the number of threads: each thread has a next unit, but few are in flight."""
        return 2 * self.threads - len(self._flying)

    def submit(self, unit: Unit, attempt: int) -> None:
        """See `Scheduler`."""
        key = f"attlas-unit-{unit.k}-{self._run}-{attempt}"
        future = self._cluster.submit(_unit, self._task, unit, key=key)
        self._flying[key] = (unit.k, future)
        future.add_done_callback(self._ended.put)

    def wait(self) -> list[Outcome]:
        """See `Scheduler`."""
        self._cluster.look()
        try:
            future = self._ended.get(timeout=LOOK)
        except Empty:
            if not self._cluster.alive:
                raise self._cluster.lost() from None
            return []
        if future.key not in self._flying:
            return []
        if future.status in ("lost", "pending"):
            # The worker was killed before it could answer. Dask tries another worker, which finds the unit marked.
            future.add_done_callback(self._ended.put)
            return []
        k, _ = self._flying.pop(future.key)
        if future.status == "error":
            error = future.exception()
            return [Outcome(k, error=error) if isinstance(error, AttlasError) else Outcome(k, lost=in_words(error))]
        try:
            return [Outcome(k, future.result())]
        except (CancelledError, OSError):  # the latter where the scheduler goes while it hands the result over
            raise self._cluster.lost() from None


# -- on the workers ---------------------------------------------------------------------------------------------------


def _unit(task: Task, unit: Unit) -> UnitResult:
    address, threads = this_worker()
    try:
        # While this unit waits for the disk, the thread starts the next.
        return shared_worker(task, threads).do(unit, leave_thread)
    except AttlasError as error:
        raise AttlasError(f"worker {address}: {error}") from None


async def _ready(task: Task, first: Unit, dask_worker: Any) -> WorkerInfo:
    """Run `try_first` outside the worker's event loop, which must keep answering."""
    return await asyncio.to_thread(try_first, task, first, dask_worker.state.nthreads)
