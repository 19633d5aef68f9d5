"""How far a long step is, shown to a person: a bar on a terminal and in a notebook, lines elsewhere.

The one module that knows tqdm, which is loaded with the first bar. It stands at the root, so that every room can use
it, and imports nothing heavy.
"""

from __future__ import annotations

import functools
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

__all__ = ["Display", "Show", "Step", "shows"]

# What the library's functions take: True shows a display, a function is called as each documents, else all is silent.
type Show[**P] = Callable[P, None] | bool | None

SECONDS_BETWEEN_LINES = 30.0


class Step(str):
    """A line that names a step as it begins: number `number` of `total`, counted from 1."""

    number: int
    total: int

    def __new__(cls, text: str, number: int, total: int) -> Step:
        """The line with its place."""
        made = super().__new__(cls, text)
        made.number, made.total = number, total
        return made


def shows[**P, R](unit: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """For a function with a keyword `progress`: where that is True, it gets a `Display` instead, closed as it returns.

    The function itself then sees a callable or nothing. `unit` is what it counts, as a plural.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            if kwargs.get("progress") is not True:
                return function(*args, **kwargs)
            first = [Path(a).name for a in args[:1] if isinstance(a, str | os.PathLike)]
            with Display(" ".join([function.__name__, *first]), unit) as display:
                kwargs["progress"] = display
                return function(*args, **kwargs)

        return call

    return decorate


class Display:
    """One bar, or the same as lines: where it begins, now and then in between, and where it ends."""

    def __init__(self, title: str, unit: str) -> None:
        self._title, self._unit = title, unit
        self._moving = sys.stderr.isatty() or "ipykernel" in sys.modules
        self._bar: Any = None
        self._began = time.monotonic()
        self._silent, self._stepping = True, False
        self._first: tuple[int, float] | None = None  # what was done when counting began, and when that was
        self._said = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_rest: object) -> None:
        self._close(finished=kind is None)

    def __call__(self, *now: Any) -> None:
        """Show one event: a line as a step begins; (done, total); or an object with `done`, `total`, maybe `note`."""
        match now:
            case (Step() as step,):
                self._stepping = True
                self._count(step.number - 1, step.total, step)  # it begins: one fewer is done
            case (str() as text,):
                self.note(text)
            case (int() as done, int() as total):
                self._count(done, total)
            case (progress,):
                self._count(progress.done, progress.total, getattr(progress, "note", ""))

    def note(self, text: str) -> None:
        """A line of text, above the bar where there is one."""
        self._silent = False
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        else:
            sys.stderr.write(f"{self._title}: {text}\n")
            sys.stderr.flush()

    def _close(self, *, finished: bool) -> None:
        """End the display; the bar stays where the work ended."""
        if self._bar is not None:
            if finished and self._stepping:
                self._bar.n = self._bar.total
            self._bar.set_postfix_str("", refresh=finished)
            self._bar.close()
        elif finished and not self._silent:
            self.note(f"done in {time.monotonic() - self._began:.1f} s")

    def _count(self, done: int, total: int, note: str = "") -> None:
        if not total:
            return
        if self._moving:
            if self._bar is None:
                self._bar = _bar(desc=self._title, total=total, initial=done, unit=f" {self._unit}")
            self._bar.total = total
            self._bar.set_postfix_str(note, refresh=self._stepping)
            self._bar.update(done - self._bar.n)  # draws now and then, however often it is told
            return
        if self._stepping:
            self.note(f"{note} ({done + 1}/{total})")
            return
        now = time.monotonic()
        if self._first is not None and now - self._said < SECONDS_BETWEEN_LINES:
            return
        self._first, self._said = self._first or (done, now), now
        before, began = self._first
        rate = f"{(done - before) / (now - began):.1f} {self._unit}/s" if done > before and now > began else ""
        self.note(", ".join(filter(None, (f"{done:,}/{total:,} {self._unit}", rate, note))))


def _bar(**options: Any) -> Any:
    """The bar of tqdm's that fits where this runs."""
    with warnings.catch_warnings():
        # It says that it is experimental, and in a notebook without ipywidgets that it falls back to text.
        warnings.simplefilter("ignore")
        from tqdm.autonotebook import tqdm

        # Told its size: on a terminal that says it has no rows, as in containers, tqdm would show nothing.
        return tqdm(file=sys.stderr, ncols=shutil.get_terminal_size().columns - 1, nrows=20, **options)
