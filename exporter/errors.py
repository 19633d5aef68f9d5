"""The one kind of error that a user is meant to read."""


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
