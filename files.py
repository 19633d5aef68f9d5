"""Files that appear only when they are whole, and JSON of any origin; at the root, so that every room has one way."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import AttlasError, UsageError

__all__ = ["appearing", "check_page", "drafting", "from_json"]

YOUNG = 60.0  # seconds in which a draft may not be locked yet


@contextlib.contextmanager
def appearing(path: Path, *, among: bool = False) -> Iterator[Path]:
    """A file beside `path`, which takes its place when the block has ended; an existing file stays until then.

    With `among`, it is one of many in its folder, where drafts of killed processes are not looked for each time.

    Raises:
        AttlasError: it cannot be written, which is said before the block begins, or another file in the block.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.touch()
        with contextlib.nullcontext() if among else drafting(beside, path):
            yield beside
            beside.replace(path)
    except OSError as error:
        named = path if error.filename in (None, str(beside)) else error.filename
        raise AttlasError(f"{named}: cannot be written ({error.strerror or error})") from None
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()


@contextlib.contextmanager
def drafting(draft: Path, path: Path) -> Iterator[None]:
    """Lock a draft, a hidden file or folder `.NAME.*.partial` that becomes `path`, while it is written.

    Before, drafts of `path` that killed processes have left are removed: those that nobody has locked, of this user.
    Where the file system has no locks nothing is known of them, and nothing is removed.
    """
    with contextlib.ExitStack() as held:
        if held.enter_context(_lock(draft)):
            with contextlib.suppress(OSError):
                _sweep(draft, path)
        yield


def _sweep(draft: Path, path: Path) -> None:
    name = re.compile(rf"\.{re.escape(path.name)}\.(\d+|[0-9a-z_]{{8}}|[0-9a-f]{{32}})\.partial")
    own = draft.stat()
    for other in [other for other in path.parent.iterdir() if name.fullmatch(other.name) and other.name != draft.name]:
        found = other.lstat()
        kind = stat.S_IFMT(found.st_mode)
        if kind not in (stat.S_IFREG, stat.S_IFDIR) or found.st_uid != own.st_uid:
            continue
        if found.st_mtime > own.st_mtime - YOUNG:  # both by the clock of the file system
            continue
        with _lock(other) as free, contextlib.suppress(OSError):
            if free and kind == stat.S_IFDIR:
                shutil.rmtree(other, ignore_errors=True)
            elif free:
                other.unlink()


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[bool]:
    """Lock a file or folder; False if somebody has, or where there are no such locks."""
    try:
        import fcntl

        descriptor = os.open(path, os.O_RDONLY)
    except (ImportError, OSError):
        yield False
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        taken = True
    except OSError:
        taken = False
    try:
        yield taken
    finally:
        os.close(descriptor)


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
