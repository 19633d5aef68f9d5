"""What becomes of a store: which statistics of which units, computed, added up, grouped and written.

`work` says what an analysis has to do, `partials` computes what some
units contribute, with `extras` and `gradients`, `analysis` hands units out and merges, and `summary` sums up.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .analysis import AnalyzeResult as AnalyzeResult
    from .analysis import Pooled as Pooled
    from .analysis import Progress as Progress
    from .analysis import analyze as analyze
    from .analysis import pooled as pooled

__all__ = ["AnalyzeResult", "Pooled", "Progress", "analyze", "pooled"]


def __getattr__(name: str) -> Any:
    """Only an analysis needs numba."""
    if name in __all__:
        return getattr(importlib.import_module(".analysis", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
