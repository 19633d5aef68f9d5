"""What a report shows of the dataset as a whole: distance, entropy and masses by depth, distributions, mean rollout."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ....engine.store import Store
from ... import formulas
from ..facts import Facts
from ..plots import charts as figures
from ..plots import maps as rasters
from ..text.methods import cite
from .base import Absent, Exhibit, analyze_first, depth_exhibit, extent, more, no_rollout, summary, where
from .distributions import over_images, over_queries

__all__ = ["overview"]

Floats = npt.NDArray[np.floating[Any]]


def overview(store: Store, facts: Facts) -> Iterator[Exhibit | Absent]:
    """What sums the whole dataset up, in the order of the page; what an `analyze` was not asked for is left out."""
    yield _distance(store, facts)
    yield _entropy(store, facts)
    yield from over_images(store, facts)
    yield from over_queries(store, facts)
    yield _prefix_mass(store, facts)
    yield _mean_rollout(store, facts)
    masses = list(_masses(store, facts))
    yield from masses
    if not masses and any(name in store for name in ("attention", "attention_code")):
        names = (
            "self_mass neighbour_mass rest_mass sink_share received_attention normalized_mutual_information "
            "offset_map_mean distance_renormalized_histogram"
        )
        # Both need rows that are distributions.
        names += " head_similarity entropy_histogram" if store.spec.attention_kind == "probability" else ""
        yield Absent("Where attention goes in detail", more(facts, names))


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


# -- maps -------------------------------------------------------------------------------------------------------------


def _mean_rollout(store: Store, facts: Facts) -> Exhibit | Absent:
    title = "Mean rollout over the dataset"
    if "rollout_mean" not in store:
        return Absent(title, no_rollout(store, facts))
    mean = store.read("rollout_mean").astype(np.float64)
    values = mean / mean.mean()
    panel = rasters.Panel("", values, extent(store))
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
        draw=lambda narrow: rasters.map_grid([panel], "× mean over patches", columns=1, narrow=True, limits=limits),
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
