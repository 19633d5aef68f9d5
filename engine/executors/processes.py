"""Local worker processes: each with cores of its own, or a card of its own. They ask for units, so none waits long."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from concurrent.futures import Executor as Pool
from dataclasses import dataclass, field
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from ...exporter.errors import AttlasError, UsageError
from ..session import cores, resolve_provider
from ..store import Store
from ..unit import Unit, UnitResult
from . import TRIES, Bench, Here, Orders, Ready

__all__ = ["Processes", "pool"]


@dataclass
class _Worker:
    """One process, seen from outside: `at` are the units that it has and has not reported."""

    number: int
    process: BaseProcess
    pipe: Connection
    at: set[int] = field(default_factory=set)


class Processes(Here):
    """Processes of this machine. One that dies is replaced, and its units in flight are done again."""

    kind = "processes"

    def __init__(self, workers: int, threads: int | None = None) -> None:
        """`threads`: units at work at once in each; by default one per core that it has."""
        self.workers, self.hands = workers, 1
        self.words = ""
        self._threads = threads
        self._alive: list[_Worker] = []
        self._ready: Ready | None = None
        self._fruitless = 0  # deaths since a unit was last done
        self._halted = False

    def __exit__(self, *_: object) -> None:
        for worker in self._alive:
            worker.process.kill()
        for worker in self._alive:
            worker.process.join()
            worker.pipe.close()
        self._alive.clear()

    def open(self, orders: Orders, units: int, first: Unit, stop: threading.Event) -> Ready:
        """Start the processes, and wait until each has loaded the graph.

        Raises:
            AttlasError: one cannot, or has another provider than the first.
            UsageError: statistics that only this process knows.
        """
        self.workers = min(self.workers, units)
        each = self._threads or max(1, cores() // self.workers)
        self._orders, self._each = orders, each
        self.hands = each * self.workers
        on_card = resolve_provider(orders.provider)[0] in ("CUDAExecutionProvider", "TensorrtExecutionProvider")
        self._cards = _cards() if on_card else []
        for number in range(self.workers):
            self._start(number)
        for number in range(self.workers):
            while (worker := self._of(number)) is not None and not self._hear(worker):
                pass
        assert self._ready is not None
        cards = f", {len(self._cards)} cards" if self._cards else ""
        self.words = f"{self.workers} worker processes of {each} threads{cards}"
        return self._ready

    def units(self, todo: Sequence[int], unit: Callable[[int], Unit], stop: threading.Event) -> Iterator[UnitResult]:
        """See `Executor`.

        Raises:
            AttlasError: what a worker raised, or a unit that took its worker down `TRIES` times.
        """
        left, tries = deque(todo), Counter[int]()
        try:
            yield from self._work(left, tries, unit, stop)
        except BaseException:
            # Whatever happened, units in flight still end.
            self._halted = True
            for _ in self._work(left, tries, unit, stop):
                pass
            raise

    def _work(
        self, left: deque[int], tries: Counter[int], unit: Callable[[int], Unit], stop: threading.Event
    ) -> Iterator[UnitResult]:
        failure: AttlasError | None = None
        store = Store(self._orders.store)
        while True:
            halted = self._halted or failure is not None or stop.is_set()
            for number in range(self.workers) if left and not halted else ():
                if self._of(number) is None:
                    self._start(number)
            if not self._alive:
                break
            for pipe in connection.wait([worker.pipe for worker in self._alive]):
                worker = next(w for w in self._alive if w.pipe is pipe)
                try:
                    word, value = worker.pipe.recv()
                except (EOFError, OSError):
                    self._bury(worker)
                    done = store.done if worker.at else ()
                    for k in sorted(worker.at, reverse=True):
                        if done[k]:  # marked, and died before it could say so
                            yield UnitResult(images=len(store.plan.unit_range(k)))
                            continue
                        tries[k] += 1
                        left.append(k)  # at the end: what else there is gets done first
                        if tries[k] == TRIES:
                            failure = AttlasError(
                                f"unit {k} took its worker process down {TRIES} times ({_end(worker.process)}); what "
                                "is done stays, the same command goes on"
                            )
                    continue
                if word == "next":
                    halted = self._halted or failure is not None or stop.is_set()
                    handed = None if halted or not left else unit(left.popleft()).alone()
                    if handed is not None:
                        worker.at.add(handed.k)
                    with contextlib.suppress(OSError):  # a dead worker is noticed at the next turn
                        worker.pipe.send(handed)
                elif word == "done":
                    k, result = value
                    worker.at.discard(k)
                    self._fruitless = 0
                    yield result
                elif word == "failed":
                    failure = value
                elif word == "ready":
                    self._check(worker, value)
        if failure is not None:
            raise failure

    def _hear(self, worker: _Worker) -> bool:
        """Whether a worker that starts is ready; one that died is replaced."""
        try:
            word, value = worker.pipe.recv()
        except (EOFError, OSError):
            self._bury(worker)
            self._start(worker.number)
            return False
        if word == "failed":
            raise value
        self._check(worker, value)
        return True

    def _check(self, worker: _Worker, ready: Ready) -> None:
        self._ready = self._ready or ready
        if ready.provider != self._ready.provider:
            raise AttlasError(
                f"worker process {worker.number} runs on {ready.provider}, the others on {self._ready.provider}: "
                "name one with --provider, and see `attlas doctor`"
            )

    def _of(self, number: int) -> _Worker | None:
        return next((w for w in self._alive if w.number == number), None)

    def _start(self, number: int) -> None:
        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.get_context("spawn").Process(
            target=_serve, name=f"attlas-worker-{number}", daemon=True,
            args=(theirs, _cores(number, self.workers), self._card(number), self._each),
        )  # fmt: skip
        try:
            process.start()
        except OSError as error:
            raise AttlasError(f"a worker process does not start ({error.strerror or error})") from None
        theirs.close()
        self._alive.append(_Worker(number, process, ours))
        try:
            ours.send(self._orders)
        except OSError:
            pass  # it is dead already, which is noticed where it is listened to
        except Exception as error:  # what cannot be named cannot travel, and says so with several exceptions
            raise UsageError(f"--workers: {error}; define it in a module, which another process can import") from None

    def _card(self, number: int) -> str | None:
        return self._cards[number % len(self._cards)] if self._cards else None

    def _bury(self, worker: _Worker) -> None:
        """A worker whose pipe has ended: either it was told to end, or it died."""
        worker.process.join()
        worker.pipe.close()
        self._alive.remove(worker)
        if worker.process.exitcode == 0:
            return
        self._fruitless += 1
        if self._fruitless > TRIES * self.workers:
            raise AttlasError(
                f"worker processes end before they have done anything ({_end(worker.process)}); what is done stays, "
                "the same command goes on"
            )


@contextlib.contextmanager
def pool(workers: int) -> Iterator[Pool]:
    """Processes of this machine for functions, each with cores of its own.

    Raises:
        AttlasError: one of them died.
    """
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(workers, context, _pin_next, (context.Value("i", 0), workers))
    try:
        yield executor
    except BrokenExecutor:
        raise AttlasError("a worker process died (the system kills when memory runs out); run again") from None
    finally:
        executor.shutdown(cancel_futures=True)


def _pin_next(number: Any, workers: int) -> None:
    _leave_signals()
    with number.get_lock():
        mine, number.value = number.value, number.value + 1
    _pin(_cores(mine % workers, workers))


def _serve(pipe: Connection, own: Sequence[int], card: str | None, hands: int) -> None:
    """What a worker process does: load, say so, and then unit after unit until there is none."""
    _leave_signals()
    _pin(own)
    if card is not None:
        # Before the first session, which is when CUDA looks.
        os.environ["CUDA_VISIBLE_DEVICES"] = card

    def take() -> Unit | None:
        pipe.send(("next", None))
        unit: Unit | None = pipe.recv()
        return unit

    try:
        orders: Orders = pipe.recv()
        bench = Bench(orders, hands=hands, threads=max(1, len(own) // hands))
        pipe.send(("ready", bench.ready))
        for result in bench.units(take):
            pipe.send(("done", result))
    except AttlasError as error:
        pipe.send(("failed", error))
    except (EOFError, BrokenPipeError):
        os._exit(1)  # nobody is there to do it for
    except (ImportError, AttributeError) as error:
        pipe.send(
            ("failed", UsageError(f"--workers: {error}; define it in a module, which another process can import"))
        )


def _leave_signals() -> None:
    """A signal to the whole group is for the one who started this; when that one is gone, so is this process."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _cores(number: int, workers: int) -> list[int]:
    """The cores of one of `workers` processes: equal parts of this process's own, shared where there are too few."""
    mine = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(cores()))
    if workers > len(mine):
        return [mine[number % len(mine)]]
    return mine[number * len(mine) // workers : (number + 1) * len(mine) // workers]


def _cards() -> list[str]:
    """This machine's cards, as CUDA_VISIBLE_DEVICES names them; those it names already, where it is set."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [card.strip() for card in named.split(",") if card.strip()]
    count = ctypes.c_int()
    try:
        cuda = ctypes.CDLL({"win32": "nvcuda.dll"}.get(sys.platform, "libcuda.so.1"))
        known = cuda.cuInit(0) == 0 and cuda.cuDeviceGetCount(ctypes.byref(count)) == 0
    except (OSError, AttributeError):
        known = False
    return [str(number) for number in range(count.value)] if known else []


def _pin(own: Sequence[int]) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, own)


def _end(process: BaseProcess) -> str:
    """How a process ended, in words."""
    code = process.exitcode or 0
    if code >= 0:
        return f"exit status {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    return f"{name}; the system kills when memory runs out" if name == "SIGKILL" else name
