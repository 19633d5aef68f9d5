"""The catalog's statistics from a `Layer`: one image's attention of one layer, (head, ...) each, by kernels' names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import UsageError
from ..catalog import CATALOG
from ..formulas import readout_rows
from .layer import Layer

__all__ = ["BATCH", "FOLLOW", "LAYER"]

Array = npt.NDArray[Any]


def _unit_square(one: Layer) -> Array:
    if min(one.spec.grid) < 2:
        raise UsageError(f"distance_unit_square: a grid of {one.spec.grid} has no unit square: an edge of one patch")
    return _mean_where(*_renormalized(one.unit_square[:, one.prefix :]))


def _offset_map(one: Layer) -> Array:
    """Mean over the queries that have such a key inside the image."""
    rows, columns = one.spec.grid
    high = rows - np.abs(np.arange(1 - rows, rows))
    wide = columns - np.abs(np.arange(1 - columns, columns))
    return np.asarray(one.offsets / (high[:, None] * wide))


def _renormalized_counts(one: Layer) -> Array:
    values, there = _renormalized(one.rows[:, one.prefix :])
    return _counts(values, _edges(one, "distance_renormalized_histogram"), there)


def _weighted_entropy(one: Layer) -> Array:
    """-sum p ln p of p = w / W is ln W - (sum w ln w) / W."""
    whole, inside = one.weighted_rows[..., 0], one.weighted_rows[..., 3]
    there = whole != 0
    w = np.where(there, whole, 1)
    return np.asarray(np.where(there, np.log(w) - inside / w, 0).mean(axis=-1))


def _edges(one: Layer, name: str) -> Sequence[float]:
    edges = CATALOG[name].edges
    assert edges is not None
    return edges(one.spec)


def _mean_where(values: Array, there: Array) -> Array:
    """Mean over queries of (head, query) values that are there; NaN where none is."""
    count = there.sum(axis=-1)
    total = np.where(there, values, 0).sum(axis=-1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _renormalized(rows: Array) -> tuple[Array, Array]:
    """Distance of each row of patch mass 1: (head, query), and which rows have patch mass."""
    there = rows[..., 1] != 0
    return rows[..., 2] / np.where(there, rows[..., 1], 1), there


def _counts(values: Array, edges: Sequence[float], there: Array | None = None) -> Array:
    """`histograms.histogram` of (head, query) values: (head, bin), int64."""
    bins, heads = len(edges) - 1, len(values)
    place = np.searchsorted(np.asarray(edges[1:-1], np.float32), values.astype(np.float32), side="right")
    place += np.arange(heads)[:, None] * bins
    return np.bincount(place[there] if there is not None else place.reshape(-1), minlength=heads * bins).reshape(
        heads, bins
    )


def _readout(one: Layer, a: Array) -> Array:
    """The readout row's patch part, per head: (head, y, x)."""
    spec = one.spec
    if spec.readout == "mean":
        return one.received_of(a, one.prefix).reshape(-1, *spec.grid)
    rows = list(readout_rows(spec.prefix, spec.grid, spec.readout))
    return np.asarray(a[:, rows, one.prefix :].mean(axis=1, dtype=np.float64).reshape(-1, *spec.grid))


LAYER: dict[str, Callable[[Layer], Array]] = {
    "attention": lambda one: one.attention,
    "distance_counts": lambda one: _counts(one.rows[:, one.prefix :, 2], _edges(one, "distance_histogram")),
    "distance_unit_square": _unit_square,
    "divergences": lambda one: one.divergences(),
    "effective_tokens": lambda one: np.exp(-one.rows[..., 3]).mean(axis=-1),
    "entropy_counts": lambda one: _counts(-one.rows[..., 3], _edges(one, "entropy_histogram")),
    "head_deviation": lambda one: one.spread(over="heads"),
    "head_peaks": lambda one: one.peaks("head"),
    "information": lambda one: one.information(),
    "key_peaks": lambda one: one.peaks("key"),
    "neighbour_mass": lambda one: one.rings[1],
    "norm_weighted_distance": lambda one: _mean_where(*_renormalized(one.weighted_rows[:, one.prefix :])),
    "norm_weighted_entropy": _weighted_entropy,
    "norm_weighted_readout_map": lambda one: _readout(one, one.weighted),
    "norm_weighted_received": lambda one: one.received_of(one.weighted, one.prefix).reshape(-1, *one.spec.grid),
    "offset_map": _offset_map,
    "offset_map_pooled": lambda one: one.offsets / one.patches,
    "position_deviation": lambda one: one.spread(over="positions"),
    "readout_map": lambda one: _readout(one, one.attention),
    "received_attention": lambda one: one.received.reshape(-1, *one.spec.grid),
    "renormalized_counts": _renormalized_counts,
    "rest_mass": lambda one: one.rings[2],
    "self_mass": lambda one: one.rings[0],
    "sink_share": lambda one: (one.received > 4 / one.spec.tokens).mean(axis=-1),
}
# Of all images of the layer's batch at once, (image, ...), where that costs less.
BATCH: dict[str, Callable[[Layer], Array]] = {"query_peaks": lambda one: one.query_peaks()}
# From the readout's row (query) behind the layer to that before it; the patches' part of the first is the result.
FOLLOW: dict[str, Callable[[Layer, Array], Array]] = {"explain": lambda one, row: one.explain(row)}
