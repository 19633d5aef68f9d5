"""The model hub: whether it can be reached, asked before its client would retry for a minute, and its downloads."""

from __future__ import annotations

import contextlib
import importlib
import socket
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from ...errors import AttlasError, UsageError, first_line

__all__ = ["downloads", "held", "lacking", "unreadable"]

_SMALL = 10_000_000  # bytes of a file whose download is not worth a line
_BETWEEN = 0.5  # seconds


@contextlib.contextmanager
def downloads(show: Callable[[str, int, int], None]) -> Iterator[None]:
    """Show how the hub's client downloads files, in place of its own bars, whichever library asks for them.

    Args:
        show: called with a file's name, the bytes that are there, and all; at its beginning, its end, and in between at
            most twice a second. With the stderr of now, because adapters send that of their libraries to nowhere.
    """
    stderr = sys.stderr
    try:
        home: Any = importlib.import_module("huggingface_hub.utils.tqdm")
        own: Any = home.tqdm
    except (ImportError, AttributeError):  # another version shows nothing
        yield
        return

    class Bar(own):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options | {"disable": True})
            self._all, self._there = options.get("total") or 0, options.get("initial") or 0
            self._file, self._told = str(options.get("desc") or "weights"), 0.0
            if self._all >= _SMALL and options.get("unit") == "B":
                self._tell()

        def update(self, n: float | None = 1) -> None:
            self._there += int(n or 0)
            ended = self._there >= self._all
            if self._told and (ended or time.monotonic() - self._told >= _BETWEEN):
                self._tell()

        def _tell(self) -> None:
            self._told = time.monotonic()
            with contextlib.redirect_stderr(stderr):
                show(self._file, self._there, self._all)

    home.tqdm = Bar
    try:
        yield
    finally:
        home.tqdm = own


def held(place: str, files: Iterable[str]) -> list[Path]:
    """Those of these files that a folder has, or that were downloaded of a repository."""
    folder = Path(place).expanduser()
    if folder.is_dir():
        return [folder / file for file in files if (folder / file).is_file()]
    hub = importlib.import_module("huggingface_hub")
    found = (hub.try_to_load_from_cache(place, file) for file in files)
    return [Path(path) for path in found if isinstance(path, str)]


def lacking(repository: str, files: Iterable[str | None]) -> str:
    """Why none of these files of a repository can be had; "" if one is in the cache, or the hub's name resolves.

    Raises:
        UsageError: no repository can have such a name.
    """
    hub = importlib.import_module("huggingface_hub")
    try:
        hub.utils.validate_repo_id(repository)
    except ValueError:
        raise UsageError(f"{repository!r}: is no repository of the hub, which is called ORG/NAME") from None
    if urllib.request.getproxies():
        return ""
    if any(isinstance(hub.try_to_load_from_cache(repository, file), str) for file in files if file):
        return ""
    if hub.constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set and they are not in the cache"
    host = urllib.parse.urlsplit(hub.constants.ENDPOINT).hostname or ""
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        return f"{host} cannot be reached"
    return ""


def unreadable(repository: str, error: BaseException, folder: str) -> AttlasError:
    """The error for a repository that cannot be read: gated, unknown or unreachable.

    Args:
        repository: its name.
        error: the exception of the library that was to read it.
        folder: how a folder that has the files is passed instead.
    """
    text = f"{type(error).__name__} {type(error.__cause__).__name__} {error}".lower()
    if "gated" in text:
        return AttlasError(
            f"{repository}: is gated: accept its terms on https://huggingface.co/{repository} and log in with "
            f"`hf auth login`, or pass a folder that has the files ({folder})"
        )
    if "repositorynotfound" in text or "not a valid model identifier" in text:
        return UsageError(f"{repository}: the hub has no such repository, or a private one: `hf auth login` first")
    return AttlasError(
        f"{repository}: cannot be downloaded: {first_line(error)}; pass a folder that has the files ({folder})"
    )
