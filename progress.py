"""Progress of a long step: a bar on a terminal and in a notebook, lines elsewhere.

The only module that uses tqdm, which is imported with the first bar. It is at the root so that every room can use it,
and imports nothing heavy.
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

from .words import printable

__all__ = ["Display", "Show", "Step", "shows"]

# The type of `progress` arguments: True shows a display, a function is called as documented, otherwise silent.
type Show[**P] = Callable[P, None] | bool | None

SECONDS_BETWEEN_LINES = 30.0


class Step(str):
    """A line that announces a step: step `number` of `total`, counted from 1; `brief` ones move a bar and no more."""

    number: int
    total: int
    brief: bool

    def __new__(cls, text: str, number: int, total: int, *, brief: bool = False) -> Step:
        """The line with its number and the total."""
        made = super().__new__(cls, text)
        made.number, made.total, made.brief = number, total, brief
        return made


def shows[**P, R](unit: str, command: str = "") -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a function with a keyword `progress`: True is replaced by a `Display`, closed when the function returns.

    So the function itself gets a callable or nothing. `unit` names what it counts, in the plural; `command`
    is what it is called, if not by the function's name.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            if kwargs.get("progress") is not True:
                return function(*args, **kwargs)
            first = [Path(a).name for a in args[:1] if isinstance(a, str | os.PathLike)]
            with Display(" ".join([command or function.__name__, *first]), unit) as display:
                kwargs["progress"] = display
                return function(*args, **kwargs)

        return call

    return decorate


class Display:
    """One bar; without a terminal, lines instead: at the start, every `SECONDS_BETWEEN_LINES`, and at the end."""

    def __init__(self, title: str, unit: str) -> None:
        self._title, self._unit = printable(title), unit
        self._moving = sys.stderr.isatty() or "ipykernel" in sys.modules
        self._bar: Any = None
        self._began = time.monotonic()
        self._silent, self._stepping = True, False
        self._first: tuple[int, float] | None = None  # images done and time when counting began
        self._shown = 0.0  # time of the last line

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_rest: object) -> None:
        self._close(finished=kind is None)

    def __call__(self, *now: Any) -> None:
        """Show one event: a `Step` or other line; (done, total); or an object with `done`, `total`, maybe `note`."""
        match now:
            case (Step() as step,):
                self._stepping = True
                if self._moving or not step.brief:
                    self._count(step.number - 1, step.total, step)  # it only begins, so one fewer is done
            case (str() as text,):
                self.note(text)
            case (int() as done, int() as total):
                self._count(done, total)
            case (progress,):
                self._count(progress.done, progress.total, getattr(progress, "note", ""))

    def note(self, text: str) -> None:
        """Write a line of text, above the bar if there is one."""
        self._silent, text = False, printable(text)
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
            self._bar.set_postfix_str(printable(note), refresh=self._stepping)
            self._bar.update(done - self._bar.n)  # tqdm limits how often it redraws
            return
        if self._stepping:
            self.note(f"{note} ({done + 1}/{total})")
            return
        now = time.monotonic()
        if self._first is not None and now - self._shown < SECONDS_BETWEEN_LINES:
            return
        self._first, self._shown = self._first or (done, now), now
        before, began = self._first
        rate = f"{(done - before) / (now - began):.1f} {self._unit}/s" if done > before and now > began else ""
        self.note(", ".join(filter(None, (f"{done:,}/{total:,} {self._unit}", rate, note))))


def _bar(**options: Any) -> Any:
    """A bar of tqdm for a terminal or a notebook."""
    with warnings.catch_warnings():
        # It warns that it is experimental, and in a notebook without ipywidgets that it falls back to text.
        warnings.simplefilter("ignore")
        from tqdm.autonotebook import tqdm

        # The size is given because tqdm shows nothing on a terminal that reports no rows, as in containers.
        return tqdm(file=sys.stderr, ncols=shutil.get_terminal_size().columns - 1, nrows=20, **options)
