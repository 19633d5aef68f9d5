"""What a report shows of one store: every figure with its numbers, its caption and its words for who cannot see it."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..engine.store import Store
from . import figures, formulas
from .facts import Facts
from .methods import cite
from .pictures import Example, attention, choose, readout_row, rollout_map, times_uniform

__all__ = ["Absent", "Exhibit", "exhibits"]

Floats = npt.NDArray[np.floating[Any]]
Cell = str | int | float


@dataclass(frozen=True, slots=True)
class Exhibit:
    """A figure and everything that goes with it.

    Attributes:
        name: its files' name.
        title: a short heading.
        caption: HTML; states n, unit and formula.
        alt: what it shows, in words.
        draw: gives the matplotlib figure, narrow (True) or as wide as it is printed (False).
        columns, rows: its numbers, as the CSV beside it has them.
        methods: the paragraphs of the methods section that it needs.
        wide: whether it takes the page's whole width.
    """

    name: str
    title: str
    caption: str
    alt: str
    draw: Callable[[bool], Any]
    columns: tuple[str, ...]
    rows: list[tuple[Cell, ...]]
    methods: tuple[str, ...] = ()
    wide: bool = True


@dataclass(frozen=True, slots=True)
class Absent:
    """A figure that this store cannot give, and why: HTML."""

    title: str
    reason: str


@dataclass(frozen=True, slots=True)
class Summary:
    """A dataset-level statistic: (layer, head) or (layer, head, prefix), with its 95 % interval."""

    mean: Floats
    low: Floats
    high: Floats


def exhibits(store: Store, facts: Facts, examples: int, images: Any = None) -> Iterator[Exhibit | Absent]:
    """Everything a report shows of one store, in the order of the page."""
    yield _distance(store, facts)
    yield _entropy(store, facts)
    yield _prefix_mass(store, facts)
    yield _mean_rollout(store, facts)
    chosen = choose(store, examples, images)
    if not chosen:
        yield Absent("Example pictures", "The store holds the pixels of no valid image.")
        return
    yield from _examples(store, chosen)
    yield from _heads(store, chosen[0])
    yield _scores(store, facts, chosen[0])
    yield _mean_scores(store, facts)


# -- by depth ---------------------------------------------------------------------------------------------------------


def summary(store: Store, name: str) -> Summary | None:
    """The dataset's mean of a statistic and its interval, or None where the store has neither."""
    if f"{name}_mean" not in store:
        return None
    mean = store.read(f"{name}_mean").astype(np.float64)
    bounds = store.read(f"{name}_interval").astype(np.float64)
    known = set(store.dims(f"{name}_mean"))
    axis = next(i for i, dim in enumerate(store.dims(f"{name}_interval")) if dim not in known)
    low, high = np.moveaxis(bounds, axis, 0)
    return Summary(mean, low, high)


def _distance(store: Store, facts: Facts) -> Exhibit | Absent:
    spec = store.spec
    uniform = formulas.uniform_distance(spec.grid, spec.patch_size)
    share = spec.patches / spec.tokens
    parts = [("distance", uniform * share), ("distance_renormalized", uniform)]
    tokens = f"; without renormalising it is {uniform * share:.1f} px, since {len(spec.prefix)} of {spec.tokens} keys are no patches" if spec.prefix else ""  # fmt: skip
    return _by_depth(
        store, facts, "distance", "Attention distance by depth", parts, "pixels", "px",
        f"Mean distance between a patch and the patches it attends to, in pixels of the {spec.image_size[0]} × "
        f"{spec.image_size[1]} input. <code>distance</code> as published ({cite('dosovitskiy2021')}, {cite('raghu2021')}): prefix "
        "columns are dropped and rows not renormalised, so that a head which looks at a prefix token seems local. "
        f"<code>distance_renormalized</code> with each row's patch mass scaled to 1 ({cite('park2023')}), the form to compare models with. "
        f"Dashed: uniform attention on this grid ({uniform:.1f} px{tokens}).",
    )  # fmt: skip


def _entropy(store: Store, facts: Facts) -> Exhibit | Absent:
    spec = store.spec
    if spec.attention_kind != "probability":
        return Absent(
            "Entropy by depth",
            "This model mixes its heads after the softmax: rows are no distributions, and have no entropy.",
        )
    parts = [("entropy", math.log(spec.tokens)), ("entropy_patch", math.log(spec.patches))]
    return _by_depth(
        store, facts, "entropy", "Attention entropy by depth", parts, "nats", "nats",
        f"Entropy of an attention row, averaged over queries: over all {spec.tokens} keys (<code>entropy</code>), and over the "
        f"{spec.patches} patch keys with their mass scaled to 1 (<code>entropy_patch</code>). Low is sharp, high is spread. Dashed: "
        f"uniform attention, ln {spec.tokens} = {parts[0][1]:.2f} and ln {spec.patches} = {parts[1][1]:.2f} nats.",
    )  # fmt: skip


def _by_depth(
    store: Store, facts: Facts, name: str, title: str, parts: Sequence[tuple[str, float]], axis: str, unit: str, text: str,
) -> Exhibit | Absent:  # fmt: skip
    """A figure of statistics (layer, head), each with what uniform attention gives of it."""
    found = {part: summary(store, part) for part, _ in parts}
    if any(s is None for s in found.values()):
        return Absent(title, _analyze(facts))
    panels = [
        figures.Depth(
            part, axis, store.spec.layers, s.mean, s.low, s.high, reference, f"uniform {reference:.4g} {unit}"
        )
        for part, reference in parts
        if (s := found[part]) is not None
    ]
    return _depth_exhibit(facts, name, title, panels, text, tuple(part for part, _ in parts), unit)


def _depth_exhibit(
    facts: Facts, name: str, title: str, panels: list[figures.Depth], text: str, methods: tuple[str, ...], unit: str
) -> Exhibit:
    rows: list[tuple[Cell, ...]] = [
        (p.title, int(layer), head, float(p.mean[i, head]), float(p.low[i, head]), float(p.high[i, head]), p.reference)
        for p in panels
        for i, layer in enumerate(p.layers)
        for head in range(p.mean.shape[1])
    ]
    alt = f"{title}, {facts.n}. " + " ".join(_told(p, unit) for p in panels)
    return Exhibit(
        name=name, title=title, alt=alt,
        caption=f"{text} A dot is one head's mean over images, its bar the 95 % bootstrap interval over images (often "
        f"smaller than the dot), the pale line the mean over heads. {facts.n}.",
        draw=lambda narrow: figures.depth(panels, narrow=narrow),
        columns=("statistic", "layer", "head", "mean", "low", "high", "uniform"), rows=rows,
        methods=(*methods, "bootstrap"), wide=len(panels) > 1,
    )  # fmt: skip


def _told(panel: figures.Depth, unit: str) -> str:
    """A depth panel in words: its first and its last layer."""

    def span(values: Floats) -> str:
        there = values[np.isfinite(values)]
        return f"{there.min():.3g} to {there.max():.3g} {unit}" if there.size else "no value"

    first, last = panel.layers[0], panel.layers[-1]
    return (
        f"{panel.title}: heads of layer {first} from {span(panel.mean[0])}, of layer {last} from "
        f"{span(panel.mean[-1])}; uniform attention {panel.reference:.4g} {unit}."
    )


def _prefix_mass(store: Store, facts: Facts) -> Exhibit | Absent:
    spec, title = store.spec, "Attention on prefix tokens by depth"
    if not spec.prefix:
        return Absent(title, "This model has no prefix token: all attention is among patches.")
    found = summary(store, "prefix_mass")
    if found is None:
        return Absent(title, _analyze(facts))
    uniform = 1 / spec.tokens
    names = _numbered(spec.prefix)
    panels = [
        figures.Depth(
            name, "share of attention", spec.layers, found.mean[..., i], found.low[..., i], found.high[..., i], uniform,
            f"uniform 1/{spec.tokens}",
        )
        for i, name in enumerate(names)
    ]  # fmt: skip
    text = (
        f"Attention of the patch queries on each prefix token ({html.escape(', '.join(names))}), averaged over "
        f"queries; a share of 1. Tokens that draw far more than uniform attention, 1/{spec.tokens} = {uniform:.4f} "
        f"(dashed), are sinks: compare {cite('darcet2024')}."
    )
    return _depth_exhibit(facts, "prefix_mass", title, panels, text, ("prefix_mass",), "of the attention")


def _numbered(kinds: Sequence[str]) -> list[str]:
    """class, register 1, register 2: kinds that come more than once are counted."""
    seen: dict[str, int] = {}
    names = []
    for kind in kinds:
        seen[kind] = seen.get(kind, 0) + 1
        names.append(f"{kind} {seen[kind]}" if kinds.count(kind) > 1 else kind)
    return [f"{name} token" for name in names]


# -- maps -------------------------------------------------------------------------------------------------------------


def _mean_rollout(store: Store, facts: Facts) -> Exhibit | Absent:
    title = "Mean rollout over the dataset"
    if "rollout_mean" not in store:
        return Absent(title, _no_rollout(store, facts))
    mean = store.read("rollout_mean").astype(np.float64)
    values = mean / mean.mean()
    panel = figures.Panel("", values, _extent(store))
    peak, low, high = _where(values), float(values.min()), float(values.max())
    limits = (low, high) if high > low else None
    return Exhibit(
        name="rollout_mean", title=title, wide=False,
        caption="Attention rollout averaged over images, divided by its mean over patches: 1 is even. What shows here is "
        "no image's content but the model's habit, often a bias to the centre or the border; see single maps against it. The "
        "colours run from the smallest to the largest value. "
        f"{cite('abnar2020')}. {facts.n}.",
        alt=f"Map of the mean rollout on {store.spec.grid[0]} by {store.spec.grid[1]} patches, from {values.min():.2f} to "
        f"{values.max():.2f} times its mean, largest at {peak}. {facts.n}.",
        draw=lambda narrow: figures.map_grid([panel], "rollout, × mean over patches", columns=1, narrow=True, limits=limits),
        columns=("y", "x", "rollout_mean", "times_mean"),
        rows=[(*at, float(mean[at]), float(value)) for at, value in np.ndenumerate(values)],
        methods=("rollout",),
    )  # fmt: skip


def _examples(store: Store, chosen: Sequence[Example]) -> Iterator[Exhibit | Absent]:
    spec, size = store.spec, _extent(store)
    last = len(spec.layers) - 1
    rows, numbers, lacking = [], list[tuple[Cell, ...]](), set()
    maps = []
    for one in chosen:
        row, rolled = readout_row(store, one.image, last), rollout_map(store, one.image)
        found = {
            "attention": None if row is None else times_uniform(row, spec.grid).mean(axis=0),
            "rollout": None if rolled is None else rolled / rolled.mean(),
        }
        maps.append(found)
        lacking |= {name for name, values in found.items() if values is None}
    kept = [name for name in ("attention", "rollout") if name not in lacking]
    for one, found in zip(chosen, maps, strict=True):
        panels = [] if one.pixels is None else [figures.Panel("", one.pixels, size, spec.grid)]
        for name in kept:
            values = found[name]
            assert values is not None
            panels.append(figures.Panel("", values, size))
            numbers += [(one.path, name, *at, float(value)) for at, value in np.ndenumerate(values)]
        rows.append(figures.Row(one.title, tuple(panels)))
    heading = {"attention": f"{_HEADINGS[spec.readout]}\nattention, layer {spec.layers[last]}", "rollout": "rollout,\nall layers"}
    label = {"attention": "× uniform", "rollout": "× mean over patches"}
    told = " and ".join(heading[name].replace("\n", " ") for name in kept)
    root = [False, *(name == "attention" for name in kept)]
    headings, labels = ["input and\npatch grid", *(heading[n] for n in kept)], [None, *(label[n] for n in kept)]
    yield Exhibit(
        name="examples", title="Example pictures",
        caption=_examples_caption(store, chosen, kept),
        alt=f"{len(chosen)} pictures, each with {told or 'its patch grid'}: "
        + "; ".join(one.title for one in chosen) + ".",
        draw=lambda narrow: figures.picture_rows(rows, headings, labels, narrow=narrow, root=root),
        columns=("path", "map", "y", "x", "times_uniform"), rows=numbers,
        methods=tuple({"attention": "readout", "rollout": "rollout"}[n] for n in kept),
    )  # fmt: skip
    if "attention" in lacking:
        yield Absent(
            "Readout attention of the examples", _keep(store, "attention", "the readout rows of single images")
        )
    if "rollout" in lacking:
        yield Absent("Rollout of the examples", _no_rollout(store, None))


def _examples_caption(store: Store, chosen: Sequence[Example], kept: Sequence[str]) -> str:
    spec = store.spec
    parts = [
        f"{len(chosen)} images, evenly spread over the store's random sample by order alone, so that none is chosen for its "
        f"looks; n = 1 image each. The crop is what the model saw, its {spec.grid[0]} × {spec.grid[1]} patches marked."
    ]
    if "attention" in kept:
        parts.append(
            f"Attention: {_row_name(store)} of layer {spec.layers[-1]}, mean over heads, divided by what uniform attention "
            f"would be ({cite('caron2021')})."
        )
    if "rollout" in kept:
        parts.append(f"Rollout: followed through all layers, divided by its mean over patches ({cite('abnar2020')}).")
    if kept:
        parts.append("Each column has one scale.")
    return " ".join(parts)


def _heads(store: Store, one: Example) -> Iterator[Exhibit | Absent]:
    spec, title = store.spec, "Heads of the last layer"
    row = readout_row(store, one.image, len(spec.layers) - 1)
    if row is None or (len(row) == 1 and spec.heads > 1):
        yield Absent(title, _keep(store, "attention", "single heads of the readout"))
        return
    values, layer = times_uniform(row, spec.grid), spec.layers[-1]
    panels = [figures.Panel(f"head {i}", v, _extent(store)) for i, v in enumerate(values)]
    columns = 4 if len(panels) % 4 == 0 else 3 if len(panels) % 3 == 0 else min(4, len(panels))
    yield Exhibit(
        name="heads", title=title,
        caption=f"{_row_name(store).capitalize()} of layer {layer}, head by head, × uniform, on one scale "
        f"({cite('caron2021')}). n = 1 image: <span class=path>{html.escape(one.path)}</span>, the first of the examples.",
        alt=f"{len(panels)} maps, one a head of layer {layer}. "
        + " ".join(f"Head {i}: at most {v.max():.1f} times uniform, at {_where(v)}." for i, v in enumerate(values)),
        draw=lambda narrow: figures.map_grid(
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
        return Absent(title, _keep(store, "attention", "the score matrix, which needs every query of every head,"))
    return _score_exhibit(
        store, "score_matrix", title, scores,
        f"n = 1 image: <span class=path>{html.escape(one.path)}</span>, the first of the examples.",
    )  # fmt: skip


def _mean_scores(store: Store, facts: Facts) -> Exhibit | Absent:
    title = "Score matrix of every layer, dataset mean"
    if "score_matrix_mean" not in store:
        return Absent(title, _keep(store, "attention", "the score matrix, which needs every query of every head,"))
    values = store.read("score_matrix_mean").astype(np.float64)
    scores = {layer: v for layer, v in zip(store.spec.layers, values, strict=True) if np.isfinite(v).all()}
    if not scores:
        return Absent(title, _keep(store, "attention", "the score matrix, which needs every query of every head,"))
    return _score_exhibit(store, "score_matrix_mean", title, scores, f"Mean over images, {facts.n}.")


def _score_exhibit(store: Store, name: str, title: str, scores: dict[int, Floats], n: str) -> Exhibit:
    panels = [figures.Panel(f"layer {layer}", values, _extent(store)) for layer, values in scores.items()]
    peak = max(scores, key=lambda layer: float(scores[layer].max()))
    return Exhibit(
        name=name, title=title,
        caption="For each patch the largest attention that any patch pays to it, averaged over heads; prefix tokens "
        f"dropped; a probability. All layers share one scale, from input to output. {n}",
        alt=f"{len(panels)} maps, one a layer. The largest value, {scores[peak].max():.3g}, is in layer {peak} at "
        f"{_where(scores[peak])}. Means by layer: " + ", ".join(f"{v.mean():.3g}" for v in scores.values()) + ".",
        draw=lambda narrow: figures.map_grid(
            panels, "largest attention received", columns=4 if narrow else 6 if len(panels) <= 12 else 8,
            narrow=narrow, root=True,
        ),
        columns=("layer", "y", "x", "score"),
        rows=[(layer, *at, float(value)) for layer, v in scores.items() for at, value in np.ndenumerate(v)],
        methods=("score_matrix",),
    )  # fmt: skip


# -- words ------------------------------------------------------------------------------------------------------------


def _extent(store: Store) -> tuple[int, int]:
    """(height, width) in input pixels that the patch grid covers."""
    (rows, columns), (height, width) = store.spec.grid, store.spec.patch_size
    return rows * height, columns * width


def _where(values: Floats) -> str:
    y, x = np.unravel_index(int(np.nanargmax(values)), values.shape)
    return f"row {int(y) + 1}, column {int(x) + 1}"


_HEADINGS = {
    "class": "class token's", "mean": "patches' mean", "pool": "pool's own", "distilled": "class & distillation",
}  # fmt: skip


def _row_name(store: Store) -> str:
    return {
        "class": "class token's attention", "mean": "mean attention of the patches", "pool": "the pool's attention",
        "distilled": "class and distillation token's mean attention",
    }[store.spec.readout]  # fmt: skip


def _analyze(facts: Facts) -> str:
    return f"The store has no dataset statistics; <code>attlas analyze {html.escape(facts.name)}</code> makes them."


def _keep(store: Store, array: str, what: str) -> str:
    kept = ", ".join(store.attrs.get("kept", {}).get("keep", ())) or "none"
    return f"This run kept {html.escape(kept)}; <code>attlas run --keep {array}</code> would have kept {what} too."


def _no_rollout(store: Store, facts: Facts | None) -> str:
    spec = store.spec
    if spec.layers != tuple(range(spec.depth)):
        return (
            f"Rollout follows all {spec.depth} blocks, and this graph gives {len(spec.layers)} of them; an "
            "<code>attlas export</code> without <code>--layers</code> gives all."
        )
    return _keep(store, "attention", "what rollout needs") if facts is None else _analyze(facts)
