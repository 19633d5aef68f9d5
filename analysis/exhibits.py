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

__all__ = [
    "Absent",
    "Cell",
    "Exhibit",
    "Summary",
    "analyze_first",
    "exhibits",
    "extent",
    "keep",
    "no_rollout",
    "row_name",
    "summary",
    "where",
]

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


def exhibits(store: Store, facts: Facts) -> Iterator[Exhibit | Absent]:
    """What describes the whole dataset, in the order of the page; what an `analyze` was not asked for is left out."""
    yield _distance(store, facts)
    yield _entropy(store, facts)
    yield _prefix_mass(store, facts)
    yield _mean_rollout(store, facts)
    yield from _sorted_heads(store, facts)
    further = [*_masses(store, facts), *_others(store, facts), *_offsets(store, facts)]
    yield from further
    if not further and any(name in store for name in ("attention", "attention_code")):
        names = "self_mass neighbour_mass rest_mass sink_share normalized_mutual_information offset_map_mean"
        yield Absent(
            "Where attention goes in detail",
            f"<code>attlas analyze {html.escape(facts.name)} {names}</code> adds it, in one pass over the attention.",
        )


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
    left = f"{uniform:.1f} px"
    if spec.prefix:
        count = f"{len(spec.prefix)} of {spec.tokens} keys"
        left += f"; without renormalising {uniform * share:.1f} px, since {count} are no patches"
    return _by_depth(
        store, facts, "distance", "Attention distance by depth", parts, "pixels", "px",
        f"Mean distance between a patch and the patches it attends to, in pixels of the {spec.image_size[0]} × "
        f"{spec.image_size[1]} input. <code>distance</code> as published ({cite('dosovitskiy2021')}, "
        f"{cite('raghu2021')}): prefix "
        "columns are dropped and rows not renormalised, so that a head which looks at a prefix token seems local. "
        f"<code>distance_renormalized</code> with each row's patch mass scaled to 1 ({cite('park2023')}), the form to "
        "compare models with. "
        f"Dashed: uniform attention on this grid ({left}).",
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
        f"Entropy of an attention row, averaged over queries: over all {spec.tokens} keys (<code>entropy</code>), and "
        "over the "
        f"{spec.patches} patch keys with their mass scaled to 1 (<code>entropy_patch</code>). Low is sharp, high is "
        "spread. Dashed: "
        f"uniform attention, ln {spec.tokens} = {parts[0][1]:.2f} and ln {spec.patches} = {parts[1][1]:.2f} nats.",
    )  # fmt: skip


def _by_depth(
    store: Store, facts: Facts, name: str, title: str, parts: Sequence[tuple[str, float]], axis: str, unit: str,
    text: str,
) -> Exhibit | Absent:  # fmt: skip
    """A figure of statistics (layer, head), each with what uniform attention gives of it."""
    found = {part: summary(store, part) for part, _ in parts}
    if any(s is None for s in found.values()):
        return Absent(title, analyze_first(facts))
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
        return Absent(title, analyze_first(facts))
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
        return Absent(title, no_rollout(store, facts))
    mean = store.read("rollout_mean").astype(np.float64)
    values = mean / mean.mean()
    panel = figures.Panel("", values, extent(store))
    peak, low, high = where(values), float(values.min()), float(values.max())
    limits = (low, high) if high > low else None
    return Exhibit(
        name="rollout_mean", title=title, wide=False,
        caption="Attention rollout averaged over images, divided by its mean over patches: 1 is even. What shows here "
        "is "
        "no image's content but the model's habit, often a bias to the centre or the border; see single maps against "
        "it. The "
        "colours run from the smallest to the largest value. "
        f"{cite('abnar2020')}. {facts.n}.",
        alt=f"Map of the mean rollout on {store.spec.grid[0]} by {store.spec.grid[1]} patches, from "
        f"{values.min():.2f} to "
        f"{values.max():.2f} times its mean, largest at {peak}. {facts.n}.",
        draw=lambda narrow: figures.map_grid([panel], "× mean over patches", columns=1, narrow=True, limits=limits),
        columns=("y", "x", "rollout_mean", "times_mean"),
        rows=[(*at, float(mean[at]), float(value)) for at, value in np.ndenumerate(values)],
        methods=("rollout",),
    )  # fmt: skip


def _sorted_heads(store: Store, facts: Facts) -> Iterator[Exhibit]:
    found = summary(store, "distance_renormalized")
    if found is None or store.spec.heads < 4:
        return
    values = np.sort(found.mean, axis=1)
    uniform = formulas.uniform_distance(store.spec.grid, store.spec.patch_size)
    yield Exhibit(
        name="distance_sorted", title="Heads sorted by distance", wide=False,
        caption="<code>distance_renormalized</code> of each layer's heads, sorted within the layer, in the form of "
        f"{cite('raghu2021')}, fig. 3; pixels. Dashed: uniform attention. {facts.n}.",
        alt=f"A line a layer over its sorted heads: layer {store.spec.layers[0]} from {values[0, 0]:.1f} to "
        f"{values[0, -1]:.1f} "
        f"pixels, layer {store.spec.layers[-1]} from {values[-1, 0]:.1f} to {values[-1, -1]:.1f} pixels.",
        draw=lambda narrow: figures.sorted_heads(store.spec.layers, values, "pixels", uniform),
        columns=("layer", "rank", "distance_renormalized_mean"),
        rows=[(store.spec.layers[i], rank, float(value)) for (i, rank), value in np.ndenumerate(values)],
        methods=("distance_renormalized",),
    )  # fmt: skip


def _masses(store: Store, facts: Facts) -> Iterator[Exhibit]:
    """Where the attention of patches goes; the shares add up to 1."""
    parts: dict[str, Floats] = {}
    if store.spec.prefix:
        prefix = summary(store, "prefix_mass")
        if prefix is None:
            return
        for i, kind in enumerate(store.spec.prefix):
            share = prefix.mean[..., i].mean(axis=1)
            label = f"{kind} tokens" if store.spec.prefix.count(kind) > 1 else f"{kind} token"
            parts[label] = parts.get(label, np.zeros_like(share)) + share
    for name, label in (("self", "itself"), ("neighbour", "its 8 neighbours"), ("rest", "all other patches")):
        found = summary(store, f"{name}_mass")
        if found is None:
            return
        parts[label] = found.mean.mean(axis=1)
    layers = store.spec.layers
    yield Exhibit(
        name="masses", title="Where the attention of a patch goes", wide=False,
        caption=f"Shares of a patch's attention, averaged over patches, heads and images; they add up to 1. {facts.n}.",
        alt="Stacked shares by layer. " + " ".join(
            f"{label}: {values[0]:.2f} in layer {layers[0]}, {values[-1]:.2f} in layer {layers[-1]}."
            for label, values in parts.items()
        ),
        draw=lambda narrow: figures.stacked(layers, parts, "share of attention"),
        columns=("layer", "part", "share"),
        rows=[(layer, label, float(values[i])) for label, values in parts.items() for i, layer in enumerate(layers)],
        methods=("masses",),
    )  # fmt: skip


def _others(store: Store, facts: Facts) -> Iterator[Exhibit]:
    """What else an analysis was asked for, of one number a head."""
    spec = store.spec
    edges = [1 / max(edge - 1, 1) for edge in spec.grid]
    known = {
        "distance_unit_square": (formulas.uniform_distance(spec.grid, (edges[0], edges[1])), "unit square's edge"),
        "effective_tokens": (float(spec.tokens), "keys"), "sink_share": (0.0, "share of patches"),
        "normalized_mutual_information": (0.0, "NMI"), "position_deviation": (0.0, "standard deviation"),
    }  # fmt: skip
    panels = [
        figures.Depth(name, unit, spec.layers, s.mean, s.low, s.high, uniform, f"uniform {uniform:.4g}")
        for name, (uniform, unit) in known.items()
        if (s := summary(store, name)) is not None
    ]
    if panels:
        names = tuple(panel.title for panel in panels)
        text = "Further statistics of every head, defined below; dashed: uniform attention."
        yield _depth_exhibit(facts, "further", "Further statistics by depth", panels, text, names, "")


def _offsets(store: Store, facts: Facts) -> Iterator[Exhibit]:
    if "offset_map_mean" not in store:
        return
    spec = store.spec
    values = store.read("offset_map_mean").astype(np.float64).mean(axis=1)
    (rows, columns), (height, width) = spec.grid, spec.patch_size
    size = ((2 * rows - 1) * height, (2 * columns - 1) * width)
    panels = [figures.Panel(f"layer {layer}", v, size) for layer, v in zip(spec.layers, values, strict=True)]
    yield Exhibit(
        name="offset_map", title="Attention by offset",
        caption="Where patches look, relative to themselves: the centre is the patch itself. Averaged over the "
        "queries that "
        f"have such a key inside the image, over heads and images; a probability. One scale. {facts.n}.",
        alt=f"{len(panels)} maps of {2 * rows - 1} by {2 * columns - 1} offsets, one a layer. At the centre: "
        + ", ".join(f"{v[rows - 1, columns - 1]:.3g}" for v in values) + ".",
        draw=lambda narrow: figures.map_grid(
            panels, "mean attention at this offset", columns=4 if narrow else 6 if len(panels) <= 12 else 8,
            narrow=narrow, root=True,
        ),
        columns=("layer", "offset_y", "offset_x", "attention"),
        rows=[
            (spec.layers[i], y - rows + 1, x - columns + 1, float(value)) for (i, y, x), value in np.ndenumerate(values)
        ],
        methods=("offset_map",),
    )  # fmt: skip


# -- words ------------------------------------------------------------------------------------------------------------


def extent(store: Store) -> tuple[int, int]:
    """(height, width) in input pixels that the patch grid covers."""
    (rows, columns), (height, width) = store.spec.grid, store.spec.patch_size
    return rows * height, columns * width


def where(values: Floats) -> str:
    """The place of a map's largest value, in words that count from 1."""
    y, x = np.unravel_index(int(np.nanargmax(values)), values.shape)
    return f"row {int(y) + 1}, column {int(x) + 1}"


def row_name(store: Store) -> str:
    """What the readout row is called in a caption."""
    return {
        "class": "class token's attention", "mean": "mean attention of the patches", "pool": "the pool's attention",
        "distilled": "class and distillation token's mean attention",
    }[store.spec.readout]  # fmt: skip


def analyze_first(facts: Facts) -> str:
    """Which command makes what the store lacks: HTML."""
    return f"The store has no dataset statistics; <code>attlas analyze {html.escape(facts.name)}</code> makes them."


def keep(store: Store, array: str, what: str) -> str:
    """Which choice of the run would have kept `what`: HTML."""
    kept = ", ".join(store.attrs.get("kept", {}).get("keep", ())) or "none"
    return f"This run kept {html.escape(kept)}; <code>attlas run --keep {array}</code> would have kept {what} too."


def no_rollout(store: Store, facts: Facts | None) -> str:
    """Why there is no rollout: HTML; with `facts` the dataset's, without a single image's."""
    spec = store.spec
    if spec.layers != tuple(range(spec.depth)):
        return (
            f"Rollout follows all {spec.depth} blocks, and this graph gives {len(spec.layers)} of them; an "
            "<code>attlas export</code> without <code>--layers</code> gives all."
        )
    return keep(store, "attention", "what rollout needs") if facts is None else analyze_first(facts)
