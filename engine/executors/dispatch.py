"""Send units to workers that may die, and redo units that were lost; used by every scheduler."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from ...errors import AttlasError
from ..store.store import Store
from ..unit import Unit, UnitResult

__all__ = ["TRIES", "Outcome", "Scheduler", "dispatch"]

TRIES = 5  # number of times that a unit may be lost with its worker before the run ends


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a unit or of a worker.

    Attributes:
        k: number of the unit, which is no longer in flight; None if a worker failed as a whole.
        result: set if the unit is done.
        error: set if the unit, and so the run, failed. With neither, the unit was lost with its worker.
        lost: how that worker ended, as text.
    """

    k: int | None
    result: UnitResult | None = None
    error: AttlasError | None = None
    lost: str = ""


class Scheduler(Protocol):
    """Sends units to workers. All methods are called in one thread.

    Attributes:
        loss: text for the error after a unit was lost `TRIES` times.
    """

    loss: str

    def room(self) -> int:
        """Number of units that it accepts now. Called while units are left, so it can also replace dead workers."""

    def submit(self, unit: Unit, attempt: int) -> None:
        """Send a unit; `attempt` counts from 0."""

    def wait(self) -> Iterable[Outcome]:
        """Wait for outcomes, a few seconds at most, and return them. No unit is submitted meanwhile."""


def dispatch(
    scheduler: Scheduler, todo: Sequence[int], unit: Callable[[int], Unit], store: Store, stop: threading.Event
) -> Iterator[UnitResult]:
    """Do the units, and yield each result after its unit is marked done.

    Args:
        scheduler: sends units to workers.
        todo: the numbers of the units.
        unit: makes the unit of a number.
        store: shows whether a unit was marked before its worker died.
        stop: no unit starts after it is set.

    Raises:
        AttlasError: a worker raised it, or a unit was lost `TRIES` times. Units in flight finish first.
    """
    flying: set[int] = set()
    try:
        yield from _dispatch(scheduler, deque(todo), unit, store, stop, flying)
    except BaseException:
        # After an error, units in flight still finish.
        with suppress(AttlasError):
            while flying:
                flying.difference_update(outcome.k for outcome in scheduler.wait() if outcome.k is not None)
        raise


def _dispatch(
    scheduler: Scheduler,
    left: deque[int],
    unit: Callable[[int], Unit],
    store: Store,
    stop: threading.Event,
    flying: set[int],
) -> Iterator[UnitResult]:
    tries = Counter[int]()
    failure: AttlasError | None = None
    while True:
        ending = failure is not None or stop.is_set()
        for _ in range(0 if ending or not left else min(scheduler.room(), len(left))):
            k = left.popleft()
            flying.add(k)
            scheduler.submit(unit(k).alone(), tries[k])
        if not flying and (ending or not left):
            break
        outcomes = list(scheduler.wait())
        flying.difference_update(outcome.k for outcome in outcomes if outcome.k is not None)
        for outcome in outcomes:
            if outcome.result is not None:
                yield outcome.result
            elif outcome.error is not None or outcome.k is None:
                failure = failure or outcome.error
            elif store.is_done(k := outcome.k):  # marked, but its worker died before it could report
                yield UnitResult(images=len(store.plan.unit_range(k)))
            else:
                tries[k] += 1
                left.append(k)  # at the end, so that other units are done first
                if tries[k] == TRIES:
                    failure = failure or AttlasError(
                        f"unit {k} {scheduler.loss} ({outcome.lost}); what is done stays, the same command goes on"
                    )
    if failure is not None:
        raise failure
