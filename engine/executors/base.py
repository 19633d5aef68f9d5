"""Who does the units of a run: what every executor is, what its workers are told, and what they say of themselves."""

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
from ..runtime.session import probe_batch
from ..sources.files import is_url
from ..store.store import Store
from ..unit import Unit, UnitResult
from ..versions import versions

__all__ = ["Executor", "Local", "Task", "WorkerInfo"]


@dataclass(frozen=True, slots=True)
class Task:
    """What a worker is told once: small, and readable on every machine that shares the files.

    Attributes:
        graph: where the graph lies; `store`: where the store lies.
        plan: of the store, so that a worker notices another one at its path.
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

    @classmethod
    def of(cls, job: Job, store: Store) -> Task:
        """That of a job whose store is laid out."""
        request = job.request
        return cls(
            graph=_absolute(request.graph),
            store=_absolute(store.path),
            plan=store.plan,
            choices=job.choices,
            provider=request.provider,
            readers=job.source.reads_ahead,
            versions=versions(),
        )


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """How a worker is set up: `provider` is onnxruntime's name."""

    provider: str
    statistics: Literal["graph", "host"]
    notes: tuple[str, ...] = ()


class Executor(Protocol):
    """Who does units: a context, which leaves nothing running behind it.

    Attributes:
        kind: one word for the run's record.
    """

    kind: str

    @property
    def description(self) -> str:
        """What it is at present, for people, and where it can be watched."""

    @property
    def workers(self) -> int:
        """How many processes do the work."""

    @property
    def threads(self) -> int:
        """How many units are at work at once, all workers together."""

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

    def open(self, task: Task, units: int, first: Unit, stop: threading.Event) -> WorkerInfo:
        """Make workers ready for a run of so many units, the `first` of which they can read.

        Raises:
            AttlasError: a worker cannot do it.
        """

    def units(self, todo: Sequence[int], unit: Callable[[int], Unit], stop: threading.Event) -> Iterator[UnitResult]:
        """Do the units, and yield each result once its unit is marked done; `dispatch` does it for many workers.

        No unit is begun after `stop` is set. On an error those in flight still end.
        """


class Local:
    """What every executor of this machine answers alike."""

    def __enter__(self) -> Self:
        return self

    def provider(self, asked: str) -> str:
        """As asked."""
        return asked

    def probe(self, graph: Path, batch: int, **choices: Any) -> int:
        """`session.probe_batch`."""
        return probe_batch(graph, batch, **choices)


def _absolute(path: str | os.PathLike[str]) -> str:
    """A path that means the same in another process; a URL does."""
    text = os.fspath(path)
    return text if is_url(text) else os.path.abspath(text)  # noqa: PTH100 - links stay as they are named
