"""What a report shows of distributions: how images differ around a head's mean, and how queries do within it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ....engine.store.store import Store
from ....words import counted
from ...catalog import CATALOG
from ...formulas.histograms import histogram
from ...statistic import Statistic
from ..numbers import Floats, mean_of
from ..plots.depth import Depth
from ..plots.ridges import Ridges
from ..plots.style import colour_of
from .base import Absent, Cell, Context, Figure, Part
from .depth import drawable, uniform_of

__all__ = ["over_images", "over_queries", "quantiles", "shares"]

BANDS = (0.05, 0.25, 0.5, 0.75, 0.95)  # of the stored quantiles, those that a distribution over images shows
SPREAD = (0.1, 0.5, 0.9)  # of a layer's queries


def over_images(context: Context) -> Iterator[Part]:
    """How far the images spread around these means."""
    store, facts, title = context.store, context.facts, "Distributions over images"
    parts = (CATALOG["distance_renormalized"], CATALOG["entropy"])
    found = [panel for part in parts if (panel := _spread(store, part)) is not None]
    if not found:
        return
    if facts.valid < 2:
        yield Absent(title, "One image only: there is nothing to spread.")
        return
    panels, empty = drawable(found)
    if not panels:
        yield Absent(title, " ".join(empty))
        return
    yield Figure(
        name="distributions",
        title=title,
        wide=len(panels) > 1,
        caption="Each head's values over images: the thin line from the 5 % to the 95 % quantile, the thick one from "
        "the 25 % to the 75 %, the ring at the median, the pale line the mean of the medians. It shows how much single "
        "images differ, where the figures above show how well their mean is known; a long line is a head that looks "
        + " ".join(["elsewhere in other pictures. Dashed: uniform attention.", *empty, f"{facts.n}."]),
        alt=f"Quantiles over images, {facts.n}. "
        + " ".join(
            f"{p.title}: the middle half of the images spans at most {float(np.nanmax(p.inner[1] - p.inner[0])):.3g} "
            f"{p.unit} in one head."
            for p in panels
            if p.inner is not None
        ),
        plots=panels,
        columns=("statistic", "layer", "head", *(f"quantile_{q:g}" for q in BANDS)),
        rows=[
            (p.title, layer, head, *(float(v[i, head]) for v in (p.low, p.inner[0], p.mean, p.inner[1], p.high)))
            for p in panels
            if p.inner is not None
            for i, layer in enumerate(p.layers)
            for head in range(p.mean.shape[1])
        ],
        methods=(*(p.title for p in panels), "quantiles"),
    )


def _spread(store: Store, one: Statistic) -> Depth | None:
    """Quantiles over images of one statistic, where the store holds them."""
    name = one.name
    if f"{name}_quantile" not in store or "quantile" not in store:
        return None
    places = store.read("quantile").tolist()
    if not set(BANDS) <= set(places):
        return None
    values = store.read(f"{name}_quantile").astype(np.float64)
    low, quarter, middle, three, high = (values[places.index(q)] for q in BANDS)
    reference, label = uniform_of(store, one)
    inner = np.stack([quarter, three])
    return Depth(name, one.units, store.spec.layers, middle, low, high, reference, label, inner, colour_of(name))


# -- over queries -----------------------------------------------------------------------------------------------------


def shares(counts: npt.NDArray[Any]) -> Floats:
    """Counts over their sum: (..., bin); NaN where nothing was counted."""
    total = counts.sum(axis=-1, keepdims=True, dtype=np.float64)
    return np.asarray(np.where(total > 0, counts / np.where(total > 0, total, 1), np.nan))


def quantiles(parts: Floats, edges: Floats, at: Sequence[float] = SPREAD) -> Floats:
    """Quantiles of binned values: shares (..., bin) between edges (bin + 1) -> (quantile, ...), in the edges' unit.

    A bin's values count as spread evenly over it, so that a quantile is right to within the width of its bin. Where
    it falls between two values with empty bins between them, it is the middle. NaN where the shares are.
    """
    found = np.full((len(at), *parts.shape[:-1]), np.nan)
    for place in np.argwhere(np.isfinite(parts).all(axis=-1)):
        below = np.concatenate([[0.0], np.cumsum(parts[tuple(place)])])
        # Empty bins are a step of no height: from just under it and from just above, both of its ends are met.
        ends = [np.interp(np.asarray(at) + side, below / below[-1], edges) for side in (-1e-9, 1e-9)]
        found[(slice(None), *place)] = np.mean(ends, axis=0)
    return found


def over_queries(context: Context) -> Iterator[Part]:
    """How far single queries spread, in every layer, where the store holds their histograms."""
    store, facts = context.store, context.facts
    panels, told, rows = [], [], list[tuple[Cell, ...]]()
    for one in CATALOG.values():
        name = one.name
        if one.edges is None or name not in store:
            continue
        counts, edge = store.read(name), f"{one.dims[-1].removesuffix('_bin')}_edge"
        edges, unit = store.read(edge).astype(np.float64), dict[str, Any](store.array(edge).attrs).get("units", "")
        if not counts.any() or edges[-1] <= edges[0]:  # a grid of one patch has no distances
            continue
        panel, parts = _ridges(store, name, unit, counts, edges)
        panels.append(panel)
        said: Any = store.array(name).attrs
        images, queries = int(said["images"]), int(counts.sum(axis=-1).max())
        told.append(
            f"`{panel.title}`: {one.words}, {queries:,} of each head, bins of {edges[1] - edges[0]:.3g} {unit}, "
            f"n = {counted(images, 'image')}."
        )
        rows += _rows(panel, parts, counts)
    if not panels:
        return
    missing = "" if all(np.isfinite(p.bands).all() for p in panels) else " Layers without a curve were not kept."
    yield Figure(
        name="queries",
        title="Distributions over queries",
        wide=len(panels) > 1,
        caption="How single queries spread, where the figures above average over the queries of an image. A curve for "
        "each layer: the share of its queries in each bin, averaged over heads, all images together; all curves are "
        "drawn to one height, so that their shapes compare and not their heights. Dark: from the 10 % to the 90 % "
        "quantile; line: the median; dots: each head's own median. Where dots lie apart, heads differ; where they lie "
        "together under a wide dark part, queries differ within each head, which no head's mean "
        "([@raghu2021], fig. 3) tells. Grey: uniform attention, whose distances spread too, since border "
        f"patches have fewer near neighbours.{missing} {' '.join(told)}",
        alt=f"Distributions over queries by layer, {facts.n}. " + " ".join(_told(panel) for panel in panels),
        plots=panels,
        across=3,
        columns=(
            "statistic",
            "layer",
            "head",
            "queries",
            *(f"quantile_{q:g}" for q in SPREAD),
            "bin_width",
            *(f"share_{i}" for i in range(max(p.shares.shape[-1] for p in panels))),
        ),
        rows=rows,
        methods=(*(f"{p.title}_histogram" for p in panels), "spread"),
    )


def _ridges(store: Store, name: str, unit: str, counts: npt.NDArray[Any], edges: Floats) -> tuple[Ridges, Floats]:
    """What is drawn of one histogram (layer, head, bin), and its shares (layer, head, bin)."""
    parts = shares(counts)
    mean = mean_of(parts, axis=1)
    even = _uniform(store, name)
    panel = Ridges(
        name.removesuffix("_histogram"),
        unit,
        store.spec.layers,
        edges,
        mean,
        quantiles(mean, edges),
        quantiles(parts, edges, (0.5,))[0],
        shares(np.asarray(histogram(even, edges.tolist()))),
        np.quantile(even, SPREAD),
        colour_of(name),
    )
    return panel, parts


def _uniform(store: Store, name: str) -> Floats:
    """What uniform attention gives of each query: (query), float64."""
    spec = store.spec
    if name == "entropy_histogram":
        return np.full(spec.tokens, math.log(spec.tokens))
    y, x = (np.arange(edge) * size for edge, size in zip(spec.grid, spec.patch_size, strict=True))
    found = np.array([np.hypot((y - top)[:, None], x - left).mean() for top in y for left in x])
    return found * (spec.patches / spec.tokens) if name == "distance_histogram" else found


def _rows(panel: Ridges, parts: Floats, counts: npt.NDArray[Any]) -> Iterator[tuple[Cell, ...]]:
    """Each head's numbers, the mean over heads, and uniform attention: what was not counted is left out."""
    width = float(panel.edges[1] - panel.edges[0])
    alone = quantiles(parts, panel.edges)
    for i, layer in enumerate(panel.layers):
        for head in np.flatnonzero(np.isfinite(panel.heads[i])).tolist():
            yield (
                panel.title,
                layer,
                head,
                int(counts[i, head].sum()),
                *alone[:, i, head].tolist(),
                width,
                *parts[i, head].tolist(),
            )
        if np.isfinite(panel.bands[:, i]).all():
            yield (
                panel.title,
                layer,
                "mean",
                int(counts[i].sum()),
                *panel.bands[:, i].tolist(),
                width,
                *panel.shares[i].tolist(),
            )
    yield panel.title, "uniform", "", "", *panel.uniform_bands.tolist(), width, *panel.uniform.tolist()


def _told(panel: Ridges) -> str:
    """The first and the last layer that were counted, and uniform attention, in words."""
    there = np.flatnonzero(np.isfinite(panel.bands).all(axis=0))
    shown = [(f"layer {panel.layers[i]}", panel.bands[:, i]) for i in dict.fromkeys((there[0], there[-1]))]
    shown.append(("uniform attention", panel.uniform_bands))
    words = [
        f"{name}, median {middle:.3g} {panel.unit}, 10 to 90 % of the queries from {low:.3g} to {high:.3g}"
        for name, (low, middle, high) in shown
    ]
    return f"{panel.title}: {'; '.join(words)}."
