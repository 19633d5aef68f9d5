"""The analysis room: stores in, statistics, figures and a report out. Neither PyTorch nor onnxruntime is needed.

`formulas` holds what each statistic is, on plain arrays of any library; `kernels` how it is made fast; `statistics`
what becomes of a store. A `Statistic` is one object that says everything of one, `catalog` lists ours by name, and
`dataset` opens a store as one lazy Dataset. The formulas are names of this package too: `attlas.analysis.rollout(...)`.
"""

from __future__ import annotations

import importlib
from typing import Any

__all__ = [
    "CATALOG",
    "AnalyzeResult",
    "Moments",
    "Partial",
    "Pooled",
    "Reducer",
    "Statistic",
    "analyze",
    "merge",
    "open",
    "partial_statistics",
    "pooled",
    "report",
]

_HOMES = {
    "AnalyzeResult": "statistics",
    "CATALOG": "catalog",
    "Moments": "statistics.moments",
    "Partial": "statistics.partials",
    "Pooled": "statistics",
    "Reducer": "kernels.fused",
    "Statistic": "statistic",
    "analyze": "statistics",
    "merge": "statistics.partials",
    "open": "dataset",
    "partial_statistics": "statistics.partials",
    "pooled": "statistics",
}
# Plain functions of arrays.
_FORMULAS = (
    "formulas",
    "formulas.norms",
    "formulas.baselines",
    "formulas.histograms",
    "statistics.differences",
    "statistics.inference",
    "formulas.boxes",
)


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
