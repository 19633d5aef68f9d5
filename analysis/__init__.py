"""The analysis room: stores in, statistics, figures and a report out. Neither PyTorch nor onnxruntime is needed.

A `Statistic` is one object that says everything of a statistic; `catalog` lists ours, by name. `formulas` holds what
each of them is, on plain arrays of any library, with `rollouts`, `maps`, `norms`, `histograms` and `boxes` beside it.
`kernel` is the fused pass that a run or `analyze` computes the default ones with, `views` makes others of a `layer`,
`compiled` has the loops of both. `work` says what an analysis has to do, `partials` computes what some units
contribute, `statistics` hands units out and merges, `summary` sums the dataset up, by `groups` too, and `dataset`
opens the result as one lazy Dataset. The formulas are names of this package too: `attlas.analysis.rollout(...)`.
"""

from __future__ import annotations

import importlib
from typing import Any

__all__ = [
    "CATALOG", "AnalyzeResult", "Moments", "Partial", "Pooled", "Reducer", "Statistic", "analyze", "merge", "open",
    "partial_statistics", "pooled", "report",
]  # fmt: skip

_HOMES = {
    "AnalyzeResult": "statistics", "CATALOG": "catalog", "Moments": "moments", "Partial": "partials",
    "Pooled": "statistics", "Reducer": "kernel", "Statistic": "statistic", "analyze": "statistics",
    "merge": "partials", "open": "dataset", "partial_statistics": "partials", "pooled": "statistics",
}  # fmt: skip
# Plain functions of arrays.
_FORMULAS = ("formulas", "norms", "baselines", "histograms", "differences", "boxes")


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    if name == "report":
        return importlib.import_module(".report", __name__)
    for home in _FORMULAS:
        module = importlib.import_module(f".{home}", __name__)
        if name in module.__all__:
            return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
