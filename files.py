"""Files that appear only when they are whole; at the root, so that every room writes them in one way."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from .errors import AttlasError, UsageError

__all__ = ["appearing", "check_page"]


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
