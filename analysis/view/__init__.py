"""The atlas: a page to walk through stores, served, written into one file, or shown in a notebook.

`api` answers every request of the page as bytes, from one decoded chunk. `server` hands the answers to a browser,
`single` writes them into a file and `notebook` sends them to a widget; `page/` is the page, the same for all three.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import Atlas as Atlas
    from .notebook import view as view
    from .server import Server as Server
    from .single import write as write

__all__ = ["Atlas", "Server", "view", "write"]

_HOMES = {"Atlas": "api", "Server": "server", "view": "notebook", "write": "single"}


def __getattr__(name: str) -> Any:
    """Only what is asked for is imported: a server needs no widget."""
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
