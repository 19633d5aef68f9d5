"""Who does the units of a run: what every executor is, the bench that each worker has, and this process as one."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Literal, Protocol, Self

from ...exporter.errors import AttlasError
from ...exporter.spec import GraphSpec
from ..graph import read_spec
from ..job import Job, versions
from ..layout import Keep, Reducer, Statistics, templates, to_append
from ..plan import Plan
from ..session import Session, cores, probe_batch, resolve_provider
from ..sources.files import is_url
from ..store import Store, mark_key
from ..unit import Share, Tools, UnitResult, commit_unit, write_unit

__all__ = ["TRIES", "Bench", "Executor", "Here", "Orders", "Ready", "ThisProcess"]

TRIES = 5  # times that a unit may fail for want of its worker before the run ends


@dataclass(frozen=True, slots=True)
class Orders:
    """What a worker is told once: small, and readable on every machine that shares the files.

    Attributes:
        graph: where the graph lies; `store`: where the store lies.
        plan: of the store, so that a worker notices another one at its place.
        keep: what the run keeps; `reducer`: makes the statistics; `statistics`: where they are computed.
        provider: as for `run`.
        readers: how many reads at once the source is worth, 0 where it is on this machine.
        versions: of what decides the numbers, which must be the worker's own.
    """

    graph: str
    store: str
    plan: Plan
    keep: Keep
    reducer: Callable[[GraphSpec], Reducer] | None
    provider: str
    statistics: Statistics
    readers: int
    versions: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Ready:
    """How a worker is set up: `provider` is onnxruntime's name."""

    provider: str
    statistics: Literal["graph", "host"]
    notes: tuple[str, ...] = ()


class Executor(Protocol):
    """Who does units: a context, which leaves nothing running behind it.

    Attributes:
        kind: one word for the run's record.
        words: what it is at present, for people, and where it can be watched.
        workers: processes; `hands`: units at work at once, all workers together.
    """

    kind: str
    words: str
    workers: int
    hands: int

    def __enter__(self) -> Self:
        """Reach whoever does the work."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave nothing running."""

    def provider(self, asked: str) -> str:
        """What `auto` means where the work is done."""

    def probe(self, graph: Path, batch: int, **choices: Any) -> int:
        """`session.probe_batch` where the work is done."""

    def open(self, orders: Orders, units: int, first: Share, stop: threading.Event) -> Ready:
        """Make workers ready for a run of so many units, the `first` of which they can read.

        Raises:
            AttlasError: a worker cannot do it.
        """

    def units(self, todo: Sequence[int], share: Callable[[int], Share], stop: threading.Event) -> Iterator[UnitResult]:
        """Do the units, and yield each result once its unit is marked done.

        No unit is begun after `stop` is set. On an error those in flight still end.
        """


class Bench:
    """What a worker process has to do units with: the store, one session, and tools for each hand.

    Attributes:
        hands: how many units are at work at once.
        ready: how it is set up.
    """

    def __init__(self, orders: Orders, *, hands: int, threads: int) -> None:
        """Load the graph and open the store.

        Args:
            orders: what to do.
            hands: units at work at once.
            threads: onnxruntime's own, within one operation.

        Raises:
            AttlasError: graph or store are not there, the store is another one, or the provider does not work.
        """
        for place in (orders.graph, orders.store):
            if not is_url(place) and not os.path.exists(place):  # noqa: PTH110 - may be a URL
                raise AttlasError(f"sees no {place}: give it a file system that it shares with the one who asked")
        self.store = Store(orders.store, writable=True)
        if self.store.plan != orders.plan:
            raise AttlasError(f"sees another store at {orders.store}: give it a file system that it shares")
        spec = read_spec(orders.graph)
        reducer = orders.reducer(spec) if orders.reducer is not None else None
        kept = templates(spec, orders.keep, reducer)
        notes: list[str] = []
        session = _session(orders, orders.provider, spec, reducer, threads, notes)
        self.hands = hands
        self.ready = Ready(session.provider, "graph" if session.appended else "host", tuple(notes))
        self._idle: SimpleQueue[Tools] = SimpleQueue()
        for _ in range(hands):
            # Of its own: who reads one archive from front to end is not to jump to another's.
            pool = ThreadPoolExecutor(orders.readers, "read") if orders.readers else None
            self._idle.put(Tools(session, self.store, orders.keep, kept, reducer, pool))
        self._disk = threading.Lock()
        # A slow disk holds the hands back, so that little is lost when the worker is killed.
        self._unmarked = threading.BoundedSemaphore(2 * hands + 1)

    def do(self, share: Share, between: Callable[[], None] = lambda: None) -> UnitResult:
        """Do one unit in this thread; `between` is called when only the disk is waited for.

        A unit that is marked already is left as it is: whoever asks again lost the answer and not the work.
        """
        if self.store.place.exists(mark_key(share.k)):
            return UnitResult(images=len(share.items))
        with self._unmarked:
            result = self._write(share)
            between()
            with self._disk:
                commit_unit(share.k, self.store, result)
            return result

    def units(self, take: Callable[[], Share | None]) -> Iterator[tuple[int, UnitResult]]:
        """Do what `take` gives until it gives None, `hands` units at once, and yield (k, result) as they are done.

        A thread of its own waits for the disk and marks units done, while the hands go on with the next.
        """

        def work(share: Share) -> tuple[int, UnitResult]:
            return share.k, self._write(share)

        def commit(k: int, result: UnitResult) -> tuple[int, UnitResult]:
            commit_unit(k, self.store, result)
            return k, result

        working: set[Future[tuple[int, UnitResult]]] = set()
        committing: set[Future[tuple[int, UnitResult]]] = set()
        more = True
        with ThreadPoolExecutor(self.hands) as pool, ThreadPoolExecutor(1) as disk:
            try:
                while True:
                    while more and len(working) < self.hands and len(committing) <= self.hands:
                        share = take()
                        more = share is not None
                        if share is not None:
                            working.add(pool.submit(work, share))
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

    def _write(self, share: Share) -> UnitResult:
        tools = self._idle.get()
        try:
            return write_unit(self.store.plan, share, tools)
        finally:
            self._idle.put(tools)


class Here:
    """What every executor of this machine answers alike."""

    def __enter__(self) -> Self:
        return self

    def provider(self, asked: str) -> str:
        """As asked."""
        return asked

    def probe(self, graph: Path, batch: int, **choices: Any) -> int:
        """`session.probe_batch`."""
        return probe_batch(graph, batch, **choices)


class ThisProcess(Here):
    """Units in threads of this process, by default one per core."""

    kind = "threads"
    words = ""
    workers = 1
    hands = 1

    def __init__(self, threads: int | None = None) -> None:
        """`threads`: units at work at once."""
        self._threads = threads
        self._bench: Bench | None = None

    def __exit__(self, *_: object) -> None:
        self._bench = None

    def open(self, orders: Orders, units: int, first: Share, stop: threading.Event) -> Ready:
        """Load the graph."""
        self.hands = max(1, min(self._threads or cores(), units))
        # All hands together use the cores once.
        self._bench = Bench(orders, hands=self.hands, threads=max(1, cores() // self.hands))
        return self._bench.ready

    def units(self, todo: Sequence[int], share: Callable[[int], Share], stop: threading.Event) -> Iterator[UnitResult]:
        """See `Executor`."""
        assert self._bench is not None
        waiting = iter(todo)

        def take() -> Share | None:
            k = None if stop.is_set() else next(waiting, None)
            return None if k is None else share(k)

        for _, result in self._bench.units(take):
            yield result


def orders_of(job: Job, store: Store) -> Orders:
    """What workers are told of a job whose store is laid out."""
    request = job.request
    return Orders(
        graph=_whole(request.graph), store=_whole(store.path), plan=store.plan, keep=job.keep, reducer=request.reducer,
        provider=request.provider, statistics=request.statistics, readers=job.source.reads_ahead, versions=versions(),
    )  # fmt: skip


def _whole(place: str | os.PathLike[str]) -> str:
    """A path that means the same in another process; a URL does."""
    text = os.fspath(place)
    return text if is_url(text) else os.path.abspath(text)  # noqa: PTH100 - links stay as they are named


def _session(
    orders: Orders, provider: str, spec: GraphSpec, reducer: Reducer | None, threads: int, notes: list[str]
) -> Session:
    """The graph, with the statistics behind it where they belong there."""
    accelerator = resolve_provider(provider)[0] != "CPUExecutionProvider"
    appended = to_append(spec, orders.keep, reducer, orders.statistics, accelerator=accelerator)
    if appended is None and accelerator and orders.statistics == "auto" and reducer is not None:
        notes.append("statistics on the host, which is slower (`pip install 'attlas[gpu]'` puts them in the graph)")
    wanted = list(orders.keep.wanted(spec, appended=appended is not None).values())
    session = Session(orders.graph, provider=provider, wanted=wanted, appended=appended, threads=threads)
    if session.on_cpu and appended is not None and orders.statistics == "auto":
        # A card was there and does not work: on a CPU the host's statistics are ten times as fast.
        return _session(orders, "cpu", spec, reducer, threads, notes)
    return session
