"""What a report shows of heads and layers in detail: sorted, by offset, alike or not, and where sinks are."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from ...catalog import CATALOG
from ..numbers import mean_of, one_by_one, why_empty
from ..plots.maps import Maps, across
from ..plots.mosaic import Mosaic
from ..plots.ranks import Ranks
from ..plots.sheet import Panel
from .base import Absent, Context, Figure, Part, summary, where

__all__ = ["offsets", "received", "similarity", "sorted_heads"]


def sorted_heads(context: Context) -> Iterator[Part]:
    """Heads of each layer in the order of their distance."""
    store, facts = context.store, context.facts
    found = summary(store, "distance_renormalized")
    if found is None or found.why_empty:
        return
    values = np.sort(found.mean, axis=1)
    one = CATALOG["distance_renormalized"]
    yield Figure(
        name="distance_sorted",
        title="Heads sorted by distance",
        wide=False,
        caption="`distance_renormalized` of each layer's heads, sorted within the layer, in the form of "
        f"[@raghu2021], fig. 3; pixels. Dashed: uniform attention. {facts.n}.",
        alt=f"A line a layer over its sorted heads: layer {store.spec.layers[0]} from {values[0, 0]:.1f} to "
        f"{values[0, -1]:.1f} pixels, layer {store.spec.layers[-1]} from {values[-1, 0]:.1f} to {values[-1, -1]:.1f} "
        "pixels.",
        plots=[Ranks(store.spec.layers, values, one.units, one.uniform(store.spec) or 0.0)],
        columns=("layer", "rank", "distance_renormalized_mean"),
        rows=[(store.spec.layers[i], rank, float(value)) for (i, rank), value in np.ndenumerate(values)],
        methods=("distance_renormalized",),
    )


def received(context: Context) -> Iterator[Part]:
    """Where the attention arrives: sinks that stand at fixed places show here."""
    store, facts, title = context.store, context.facts, "Where attention arrives"
    if "received_attention_mean" not in store:
        return
    spec = store.spec
    values = store.read("received_attention_mean").astype(np.float64) * spec.tokens
    if reason := why_empty(values):
        yield Absent(title, f"In `received_attention_mean` {reason}.")
        return
    by_layer = mean_of(values, axis=1)
    peak = int(np.nanargmax(by_layer)) // spec.patches
    yield Figure(
        name="received_attention",
        title=title,
        caption="Attention that each patch receives, averaged over patch queries and images, × uniform; a map for "
        "every head (down) and layer (across), on one scale. Patches that draw far more than 1 whatever the picture "
        "are sinks at a fixed place; compare [@darcet2024]. Sinks that move with the picture average out here: see "
        f"`sink_share`. {facts.n}.",
        alt=f"{values.shape[0] * values.shape[1]} maps of {spec.grid[0]} by {spec.grid[1]} patches. The largest mean "
        f"over heads, {np.nanmax(by_layer):.2f} times uniform, is in layer {spec.layers[peak]} at "
        f"{where(by_layer[peak])}.",
        plots=[
            Mosaic(
                values.swapaxes(0, 1),
                "received attention, × uniform",
                ("head", "layer"),
                (range(spec.heads), spec.layers),
                root=True,
            )
        ],
        columns=("layer", "head", "y", "x", "times_uniform"),
        rows=[(spec.layers[at[0]], *at[1:], float(value)) for at, value in np.ndenumerate(values)],
        methods=("received_attention",),
    )


def offsets(context: Context) -> Iterator[Part]:
    """Where patches look from where they are, one map a head."""
    store, facts, title = context.store, context.facts, "Attention by offset"
    if "offset_map_mean" not in store:
        return
    spec = store.spec
    values = store.read("offset_map_mean").astype(np.float64)
    if reason := why_empty(values):
        yield Absent(title, f"In `offset_map_mean` {reason}.")
        return
    rows, columns = spec.grid
    centre = mean_of(values[:, :, rows - 1, columns - 1], axis=1)
    # One patch to the side can hold nearly all; on its scale whatever spreads would be black.
    top = float(np.nanquantile(values, 0.998)) or 1.0
    yield Figure(
        name="offset_map",
        title=title,
        caption="Where patches look, relative to themselves: the centre of each map is the patch itself, its edges are "
        f"{rows - 1} rows and {columns - 1} columns away. A map for every head (down) and layer (across), averaged "
        "over the queries that have such a key inside the image, and over images; a probability, on one scale, the "
        "largest 0.2 % in its last colour. A bright spot beside the centre is a head that looks one way; a bright "
        "cross looks along rows and columns. "
        f"Compare [@walmer2023]. {facts.n}.",
        alt=f"{values.shape[0] * values.shape[1]} maps of {2 * rows - 1} by {2 * columns - 1} offsets. At the centre, "
        "mean over heads, by layer: " + one_by_one(centre) + ".",
        plots=[
            Mosaic(
                values.swapaxes(0, 1),
                "mean attention at this offset",
                ("head", "layer"),
                (range(spec.heads), spec.layers),
                (0.0, top),
                root=True,
            )
        ],
        columns=("layer", "head", "offset_y", "offset_x", "attention"),
        rows=[
            (spec.layers[i], head, y - rows + 1, x - columns + 1, float(value))
            for (i, head, y, x), value in np.ndenumerate(values)
        ],
        methods=("offset_map_mean",),
    )


def similarity(context: Context) -> Iterator[Part]:
    """Which heads of a layer do the same."""
    store, facts, title = context.store, context.facts, "How much heads differ"
    if "head_similarity_mean" not in store or store.spec.heads < 2:
        return
    spec, n = store.spec, store.spec.heads
    values = store.read("head_similarity_mean").astype(np.float64)
    if reason := why_empty(values):
        yield Absent(title, f"In `head_similarity_mean` {reason}.")
        return
    pairs = mean_of(values[:, ~np.eye(n, dtype=bool)], axis=1)
    panels = [Panel(f"layer {layer}", v, (n, n)) for layer, v in zip(spec.layers, values, strict=True)]
    yield Figure(
        name="head_similarity",
        title=title,
        caption="Jensen-Shannon divergence between the heads of a layer, averaged over queries and images; nats, "
        f"0 for equal heads, at most ln 2 = {math.log(2):.2f}. Dark squares are heads that look alike "
        f"([@clark2019]). One scale. {facts.n}.",
        alt=f"{len(panels)} matrices of {n} by {n} heads. Mean divergence between different heads by layer: "
        + one_by_one(pairs)
        + " nats.",
        plots=[Maps(panels, "Jensen-Shannon divergence, nats", across(len(panels)))],
        columns=("layer", "head", "other_head", "divergence"),
        rows=[(spec.layers[at[0]], *at[1:], float(value)) for at, value in np.ndenumerate(values)],
        methods=("head_similarity",),
    )
