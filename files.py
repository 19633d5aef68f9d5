"""Files that appear only when they are whole, and JSON of any origin; at the root, so that every room has one way."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import AttlasError, UsageError

__all__ = ["appearing", "check_page", "from_json"]


@contextlib.contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A file beside `path`, which takes its place when the block has ended; an existing file stays until then.

    Raises:
        AttlasError: it cannot be written, which is said before the block begins, or another file in the block.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.touch()
        yield beside
        beside.replace(path)
    except OSError as error:
        named = path if error.filename in (None, str(beside)) else error.filename
        raise AttlasError(f"{named}: cannot be written ({error.strerror or error})") from None
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()


def check_page(output: Path, what: str, overwrite: bool, hint: str = "") -> None:
    """Refuse a name that is no page's, or that is taken; `what` is `a report`, and `hint` follows the name to take.

    Raises:
        UsageError: with what to do.
    """
    if output.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"{output}: {what} is an HTML page; name it {output.with_suffix('.html').name}{hint}")
    if output.is_dir() or (output.exists() and not overwrite):
        raise UsageError(f"{output}: exists; choose another name, or --overwrite")


def from_json(data: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is none, or is nested too deeply to be read.
    """
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None
