"""Whether the model hub can be reached, asked before a library's client would retry for most of a minute."""

from __future__ import annotations

import importlib
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterable

__all__ = ["lacking"]


def lacking(repository: str, files: Iterable[str | None]) -> str:
    """Why none of these files of a repository can be had; "" if one is in the cache, or the hub's name resolves."""
    if urllib.request.getproxies():
        return ""
    hub = importlib.import_module("huggingface_hub")
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
