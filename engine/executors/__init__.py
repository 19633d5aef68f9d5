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
from ..contents import Choices, Contents
from ..graph import read_spec
from ..job import Job, versions
from ..plan import Plan
from ..session import Session, cores, probe_batch, resolve_provider
from ..sources.files import is_url
from ..store import Store, mark_key
from ..unit import Buffers, Unit, UnitResult, commit_unit, readers, write_unit

__all__ = ["TRIES", "Bench", "Executor", "Here", "Orders", "Ready", "ThisProcess"]

TRIES = 5  # times that a unit may fail for want of its worker before the run ends


@dataclass(frozen=True, slots=True)
class Orders:
    """What a worker is told once: small, and readable on every machine that shares the files.

    Attributes:
        graph: where the graph lies; `store`: where the store lies.
        plan: of the store, so that a worker notices another one at its place.
        choices: what the run is to make.
        provider: as for `run`.
        readers: how many reads at once the source is worth, 0 where it is on this machine.
        versions: of what decides the numbers, which must be the worker's own.
    """

    graph: str
    store: str
    plan: Plan
    choices: Choices
    provider: str
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

    def open(self, orders: Orders, units: int, first: Unit, stop: threading.Event) -> Ready:
        """Make workers ready for a run of so many units, the `first` of which they can read.

        Raises:
            AttlasError: a worker cannot do it.
        """

    def units(self, todo: Sequence[int], unit: Callable[[int], Unit], stop: threading.Event) -> Iterator[UnitResult]:
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
        contents = Contents.derive(read_spec(orders.graph), orders.choices)
        notes: list[str] = []
        session = _session(orders, orders.provider, contents, threads, notes)
        self.hands = hands
        self.ready = Ready(session.provider, "graph" if session.appended else "host", tuple(notes))
        self._idle: SimpleQueue[Buffers] = SimpleQueue()
        for _ in range(hands):
            # Of its own: who reads one archive from front to end is not to jump to another's.
            pool = ThreadPoolExecutor(orders.readers, "read") if orders.readers else None
            self._idle.put(Buffers(session, self.store, contents, pool))
        self._disk = threading.Lock()
        # A slow disk holds the hands back, so that little is lost when the worker is killed.
        self._unmarked = threading.BoundedSemaphore(2 * hands + 1)

    def do(self, unit: Unit, between: Callable[[], None] = lambda: None) -> UnitResult:
        """Do one unit in this thread; `between` is called when only the disk is waited for.

        A unit that is marked already is left as it is: whoever asks again lost the answer and not the work.
        """
        if self.store.place.exists(mark_key(unit.k)):
            return UnitResult(images=len(unit.items))
        with self._unmarked:
            result = self._write(unit)
            between()
            with self._disk:
                commit_unit(unit.k, self.store, result)
            return result

    def units(self, take: Callable[[], Unit | None]) -> Iterator[tuple[int, UnitResult]]:
        """Do what `take` gives until it gives None, `hands` units at once, and yield (k, result) as they are done.

        A thread of its own waits for the disk and marks units done, while the hands go on with the next.
        """

        def work(unit: Unit) -> tuple[int, UnitResult]:
            return unit.k, self._write(unit)

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
        tools = self._idle.get()
        try:
            return write_unit(self.store.plan, unit, tools)
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

    def open(self, orders: Orders, units: int, first: Unit, stop: threading.Event) -> Ready:
        """Load the graph."""
        self.hands = max(1, min(self._threads or cores(), units))
        # All hands together use the cores once.
        self._bench = Bench(orders, hands=self.hands, threads=max(1, cores() // self.hands))
        return self._bench.ready

    def units(self, todo: Sequence[int], unit: Callable[[int], Unit], stop: threading.Event) -> Iterator[UnitResult]:
        """See `Executor`."""
        assert self._bench is not None
        waiting = iter(todo)

        def take() -> Unit | None:
            k = None if stop.is_set() else next(waiting, None)
            return None if k is None else unit(k)

        for _, result in self._bench.units(take):
            yield result


def orders_of(job: Job, store: Store) -> Orders:
    """What workers are told of a job whose store is laid out."""
    request = job.request
    return Orders(
        graph=_whole(request.graph), store=_whole(store.path), plan=store.plan, choices=job.choices,
        provider=request.provider, readers=readers(job.source), versions=versions(),
    )  # fmt: skip


def _whole(place: str | os.PathLike[str]) -> str:
    """A path that means the same in another process; a URL does."""
    text = os.fspath(place)
    return text if is_url(text) else os.path.abspath(text)  # noqa: PTH100 - links stay as they are named


def _session(orders: Orders, provider: str, contents: Contents, threads: int, notes: list[str]) -> Session:
    """The graph, with the statistics behind it where they belong there."""
    accelerator = resolve_provider(provider)[0] != "CPUExecutionProvider"
    automatic = contents.statistics == "auto"
    appended = contents.appended(accelerator=accelerator)
    if appended is None and accelerator and automatic and contents.reducer is not None:
        notes.append("statistics on the host, which is slower (`pip install 'attlas[gpu]'` puts them in the graph)")
    wanted = contents.wanted(appended=appended is not None)
    session = Session(orders.graph, provider=provider, wanted=wanted, appended=appended, threads=threads)
    if session.on_cpu and appended is not None and automatic:
        # A card was there and does not work: on a CPU the host's statistics are ten times as fast.
        return _session(orders, "cpu", contents, threads, notes)
    return session
