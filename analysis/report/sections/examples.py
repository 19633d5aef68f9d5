"""Pictures on a report: single images, what attention does in them, and the score matrices."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ....engine.store import Store
from ... import formulas
from ..facts import Facts
from ..images import (
    MAPS,
    Example,
    attention,
    choose,
    example,
    lacking,
    map_of,
    mean_attention,
    patches,
    readout_row,
    times_uniform,
)
from ..plots import maps as rasters
from ..text.methods import cite
from .base import Absent, Cell, Exhibit, analyze_first, extent, keep, no_rollout, row_name, where

__all__ = ["gallery"]

Floats = npt.NDArray[np.floating[Any]]


def gallery(store: Store, facts: Facts, examples: int, images: Any = None) -> Iterator[Exhibit | Absent]:
    """Everything a report shows of single images, and the score matrices, in the order of the page."""
    chosen = choose(store, examples, images)
    if chosen:
        yield from _examples(store, chosen)
        yield from _heads(store, chosen[0])
        yield _scores(store, facts, chosen[0])
    elif examples > 0:
        yield Absent("Example pictures", "The store holds the pixels of no valid image.")
    yield _mean_scores(store, facts)
    if chosen:
        yield from _query(store, chosen[0])
        yield from _matrices(store, chosen[0])
        yield from _extremes(store, images)


def _gallery(
    store: Store, chosen: Sequence[Example], name: str, title: str, lead: str, notes: Sequence[str] = ()
) -> tuple[Exhibit, list[str]]:
    """Pictures with their maps, and which of the maps this store cannot give."""
    spec, size = store.spec, extent(store)
    maps = [{kind: map_of(store, one.image, kind) for kind in MAPS} for one in chosen]
    kept = [kind for kind in MAPS if all(found[kind] is not None for found in maps)]
    rows: list[rasters.Row] = []
    numbers: list[tuple[Cell, ...]] = []
    for one, found in zip(chosen, maps, strict=True):
        panels = [] if one.pixels is None else [rasters.Panel("", one.pixels, size, spec.grid)]
        for kind in kept:
            values = found[kind]
            assert values is not None
            panels.append(rasters.Panel("", values, size))
            numbers += [(one.path, kind, *at, float(value)) for at, value in np.ndenumerate(values)]
        note = notes[len(rows)] if notes else ""
        rows.append(rasters.Row(note + one.title, tuple(panels)))
    headings = ["input and\npatch grid", *(MAPS[kind].heading.format(last=spec.layers[-1]) for kind in kept)]
    told = ", ".join(heading.replace("\n", " ") for heading in headings[1:])
    pictured = all(one.pixels is not None for one in chosen)
    labels, root = [None, *(MAPS[kind].unit for kind in kept)], [False, *(MAPS[kind].root for kind in kept)]
    first = 0 if pictured else 1
    return Exhibit(
        name=name, title=title, caption=_caption(store, lead, kept),
        alt=f"{len(chosen)} pictures, each with {told or 'its patch grid'}: " + "; ".join(r.title for r in rows) + ".",
        draw=lambda narrow: rasters.picture_rows(
            rows, headings[first:], labels[first:], narrow=narrow, root=root[first:]
        ),
        columns=("path", "map", "y", "x", "times_uniform"), rows=numbers,
        methods=tuple(MAPS[kind].method for kind in kept),
    ), [kind for kind in MAPS if kind not in kept]  # fmt: skip


def _examples(store: Store, chosen: Sequence[Example]) -> Iterator[Exhibit | Absent]:
    lead = (
        f"{len(chosen)} image{'s' if len(chosen) != 1 else ''}, evenly spread over the store's random sample by order "
        "alone, so that none is chosen for its looks; n = 1 image each."
    )
    shown, absent = _gallery(store, chosen, "examples", "Example pictures", lead)
    yield shown
    if "attention" in absent:
        yield Absent("Readout attention of the examples", keep(store, "attention", "the readout rows of single images"))
    if "rollout" in absent:
        yield Absent("Rollout of the examples", no_rollout(store, None))
    weighted = [kind for kind in ("gradient_rollout", "chefer") if kind in absent]
    if weighted:
        names = {"gradient_rollout": "Gradient rollout", "chefer": "Chefer relevance"}
        title = " and ".join(names[kind] for kind in weighted)
        yield Absent(
            f"{title} of the examples",
            re.sub("`(.+?)`", r"<code>\1</code>", html.escape(lacking(store, weighted[0]))) + ".",
        )


def _extremes(store: Store, images: Any, count: int = 2) -> Iterator[Exhibit]:
    """The images of the sharpest and of the widest attention in the last layer."""
    if "entropy" not in store:
        return
    usable = store.done_images & store.read("valid").astype(bool)
    if images is None:  # only these have pictures
        usable &= np.isin(np.arange(usable.size), store.plan.sample)
    candidates = np.flatnonzero(usable)
    last = len(store.spec.layers) - 1
    values = store.read("entropy", (slice(None), last)).astype(np.float64).mean(axis=1)[candidates]
    candidates, values = candidates[np.isfinite(values)], values[np.isfinite(values)]
    if len(candidates) < 2 * count:
        return
    order = np.argsort(values, kind="stable")
    picked = [*order[:count], *order[len(order) - count :]]
    chosen = [(example(store, int(candidates[i]), images), float(values[i])) for i in picked]
    chosen = [(one, value) for one, value in chosen if one.pixels is not None]
    if not chosen:
        return
    among = "of the sample" if images is None else "of the dataset"
    lead = (
        f"Chosen after looking: the {count} valid images {among} with the lowest entropy in layer "
        f"{store.spec.layers[last]}, "
        f"mean over heads, and the {count} with the highest, out of n = {len(candidates):,} "
        f"image{'s' if len(candidates) != 1 else ''}. "
        "They show the range, and nothing typical."
    )
    notes = [f"{value:.2f} nats · " for _, value in chosen]
    yield _gallery(store, [one for one, _ in chosen], "extremes", "Extremes of entropy", lead, notes)[0]


def _caption(store: Store, lead: str, kept: Sequence[str]) -> str:
    spec = store.spec
    told = {
        "attention": f"Attention: {row_name(store)} of layer {spec.layers[-1]}, mean over heads, divided by what "
        f"uniform attention would be ({cite('caron2021')}).",
        "rollout": f"Rollout: followed through all layers ({cite('abnar2020')}).",
        "gradient_rollout": f"Gradient rollout: the same with attention weighted by its gradient ({cite('hebbar')}).",
        "chefer": f"Chefer: relevance of what speaks for the class ({cite('chefer2021')}).",
    }
    parts = [lead, f"The crop is what the model saw, its {spec.grid[0]} × {spec.grid[1]} patches marked."]
    parts += [told[kind] for kind in kept]
    if len(kept) > 1:
        parts.append("All but the first map are divided by their mean over patches. Each column has one scale.")
    if {"gradient_rollout", "chefer"} & set(kept):
        parts.append("Only the maps with gradients know which class is asked for.")
    return " ".join(parts)


def _heads(store: Store, one: Example) -> Iterator[Exhibit | Absent]:
    spec, title = store.spec, "Heads of the last layer"
    row = readout_row(store, one.image, len(spec.layers) - 1)
    if row is None or (len(row) == 1 and spec.heads > 1):
        yield Absent(title, keep(store, "attention", "single heads of the readout"))
        return
    values, layer = times_uniform(row, spec.grid), spec.layers[-1]
    panels = [rasters.Panel(f"head {i}", v, extent(store)) for i, v in enumerate(values)]
    columns = 4 if len(panels) % 4 == 0 else 3 if len(panels) % 3 == 0 else min(4, len(panels))
    yield Exhibit(
        name="heads", title=title,
        caption=f"{row_name(store).capitalize()} of layer {layer}, head by head, × uniform, on one scale "
        f"({cite('caron2021')}). n = 1 image: <span class=path>{html.escape(one.path)}</span>, the first of the "
        "examples.",
        alt=f"{len(panels)} maps, one a head of layer {layer}. "
        + " ".join(f"Head {i}: at most {v.max():.1f} times uniform, at {where(v)}." for i, v in enumerate(values)),
        draw=lambda narrow: rasters.map_grid(
            panels, "attention, × uniform", columns=min(columns, 3) if narrow else columns if len(panels) < 12 else 6,
            narrow=narrow, root=True,
        ),
        columns=("head", "y", "x", "times_uniform"),
        rows=[(*at, float(value)) for at, value in np.ndenumerate(values)],
        methods=("readout",),
    )  # fmt: skip


def _scores(store: Store, facts: Facts, one: Example) -> Exhibit | Absent:
    spec = store.spec
    title, scores = "Score matrix of every layer, one picture", {}
    for place, layer in enumerate(spec.layers):
        whole = attention(store, one.image, place)
        if whole is not None:
            scores[layer] = formulas.score_matrix(whole, spec.grid)
    if not scores:
        return Absent(title, keep(store, "attention", "the score matrix, which needs every query of every head,"))
    return _score_exhibit(
        store, "score_matrix", title, scores,
        f"n = 1 image: <span class=path>{html.escape(one.path)}</span>, the first of the examples.",
    )  # fmt: skip


def _mean_scores(store: Store, facts: Facts) -> Exhibit | Absent:
    title = "Score matrix of every layer, dataset mean"
    if "score_matrix_mean" not in store and ("attention" in store or "attention_code" in store):
        return Absent(title, analyze_first(facts))
    if "score_matrix_mean" not in store:
        return Absent(title, keep(store, "attention", "the score matrix, which needs every query of every head,"))
    values = store.read("score_matrix_mean").astype(np.float64)
    scores = {layer: v for layer, v in zip(store.spec.layers, values, strict=True) if np.isfinite(v).all()}
    if not scores:
        return Absent(title, keep(store, "attention", "the score matrix, which needs every query of every head,"))
    return _score_exhibit(store, "score_matrix_mean", title, scores, f"Mean over images, {facts.n}.")


def _score_exhibit(store: Store, name: str, title: str, scores: dict[int, Floats], n: str) -> Exhibit:
    panels = [rasters.Panel(f"layer {layer}", values, extent(store)) for layer, values in scores.items()]
    peak = max(scores, key=lambda layer: float(scores[layer].max()))
    return Exhibit(
        name=name, title=title,
        caption="For each patch the largest attention that any patch pays to it, averaged over heads; prefix tokens "
        f"dropped; a probability. All layers share one scale, from input to output. {n}",
        alt=f"{len(panels)} maps, one a layer. The largest value, {scores[peak].max():.3g}, is in layer {peak} at "
        f"{where(scores[peak])}. Means by layer: " + ", ".join(f"{v.mean():.3g}" for v in scores.values()) + ".",
        draw=lambda narrow: rasters.map_grid(
            panels, "largest attention received", columns=4 if narrow else 6 if len(panels) <= 12 else 8,
            narrow=narrow, root=True,
        ),
        columns=("layer", "y", "x", "score"),
        rows=[(layer, *at, float(value)) for layer, v in scores.items() for at, value in np.ndenumerate(v)],
        methods=("score_matrix",),
    )  # fmt: skip


def _query(store: Store, one: Example) -> Iterator[Exhibit]:
    """What the central patch looks at, layer by layer."""
    spec, size = store.spec, extent(store)
    y, x = spec.grid[0] // 2, spec.grid[1] // 2
    maps: dict[int, Floats] = {}
    for place, layer in enumerate(spec.layers):
        mean = mean_attention(store, one.image, place)
        if mean is not None:
            maps[layer] = patches(mean[0, len(spec.prefix) + y * spec.grid[1] + x], spec.grid) * spec.tokens
    if not maps:
        return
    panels = [rasters.Panel(f"layer {layer}", v, size, mark=(y, x)) for layer, v in maps.items()]
    yield Exhibit(
        name="query_map", title="What the central patch looks at",
        caption=f"Attention of the patch in row {y + 1}, column {x + 1} (framed) to all patches, mean over heads, × "
        "uniform, on one "
        f"scale. n = 1 image: <span class=path>{html.escape(one.path)}</span>, the first of the examples.",
        alt=f"{len(panels)} maps, one a layer. The patch's attention to itself: "
        + ", ".join(f"{v[y, x]:.1f}" for v in maps.values()) + " times uniform.",
        draw=lambda narrow: rasters.map_grid(
            panels, "attention, × uniform", columns=4 if narrow else 6 if len(panels) <= 12 else 8, narrow=narrow,
            root=True,
        ),
        columns=("layer", "y", "x", "times_uniform"),
        rows=[(layer, *at, float(value)) for layer, v in maps.items() for at, value in np.ndenumerate(v)],
        methods=("query_map",),
    )  # fmt: skip


def _matrices(store: Store, one: Example) -> Iterator[Exhibit]:
    """Whole matrices of the first, a middle and the last layer that was kept."""
    spec = store.spec
    kept = store.kept_layers
    places = sorted({kept[0], kept[len(kept) // 2], kept[-1]}) if kept else []
    maps: dict[int, Floats] = {}
    for place in places:
        mean = mean_attention(store, one.image, place)
        if mean is not None:
            maps[spec.layers[place]] = mean[0] * spec.tokens
    if not maps:
        return
    n = spec.tokens
    # A few entries on the diagonal would leave all others black.
    top = float(np.quantile(np.stack(list(maps.values())), 0.995)) or 1.0
    panels = [rasters.Panel(f"layer {layer}", v, (n, n), lines=len(spec.prefix)) for layer, v in maps.items()]
    count = len(spec.prefix)
    told = f" Lines part the prefix token{'s' if count > 1 else ''} from the patches." if count else ""
    yield Exhibit(
        name="matrices", title="Attention matrices",
        caption=f"All {n} × {n} entries, mean over heads, × uniform, on one scale whose last colour the largest 0.5 % "
        "share; rows are queries, columns "
        f"keys.{told} "
        f"Stripes beside the diagonal are neighbouring rows of patches; columns are tokens that all queries look at. "
        f"n = 1 image: <span class=path>{html.escape(one.path)}</span>, the first of the examples.",
        alt=f"{len(panels)} matrices of {n} by {n}, layers {', '.join(map(str, maps))}. On the diagonal: "
        + ", ".join(f"{np.diagonal(v).mean():.1f}" for v in maps.values()) + " times uniform on average.",
        draw=lambda narrow: rasters.map_grid(
            panels, "attention, × uniform", columns=3, narrow=narrow, limits=(0.0, top), root=True
        ),
        columns=("layer", "query", "key", "times_uniform"),
        rows=[(layer, *at, float(value)) for layer, v in maps.items() for at, value in np.ndenumerate(v)],
        methods=("readout",),
    )  # fmt: skip
