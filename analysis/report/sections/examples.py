"""Pictures on a report: single images, what attention does in them, and the score matrices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ....engine.store.store import Store
from ....exporter.spec import GraphSpec
from ....words import counted
from ... import formulas
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
from ..numbers import Floats, why_empty
from ..plots.maps import Maps, across
from ..plots.pictures import Column, Pictures, Row
from ..plots.sheet import Panel
from ..text.markup import code
from .base import Absent, Cell, Context, Figure, Part, analyze_first, extent, keep, no_rollout, row_name, where

__all__ = [
    "examples",
    "extremes",
    "heads_of_one",
    "matrices",
    "matrices_of_one",
    "mean_scores",
    "query_of_one",
    "scores_of_one",
]

# What a caption says of each kind of map.
TOLD = {
    "attention": "Attention: {row} of layer {last}, mean over heads, divided by what uniform attention would be "
    "([@caron2021]).",
    "rollout": "Rollout: followed through all layers ([@abnar2020]).",
    "gradient_rollout": "Gradient rollout: the same with attention weighted by its gradient ([@hebbar]).",
    "chefer": "Chefer: relevance of what speaks for the class ([@chefer2021]).",
}
NEEDED = "the score matrix, which needs every query of every head,"
FIRST = "the first of the examples"


def examples(context: Context) -> Iterator[Part]:
    """Pictures that are chosen by order alone, with all their maps."""
    store = context.store
    chosen = [example(store, image, context.images) for image in choose(store, context.examples)]
    if not chosen:
        if context.examples > 0:
            yield Absent("Example pictures", "The store holds the pixels of no valid image.")
        return
    found = _all_maps(store, chosen)
    yield _gallery(
        store,
        chosen,
        found,
        "examples",
        "Example pictures",
        f"{counted(len(chosen), 'image')}, evenly spread over the store's random sample by order "
        "alone, so that none is chosen for its looks; n = 1 image each.",
    )
    lacked = [kind for kind in MAPS if kind not in found]
    if "attention" in lacked:
        yield Absent("Readout attention of the examples", keep(store, "attention", "the readout rows of single images"))
    if "rollout" in lacked:
        yield Absent("Rollout of the examples", no_rollout(store, None))
    names = {"gradient_rollout": "Gradient rollout", "chefer": "Chefer relevance"}
    weighted = [kind for kind in names if kind in lacked]
    if weighted:
        title = " and ".join(names[kind] for kind in weighted)
        yield Absent(f"{title} of the examples", f"{lacking(store, weighted[0])}.")


def extremes(context: Context, count: int = 2) -> Iterator[Part]:
    """The images of the sharpest and of the widest attention in the last layer."""
    store, images = context.store, context.images
    if "entropy" not in store or not choose(store, context.examples):
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
    found = [(example(store, int(candidates[i]), images), float(values[i])) for i in picked]
    found = [(one, value) for one, value in found if one.pixels is not None]
    if not found:
        return
    among = "of the sample" if images is None else "of the dataset"
    chosen = [one for one, _ in found]
    yield _gallery(
        store,
        chosen,
        _all_maps(store, chosen),
        "extremes",
        "Extremes of entropy",
        f"Chosen after looking: the {count} valid images {among} with the lowest entropy in layer "
        f"{store.spec.layers[last]}, mean over heads, and the {count} with the highest, out of n = "
        f"{counted(len(candidates), 'image')}. They show the range, and nothing typical.",
        [f"{value:.2f} nats · " for _, value in found],
    )


def _all_maps(store: Store, chosen: Sequence[Example]) -> dict[str, list[Floats]]:
    """Maps by their kind, (image) each, of the kinds that the store can give of all these images."""
    found = {kind: [map_of(store, one.image, kind) for one in chosen] for kind in MAPS}
    known = {kind: [values for values in row if values is not None] for kind, row in found.items()}
    return {kind: row for kind, row in known.items() if len(row) == len(chosen)}


def _gallery(
    store: Store,
    chosen: Sequence[Example],
    found: Mapping[str, Sequence[Floats]],
    name: str,
    title: str,
    lead: str,
    notes: Sequence[str] = (),
) -> Figure:
    """Pictures with their maps."""
    spec = store.spec
    rows = [
        Row((notes[at] if notes else "") + one.title, one.pixels, tuple(row[at] for row in found.values()))
        for at, one in enumerate(chosen)
    ]
    columns = [Column(MAPS[k].heading.format(last=spec.layers[-1]), MAPS[k].unit, MAPS[k].root) for k in found]
    told = ", ".join(column.heading.replace("\n", " ") for column in columns)
    numbers: list[tuple[Cell, ...]] = [
        (one.path, kind, *cell, float(value))
        for at, one in enumerate(chosen)
        for kind, row in found.items()
        for cell, value in np.ndenumerate(row[at])
    ]
    return Figure(
        name=name,
        title=title,
        caption=_caption(store, lead, list(found)),
        alt=f"{counted(len(chosen), 'picture')}, each with {told or 'its patch grid'}: "
        + "; ".join(r.title for r in rows)
        + ".",
        plots=[Pictures(rows, columns, extent(store), spec.grid)],
        columns=("path", "map", "y", "x", "times_uniform"),
        rows=numbers,
        methods=tuple(MAPS[kind].method for kind in found),
    )


def _caption(store: Store, lead: str, kept: Sequence[str]) -> str:
    spec = store.spec
    parts = [lead, f"The crop is what the model saw, its {spec.grid[0]} × {spec.grid[1]} patches marked."]
    parts += [TOLD[kind].format(row=row_name(store), last=spec.layers[-1]) for kind in kept]
    if len(kept) > 1:
        parts.append("All but the first map are divided by their mean over patches.")
    parts.append("Each map has its own scale, from 0 to its maximum, which is printed on it.")
    if {"gradient_rollout", "chefer"} & set(kept):
        parts.append("Only the maps with gradients know which class is asked for.")
    return " ".join(parts)


# -- the first example in detail ---------------------------------------------------------------------------------------


def _first(context: Context) -> Example | None:
    chosen = choose(context.store, context.examples)
    return example(context.store, chosen[0], context.images) if chosen else None


def heads_of_one(context: Context) -> Iterator[Part]:
    """What each head of the last layer reads out."""
    store, one, title = context.store, _first(context), "Heads of the last layer"
    if one is None:
        return
    spec = store.spec
    row = readout_row(store, one.image, len(spec.layers) - 1)
    if row is None or (len(row) == 1 and spec.heads > 1):
        yield Absent(title, keep(store, "attention", "single heads of the readout"))
        return
    values, layer = times_uniform(row, spec.grid), spec.layers[-1]
    if reason := why_empty(values):
        yield Absent(title, f"Of {code(one.path)} {reason}.")
        return
    panels = [Panel(f"head {i}", v, extent(store), under=one.pixels) for i, v in enumerate(values)]
    few = 4 if len(panels) % 4 == 0 else 3 if len(panels) % 3 == 0 else 4
    columns = few if len(panels) < 12 else 6
    yield Figure(
        name="heads",
        title=title,
        caption=f"{row_name(store).capitalize()} of layer {layer}, head by head, × uniform, on one scale; the "
        f"maximum of each is printed on it ([@caron2021]). n = 1 image: {code(one.path)}, {FIRST}.",
        alt=f"{counted(len(panels), 'map')}, one a head of layer {layer}. "
        + " ".join(f"Head {i}: at most {v.max():.1f} times uniform, at {where(v)}." for i, v in enumerate(values)),
        plots=[Maps(panels, "attention, × uniform", (columns, min(few, 3)), root=True)],
        columns=("head", "y", "x", "times_uniform"),
        rows=[(*at, float(value)) for at, value in np.ndenumerate(values)],
        methods=("readout",),
    )


def scores_of_one(context: Context) -> Iterator[Part]:
    """The score matrix of each layer."""
    store, one = context.store, _first(context)
    if one is None:
        return
    spec = store.spec
    title, scores = "Score matrix of every layer, one picture", dict[int, Floats]()
    for place, layer in enumerate(spec.layers):
        whole = attention(store, one.image, place)
        if whole is not None:
            scores[layer] = formulas.score_matrix(whole, spec.grid)
    if not scores:
        yield Absent(title, keep(store, "attention", NEEDED))
        return
    yield _scores(store, "score_matrix", title, scores, f"n = 1 image: {code(one.path)}, {FIRST}.")


def mean_scores(context: Context) -> Iterator[Part]:
    """The same, averaged over images."""
    store, title = context.store, "Score matrix of every layer, dataset mean"
    whole = "attention" in store or "attention_code" in store
    if "score_matrix_mean" not in store:
        yield Absent(title, analyze_first(context.facts) if whole else keep(store, "attention", NEEDED))
        return
    values = store.read("score_matrix_mean").astype(np.float64)
    if reason := why_empty(values):
        yield Absent(title, f"In `score_matrix_mean` {reason}.")
        return
    scores = {layer: v for layer, v in zip(store.spec.layers, values, strict=True) if np.isfinite(v).all()}
    if not scores:
        yield Absent(title, "In `score_matrix_mean` no layer is known as a whole.")
        return
    yield _scores(store, "score_matrix_mean", title, scores, f"Mean over images, {context.facts.n}.")


def _scores(store: Store, name: str, title: str, scores: dict[int, Floats], n: str) -> Figure:
    panels = [Panel(f"layer {layer}", values, extent(store)) for layer, values in scores.items()]
    peak = max(scores, key=lambda layer: float(scores[layer].max()))
    return Figure(
        name=name,
        title=title,
        caption="For each patch the largest attention that any patch pays to it, averaged over heads; prefix tokens "
        f"dropped; a probability. All layers share one scale, from input to output. {n}",
        alt=f"{counted(len(panels), 'map')}, one a layer. The largest value, {scores[peak].max():.3g}, is in layer "
        f"{peak} at {where(scores[peak])}. Means by layer: "
        + ", ".join(f"{v.mean():.3g}" for v in scores.values())
        + ".",
        plots=[Maps(panels, "largest attention received", across(len(panels)), root=True)],
        columns=("layer", "y", "x", "score"),
        rows=[(layer, *at, float(value)) for layer, v in scores.items() for at, value in np.ndenumerate(v)],
        methods=("score_matrix",),
    )


def query_of_one(context: Context) -> Iterator[Part]:
    """What the central patch looks at, layer by layer."""
    store, one = context.store, _first(context)
    if one is None:
        return
    spec, size = store.spec, extent(store)
    y, x = spec.grid[0] // 2, spec.grid[1] // 2
    found: dict[int, Floats] = {}
    for place, layer in enumerate(spec.layers):
        mean = mean_attention(store, one.image, place)
        if mean is not None:
            found[layer] = patches(mean[0, len(spec.prefix) + y * spec.grid[1] + x], spec.grid) * spec.tokens
    if not found:
        return
    panels = [Panel(f"layer {layer}", v, size, mark=(y, x)) for layer, v in found.items()]
    yield Figure(
        name="query_map",
        title="What the central patch looks at",
        caption=f"Attention of the patch in row {y}, column {x} (framed) to all patches, mean over heads, × "
        f"uniform, on one scale. n = 1 image: {code(one.path)}, {FIRST}.",
        alt=f"{counted(len(panels), 'map')}, one a layer. The patch's attention to itself: "
        + ", ".join(f"{v[y, x]:.1f}" for v in found.values())
        + " times uniform.",
        plots=[Maps(panels, "attention, × uniform", across(len(panels)), root=True)],
        columns=("layer", "y", "x", "times_uniform"),
        rows=[(layer, *at, float(value)) for layer, v in found.items() for at, value in np.ndenumerate(v)],
        methods=("query_map",),
    )


def matrices_of_one(context: Context) -> Iterator[Part]:
    """Whole matrices of the first, a middle and the last layer that was kept."""
    store, one = context.store, _first(context)
    if one is None:
        return
    spec = store.spec
    kept = store.kept_layers
    places = sorted({kept[0], kept[len(kept) // 2], kept[-1]}) if kept else []
    found: dict[int, Floats] = {}
    for place in places:
        mean = mean_attention(store, one.image, place)
        if mean is not None:
            found[spec.layers[place]] = mean[0] * spec.tokens
    if not found:
        return
    n = spec.tokens
    count = len(spec.prefix)
    told = f" Lines part the prefix token{'s' if count > 1 else ''} from the patches." if count else ""
    yield matrices(
        found,
        spec,
        name="matrices",
        title="Attention matrices",
        caption=f"All {n} × {n} entries, mean over heads, × uniform, on one scale, the largest 0.5 % in its last "
        f"colour; rows are queries, columns keys.{told} Stripes beside the diagonal are neighbouring rows of patches; "
        "columns are tokens that all queries look at. "
        f"n = 1 image: {code(one.path)}, {FIRST}.",
        methods=("readout",),
    )


def matrices(
    found: Mapping[int, Floats], spec: GraphSpec, *, name: str, title: str, caption: str, methods: tuple[str, ...]
) -> Figure:
    """Whole (query, key) matrices, × uniform, by layer and on one scale."""
    n = spec.tokens
    # A few entries on the diagonal would leave all others black.
    top = float(np.quantile(np.stack(list(found.values())), 0.995)) or 1.0
    panels = [Panel(f"layer {layer}", v, (n, n), lines=len(spec.prefix)) for layer, v in found.items()]
    return Figure(
        name=name,
        title=title,
        caption=caption,
        alt=f"{counted(len(panels), 'matrix', 'matrices')} of {n} by {n}, layers {', '.join(map(str, found))}. On the "
        "diagonal: " + ", ".join(f"{np.diagonal(v).mean():.1f}" for v in found.values()) + " times uniform on average.",
        plots=[Maps(panels, "attention, × uniform", (3, 3), (0.0, top), root=True)],
        columns=("layer", "query", "key", "times_uniform"),
        rows=[(layer, *at, float(value)) for layer, v in found.items() for at, value in np.ndenumerate(v)],
        methods=methods,
    )
