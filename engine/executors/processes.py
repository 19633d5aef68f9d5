"""Local worker processes, each with its own cores or card. They request units, so that none waits for another."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from concurrent.futures import Executor as Pool
from dataclasses import dataclass, field
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from ...errors import AttlasError, UsageError
from ...words import counted
from ..runtime.providers import cores, on_cards
from ..store.store import Store
from ..unit import Unit, UnitResult
from .base import Local, Task, WorkerInfo
from .dispatch import TRIES, Outcome, dispatch
from .worker import Worker, units_at_once

__all__ = ["Processes", "pool"]


@dataclass
class _Process:
    """One worker process, as the main process sees it; `at`: the units that it has not reported yet."""

    number: int
    process: BaseProcess
    pipe: Connection
    at: set[int] = field(default_factory=set)


class Processes(Local):
    """Local processes. One that dies is replaced, and its units in flight are done again."""

    kind = "processes"
    loss = f"took its worker process down {TRIES} times"

    def __init__(self, workers: int, threads: int | None = None) -> None:
        """`threads`: units processed at once in each worker; by default one per core of the worker, as `Threads`."""
        self.workers = workers
        self.threads = workers * (threads or max(1, cores() // workers))
        self.description = ""
        self._wanted = threads
        self._alive: list[_Process] = []
        self._asking: deque[_Process] = deque()  # workers that wait for a unit
        self._info: WorkerInfo | None = None
        self._deaths = 0  # dead workers since the last finished unit

    def __exit__(self, *_: object) -> None:
        for worker in self._alive:
            worker.process.kill()
        for worker in self._alive:
            worker.process.join()
            worker.pipe.close()
        self._alive.clear()

    def open(self, task: Task, units: int, first: Unit, stop: threading.Event) -> WorkerInfo:
        """Start the processes, and wait until each has loaded the graph.

        Raises:
            AttlasError: a process fails, or uses another provider than the first.
            UsageError: the statistics are defined only in this process.
        """
        self.workers = min(self.workers, units)
        each = self._wanted or units_at_once(max(1, cores() // self.workers), task.provider)
        self._task, self._each = task, each
        self.threads = each * self.workers
        self._cards = _cards() if on_cards(task.provider) else []
        for number in range(self.workers):
            self._start(number)
        for number in range(self.workers):
            while (worker := self._find(number)) is not None and not self._wait_ready(worker):
                pass
        assert self._info is not None
        cards = f", {counted(len(self._cards), 'card')}" if self._cards else ""
        self.description = (
            f"{counted(self.workers, 'worker process', 'worker processes')} of {counted(each, 'thread')}{cards}"
        )
        return self._info

    def units(self, todo: Sequence[int], unit: Callable[[int], Unit], stop: threading.Event) -> Iterator[UnitResult]:
        """See `Executor`."""
        return dispatch(self, todo, unit, Store(self._task.store), stop)

    def room(self) -> int:
        """See `Scheduler`."""
        for number in range(self.workers):
            if self._find(number) is None:
                self._start(number)
        return len(self._asking)

    def submit(self, unit: Unit, attempt: int) -> None:
        """See `Scheduler`."""
        worker = self._asking.popleft()
        worker.at.add(unit.k)
        with contextlib.suppress(OSError):  # a dead worker is noticed in `wait`
            worker.pipe.send(unit)

    def wait(self) -> list[Outcome]:
        """See `Scheduler`. Workers that still request a unit get None and end."""
        while self._asking:
            with contextlib.suppress(OSError):
                self._asking.popleft().pipe.send(None)
        outcomes = []
        for pipe in connection.wait([worker.pipe for worker in self._alive]):
            worker = next(w for w in self._alive if w.pipe is pipe)
            try:
                word, value = worker.pipe.recv()
            except (EOFError, OSError):
                self._remove(worker)
                outcomes += [Outcome(k, lost=_end(worker.process)) for k in sorted(worker.at, reverse=True)]
                continue
            if word == "next":
                self._asking.append(worker)
            elif word == "done":
                k, result = value
                worker.at.discard(k)
                self._deaths = 0
                outcomes.append(Outcome(k, result))
            elif word == "failed":
                outcomes.append(Outcome(None, error=value))
            elif word == "ready":
                self._check_provider(worker, value)
        return outcomes

    def _wait_ready(self, worker: _Process) -> bool:
        """Whether a starting worker is ready; a dead one is replaced."""
        try:
            word, value = worker.pipe.recv()
        except (EOFError, OSError):
            self._remove(worker)
            self._start(worker.number)
            return False
        if word == "failed":
            raise value
        self._check_provider(worker, value)
        return True

    def _check_provider(self, worker: _Process, info: WorkerInfo) -> None:
        self._info = self._info or info
        if info.provider != self._info.provider:
            raise AttlasError(
                f"worker process {worker.number} runs on {info.provider}, the others on {self._info.provider}: "
                "name one with --provider, and see `attlas doctor`"
            )

    def _find(self, number: int) -> _Process | None:
        return next((w for w in self._alive if w.number == number), None)

    def _start(self, number: int) -> None:
        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.get_context("spawn").Process(
            target=_serve,
            name=f"attlas-worker-{number}",
            daemon=True,
            args=(theirs, _cores(number, self.workers), self._card(number), self._each),
        )
        try:
            process.start()
        except OSError as error:
            raise AttlasError(f"a worker process does not start ({error.strerror or error})") from None
        theirs.close()
        self._alive.append(_Process(number, process, ours))
        try:
            ours.send(self._task)
        except OSError:
            pass  # it is already dead, which is noticed in `wait`
        except Exception as error:  # pickle raises several exceptions for local functions
            raise UsageError(f"--workers: {error}; define it in a module, which another process can import") from None

    def _card(self, number: int) -> str | None:
        return self._cards[number % len(self._cards)] if self._cards else None

    def _remove(self, worker: _Process) -> None:
        """Remove a worker whose pipe is closed: it was asked to end, or it died."""
        worker.process.join()
        worker.pipe.close()
        self._alive.remove(worker)
        if worker.process.exitcode == 0:
            return
        self._deaths += 1
        if self._deaths > TRIES * self.workers:
            raise AttlasError(
                f"worker processes end before they have done anything ({_end(worker.process)}); what is done stays, "
                "the same command goes on"
            )


@contextlib.contextmanager
def pool(workers: int) -> Iterator[Pool]:
    """A `concurrent.futures` executor of local processes, each with its own cores.

    Raises:
        AttlasError: a process died.
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
    _ignore_signals()
    with number.get_lock():
        mine, number.value = number.value, number.value + 1
    _pin(_cores(mine % workers, workers))


def _serve(pipe: Connection, own: Sequence[int], card: str | None, threads: int) -> None:
    """The main function of a worker process: load the graph, report, then do units until there are none."""
    _ignore_signals()
    _pin(own)
    if card is not None:
        # Before the first session, because CUDA reads it then.
        os.environ["CUDA_VISIBLE_DEVICES"] = card

    def take() -> Unit | None:
        pipe.send(("next", None))
        unit: Unit | None = pipe.recv()
        return unit

    try:
        task: Task = pipe.recv()
        worker = Worker(task, threads=threads, cores=max(1, len(own) // threads))
        pipe.send(("ready", worker.info))
        for result in worker.units(take):
            pipe.send(("done", result))
    except (AttlasError, MemoryError) as error:
        pipe.send(("failed", error))
    except (EOFError, BrokenPipeError):
        os._exit(1)  # the main process is gone
    except (ImportError, AttributeError) as error:
        pipe.send(
            ("failed", UsageError(f"--workers: {error}; define it in a module, which another process can import"))
        )


def _ignore_signals() -> None:
    """Ignore signals to the whole group, which the main process handles; end when the main process is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _cores(number: int, workers: int) -> list[int]:
    """The cores of process `number` of `workers`: equal parts of this process's cores, shared if there are too few."""
    mine = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(cores()))
    if workers > len(mine):
        return [mine[number % len(mine)]]
    return mine[number * len(mine) // workers : (number + 1) * len(mine) // workers]


def _cards() -> list[str]:
    """This machine's cards in the form of CUDA_VISIBLE_DEVICES; if that variable is set, the cards in it."""
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
    """How a process ended, as text."""
    code = process.exitcode or 0
    if code >= 0:
        return f"exit status {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    return f"{name}; the system kills when memory runs out" if name == "SIGKILL" else name
