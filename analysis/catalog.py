"""The catalog: every statistic that `analyze` can be asked for, with its dimensions, unit, source and what it needs."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..engine.store import Template
from ..exporter.errors import UsageError
from ..exporter.spec import NORMS, GraphSpec
from .formulas import readout_rows
from .gradients import WEIGHTED
from .histograms import BINS, distance_edges, entropy_edges
from .kernel import WORDS
from .layer import Layer

__all__ = [
    "CATALOG", "FUSED", "GROUPED_MAPS", "MEASURED", "SCALARS", "Statistic", "described", "find", "reserved", "scalars",
    "sizes",
]  # fmt: skip

# The default statistics, whose numbers come from the fused kernel; those of one number per head are summed up in full.
FUSED = ("distance", "distance_renormalized", "entropy", "entropy_patch", "prefix_mass", "rollout")
SCALARS = ("distance", "distance_renormalized", "entropy", "entropy_patch", "prefix_mass")
# What a run writes of graphs that were exported with `--norms`: their means are taken where the store holds them.
MEASURED = NORMS
# The maps whose means are taken by class; larger ones would outgrow the store.
GROUPED_MAPS = ("rollout", "readout_map", "received_attention")
RAGHU = "Raghu et al. 2021 (arXiv 2108.08810)"
WALMER = "Walmer et al. 2023 (arXiv 2212.03862)"
KOBAYASHI = "Kobayashi et al. 2020 (arXiv 2004.10102)"
SEED = "Hebbar, Okafor & Banerjee, Interpreting Vision Transformers, eq. 3.3"

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Statistic:
    """One statistic beyond the fused ones.

    Attributes:
        name: under which it is asked for and stored.
        dims: of one image's result, "layer" included where there is one per layer.
        function: one image's `Layer` -> the result without "layer".
        units: of the values; `long_name`: in words; `source`: who published it.
        follow: instead of `function`, where all layers are followed from last to first: a row (query) and the `Layer`
            -> the row before it; the patch part of the last, over its maximum, is the result.
        exact: single values decide, so that uint8 codes will not do.
        probability: rows must be distributions.
        needs: an array (image, layer, head, key) that the store must hold.
        per_image: its rows are kept, one per image; otherwise only what sums the dataset up.
        edges: of a histogram, whose counts are summed; its last dimension are the bins.
        whole: the same as `function` of all images of the `Layer`'s batch at once, (image, ...), where that costs less.
    """

    name: str
    dims: tuple[str, ...]
    function: Callable[[Layer], Array] | None
    units: str
    long_name: str
    source: str = ""
    follow: Callable[[Layer, Array], Array] | None = None
    exact: bool = False
    probability: bool = False
    needs: str = ""
    per_image: bool = True
    edges: Callable[[GraphSpec], Sequence[float]] | None = None
    whole: Callable[[Layer], Array] | None = None

    @property
    def scalar(self) -> bool:
        """Whether it is one number per layer or head, which is summed up with deviation, quantiles and interval."""
        return self.per_image and set(self.dims) <= {"layer", "head"}

    @property
    def attrs(self) -> dict[str, str]:
        """The attributes of its array."""
        found = {"units": self.units, "long_name": self.long_name, "source": self.source}
        return {key: value for key, value in found.items() if value}

    def shape(self, spec: GraphSpec) -> tuple[int, ...]:
        """Of one image's result."""
        known = sizes(spec)
        return tuple(known[dim] for dim in self.dims)

    def template(self, spec: GraphSpec) -> Template:
        """The array of its rows."""
        return Template(self.name, ("image", *self.dims), self.shape(spec), "float32", math.nan, self.attrs)


def sizes(spec: GraphSpec) -> dict[str, int]:
    """How long each dimension of a result is."""
    (rows, columns), n = spec.grid, spec.tokens
    return {
        "layer": len(spec.layers), "head": spec.heads, "other_head": spec.heads, "prefix": len(spec.prefix),
        "y": rows, "x": columns, "offset_y": 2 * rows - 1, "offset_x": 2 * columns - 1, "query": n, "key": n,
        "entropy_bin": BINS, "distance_bin": BINS,
    }  # fmt: skip


def scalars(names: Iterable[str]) -> list[str]:
    """Those of `names` that are one number per layer, head or prefix token."""
    known: dict[str, Any] = {**CATALOG, **WEIGHTED}
    return [name for name in names if name in SCALARS or (name in known and known[name].scalar)]


def described() -> dict[str, str]:
    """Every name that can be asked for, in words, with its unit: the default ones first."""
    found = {name: (WORDS[name][1], WORDS[name][0], "default") for name in FUSED}
    known: list[Any] = [*CATALOG.values(), *WEIGHTED.values()]
    found |= {s.name: (s.long_name, s.units, getattr(s, "needs", "") and f"needs {s.needs}") for s in known}
    return {name: f"{words} [{units}]{note and f', {note}'}" for name, (words, units, note) in found.items()}


def reserved(name: str) -> bool:
    """Whether `analyze` may put an array or a dimension of this name into a store, so that no column may have it."""
    statistics = {*FUSED, *CATALOG, *WEIGHTED, *MEASURED, *WORDS}
    known: list[Any] = [*CATALOG.values(), *WEIGHTED.values()]
    dims = {dim for one in known for dim in one.dims}
    if name in statistics | dims | {"quantile", "bound", "predicted", "entropy_edge", "distance_edge"}:
        return True
    if name.endswith(("_group", "_group_images")):
        return True
    whole, by, _ = name.partition("_by_")
    forms = ("mean", "std", "count", "difference", "q") if by else ("mean", "std", "quantile", "interval")
    return any(whole == f"{statistic}_{form}" for statistic in statistics for form in forms) or (
        bool(by) and whole in statistics  # of what is a mean already
    )


def _mean_where(values: Array, there: Array) -> Array:
    """Mean over queries of (head, query) values that are there; NaN where none is."""
    count = there.sum(axis=-1)
    total = np.where(there, values, 0).sum(axis=-1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _renormalized(rows: Array) -> tuple[Array, Array]:
    """Distance of each row of patch mass 1: (head, query), and which rows have patch mass."""
    there = rows[..., 1] != 0
    return rows[..., 2] / np.where(there, rows[..., 1], 1), there


def _unit_square(layer: Layer) -> Array:
    if min(layer.spec.grid) < 2:
        raise UsageError(f"distance_unit_square: a grid of {layer.spec.grid} has no unit square: an edge of one patch")
    return _mean_where(*_renormalized(layer.unit_square[:, layer.prefix :]))


def _per_query(layer: Layer, per_head: Array) -> Array:
    """Mean offset maps over the queries that have such a key inside the image."""
    rows, columns = layer.spec.grid
    high = rows - np.abs(np.arange(1 - rows, rows))
    wide = columns - np.abs(np.arange(1 - columns, columns))
    return np.asarray(per_head / (high[:, None] * wide))


def _counts(values: Array, edges: Sequence[float], there: Array | None = None) -> Array:
    """`histograms.histogram` of (head, query) values: (head, bin), int64."""
    bins, heads = len(edges) - 1, len(values)
    place = np.searchsorted(np.asarray(edges[1:-1], np.float32), values.astype(np.float32), side="right")
    place += np.arange(heads)[:, None] * bins
    return np.bincount(place[there] if there is not None else place.reshape(-1), minlength=heads * bins).reshape(
        heads, bins
    )


def _entropy_edges(spec: GraphSpec) -> Sequence[float]:
    return entropy_edges(spec.tokens)


def _distance_edges(spec: GraphSpec) -> Sequence[float]:
    return distance_edges(spec.grid, spec.patch_size)


def _distance_counts(layer: Layer) -> Array:
    return _counts(layer.rows[:, layer.prefix :, 2], _distance_edges(layer.spec))


def _renormalized_counts(layer: Layer) -> Array:
    return _counts(*_swap(_renormalized(layer.rows[:, layer.prefix :]), _distance_edges(layer.spec)))


def _swap(found: tuple[Array, Array], edges: Sequence[float]) -> tuple[Array, Sequence[float], Array]:
    return found[0], edges, found[1]


def _weighted_entropy(layer: Layer) -> Array:
    """-sum p ln p of p = w / W is ln W - (sum w ln w) / W."""
    whole, inside = layer.weighted_rows[..., 0], layer.weighted_rows[..., 3]
    there = whole != 0
    w = np.where(there, whole, 1)
    return np.asarray(np.where(there, np.log(w) - inside / w, 0).mean(axis=-1))


def _readout(layer: Layer, a: Array) -> Array:
    """The readout row's patch part, per head: (head, y, x)."""
    spec = layer.spec
    if spec.readout == "pool":
        raise UsageError(
            "this model reads its tokens by attention pooling, not from a row; `pool_attention` is its map"
        )
    if spec.readout == "mean":
        return layer.received_of(a, layer.prefix).reshape(-1, *spec.grid)
    rows = list(readout_rows(spec.prefix, spec.grid, spec.readout))
    return np.asarray(a[:, rows, layer.prefix :].mean(axis=1, dtype=np.float64).reshape(-1, *spec.grid))


HEADS, MAPS, OFFSETS = ("layer", "head"), ("layer", "y", "x"), ("layer", "head", "offset_y", "offset_x")
GRIDS = ("layer", "head", "y", "x")

CATALOG: dict[str, Statistic] = {
    s.name: s
    for s in (
        Statistic(
            "rollout_vit_explain", ("y", "x"), None, "1", "rollout of vit-explain: max over heads, 0.9 discarded",
            "github.com/jacobgil/vit-explain", follow=Layer.explain, exact=True,
        ),
        Statistic("distance_unit_square", HEADS, _unit_square, "1",
                  "mean attention distance on a unit square, rows renormalised over patches", WALMER),
        Statistic("effective_tokens", HEADS, lambda one: np.exp(-one.rows[..., 3]).mean(axis=-1), "keys",
                  "mean of exp(entropy) over queries", probability=True),
        Statistic("self_mass", HEADS, lambda one: one.rings[0], "1", "mean attention of a patch on itself"),
        Statistic("neighbour_mass", HEADS, lambda one: one.rings[1], "1",
                  "mean attention of a patch on its 8 neighbours"),
        Statistic("rest_mass", HEADS, lambda one: one.rings[2], "1",
                  "mean attention of a patch on all farther patches"),
        Statistic("sink_share", HEADS, lambda one: (one.received > 4 / one.spec.tokens).mean(axis=-1), "1",
                  "share of patches that receive more than 4 times the uniform attention",
                  "Darcet et al. 2024 (arXiv 2309.16588)"),
        Statistic("normalized_mutual_information", HEADS, Layer.information, "1",
                  "mutual information of query and key, normalised", "Park et al. 2023 (arXiv 2305.00729), eq. 2"),
        Statistic("position_deviation", HEADS, lambda one: one.spread(over="positions"), "1",
                  "standard deviation of attention over queries", WALMER),
        Statistic("head_deviation", ("layer",), lambda one: one.spread(over="heads"), "1",
                  "standard deviation of attention over heads", WALMER),
        Statistic("head_similarity", (*HEADS, "other_head"), Layer.divergences, "nats",
                  "Jensen-Shannon divergence between heads, mean over queries", "Clark et al. 2019 (arXiv 1906.04341)",
                  probability=True),
        Statistic("score_matrix", MAPS, lambda one: one.peaks("query"), "1",
                  "largest attention over queries, mean over heads", SEED, whole=Layer.query_peaks),
        Statistic("received_attention", GRIDS, lambda one: one.received.reshape(-1, *one.spec.grid), "1",
                  "mean attention of the patch queries on each patch"),
        Statistic("readout_map", GRIDS, lambda one: _readout(one, one.attention), "1",
                  "attention of the readout row on each patch", "Caron et al. 2021 (arXiv 2104.14294)"),
        # Of these the dataset's mean alone is kept: their rows would outgrow the rest of the store.
        Statistic("score_matrix_mean", MAPS, lambda one: one.peaks("query"), "1",
                  "largest attention over queries, mean over heads and images", SEED, per_image=False,
                  whole=Layer.query_peaks),
        Statistic("score_matrix_key_mean", MAPS, lambda one: one.peaks("key"), "1",
                  "largest attention over keys, mean over heads and images", SEED, per_image=False),
        Statistic("score_matrix_head_mean", MAPS, lambda one: one.peaks("head"), "1",
                  "largest attention over heads, mean over queries and images", SEED, per_image=False),
        Statistic("offset_map_mean", OFFSETS, lambda one: _per_query(one, one.offsets), "1",
                  "attention by offset of the key, mean over queries that have it and over images", per_image=False),
        Statistic("offset_map_pooled_mean", OFFSETS, lambda one: one.offsets / one.patches, "1",
                  "share of the patch mass by offset of the key, mean over images", WALMER, per_image=False),
        Statistic("attention_matrix_mean", (*HEADS, "query", "key"), lambda one: one.attention, "1",
                  "attention, mean over images", per_image=False),
        # Counts of queries over all images, between edges that never change.
        Statistic("entropy_histogram", (*HEADS, "entropy_bin"),
                  lambda one: _counts(-one.rows[..., 3], _entropy_edges(one.spec)), "queries",
                  "queries by the entropy of their attention over all keys", probability=True, per_image=False,
                  edges=_entropy_edges),
        Statistic("distance_histogram", (*HEADS, "distance_bin"), _distance_counts, "queries",
                  "patch queries by their attention distance, rows not renormalised", RAGHU, per_image=False,
                  edges=_distance_edges),
        Statistic("distance_renormalized_histogram", (*HEADS, "distance_bin"), _renormalized_counts, "queries",
                  "patch queries by their attention distance, rows renormalised over patches", per_image=False,
                  edges=_distance_edges),
        # Norm-aware, where the run kept the lengths of the value vectors.
        Statistic("norm_weighted_entropy", HEADS, _weighted_entropy, "nats",
                  "mean entropy of attention times value norm, rows divided by their sums", KOBAYASHI,
                  needs="value_norm"),
        Statistic("norm_weighted_distance", HEADS,
                  lambda one: _mean_where(*_renormalized(one.weighted_rows[:, one.prefix :])), "pixels",
                  "mean distance of attention times value norm, rows renormalised over patches", KOBAYASHI,
                  needs="value_norm"),
        Statistic("norm_weighted_readout_map_mean", GRIDS, lambda one: _readout(one, one.weighted), "1",
                  "attention times value norm, readout row on each patch, mean over images", KOBAYASHI,
                  needs="value_norm", per_image=False),
        Statistic("norm_weighted_received_attention_mean", GRIDS,
                  lambda one: one.received_of(one.weighted, one.prefix).reshape(-1, *one.spec.grid), "1",
                  "attention times value norm, patch queries on each patch, mean over images", KOBAYASHI,
                  needs="value_norm", per_image=False),
    )
}  # fmt: skip


def find(names: Iterable[str]) -> list[str]:
    """Check the names of statistics.

    Raises:
        UsageError: one is unknown; near names are suggested.
    """
    known, found = [*FUSED, *CATALOG, *WEIGHTED, *MEASURED], []
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"
            raise UsageError(f"there is no statistic {name}; {hint}")
        found.append(name)
    return list(dict.fromkeys(found))
