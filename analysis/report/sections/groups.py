"""What a report shows of groups of images: by class or by any column that the statistics were asked for."""

from __future__ import annotations

import html
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ....engine.store import Store
from ..facts import Facts
from ..images import class_name
from ..plots import charts as figures
from ..plots import maps as rasters
from ..text.methods import cite
from .base import Absent, Cell, Exhibit, extent

__all__ = ["contrasts"]

LEVEL = 0.05  # of the false discovery rate
NAMED, SHOWN = 3, 12  # points with a name, groups with a map
FEW = 5  # images of a group: two that happen to be alike make any difference look sure

Floats = npt.NDArray[np.floating[Any]]


def contrasts(store: Store, facts: Facts) -> Iterator[Exhibit | Absent]:
    """For every column that an `analyze --by` was asked for: which heads differ between groups, and their mean maps."""
    columns = sorted({name.partition("_by_")[2] for name in store.names if "_q_by_" in name})
    if not columns and store.read("label_class").max(initial=-1) >= 0:
        yield Absent(
            "Differences between classes",
            f"<code>attlas analyze {html.escape(facts.name)} --by label</code> adds them, with their false discoveries "
            "under control.",
        )
    for column in columns:
        yield _scatter(store, column)
        yield from _maps(store, column)


def _words(store: Store, column: str) -> list[str]:
    """The groups' names: a class's index in words, a label's text by its class."""
    known = {c.id: c.name.split(",")[0].strip() for c in store.spec.classes if c.id}
    groups = store.read(f"{column}_group")
    if column in ("label_class", "target", "predicted"):
        return [class_name(store, int(group)) for group in groups]
    return [known.get(str(group), str(group).replace("_", " ")) for group in groups]


def _tested(store: Store, column: str) -> list[tuple[str, str]]:
    """The statistics to show, with their units: the two that say most, else the first that there is."""
    known = (("distance_renormalized", "pixels"), ("entropy", "nats"))
    found = [(name, unit) for name, unit in known if f"{name}_q_by_{column}" in store]
    end = f"_q_by_{column}"
    return found or [(next(name for name in store.names if name.endswith(end)).removesuffix(end), "")]


def _scatter(store: Store, column: str) -> Exhibit:
    """Every group, layer and head as one point."""
    spec, words = store.spec, _words(store, column)
    images = store.read(f"{column}_group_images")
    panels, rows, told = [], list[tuple[Cell, ...]](), []
    for name, unit in _tested(store, column):
        difference = store.read(f"{name}_difference_by_{column}").astype(np.float64)
        q = store.read(f"{name}_q_by_{column}").astype(np.float64)
        there = np.isfinite(q) & np.isfinite(difference)
        # A q value that underflows is as small as its type can tell.
        x, y, counts = difference[there], -np.log10(np.maximum(q[there], 1e-300)), q[there] <= LEVEL
        at = np.argwhere(there).tolist()
        order = [int(i) for i in np.argsort(-y, kind="stable")[:NAMED] if counts[i]]
        names = tuple((i, f"{words[at[i][0]]}, {spec.layers[at[i][1]]}.{at[i][2]}") for i in order)
        axis = f"mean of the group − mean of the rest, {unit}".rstrip(", ")
        panels.append(figures.Scatter(name, axis, x, y, counts, float(-np.log10(LEVEL)), names))
        rows += [
            (name, words[g], spec.layers[layer], ".".join(map(str, rest)), float(d), float(v))
            for (g, layer, *rest), d, v in zip(at, x, q[there], strict=True)
        ]
        told.append(f"{name}: {int(counts.sum()):,} of {counts.size:,} differences at q ≤ {LEVEL}")
    single = int((images < 2).sum())
    few = int(((images > 1) & (images < FEW)).sum())
    note = f" {single:,} of the groups have one image and no test." if single else ""
    note += f" {few:,} have fewer than {FEW}, too few for their spread to be known: do not trust these." if few else ""
    return Exhibit(
        name=f"differences_by_{column}", title=f"Differences between groups by {column}", wide=len(panels) > 1,
        caption=f"A point for each of {len(words):,} groups, layer and head: the mean of the group's images less the "
        f"mean of all others, against −log₁₀ of its q value (Welch's test over images, {cite('welch1947')}; adjusted "
        f"over all points together by {cite('benjamini1995')}). Above the dashed line q ≤ {LEVEL}: of these, one in "
        f"{round(1 / LEVEL)} is expected to be no difference. {'. '.join(told)}. The surest have names: group, "
        f"layer.head.{note} n = {int(images.sum()):,} images.",
        alt=f"Volcano plot, {'; '.join(told)}. Named: "
        + (", ".join(name for p in panels for _, name in p.names) or "none") + ".",
        draw=lambda narrow: figures.scatter(panels, narrow=narrow),
        columns=("statistic", "group", "layer", "head", "difference", "q"), rows=rows, methods=("groups",),
    )  # fmt: skip


def _maps(store: Store, column: str) -> Iterator[Exhibit]:
    """Mean rollout of the largest groups."""
    name = f"rollout_mean_by_{column}"
    if name not in store:
        return
    words, images = _words(store, column), store.read(f"{column}_group_images")
    largest = [int(g) for g in np.argsort(-images, kind="stable")[:SHOWN] if images[g] > 1]
    if not largest:
        return
    values = {g: store.read(name, g).astype(np.float64) for g in largest}
    panels = [
        rasters.Panel(f"{words[g][:18]}, n = {int(images[g])}", v / v.mean(), extent(store)) for g, v in values.items()
    ]
    yield Exhibit(
        name=name, title=f"Mean rollout by {column}",
        caption=f"Rollout averaged over the images of a group, divided by its mean over patches; the {len(panels)} "
        "groups with the most images, on one scale. What all maps share is the model's habit, often the centre "
        f"({cite('abnar2020')}). n = {int(images[largest].sum()):,} images in these groups.",
        alt=f"{len(panels)} maps: " + "; ".join(panel.title for panel in panels) + ".",
        draw=lambda narrow: rasters.map_grid(
            panels, "rollout, × mean over patches", columns=3 if narrow else 6 if len(panels) > 4 else 4, narrow=narrow
        ),
        columns=("group", "y", "x", "rollout_mean"),
        rows=[(words[g], *at, float(value)) for g, v in values.items() for at, value in np.ndenumerate(v)],
        methods=("rollout",),
    )  # fmt: skip
