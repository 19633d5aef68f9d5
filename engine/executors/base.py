"""The interface of executors, the task that is sent to their workers, and the information that workers return."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self

from ..contents import Choices
from ..job import Job
from ..plan import Plan
from ..runtime.probe import probe_batch
from ..sources.files import is_url
from ..store.store import Store
from ..unit import Unit, UnitResult
from ..versions import versions

__all__ = ["Executor", "Local", "Task", "WorkerInfo"]


@dataclass(frozen=True, slots=True)
class Task:
    """The task of a run, sent once to each worker: small, and valid on every machine that shares the files.

    Attributes:
        graph: path of the graph; `store`: path or URL of the store.
        plan: the store's plan, so that a worker notices a different store at its path.
        choices: what the run makes.
        provider: as for `run`.
        readers: number of concurrent reads for this source; 0 for local files.
        versions: versions that affect the numbers; the worker must have the same.
    """

    graph: str
    store: str
    plan: Plan
    choices: Choices
    provider: str
    readers: int
    versions: Mapping[str, str]

    @classmethod
    def of(cls, job: Job, store: Store) -> Task:
        """The task of a job whose store exists."""
        request = job.request
        return cls(
            graph=_absolute(request.graph),
            store=_absolute(store.path),
            plan=store.plan,
            choices=job.choices,
            provider=request.provider,
            readers=job.source.reads_ahead,
            versions=versions(request.provider, request.decoder),
        )


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """The setup of a worker: `provider` is onnxruntime's name, `OpenVINO` or `OpenVINO, bfloat16`."""

    provider: str
    statistics: Literal["card", "graph", "host"]
    notes: tuple[str, ...] = ()


class Executor(Protocol):
    """Does units. It is a context manager that stops all its workers on exit.

    Attributes:
        kind: one word for the run's record.
    """

    kind: str

    @property
    def description(self) -> str:
        """The current workers, as text for the user, and where to watch them."""

    @property
    def workers(self) -> int:
        """Number of processes that do the work."""

    @property
    def threads(self) -> int:
        """Number of units that are processed at once, over all workers."""

    def __enter__(self) -> Self:
        """Connect to the workers."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop everything that was started."""

    def provider(self, asked: str) -> str:
        """The provider for `auto` on the machine that does the work."""

    def probe(self, graph: Path, batch: int, **choices: Any) -> int:
        """`session.probe_batch` on the machine that does the work."""

    def open(self, task: Task, units: int, first: Unit, stop: threading.Event) -> WorkerInfo:
        """Prepare workers for a run of `units` units, and check that they can read images of the `first`.

        Raises:
            AttlasError: a worker cannot do the task.
        """

    def units(self, todo: Sequence[int], unit: Callable[[int], Unit], stop: threading.Event) -> Iterator[UnitResult]:
        """Do the units, and yield each result after its unit is marked done; `dispatch` does this for many workers.

        No unit starts after `stop` is set. After an error, units in flight still finish.
        """


class Local:
    """Methods that all executors on this machine share."""

    def __enter__(self) -> Self:
        return self

    def provider(self, asked: str) -> str:
        """The provider as given."""
        return asked

    def probe(self, graph: Path, batch: int, **choices: Any) -> int:
        """`session.probe_batch`."""
        return probe_batch(graph, batch, **choices)


def _absolute(path: str | os.PathLike[str]) -> str:
    """An absolute path, which is valid in other processes; a URL is not changed."""
    text = os.fspath(path)
    return text if is_url(text) else os.path.abspath(text)  # noqa: PTH100 - links stay as they are named
