"""A Dask cluster, whoever started it: the one module that knows dask.distributed."""

from __future__ import annotations

import contextlib
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError
from concurrent.futures import Executor as Pool
from typing import Any, Self

from ...errors import AttlasError

try:
    import distributed
except ImportError:
    raise AttlasError(
        "--scheduler: needs dask.distributed, which is not installed: `pip install 'attlas[distributed]'` brings it, "
        "here and on every worker"
    ) from None

from ..versions import check_versions, versions
from .dispatch import TRIES

__all__ = ["LOOK", "Cluster", "in_words", "leave_thread", "this_worker"]

CONNECT = 5  # seconds
LOOK = 2.0  # seconds between looks at who is there


class Cluster:
    """The workers of a Dask scheduler. They may come and go; where some have the resource `GPU`, only they count.

    Attributes:
        description: who is there, for people.
        there: what Dask says of each worker, by address.
        threads: of all workers together; `resources`: what a task takes of them.
    """

    def __init__(self, address: str) -> None:
        """`address`: of the scheduler."""
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
        """Whether the scheduler is still there."""
        return bool(self._client.status == "running")

    def look(self) -> None:
        """See who is there now, at most every few seconds."""
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
            # A card is shared by the threads of its worker, so that one decodes while another computes.
            self.resources = {"GPU": one["resources"]["GPU"] / one["nthreads"]}
            break
        who = f"{len(self.there)} workers, {self.threads} threads" if self.there else "no worker yet, waiting for one"
        watched = f"; dashboard {self._client.dashboard_link}" if "dashboard" in known.get("services", {}) else ""
        self.description = f"Dask at {self.address}: {who}{watched}"

    def submit(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Have a worker do something; Dask's future."""
        return self._client.submit(function, *arguments, **named, pure=False, resources=self.resources)

    def ask(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Have one worker do something."""
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
        """Have every worker do something, beside its tasks; the first that cannot is named."""
        if not self.there:
            raise self._nobody()
        try:
            found: dict[str, Any] = self._client.run(function, *arguments, workers=list(self.there), on_error="return")
        except Exception as error:
            raise self._fails(error) from None
        _refuse({one: in_words(said) for one, said in found.items() if isinstance(said, BaseException)})
        return found

    def check_versions(self) -> None:
        """Refuse workers on which something differs that decides the numbers.

        Raises:
            AttlasError: no worker is there, or one has another version.
        """
        if not self.there:
            raise self._nobody()
        # Dask is asked first, which needs no attlas there.
        found = self._client.get_versions(packages=["attlas"])
        here = found["client"]["packages"]["attlas"]
        known = {one: said["packages"]["attlas"] for one, said in found["workers"].items() if one in self.there}
        wrong = {one: version or "missing" for one, version in known.items() if version != here}
        _refuse({one: f"attlas {version} there, {here} here; install the same" for one, version in wrong.items()})
        self.each(check_versions, versions())

    def forget(self, function: Callable[[], Any]) -> None:
        """Have every worker that can still be reached clear up."""
        with contextlib.suppress(Exception):
            if self.alive:
                self._client.run(function, on_error="ignore")

    @contextlib.contextmanager
    def pool(self) -> Iterator[Pool]:
        """The workers for functions, as an executor of Python's own kind.

        Raises:
            AttlasError: no worker is there, one has other versions, one died again and again, or the scheduler is gone.
        """
        self.check_versions()
        try:
            yield self._client.get_executor(pure=False, retries=TRIES)
        except distributed.KilledWorker as error:
            raise self._fails(error) from None
        except CancelledError:
            raise self.lost() from None

    def lost(self) -> AttlasError:
        """What is said when the scheduler cannot be reached any more."""
        return AttlasError(
            f"{self.address}: the scheduler is gone; what is done stays, the same command goes on when it is back"
        )

    def _nobody(self) -> AttlasError:
        return AttlasError(f"{self.address}: no worker is there; start some with `dask worker {self.address}`")

    def _fails(self, error: BaseException) -> AttlasError:
        return AttlasError(f"{self.address}: a worker fails ({in_words(error)})")


def _refuse(refused: Mapping[str, str]) -> None:
    """Name the first worker that cannot do it, and why."""
    for address, why in refused.items():
        others = f" (so do {len(refused) - 1} more)" if len(refused) > 1 else ""
        raise AttlasError(f"worker {address}: {why}{others}")


def _connect(address: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of versions: those that matter are compared by us
            client: Callable[..., Any] = distributed.Client
            return client(address, timeout=CONNECT, set_as_default=False, name="attlas")
    except (OSError, ValueError, TypeError, TimeoutError) as error:
        raise AttlasError(f"--scheduler {address}: cannot be reached ({in_words(error)})") from None


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


def in_words(error: Any) -> str:
    """An exception in one line."""
    return " ".join((str(error) or type(error).__name__).split())[:300]


def this_worker() -> tuple[str, int]:
    """On a worker: its address, and how many threads it has."""
    worker = distributed.get_worker()
    return str(worker.address), int(worker.state.nthreads)


def leave_thread() -> None:
    """On a worker: what follows is waiting, so that the thread may begin with the next task."""
    distributed.secede()  # type: ignore[no-untyped-call]
