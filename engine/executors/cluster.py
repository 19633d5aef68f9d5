"""An existing Dask cluster: the only module that uses dask.distributed."""

from __future__ import annotations

import contextlib
import logging
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError
from concurrent.futures import Executor as Pool
from typing import Any, Self

from ...errors import AttlasError, UsageError

try:
    import distributed
except ImportError:
    raise AttlasError(
        "--scheduler: needs dask.distributed, which is not installed: `pip install 'attlas[distributed]'` brings it, "
        "here and on every worker"
    ) from None

from ...words import counted
from ..versions import check_versions, versions
from .dispatch import TRIES

__all__ = ["LOOK", "Cluster", "in_words", "leave_thread", "this_worker"]

CONNECT = 5  # seconds
ADDRESS = re.compile(r"((tcp|tls|ucx|wss?)://)?([^\s:/\[\]]+|\[[\w:.%]+\]):[0-9]{1,5}/?")
LOOK = 2.0  # seconds between updates of the list of workers


class Cluster:
    """The workers of a Dask scheduler. They may come and go; if any have the resource `GPU`, only those are used.

    Attributes:
        description: the current workers, as text for the user.
        there: Dask's information on each worker, by address.
        threads: number of threads of all workers; `resources`: the Dask resources that a task takes.
    """

    def __init__(self, address: str) -> None:
        """Connect to the scheduler at `address`."""
        self.address, self.description = address, ""
        self.there: dict[str, Any] = {}
        self.threads = 1
        self.resources: dict[str, float] | None = None
        self._looked = 0.0
        self._leave = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as leave:
            leave.enter_context(_silence())
            self._client = _connect(self.address)
            leave.callback(self._close)
            self.look()
            self._leave = leave.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._leave.close()

    def _close(self) -> None:
        with contextlib.suppress(Exception):
            self._client.close(timeout=2)

    @property
    def alive(self) -> bool:
        """Whether the scheduler is still reachable."""
        return bool(self._client.status == "running")

    def look(self) -> None:
        """Update the list of workers, at most every few seconds."""
        if time.monotonic() - self._looked < LOOK and self.description:
            return
        try:
            known: dict[str, Any] = self._client.scheduler_info(n_workers=-1)
        except Exception:
            raise self.lost() from None
        self._looked, there = time.monotonic(), known["workers"]
        cards = {address: one for address, one in there.items() if one.get("resources", {}).get("GPU")}
        self.there = cards or there
        self.threads = max(1, sum(one["nthreads"] for one in self.there.values()))
        for one in cards.values():
            # The threads of a worker share its card, so that one decodes while another computes.
            self.resources = {"GPU": one["resources"]["GPU"] / one["nthreads"]}
            break
        who = (
            f"{counted(len(self.there), 'worker')}, {counted(self.threads, 'thread')}"
            if self.there
            else "no worker yet, waiting for one"
        )
        watched = f"; dashboard {self._client.dashboard_link}" if "dashboard" in known.get("services", {}) else ""
        self.description = f"Dask at {self.address}: {who}{watched}"

    def submit(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Call a function on some worker; returns Dask's future."""
        return self._client.submit(function, *arguments, **named, pure=False, resources=self.resources)

    def ask(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Call a function on one worker and return its result."""
        self.look()
        if not self.there:
            raise self._nobody()
        try:
            return self.submit(function, *arguments, **named, retries=TRIES).result()
        except AttlasError:
            raise
        except Exception as error:
            raise self._fails(error) from None

    def each(self, function: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
        """Call a function on every worker, outside its task queue; an error names the first worker that fails."""
        if not self.there:
            raise self._nobody()
        try:
            found: dict[str, Any] = self._client.run(function, *arguments, workers=list(self.there), on_error="return")
        except Exception as error:
            raise self._fails(error) from None
        _refuse({one: in_words(answer) for one, answer in found.items() if isinstance(answer, BaseException)})
        return found

    def check_versions(self) -> None:
        """Refuse workers with other versions of packages that affect the numbers.

        Raises:
            AttlasError: there is no worker, or one has another version.
        """
        if not self.there:
            raise self._nobody()
        # Dask's own check comes first, because it needs no attlas on the workers.
        found = self._client.get_versions(packages=["attlas"])
        here = found["client"]["packages"]["attlas"]
        known = {one: info["packages"]["attlas"] for one, info in found["workers"].items() if one in self.there}
        wrong = {one: version or "missing" for one, version in known.items() if version != here}
        _refuse({one: f"attlas {version} there, {here} here; install the same" for one, version in wrong.items()})
        self.each(check_versions, versions())

    def forget(self, function: Callable[[], Any]) -> None:
        """Call a clean-up function on every worker that is still reachable."""
        with contextlib.suppress(Exception):
            if self.alive:
                self._client.run(function, on_error="ignore")

    @contextlib.contextmanager
    def pool(self) -> Iterator[Pool]:
        """The workers as a `concurrent.futures` executor.

        Raises:
            AttlasError: there is no worker, one has other versions, one died repeatedly, or the scheduler is gone.
        """
        self.check_versions()
        try:
            yield self._client.get_executor(pure=False, retries=TRIES)
        except distributed.KilledWorker as error:
            raise self._fails(error) from None
        except CancelledError:
            raise self.lost() from None

    def lost(self) -> AttlasError:
        """The error for a scheduler that is no longer reachable."""
        return AttlasError(
            f"{self.address}: the scheduler is gone; what is done stays, the same command goes on when it is back"
        )

    def _nobody(self) -> AttlasError:
        return AttlasError(f"{self.address}: no worker is there; start some with `dask worker {self.address}`")

    def _fails(self, error: BaseException) -> AttlasError:
        return AttlasError(f"{self.address}: a worker fails ({in_words(error)})")


def _refuse(refused: Mapping[str, str]) -> None:
    """Raise an error with the first worker that failed, and why."""
    for address, why in refused.items():
        others = f" (so do {len(refused) - 1} more)" if len(refused) > 1 else ""
        raise AttlasError(f"worker {address}: {why}{others}")


def _connect(address: str) -> Any:
    if not ADDRESS.fullmatch(address):  # Dask would take its time, and raise what nobody catches
        raise UsageError(
            f"--scheduler {address}: is no address; write tcp://HOST:PORT, as `dask scheduler` prints it at its start"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about versions: `check_versions` compares those that matter
            client: Callable[..., Any] = distributed.Client
            return client(address, timeout=CONNECT, set_as_default=False, name="attlas")
    except (OSError, ValueError, TypeError, TimeoutError) as error:
        raise AttlasError(f"--scheduler {address}: cannot be reached ({in_words(error)})") from None


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Suppress Dask's log lines: our errors say the same in one line."""
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


def in_words(error: Any) -> str:
    """An exception as one line of text."""
    return " ".join((str(error) or type(error).__name__).split())[:300]


def this_worker() -> tuple[str, int]:
    """On a worker: its address and its number of threads."""
    worker = distributed.get_worker()
    return str(worker.address), int(worker.state.nthreads)


def leave_thread() -> None:
    """On a worker: give up this task's slot while it waits, so that the next task can start."""
    distributed.secede()  # type: ignore[no-untyped-call]
