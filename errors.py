"""The errors that are written for the user."""

from __future__ import annotations

import re
import traceback

__all__ = ["AttlasError", "Interrupted", "UsageError", "first_line", "no_memory", "one_line"]

_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")  # of a terminal, which libraries put into their messages


class AttlasError(Exception):
    """An error in one line: what was found, where, and what to do.

    `exit_code` is the command line's exit code: 1 failed, 2 wrong usage, 130 interrupted and can be resumed.
    """

    exit_code = 1


class UsageError(AttlasError):
    """The request itself is wrong: nothing was tried."""

    exit_code = 2


class Interrupted(AttlasError):  # noqa: N818 - not an error of the run
    """The user stopped the work; finished work is kept."""

    exit_code = 130


def first_line(error: BaseException) -> str:
    """A library's exception in one line of at most 200 characters; for an assertion without text, its source line.

    Where the first line only announces, as `Error(s) in loading:`, the next one follows it.
    """
    lines = [line.strip() for line in _COLOURS.sub("", str(error)).splitlines() if line.strip()]
    if lines:
        return " ".join(lines[: 2 if lines[0].endswith(":") else 1])[:200]
    frames = traceback.extract_tb(error.__traceback__)
    code = frames[-1].line if frames else ""
    return f"{type(error).__name__} at `{code}`"[:200] if code else type(error).__name__


def no_memory(error: MemoryError) -> str:
    """What is lacking, in words, with the amount where numpy names it."""
    amount = re.search(r"allocate (\S+ \S+) for", str(error))
    return f"needs {amount[1] if amount else 'more'} of memory, which is not there"


def one_line(error: BaseException, most: int | None = None) -> str:
    """All of an exception's text without line breaks, at most so many characters; its type's name if it has none."""
    return " ".join(str(error).split())[:most] or type(error).__name__
