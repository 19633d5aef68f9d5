"""Histograms with fixed edges: the counts of parts of a dataset add up to those of the whole."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from ...errors import UsageError
from .arrays import Array, constant, floating, namespace

__all__ = ["BINS", "distance_edges", "entropy_edges", "histogram"]

BINS = 64


def entropy_edges(keys: int, bins: int = BINS) -> tuple[float, ...]:
    """Equal bins from 0 to ln `keys`, the entropy of uniform attention: bins + 1 edges, nats."""
    return tuple(math.log(keys) * i / bins for i in range(bins + 1))


def distance_edges(grid: tuple[int, int], patch_size: tuple[float, float], bins: int = BINS) -> tuple[float, ...]:
    """Equal bins from 0 to the distance of the farthest patches: bins + 1 edges, in the unit of `patch_size`."""
    farthest = math.hypot((grid[0] - 1) * patch_size[0], (grid[1] - 1) * patch_size[1])
    return tuple(farthest * i / bins for i in range(bins + 1))


def histogram(values: Array, edges: Sequence[float]) -> Array:
    """Number of values in each bin: (..., value) -> (..., bin), whole numbers in the values' float dtype.

    A bin includes its left edge. Values outside, for instance by rounding, count in the first or last bin. NaN is left
    out.

    Raises:
        UsageError: there are fewer than two edges, or they do not increase.
    """
    if len(edges) < 2 or any(b <= a for a, b in itertools.pairwise(edges)):
        raise UsageError("a histogram needs two edges at least, increasing")
    xp, v = namespace(values), floating(values)
    inner = constant(list(edges[1:-1]), v)
    ones, zeros = xp.ones_like(v), xp.zeros_like(v)
    total = xp.sum(xp.where(v == v, ones, zeros), axis=-1)  # NaN differs from itself
    counts = [xp.sum(xp.where(v >= inner[i], ones, zeros), axis=-1) for i in range(inner.shape[0])]
    above = [total, *counts, xp.zeros_like(total)]
    return xp.stack([low - high for low, high in itertools.pairwise(above)], axis=-1)
