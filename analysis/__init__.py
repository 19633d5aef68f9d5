"""The analysis room: stores in, statistics, figures and a report out. Neither PyTorch nor onnxruntime is needed.

`formulas` holds every statistic once, on plain arrays of any library, with `rollouts` and `maps` beside it; `kernel` is
the fused pass that a run or `analyze` computes the default ones with. `catalog` lists what can be asked for by name,
`statistics` brings a store's rows up to date and sums the dataset up with `moments`, and `dataset` opens the result
as one lazy Dataset. The formulas are names of this package too: `attlas.analysis.rollout(...)`.
"""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["CATALOG", "AnalyzeResult", "Moments", "Reducer", "analyze", "open", "report"]

_HOMES = {
    "AnalyzeResult": "statistics", "CATALOG": "catalog", "Moments": "moments", "Reducer": "kernel",
    "analyze": "statistics", "open": "dataset", "report": "page",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    formulas = importlib.import_module(".formulas", __name__)
    if name in formulas.__all__:
        return getattr(formulas, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
