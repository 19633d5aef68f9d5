"""What a report shows of tokens where a graph was exported with norms, and of mean attention matrices."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from ....engine.store.store import Store
from ...catalog import CATALOG
from ...statistics.clusters import cluster_codes, cluster_of
from ...statistics.inference import interval
from ..numbers import Floats, along, mean_of, why_empty
from ..plots.canvas import Plot
from ..plots.curves import Curves, Line
from ..plots.histogram import Counts, Histogram
from ..plots.style import CATEGORIES, QUIET
from .base import Absent, Cell, Context, Figure, Part
from .examples import matrices

__all__ = ["BINS", "mean_matrices", "norms"]

NAMES = ("token_norm", "branch_ratio", "value_norm")
UNITS = {
    "token_norm": "norm of the residual stream",
    "branch_ratio": "norm added / norm before",
    "value_norm": "norm of the projected value",
}
BINS = np.geomspace(1e-3, 1e5, 401)  # of norms, 50 in each power of ten

Index = npt.NDArray[np.intp]


def norms(context: Context) -> Iterator[Part]:
    """How long tokens are: the histogram of the last layer, in which outliers show, and means by depth."""
    store = context.store
    there = [name for name in NAMES if name in store]
    if not there:
        return
    kinds = _kinds(store)
    means, counts = _read(store, there, kinds)
    usable = store.done_images & store.read("valid").astype(bool)
    clusters = cluster_codes([store], [usable], cluster_of(store))
    rows: list[tuple[Cell, ...]] = []
    plots: list[Plot] = []
    told = []
    if counts and any(values.any() for values in counts.values()):
        parts = [Counts(_label(kind), _colour(kind), values) for kind, values in counts.items()]
        plots.append(Histogram(f"token_norm, layer {store.spec.layers[-1]}", UNITS["token_norm"], BINS, parts))
        rows += [
            ("token_norm_histogram", store.spec.layers[-1], kind, float(BINS[i]), float(BINS[i + 1]), int(n))
            for kind, values in counts.items()
            for i, n in enumerate(values)
            if n
        ]
    for name in there:
        lines = []
        for kind, values in means[name].items():
            mean = mean_of(values, axis=0)
            if why_empty(mean):
                continue
            low, high = interval(values, clusters=clusters, within=(0, math.inf))
            layers = np.asarray(store.spec.layers, float)
            lines.append(Line(_label(kind), _colour(kind), layers, mean, low, high))
            rows += [
                (name, layer, kind, *(float(v[i]) for v in (mean, low, high)))
                for i, layer in enumerate(store.spec.layers)
            ]
            told.append(f"{name} of {_label(kind)} {along(mean)}")
        if lines:
            plots.append(Curves(name, UNITS[name], lines, None, "layer", max(store.spec.layers) + 0.4))
    if not plots:
        yield Absent("Norms of tokens", "No norm is known.")
        return
    yield Figure(
        name="norms",
        title="Norms of tokens",
        wide=len(plots) > 1,
        caption="How long tokens are. The histogram counts tokens of all images by the norm of the residual stream "
        "that enters the last layer, on logarithmic scales: patches in a second hump at large norms are the outliers "
        "of [@darcet2024], fig. 3, which serve the model as registers. By depth: the mean over tokens of a kind and "
        "over images, with its 95 % interval over images. `branch_ratio` is what attention adds, against what it is "
        "added to; `value_norm` is the length of the vector that a key hands over ([@kobayashi2020]). "
        f"{context.facts.n}.",
        alt=f"Norms of tokens, {context.facts.n}: {'; '.join(told)}.",
        plots=plots,
        columns=("statistic", "layer", "tokens", "mean_or_bin_start", "low_or_bin_end", "high_or_count"),
        rows=rows,
        methods=(*there, "intervals"),
    )


def _kinds(store: Store) -> dict[str, Index]:
    """Places of the tokens of each kind: prefix tokens by theirs, and patches."""
    prefix = store.spec.prefix
    kinds = {kind: np.flatnonzero([one == kind for one in prefix]) for kind in dict.fromkeys(prefix)}
    return kinds | {"patches": np.arange(len(prefix), store.spec.tokens)}


def _label(kind: str) -> str:
    return kind if kind == "patches" else f"{kind} tokens" if kind == "register" else f"{kind} token"


def _colour(kind: str) -> str:
    return CATEGORIES.get(kind, QUIET)


def _read(
    store: Store, names: list[str], kinds: dict[str, Index]
) -> tuple[dict[str, dict[str, Floats]], dict[str, npt.NDArray[np.int64]]]:
    """Means over each kind of token, (image, layer), and the last layer's counts of `BINS`; read unit by unit."""
    valid = store.done_images & store.read("valid").astype(bool)
    found: dict[str, dict[str, list[Floats]]] = {name: {kind: [] for kind in kinds} for name in names}
    counts = {kind: np.zeros(BINS.size - 1, np.int64) for kind in kinds} if "token_norm" in names else {}
    for k in np.flatnonzero(store.done):
        part = store.plan.unit_range(int(k))
        at = slice(part.start, part.stop)
        for name in names:
            values = store.read(name, at)[valid[at]].astype(np.float64)
            if "head" in CATALOG[name].dims:
                values = mean_of(values, axis=2)
            for kind, places in kinds.items():
                found[name][kind].append(mean_of(values[..., places], axis=-1))
                if name == "token_norm":
                    counts[kind] += np.histogram(values[:, -1, places], BINS)[0]
    return {name: {kind: np.concatenate(v) for kind, v in one.items()} for name, one in found.items()}, counts


def mean_matrices(context: Context) -> Iterator[Part]:
    """Whole attention matrices, averaged over images and heads."""
    store, spec, title = context.store, context.store.spec, "Mean attention matrices"
    if "attention_matrix_mean" not in store:
        return
    values = mean_of(store.read("attention_matrix_mean").astype(np.float64), axis=1) * spec.tokens
    if reason := why_empty(values):
        yield Absent(title, f"In `attention_matrix_mean` {reason}.")
        return
    kept = [i for i in range(len(spec.layers)) if np.isfinite(values[i]).all()]
    shown = {spec.layers[i]: values[i] for i in sorted({kept[0], kept[len(kept) // 2], kept[-1]})}
    yield matrices(
        shown,
        spec,
        name="matrices_mean",
        title=title,
        caption=f"All {spec.tokens} × {spec.tokens} entries of `attention_matrix_mean`, mean over heads and images, × "
        "uniform, on one scale, the largest 0.5 % in its last colour; rows are queries, columns keys. What single "
        f"images look at averages out; what remains is where positions look. {context.facts.n}.",
        methods=("attention_matrix_mean",),
    )
