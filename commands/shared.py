"""What commands share: how they take paths, and how they speak."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from ..errors import UsageError
from ..words import printable

READ_ERRORS = 3
INTERRUPTED = 130


class LocalPath(click.Path):
    """A local path; `~` is expanded even where the shell does not, as in `--images=~/x`."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path with `~` expanded."""
        from ..engine.sources.files import expanded

        return Path(expanded(os.fsdecode(super().convert(value, param, ctx))))


path_argument = LocalPath(path_type=Path)


def store_path(value: str) -> Any:
    """A local path or a URL."""
    from ..engine.store.storage import locate

    return locate(value)


def end_on(*signals: signal.Signals) -> None:
    """Handle these signals like Ctrl-C, so that half-written files are removed.

    Only a process's main thread can; in another, as in a notebook's, signals stay as they are.
    """

    def handle(_number: int, _frame: Any) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        for one in signals:
            signal.signal(one, handle)


def who_works[F: Callable[..., Any]](command: F) -> F:
    """Add the options that say who does the work; `pool` takes them."""
    scheduler = click.option("--scheduler", metavar="tcp://HOST:PORT", help="Do the work on a Dask cluster.")
    workers = click.option(
        "--workers", type=click.IntRange(1), metavar="N", help="N local processes; by default threads of this process."
    )
    return workers(scheduler(command))


@contextlib.contextmanager
def pool(workers: int | None, scheduler: str | None) -> Iterator[dict[str, Any]]:
    """The arguments of `analyze` and `judge` that say who does the work; by default none, and this process does it."""
    if workers is not None and scheduler is not None:
        raise UsageError("--workers, --scheduler: choose one")
    if scheduler is not None:
        from ..engine.executors.cluster import Cluster

        with Cluster(scheduler) as cluster, cluster.pool() as executor:
            note(cluster.description)
            yield {"executor": executor, "workers": 2 * cluster.threads}
    elif workers is not None:
        from ..engine.executors.processes import pool

        with pool(workers) as executor:
            yield {"executor": executor, "workers": workers}
    else:
        yield {}


def written(*names: str) -> list[str]:
    """Those of these options that the command line gives, as they are written there: `--fill`."""
    context = click.get_current_context()
    return [
        f"--{name.replace('_', '-')}"
        for name in names
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
    ]


def note(line: str) -> None:
    """Write one line to stderr."""
    click.echo(printable(line), err=True)


def say(*lines: str | os.PathLike[str]) -> None:
    """Write lines to stdout; the path of what was made as it is, since scripts read it."""
    if lines:
        click.echo("\n".join(printable(line) if isinstance(line, str) else os.fspath(line) for line in lines))


def say_json(data: Any) -> None:
    """Write JSON to stdout."""
    say(*json.dumps(data, indent=2, ensure_ascii=False).split("\n"))
