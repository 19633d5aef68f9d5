"""The engine: a graph and images become an attention store, at the speed of the hardware. No PyTorch anywhere.

`plan` cuts the work into units, `contents` says what a run makes, `unit` does one unit, and `runner` all of them, with
`executors` to hand them out. `sources` lists images and gives bytes, `runtime` turns them into arrays, and `store`
keeps these. `Session` gives the same arrays for a few pictures in a notebook.
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
