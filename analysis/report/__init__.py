"""What people look at: figures and pages drawn from stores and their statistics.

`page` is the report, `render` its HTML. `sections` read a store and yield figures with their words, `plots` draw plain
numbers, `text` holds definitions and references, `facts` and `images` say what a store is and what can be shown of it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .page import report as report
    from .text.methods import describe as describe

__all__ = ["describe", "report"]

_HOMES = {"describe": "text.methods", "report": "page"}


def __getattr__(name: str) -> Any:
    """A single plot needs neither a page nor a store."""
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
