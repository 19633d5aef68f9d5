"""Whether the model hub can be reached, asked before a library's client would retry for most of a minute."""

from __future__ import annotations

import importlib
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterable

from ...errors import AttlasError, UsageError, first_line

__all__ = ["lacking", "unreadable"]


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
