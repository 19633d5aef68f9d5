"""Distance, entropy and prefix masses of every head, by depth; where attention goes; mean rollout."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np

from ....engine.store.store import Store
from ....words import counted
from ...catalog import CATALOG
from ...statistic import Statistic
from ..numbers import Floats, mean_of, why_empty
from ..plots.depth import Depth
from ..plots.maps import Maps
from ..plots.shares import Part as Share
from ..plots.shares import Shares
from ..plots.sheet import Panel
from ..plots.style import CATEGORIES, QUIET, colour_of
from .base import (
    Absent,
    Cell,
    Context,
    Figure,
    Part,
    analyze_first,
    extent,
    more,
    no_rollout,
    summary,
    where,
)

__all__ = [
    "depth_figure",
    "distance",
    "drawable",
    "drawn_as_shares",
    "entropy",
    "masses",
    "mean_rollout",
    "prefix_mass",
    "uniform_of",
]

FAR = 1.05  # times the distance of uniform attention
PALE = "Pale bars, which may leave the figure: 0 in every image, up to what another image could add."
BARS = (
    "A dot is one head's mean over images, its bar the 95 % interval over images (often smaller than the "
    "dot; one image has none), the pale line the mean over heads."
)


def distance(context: Context) -> Iterator[Part]:
    """Attention distance in both forms."""
    store, spec = context.store, context.store.spec
    names = ("distance", "distance_renormalized")
    plain, left = (uniform_of(store, CATALOG[name])[1].removeprefix("uniform ") for name in names)
    if spec.prefix:
        left += f"; without renormalising {plain}, since {len(spec.prefix)} of {spec.tokens} keys are no patches"
    yield _by_depth(
        context,
        "distance",
        "Attention distance by depth",
        names,
        f"Mean distance between a patch and the patches it attends to, in pixels of the {spec.image_size[0]} × "
        f"{spec.image_size[1]} input. `distance` is as published ([@dosovitskiy2021], [@raghu2021]): prefix columns "
        "are dropped and rows not renormalised, so that a head which looks at a prefix token seems local. "
        "`distance_renormalized` scales each row's patch mass to 1 ([@park2023]); compare models with it. Dashed: "
        f"uniform attention on this grid ({left}).{_border(store)}",
    )


def _border(store: Store) -> str:
    """A sentence where heads are farther than uniform attention: that needs the border of the picture, or ""."""
    found, uniform = summary(store, "distance_renormalized"), uniform_of(store, CATALOG["distance_renormalized"])[0]
    if found is None or uniform is None:
        return ""
    far = found.mean > FAR * uniform
    if not far.any():
        return ""
    layers = ", ".join(str(store.spec.layers[i]) for i in np.flatnonzero(far.any(axis=1)))
    text = (
        f" {counted(int(far.sum()), f'head (layer {layers}) is', f'heads (layers {layers}) are')} more than {FAR} × "
        "as far as uniform attention: that is no global view, but attention on the border, which alone is far from "
        "most patches"
    )
    ring, even = summary(store, "border_mass"), uniform_of(store, CATALOG["border_mass"])[0]
    if ring is None or even is None:
        return f"{text}; `attlas analyze {store.path.name} border_mass` says how much."
    values = ring.mean[far & np.isfinite(ring.mean)]
    if not values.size:
        return f"{text}, as far as the store does not hold their layers: how much is not known."
    return (
        f"{text}: it holds {values.min():.0%} to {values.max():.0%} of their patch mass, and {even:.0%} of the patches."
    )


def entropy(context: Context) -> Iterator[Part]:
    """Entropy over all keys and over patches."""
    spec = context.store.spec
    if spec.attention_kind != "probability":
        yield Absent(
            "Attention entropy by depth",
            "This model mixes its heads after the softmax: rows are no distributions, and have no entropy.",
        )
        return
    uniform, patches = math.log(spec.tokens), math.log(spec.patches)
    yield _by_depth(
        context,
        "entropy",
        "Attention entropy by depth",
        ("entropy", "entropy_patch"),
        f"Entropy of an attention row, averaged over queries: over all {spec.tokens} keys (`entropy`), and over the "
        f"{spec.patches} patch keys with their mass scaled to 1 (`entropy_patch`). Low is sharp, high is spread. "
        f"Dashed: uniform attention, ln {spec.tokens} = {uniform:.3f} and ln {spec.patches} = {patches:.3f} nats.",
    )


def prefix_mass(context: Context) -> Iterator[Part]:
    """What the patches give to each prefix token."""
    store, title = context.store, "Attention on prefix tokens by depth"
    spec = store.spec
    if not spec.prefix:
        yield Absent(title, "This model has no prefix token: all attention is among patches.")
        return
    found = summary(store, "prefix_mass")
    if found is None:
        yield Absent(title, analyze_first(context.facts))
        return
    uniform, names = 1 / spec.tokens, _numbered(spec.prefix)
    panels = [
        Depth(
            name,
            "share of attention",
            spec.layers,
            found.mean[..., i],
            found.low[..., i],
            found.high[..., i],
            uniform,
            f"uniform 1/{spec.tokens}",
            colour=CATEGORIES.get(spec.prefix[i], QUIET),
        )
        for i, name in enumerate(names)
    ]
    yield depth_figure(
        context,
        "prefix_mass",
        title,
        panels,
        f"Attention of the patch queries on each prefix token ({', '.join(names)}), averaged over queries; a share of "
        f"1. Tokens that draw far more than uniform attention, 1/{spec.tokens} = {uniform:.4f} (dashed), are sinks: "
        "compare [@darcet2024].",
        ("prefix_mass",),
        "of the attention",
    )


def _numbered(kinds: Sequence[str]) -> list[str]:
    """class, register 1, register 2: kinds that come more than once are counted."""
    seen: dict[str, int] = {}
    names = []
    for kind in kinds:
        seen[kind] = seen.get(kind, 0) + 1
        names.append(f"{kind} {seen[kind]}" if kinds.count(kind) > 1 else kind)
    return [f"{name} token" for name in names]


# -- figures of one number a head --------------------------------------------------------------------------------------


def _by_depth(context: Context, name: str, title: str, parts: tuple[str, ...], text: str) -> Figure | Absent:
    """A figure of default statistics (layer, head) of one unit, each with what uniform attention gives of it."""
    store, panels = context.store, []
    for part in parts:
        found = summary(store, part)
        if found is None:
            return Absent(title, analyze_first(context.facts))
        one = CATALOG[part]
        numbers = (found.mean, found.low, found.high)
        panels.append(
            Depth(part, one.units, store.spec.layers, *numbers, *uniform_of(store, one), colour=colour_of(part))
        )
    return depth_figure(context, name, title, panels, text, parts, CATALOG[parts[0]].units)


def uniform_of(store: Store, one: Statistic) -> tuple[float | None, str]:
    """What uniform attention gives of a statistic, and how a figure says so."""
    value, unit = one.uniform(store.spec), "" if one.units == "1" else one.units
    return value, "" if value is None else f"uniform {value:.4g} {unit}".rstrip()


def drawable(panels: Sequence[Depth]) -> tuple[list[Depth], list[str]]:
    """The panels that show something, and a sentence on each that would be empty."""
    reasons = {panel.title: why_empty(panel.mean) for panel in panels}
    kept = [panel for panel in panels if not reasons[panel.title]]
    return kept, [f"`{title}` is not drawn: {reason}." for title, reason in reasons.items() if reason]


def depth_figure(
    context: Context, name: str, title: str, panels: Sequence[Depth], text: str, methods: tuple[str, ...], unit: str
) -> Figure | Absent:
    """A figure of statistics (layer, head), its numbers and its words; `text` begins the caption."""
    shown, empty = drawable(panels)
    if not shown:
        return Absent(title, " ".join(empty))
    rows: list[tuple[Cell, ...]] = [
        (
            p.title,
            int(layer),
            head,
            float(p.mean[i, head]),
            float(p.low[i, head]),
            float(p.high[i, head]),
            "" if p.reference is None else p.reference,
        )
        for p in panels
        for i, layer in enumerate(p.layers)
        for head in range(p.mean.shape[1])
    ]
    return Figure(
        name=name,
        title=title,
        caption=" ".join(
            [text, BARS, *([PALE] if any(p.nothing.any() for p in shown) else []), *empty, f"{context.facts.n}."]
        ),
        alt=" ".join([f"{title}, {context.facts.n}.", *(_told(panel, unit) for panel in shown)]),
        plots=shown,
        columns=("statistic", "layer", "head", "mean", "low", "high", "uniform"),
        rows=rows,
        methods=(*methods, "intervals"),
        wide=len(shown) > 1,
    )


def _told(panel: Depth, unit: str) -> str:
    """A panel in words: its first and its last layer."""

    def span(values: Floats) -> str:
        there = values[np.isfinite(values)]
        return f"{there.min():.3g} to {there.max():.3g} {unit}".rstrip() if there.size else "no value"

    first, last = panel.layers[0], panel.layers[-1]
    uniform = "" if panel.reference is None else f"; uniform attention {panel.reference:.4g} {unit}".rstrip()
    return (
        f"{panel.title}: heads of layer {first} from {span(panel.mean[0])}, of layer {last} from "
        f"{span(panel.mean[-1])}{uniform}."
    )


# -- the dataset in one figure -----------------------------------------------------------------------------------------


def mean_rollout(context: Context) -> Iterator[Part]:
    """Rollout averaged over all images."""
    store, facts, title = context.store, context.facts, "Mean rollout over the dataset"
    if "rollout_mean" not in store:
        yield Absent(title, no_rollout(store, facts))
        return
    mean = store.read("rollout_mean").astype(np.float64)
    if reason := why_empty(mean) or ("" if np.isfinite(mean).all() else "some values are not known"):
        yield Absent(title, f"In `rollout_mean` {reason}.")
        return
    values = mean / mean.mean()
    panel = Panel("", values, extent(store))
    low, high = float(values.min()), float(values.max())
    rows, columns = store.spec.grid
    yield Figure(
        name="rollout_mean",
        title=title,
        wide=False,
        caption="Attention rollout averaged over images, divided by its mean over patches: 1 is even. It shows no "
        "image's content but the model's habit, often a bias to the centre or the border; see single maps against it. "
        f"Colours run from the smallest to the largest value. [@abnar2020]. {facts.n}.",
        alt=f"Map of the mean rollout on {rows} by {columns} patches, from {low:.2f} to {high:.2f} times its mean, "
        f"largest at {where(values)}. {facts.n}.",
        plots=[Maps([panel], "× mean over patches", limits=(low, high) if high > low else None)],
        columns=("y", "x", "rollout_mean", "times_mean"),
        rows=[(*at, float(mean[at]), float(value)) for at, value in np.ndenumerate(values)],
        methods=("rollout",),
    )


def masses(context: Context) -> Iterator[Part]:
    """Where the attention of patches goes; the shares add up to 1."""
    store = context.store
    parts = _mass_parts(store)
    if not parts:
        if "attention" in store or "attention_code" in store:
            yield Absent("Where attention goes in detail", more(context.facts, _detail(store)))
        return
    known = np.isfinite([part.values for part in parts]).all(axis=0)  # a store may not hold every layer's attention
    layers = [layer for layer, there in zip(store.spec.layers, known, strict=True) if there]
    parts = [dataclasses.replace(part, values=part.values[known]) for part in parts]
    names = ("self_mass", "neighbour_mass", "rest_mass", *(["prefix_mass"] if store.spec.prefix else []))
    yield Figure(
        name="masses",
        title="Where the attention of a patch goes",
        wide=False,
        caption="Shares of a patch's attention, averaged over patches, heads and images; they add up to 1. Each kind "
        f"of token has one colour in all reports. {context.facts.n}.",
        alt="Stacked shares by layer. "
        + " ".join(
            f"{part.label}: {part.values[0]:.2f} in layer {layers[0]}, {part.values[-1]:.2f} in layer {layers[-1]}."
            for part in parts
        ),
        plots=[Shares(layers, parts, "share of attention")],
        columns=("layer", "part", "share"),
        rows=[(layer, part.label, float(part.values[i])) for part in parts for i, layer in enumerate(layers)],
        methods=names,
    )


def drawn_as_shares(store: Store) -> bool:
    """Whether `masses` draws the masses of patches."""
    return bool(_mass_parts(store))


def _mass_parts(store: Store) -> list[Share]:
    """Prefix tokens by their kind, and three kinds of patches; nothing where one of them is missing."""
    parts: list[Share] = []
    kinds = store.spec.prefix
    prefix = summary(store, "prefix_mass") if kinds else None
    if kinds and prefix is None:
        return []
    for kind in dict.fromkeys(kinds):
        assert prefix is not None
        mine = [i for i, one in enumerate(kinds) if one == kind]
        label = f"{kind} token{'s' if len(mine) > 1 else ''}"
        values = mean_of(prefix.mean[..., mine], axis=1).sum(axis=-1)
        parts.append(Share(label, CATEGORIES.get(kind, QUIET), values))
    for name, label, category in (
        ("self_mass", "itself", "itself"),
        ("neighbour_mass", "its 8 neighbours", "neighbours"),
        ("rest_mass", "all other patches", "patches"),
    ):
        found = summary(store, name)
        if found is None:
            return []
        parts.append(Share(label, CATEGORIES[category], mean_of(found.mean, axis=1)))
    values = np.stack([part.values for part in parts])
    return [] if why_empty(values) or not np.isfinite(values).all(axis=0).any() else parts


def _detail(store: Store) -> list[str]:
    """The statistics that further figures are made of, as far as the store lacks them."""
    names = [
        "self_mass",
        "neighbour_mass",
        "rest_mass",
        "sink_share",
        "received_attention",
        "normalized_mutual_information",
        "offset_map_mean",
        "distance_renormalized_histogram",
    ]
    # Both need rows that are distributions.
    names += ["head_similarity", "entropy_histogram"] if store.spec.attention_kind == "probability" else []
    return [name for name in names if name not in store]
