"""What a report shows of one store: every figure with its numbers, its caption and its words for who cannot see it."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...engine.store import Store
from .. import formulas
from . import figures
from .facts import Facts
from .methods import cite

__all__ = [
    "Absent",
    "Cell",
    "Exhibit",
    "Summary",
    "analyze_first",
    "depth_exhibit",
    "exhibits",
    "extent",
    "keep",
    "more",
    "no_rollout",
    "row_name",
    "summary",
    "where",
]

Floats = npt.NDArray[np.floating[Any]]
Cell = str | int | float
BANDS = (0.05, 0.25, 0.5, 0.75, 0.95)  # of the stored quantiles, those that a distribution shows


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
    """What sums the whole dataset up, in the order of the page; what an `analyze` was not asked for is left out."""
    yield _distance(store, facts)
    yield _entropy(store, facts)
    yield from _distributions(store, facts)
    yield _prefix_mass(store, facts)
    yield _mean_rollout(store, facts)
    masses = list(_masses(store, facts))
    yield from masses
    if not masses and any(name in store for name in ("attention", "attention_code")):
        yield Absent(
            "Where attention goes in detail",
            more(facts, "self_mass neighbour_mass rest_mass sink_share received_attention head_similarity "
                 "normalized_mutual_information offset_map_mean"),
        )  # fmt: skip


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
    return depth_exhibit(facts, name, title, panels, text, tuple(part for part, _ in parts), unit)


def depth_exhibit(
    facts: Facts, name: str, title: str, panels: list[figures.Depth], text: str, methods: tuple[str, ...], unit: str
) -> Exhibit:
    """A figure of statistics (layer, head), its numbers and its words; `text` begins the caption."""
    rows: list[tuple[Cell, ...]] = [
        (p.title, int(layer), head, float(p.mean[i, head]), float(p.low[i, head]), float(p.high[i, head]),
         "" if p.reference is None else p.reference)
        for p in panels
        for i, layer in enumerate(p.layers)
        for head in range(p.mean.shape[1])
    ]  # fmt: skip
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
    uniform = "" if panel.reference is None else f"; uniform attention {panel.reference:.4g} {unit}"
    return (
        f"{panel.title}: heads of layer {first} from {span(panel.mean[0])}, of layer {last} from "
        f"{span(panel.mean[-1])}{uniform}."
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
    return depth_exhibit(facts, "prefix_mass", title, panels, text, ("prefix_mass",), "of the attention")


def _numbered(kinds: Sequence[str]) -> list[str]:
    """class, register 1, register 2: kinds that come more than once are counted."""
    seen: dict[str, int] = {}
    names = []
    for kind in kinds:
        seen[kind] = seen.get(kind, 0) + 1
        names.append(f"{kind} {seen[kind]}" if kinds.count(kind) > 1 else kind)
    return [f"{name} token" for name in names]


def _distributions(store: Store, facts: Facts) -> Iterator[Exhibit]:
    """How far the images spread around these means."""
    spec = store.spec
    uniform = formulas.uniform_distance(spec.grid, spec.patch_size)
    parts = [("distance_renormalized", "pixels", uniform, "px"), ("entropy", "nats", math.log(spec.tokens), "nats")]
    panels = []
    for name, axis, reference, unit in parts:
        if f"{name}_quantile" in store and set(BANDS) <= set(store.read("quantile").tolist()):
            places = store.read("quantile").tolist()
            low, quarter, middle, three, high = (
                store.read(f"{name}_quantile")[places.index(q)].astype(np.float64) for q in BANDS
            )
            label = f"uniform {reference:.4g} {unit}"
            inner = np.stack([quarter, three])
            panels.append(figures.Depth(name, axis, spec.layers, middle, low, high, reference, label, inner))
    if not panels:
        return
    yield Exhibit(
        name="distributions", title="Distributions over images", wide=len(panels) > 1,
        caption="Each head's values over images: the thin line from the 5 % to the 95 % quantile, the thick one from "
        "the 25 % to the 75 %, the ring at the median, the pale line the mean of the medians. It shows how much single "
        "images differ, where the figures above show how well their mean is known; a long line is a head that looks "
        f"elsewhere in other pictures. Dashed: uniform attention. {facts.n}.",
        alt=f"Quantiles over images, {facts.n}. " + " ".join(
            f"{p.title}: the middle half of the images spans at most {float(np.nanmax(p.inner[1] - p.inner[0])):.3g} "
            f"{p.unit} in one head." for p in panels if p.inner is not None
        ),
        draw=lambda narrow: figures.depth(panels, narrow=narrow),
        columns=("statistic", "layer", "head", *(f"quantile_{q:g}" for q in BANDS)),
        rows=[
            (p.title, layer, head, *(float(v[i, head]) for v in (p.low, p.inner[0], p.mean, p.inner[1], p.high)))
            for p in panels if p.inner is not None
            for i, layer in enumerate(p.layers) for head in range(p.mean.shape[1])
        ],
        methods=(*(p.title for p in panels), "quantiles"),
    )  # fmt: skip


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
        methods=("self_mass", "neighbour_mass", "rest_mass", *(["prefix_mass"] if store.spec.prefix else [])),
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


def more(facts: Facts, names: str) -> str:
    """Which command adds statistics that are made on request: HTML."""
    return f"<code>attlas analyze {html.escape(facts.name)} {names}</code> adds it, in one pass over the attention."


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
