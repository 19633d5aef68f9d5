"""How far two results of one graph lie apart, and how far they may: for the check of an export and for `conform`.

Imports nothing heavy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "GRADIENT_MAX",
    "GRADIENT_MEDIAN",
    "LIMITS",
    "MOST_OWN",
    "TIMES_OWN",
    "Limits",
    "relative",
    "row_variation",
    "same_first",
]


@dataclass(frozen=True, slots=True)
class Limits:
    """Allowed differences: rows of attention by total variation, the head's output relative to its largest value.

    `tie` is also relative to the largest logit: classes that are closer than that in PyTorch may swap ranks.
    """

    row_max: float
    head: float
    tie: float


LIMITS: dict[str, Limits] = {
    "float32": Limits(row_max=1e-3, head=1e-3, tie=1e-5),
    # Half precision has 11 bits. Scores of trained models reach 26, where its step is 0.016. With softmax, norms and
    # scores in float32, the remaining error is that of their input tokens.
    "float16": Limits(row_max=1e-1, head=5e-2, tie=1e-2),
}

# Allowed largest and median difference from autograd's gradients, relative to the largest gradient per image and layer.
GRADIENT_MAX, GRADIENT_MEDIAN = 5e-4, 5e-5

# A sharp or deep model enlarges rounding errors, those of sound code no less than a graph's. So where a model is beyond
# the usual bounds, its own rounding is measured, and this many times as much is allowed besides. A mistake moves the
# mean by more; where rounding alone moves it by MOST_OWN, a mistake would not be seen.
TIMES_OWN, MOST_OWN = 3.0, 1e-2


def row_variation(a: NDArray[Any], b: NDArray[Any], high: NDArray[Any] | None = None) -> NDArray[np.float64]:
    """Half the L1 distance of each row: maps (..., query, key) -> (..., query).

    With `high`, the distance from the interval [b, high]: from what a stored value can have been before its rounding.
    """
    distance = np.empty(a.shape[:-1], np.float64)
    # One map at a time: in float64, those of all heads and images would take eight times the bytes of one side.
    for at in np.ndindex(a.shape[:-2]):
        values = a[at].astype(np.float64)
        beyond = np.abs(values - b[at].astype(np.float64))
        if high is not None and high is not b:
            above = values - high[at].astype(np.float64)
            beyond = np.where(values < b[at], beyond, np.where(np.isnan(above), above, np.maximum(above, 0)))
        distance[at] = beyond.sum(-1) / 2
    return distance


def relative(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    """Largest difference relative to the largest value of b, per image: two arrays (image, ...) -> (image).

    Where all values are 0, the absolute difference.
    """
    a, b = (values.astype(np.float64).reshape(len(values), -1) for values in (a, b))
    scale = np.abs(b).max(1)
    found: NDArray[np.float64] = np.abs(a - b).max(1) / np.where(scale == 0, 1, scale)
    return found


def same_first(a: NDArray[Any], b: NDArray[Any], slack: float | NDArray[Any]) -> NDArray[np.bool_]:
    """Whether a and b have the same first class, or b has a tie: two arrays (image, class) -> (image,)."""
    first = a.argmax(-1)
    rows = np.arange(len(a))
    same: NDArray[np.bool_] = (first == b.argmax(-1)) | (b.max(-1) - b[rows, first] <= slack)
    return same
