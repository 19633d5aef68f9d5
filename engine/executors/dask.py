"""A Dask cluster does the units: the one module that knows dask.distributed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
import uuid
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from concurrent.futures import Executor as Pool
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Self

from ...exporter.errors import AttlasError, Interrupted

try:
    import distributed
except ImportError:
    raise AttlasError(
        "--scheduler: needs dask.distributed, which is not installed: `pip install 'attlas[distributed]'` brings it, "
        "here and on every worker"
    ) from None

from ..job import versions
from ..session import probe_batch, resolve_provider
from ..sources.items import ChangedError
from ..unit import Unit, UnitResult
from . import TRIES, Bench, Orders, Ready

__all__ = ["Cluster"]

CONNECT = 5  # seconds
LOOK = 2.0  # seconds between looks at who is there
PACKAGES = ["attlas", "onnxruntime", "numpy", "zarr", "PIL"]  # by the names they are imported by


class Cluster:
    """The workers of a Dask scheduler, however they were started. They may come and go.

    Each loads the graph once. Where workers have the resource `GPU`, only they get units.
    """

    kind = "dask"

    def __init__(self, address: str) -> None:
        """`address`: of the scheduler."""
        self.address = address
        self.workers, self.hands = 1, 1
        self.words = ""
        self._resources: dict[str, float] = {}
        self._looked = 0.0
        self._quiet = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._quiet.enter_context(_silence())
        try:
            self._client = _connect(self.address)
        except BaseException:
            self._quiet.close()
            raise
        self._look()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(Exception):
            if self._client.status == "running":
                self._client.run(_forget, on_error="ignore")
        with contextlib.suppress(Exception):
            self._client.close(timeout=2)
        self._quiet.close()

    def provider(self, asked: str) -> str:
        """What `auto` means on a worker: this machine may have no card where the workers have one."""
        if asked.lower() != "auto" or not self._there:
            return asked
        first: list[str] = self._ask(resolve_provider, "auto")
        return first[0]

    def probe(self, graph: Path, batch: int, **choices: Any) -> int:
        """`session.probe_batch` on a worker."""
        return int(self._ask(probe_batch, str(graph.resolve()), batch, **choices))

    def open(self, orders: Orders, units: int, first: Unit, stop: threading.Event) -> Ready:
        """Wait for a worker, and have all that are there load the graph.

        Raises:
            AttlasError: a worker has other versions, does not see the files, or lacks the provider.
        """
        while not self._there:
            if stop.wait(LOOK):
                raise Interrupted(f"{self.address}: stopped while no worker was there; the same command goes on")
            self._look()
        self._compare_versions()
        self._orders = orders
        found = self._each(_ready, orders, first.alone())
        refused = {address: said for address, said in found.items() if not isinstance(said, Ready)}
        for address, said in refused.items():
            raise AttlasError(f"worker {address}: {_line(said)}{_others(refused)}")
        ready: Ready = next(iter(found.values()))
        for address, other in found.items():
            if other.provider != ready.provider:
                raise AttlasError(
                    f"worker {address}: runs on {other.provider}, others on {ready.provider}; name one with --provider"
                )
        return ready

    def units(self, todo: Sequence[int], unit: Callable[[int], Unit], stop: threading.Event) -> Iterator[UnitResult]:
        """See `Executor`.

        Raises:
            AttlasError: what a worker raised, a unit that took its worker down `TRIES` times, or no scheduler.
        """
        left, tries = deque(todo), Counter[int]()
        at: dict[str, tuple[int, Any]] = {}
        ended: SimpleQueue[Any] = SimpleQueue()
        run = uuid.uuid4().hex[:8]
        failure: AttlasError | None = None
        while True:
            self._look()
            # Twice as many as are at work: the next is there when one ends, and few are in flight when all is to end.
            while left and failure is None and not stop.is_set() and len(at) < 2 * self.hands:
                k = left.popleft()
                key = f"attlas-unit-{k}-{run}-{tries[k]}"
                future = self._client.submit(
                    _unit, self._orders, unit(k).alone(), key=key, pure=False, resources=self._resources or None,
                )  # fmt: skip
                at[key] = (k, future)
                future.add_done_callback(ended.put)
            if not at:
                break
            try:
                future = ended.get(timeout=LOOK)
            except Empty:
                if self._client.status != "running":
                    raise self._lost() from None
                continue
            if future.key not in at:
                continue
            if future.status in ("lost", "pending"):
                # Its worker was killed with the answer. Dask asks another, who finds the unit marked.
                future.add_done_callback(ended.put)
                continue
            k, _ = at.pop(future.key)
            if future.status == "finished":
                try:
                    result: UnitResult = future.result()
                except CancelledError:
                    raise self._lost() from None
                yield result
            elif future.status != "error":
                raise self._lost()
            else:
                error = future.exception()
                if isinstance(error, AttlasError):
                    failure = failure or error
                    continue
                tries[k] += 1
                left.append(k)  # at the end: what else there is gets done first
                if tries[k] == TRIES:
                    failure = failure or AttlasError(
                        f"unit {k} failed on {TRIES} workers ({_line(error)}); what is done stays, the same command "
                        "goes on"
                    )
        if failure is not None:
            raise failure

    @contextlib.contextmanager
    def pool(self) -> Iterator[Pool]:
        """The workers for functions, as an executor of Python's own kind.

        Raises:
            AttlasError: no worker is there, one has other versions, one died again and again, or the scheduler is gone.
        """
        if not self._there:
            raise self._nobody()
        self._compare_versions()
        try:
            yield self._client.get_executor(pure=False, retries=TRIES)
        except distributed.KilledWorker as error:
            raise AttlasError(f"{self.address}: a worker fails ({_line(error)})") from None
        except CancelledError:
            raise self._lost() from None

    def _look(self) -> None:
        """See who is there now, at most every few seconds."""
        if time.monotonic() - self._looked < LOOK and self.words:
            return
        try:
            known: dict[str, Any] = self._client.scheduler_info(n_workers=-1)
        except Exception:
            raise self._lost() from None
        self._looked, there = time.monotonic(), known["workers"]
        cards = {address: one for address, one in there.items() if one.get("resources", {}).get("GPU")}
        self._there = cards or there
        self.workers = max(1, len(self._there))
        self.hands = max(1, sum(one["nthreads"] for one in self._there.values()))
        if cards:
            # A card is shared by the threads of its worker, so that one decodes while another computes.
            first = next(iter(cards.values()))
            self._resources = {"GPU": first["resources"]["GPU"] / first["nthreads"]}
        who = f"{len(self._there)} workers, {self.hands} threads" if self._there else "no worker yet, waiting for one"
        watched = f"; dashboard {self._client.dashboard_link}" if "dashboard" in known.get("services", {}) else ""
        self.words = f"Dask at {self.address}: {who}{watched}"

    def _compare_versions(self) -> None:
        """Refuse workers whose packages differ in what decides the numbers; asks Dask, which needs no attlas there."""
        found = self._client.get_versions(packages=PACKAGES)
        here = found["client"]["packages"]
        wrong = {
            address: [f"{name} {one['packages'].get(name) or 'missing'} there, {here[name]} here"
                      for name in PACKAGES if one["packages"].get(name) != here[name]]
            for address, one in found["workers"].items() if address in self._there
        }  # fmt: skip
        refused = {address: differences for address, differences in wrong.items() if differences}
        for address, differences in refused.items():
            raise AttlasError(f"worker {address}: {', '.join(differences)}; install the same{_others(refused)}")

    def _ask(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Have one worker do something."""
        self._look()
        if not self._there:
            raise self._nobody()
        try:
            return self._client.submit(
                function, *arguments, **named, pure=False, resources=self._resources or None, retries=TRIES
            ).result()
        except AttlasError:
            raise
        except Exception as error:
            raise AttlasError(f"{self.address}: a worker fails ({_line(error)})") from None

    def _each(self, function: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
        """Have every worker do something, beside its tasks."""
        try:
            found: dict[str, Any] = self._client.run(function, *arguments, workers=list(self._there), on_error="return")
        except Exception as error:
            raise AttlasError(f"{self.address}: a worker fails ({_line(error)})") from None
        return found

    def _nobody(self) -> AttlasError:
        return AttlasError(f"{self.address}: no worker is there; start some with `dask worker {self.address}`")

    def _lost(self) -> AttlasError:
        return AttlasError(
            f"{self.address}: the scheduler is gone; what is done stays, the same command goes on when it is back"
        )


def _connect(address: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of versions: those that matter are compared by us
            client: Callable[..., Any] = distributed.Client
            return client(address, timeout=CONNECT, set_as_default=False, name="attlas")
    except (OSError, ValueError, TypeError, TimeoutError) as error:
        raise AttlasError(f"--scheduler {address}: cannot be reached ({_line(error)})") from None


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """What Dask would log on somebody's terminal is said here in one line, by an error."""
    names = [name for name in logging.root.manager.loggerDict if name.split(".")[0] in ("distributed", "tornado")]
    loggers = [logging.getLogger(name) for name in {"distributed", "tornado", *names}]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _line(error: Any) -> str:
    text = str(error) or type(error).__name__
    return " ".join(text.split())[:300]


def _others(refused: dict[str, Any]) -> str:
    return f" (so do {len(refused) - 1} more)" if len(refused) > 1 else ""


# -- on the workers ---------------------------------------------------------------------------------------------------

_lock = threading.Lock()
_kept: list[tuple[Orders, Bench]] = []  # of the run that was last worked for


def _bench(orders: Orders, hands: int) -> Bench:
    """This worker's bench, made once a run."""
    with _lock:
        if not _kept or _kept[0][0] != orders:
            _kept.clear()
            here = versions()
            wrong = [f"{n} {here.get(n, 'missing')} there, {v} here" for n, v in orders.versions.items()
                     if n != "python" and here.get(n) != v]  # fmt: skip
            if wrong:
                raise AttlasError(f"{', '.join(wrong)}; install the same")
            # Dask counts a thread as a core.
            _kept.append((orders, Bench(orders, hands=hands, threads=1)))
        return _kept[0][1]


def _unit(orders: Orders, unit: Unit) -> UnitResult:
    worker = distributed.get_worker()
    try:
        # While this one waits for the disk, its thread has the next.
        return _bench(orders, worker.state.nthreads).do(unit, distributed.secede)
    except AttlasError as error:
        raise AttlasError(f"worker {worker.address}: {error}") from None


async def _ready(orders: Orders, first: Unit, dask_worker: Any) -> Ready:
    """Load the graph, and try an image, beside the worker's event loop, which has to answer meanwhile."""
    bench = await asyncio.to_thread(_bench, orders, dask_worker.state.nthreads)
    item = first.items[0]
    try:
        await asyncio.to_thread(first.source.read, item)
    except OSError as error:
        raise AttlasError(
            f"sees no image {item.key} ({error.strerror or error}): give it a file system that it shares"
        ) from None
    except ChangedError:
        pass  # costs one image, as everywhere
    return bench.ready


def _forget() -> None:
    """Give the memory back when a run is over."""
    with _lock:
        _kept.clear()
