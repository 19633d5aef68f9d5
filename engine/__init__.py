"""The engine: runs images through a graph into an attention store, at the speed of the hardware, without PyTorch.

`plan` divides the work into units, `contents` decides which arrays a run makes, `unit` does one unit, and `runner` does
all of them with the help of `executors`. `sources` lists images and reads their bytes, `runtime` turns bytes into
arrays, and `store` keeps the arrays. `Session` gives the same arrays for a few pictures in a notebook.
"""

from typing import Any

__all__ = ["Plan", "Session", "Store", "Template", "run"]

_HOMES = {
    "Plan": "plan",
    "Session": "runtime.session",
    "Store": "store.store",
    "Template": "store.store",
    "run": "runner",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
