"""Hand units to workers that may die, and do again what was lost with them: the same for every scheduler."""

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

TRIES = 5  # times that a unit may fail for want of its worker before the run ends


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a unit, or of a worker.

    Attributes:
        k: the unit, which is in flight no more; None where a worker failed as a whole.
        result: it is done.
        error: it cannot be done, nor can the run. Without either the unit was lost with its worker.
        lost: how that worker ended, in words.
    """

    k: int | None
    result: UnitResult | None = None
    error: AttlasError | None = None
    lost: str = ""


class Scheduler(Protocol):
    """Who brings units to workers. Its methods are called in one thread.

    Attributes:
        loss: what happened to a unit that was lost `TRIES` times, in words.
    """

    loss: str

    def room(self) -> int:
        """How many units more it takes now. It is asked while some are left, so that dead workers are replaced."""

    def submit(self, unit: Unit, attempt: int) -> None:
        """Bring a unit on its way, for the `attempt`-th time from 0 on."""

    def wait(self) -> Iterable[Outcome]:
        """Wait until something happens, or a few seconds, and say what did. No more is handed over until then."""


def dispatch(
    scheduler: Scheduler, todo: Sequence[int], unit: Callable[[int], Unit], store: Store, stop: threading.Event
) -> Iterator[UnitResult]:
    """Do the units, and yield each result once its unit is marked done.

    Args:
        scheduler: brings units to workers.
        todo: their numbers.
        unit: makes one to be handed out.
        store: tells whether a unit was marked before its worker died.
        stop: no unit is begun once it is set.

    Raises:
        AttlasError: what a worker raised, or a unit that was lost `TRIES` times, once those in flight have ended.
    """
    flying: set[int] = set()
    try:
        yield from _dispatch(scheduler, deque(todo), unit, store, stop, flying)
    except BaseException:
        # Whatever happened, units in flight still end.
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
            elif store.is_done(k := outcome.k):  # marked, and lost before anybody could say so
                yield UnitResult(images=len(store.plan.unit_range(k)))
            else:
                tries[k] += 1
                left.append(k)  # at the end: what else there is gets done first
                if tries[k] == TRIES:
                    failure = failure or AttlasError(
                        f"unit {k} {scheduler.loss} ({outcome.lost}); what is done stays, the same command goes on"
                    )
    if failure is not None:
        raise failure
