"""Numbers as figures take them: means of what is there, and whether there is anything to draw."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Floats", "along", "between", "mean_of", "one_by_one", "why_empty"]

type Floats = npt.NDArray[np.floating[Any]]


def mean_of(values: Floats, axis: int | tuple[int, ...]) -> Floats:
    """Mean of the finite values along `axis`; NaN where there is none, without numpy's warning about it."""
    there = np.isfinite(values)
    count = there.sum(axis=axis)
    total = np.where(there, values, 0).sum(axis=axis, dtype=np.float64)
    return np.asarray(np.where(count > 0, total / np.maximum(count, 1), np.nan))


def why_empty(values: npt.NDArray[Any]) -> str:
    """Why values would make an empty figure: none is known, or all are 0; "" where they can be drawn."""
    there = values[np.isfinite(values)]
    if not there.size:
        return "no value is known"
    return "" if there.any() else "all values are 0"


def along(values: npt.NDArray[Any], form: str = ".3g") -> str:
    """The first and the last known value in words: layers that a store does not hold have none."""
    there = values[np.isfinite(values)]
    return f"from {there[0]:{form}} to {there[-1]:{form}}" if there.size else "without a value"


def one_by_one(values: npt.NDArray[Any], form: str = ".3g") -> str:
    """All values in words, "none" where it is not known."""
    return ", ".join(f"{v:{form}}" if np.isfinite(v) else "none" for v in values)


def between(low: float, high: float, form: str = "+.3g") -> str:
    """An interval in words; one image has none, nor have equal values."""
    return f"{low:{form}} to {high:{form}}" if np.isfinite(low) and np.isfinite(high) else "none"
