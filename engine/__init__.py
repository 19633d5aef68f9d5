"""The engine: a graph and images become an attention store, at the speed of the hardware. No PyTorch anywhere.

`sources` lists images and gives bytes, `decode` makes the graph's pixels, `plan` cuts the work into units, `graph`
prepares the ONNX model, `session` runs it, `runner` does unit after unit, and `store` holds what comes out. `Session`
gives the same arrays for a few pictures in a notebook.
"""

from typing import Any

__all__ = ["Plan", "Session", "Store", "Template", "run"]

_HOMES = {"Plan": "plan", "Session": "session", "Store": "store", "Template": "store", "run": "runner"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
