"""What commands share: how they take paths, and how they speak."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import click

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
    """Handle these signals like Ctrl-C, so that half-written files are removed."""

    def handle(_number: int, _frame: Any) -> None:
        raise KeyboardInterrupt

    for one in signals:
        signal.signal(one, handle)


def note(line: str) -> None:
    """Write one line to stderr."""
    click.echo(line, err=True)


def say_json(data: Any) -> None:
    """Write JSON to stdout."""
    click.echo(json.dumps(data, indent=2, ensure_ascii=False))
