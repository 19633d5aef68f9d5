"""The one kind of error that a user is meant to read."""

from __future__ import annotations

import traceback

__all__ = ["AttlasError", "Interrupted", "UsageError", "first_line"]


class AttlasError(Exception):
    """What was found, where, and what to do about it, in one line.

    `exit_code` is what the command line ends with: 1 the work failed, 2 it was asked for wrongly,
    130 it was interrupted and can be resumed.
    """

    exit_code = 1


class UsageError(AttlasError):
    """The request itself is wrong: nothing was tried."""

    exit_code = 2


class Interrupted(AttlasError):  # noqa: N818 - it is no fault of the run's
    """The user stopped the work; what is done stays done."""

    exit_code = 130


def first_line(error: BaseException) -> str:
    """What a library's exception says, in one line of at most 200 characters; of a bare assertion, the assertion."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    if text:
        return text[:200]
    frames = traceback.extract_tb(error.__traceback__)
    code = frames[-1].line if frames else ""
    return f"{type(error).__name__} at `{code}`"[:200] if code else type(error).__name__
