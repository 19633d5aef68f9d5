"""Groups of images: by class, or by any column that the statistics were asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ....engine.store.store import Store
from ....words import counted, part_of
from ...catalog import CATALOG, held
from ...statistic import Statistic
from ...statistics.clusters import cluster_codes, cluster_of
from ...statistics.differences import TEST
from ...statistics.groups import read_column
from ...statistics.inference import interval
from ..facts import sample
from ..images import class_name
from ..numbers import along, mean_of, why_empty
from ..plots.curves import Curves, Line
from ..plots.maps import Maps
from ..plots.sheet import Panel
from ..plots.style import SERIES, colour_of
from ..plots.volcano import Volcano
from .base import Absent, Cell, Context, Figure, Part, extent

__all__ = ["groups"]

LEVEL = 0.05  # of the false discovery rate
NAMED, SHOWN = 3, 12  # points with a name, groups with a map
FEW = 2  # images: one has no test
SMALLEST = 1e-300  # a q value that underflows is as small as its type can tell

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _Groups:
    """The groups of one column: their names, how many images each has, and which have enough of them."""

    column: str
    words: list[str]
    images: npt.NDArray[np.int64]

    @classmethod
    def read(cls, store: Store, column: str) -> _Groups:
        known = {c.id: c.name.split(",")[0].strip() for c in store.spec.classes if c.id}
        groups = store.read(f"{column}_group")
        if column in ("label_class", "target", "predicted"):
            words = [class_name(store, int(group)) for group in groups]
        else:
            words = [known.get(str(group), str(group).replace("_", " ")) for group in groups]
        return cls(column, words, store.read(f"{column}_group_images").astype(np.int64))

    @property
    def enough(self) -> Mask:
        return self.images >= FEW

    @property
    def left_out(self) -> str:
        """A sentence on the groups that are too small to be shown, or ""."""
        few = int((~self.enough).sum())
        return f"{part_of(few, len(self.words), 'group')} of one image only, without a test." if few else ""


def groups(context: Context) -> Iterator[Part]:
    """For each column of an `analyze --by`: which heads differ between groups, and the groups' mean maps."""
    store = context.store
    columns = sorted({name.partition("_by_")[2] for name in store.names if "_q_by_" in name})
    if not columns and store.read("label_class").max(initial=-1) >= 0:
        yield Absent(
            "Differences between classes",
            f"`attlas analyze {context.facts.name} --by label` adds them, with their false discoveries under control.",
        )
    for column in columns:
        found = _Groups.read(store, column)
        yield from _lines(store, found)
        yield _differences(store, found)
        yield from _maps(store, found)


def _tested(store: Store, column: str) -> list[tuple[str, Statistic | None]]:
    """The statistics to show, where they are known: the two that say most, else the first that there is."""
    end = f"_q_by_{column}"
    tested = [name.removesuffix(end) for name in store.names if name.endswith(end)]
    best = [name for name in ("distance_renormalized", "entropy") if name in tested]
    known = {one.name: one for one in (*CATALOG.values(), *held(store))}
    return [(name, known.get(name)) for name in best or tested[:1]]


def _lines(store: Store, found: _Groups) -> Iterator[Figure]:
    """Few groups by depth, a line each."""
    chosen = np.flatnonzero(found.enough)
    tested = [one for one in _tested(store, found.column) if one[0] in store and "layer" in store.dims(one[0])]
    if not 2 <= len(chosen) <= len(SERIES) or not tested:
        return
    keys, there = read_column(store, found.column)
    groups = store.read(f"{found.column}_group").astype(object)
    usable = store.done_images & store.read("valid").astype(bool) & there
    plots, rows, told = [], list[tuple[Cell, ...]](), []
    layers = np.asarray(store.spec.layers, float)
    for name, one in tested:
        unit, within = (one.units, one.bounds(store.spec)) if one else ("", None)
        values = np.full((store.plan.images, len(layers)), np.nan)
        for k in np.flatnonzero(store.done):
            part = store.plan.unit_range(int(k))
            at = slice(part.start, part.stop)
            values[at] = store.read(name, at).reshape(len(part), len(layers), -1).mean(axis=2)
        lines = []
        for colour, group in zip(SERIES, chosen, strict=False):
            images = np.flatnonzero(usable & (keys.astype(object) == groups[group]))
            if not images.size:  # the column has changed since it was grouped by
                continue
            mean = mean_of(values[images], axis=0)
            clusters = cluster_codes([store], [images], cluster_of(store))
            low, high = interval(values[images], clusters=clusters, within=within)
            lines.append(Line(f"{found.words[group]}, n = {images.size:,}", colour, layers, mean, low, high))
            rows += [
                (name, found.words[group], int(layer), *(float(v[i]) for v in (mean, low, high)))
                for i, layer in enumerate(store.spec.layers)
            ]
            told.append(f"{name} of {found.words[group]} {along(mean)} {unit}")
        if len(lines) < 2:
            return
        even = CATALOG[name].uniform(store.spec) if name in CATALOG else None
        plots.append(Curves(name, unit, lines, even, "layer", float(layers.max()) + 0.4))
    text = (
        "Mean over heads and over the images of each group; band: its 95 % interval over images; dashed: uniform "
        "attention."
    )
    n = sample(int(found.images[chosen].sum()), _attrs(store, found.column))
    yield Figure(
        name=f"groups_by_{found.column}",
        title=f"Groups by {found.column}",
        wide=len(plots) > 1,
        caption=" ".join(filter(None, [text, found.left_out, f"{n}."])),
        alt=f"A line a group by layer: {'; '.join(told)}.",
        plots=plots,
        columns=("statistic", "group", "layer", "mean", "low", "high"),
        rows=rows,
        methods=("groups", *(name for name, _ in tested), "intervals"),
    )


def _attrs(store: Store, column: str) -> dict[str, Any]:
    """What the q values by a column say of themselves."""
    name = next(name for name in store.names if name.endswith(f"_q_by_{column}"))
    return dict(store.array(name).attrs)


def _differences(store: Store, found: _Groups) -> Figure | Absent:
    """Every group, layer and head as one point."""
    column, title = found.column, f"Differences between groups by {found.column}"
    if _attrs(store, column).get("method", TEST) != TEST:
        return Absent(
            title,
            "The store's q values are of an earlier version's test, which calls many small groups different that are "
            f"not; `attlas analyze {store.path.name} --by {column}` makes them anew.",
        )
    panels, rows, told = [], list[tuple[Cell, ...]](), []
    for name, one in _tested(store, column):
        panel, numbers = _panel(store, found, name, one.units if one else "")
        if panel is not None:
            panels.append(panel)
            rows += numbers
            told.append(f"{name}: {int(panel.counts.sum()):,} of {panel.counts.size:,} differences at q ≤ {LEVEL}")
    if not panels:
        return Absent(title, found.left_out or "No group differs enough from itself to be tested.")
    shown = found.enough
    caption = (
        f"A point for each of {counted(int(shown.sum()), 'group')}, layer and head: the mean of the group's images "
        "less the mean of all others, against −log₁₀ of its q value (by random groups of the same size; adjusted over "
        f"all groups, layers and heads together by [@benjamini1995]). Above the dashed line q ≤ {LEVEL}: of these, one "
        f"in {round(1 / LEVEL)} is expected to be no difference. {'. '.join(told)}. The surest have names: group, "
        "layer.head."
    )
    n = f"{sample(int(found.images[shown].sum()), _attrs(store, column))}."
    return Figure(
        name=f"differences_by_{column}",
        title=title,
        wide=len(panels) > 1,
        caption=" ".join(part for part in (caption, found.left_out, n) if part),
        alt=f"Volcano plot, {'; '.join(told)}. Named: "
        + (", ".join(name for p in panels for _, name in p.names) or "none")
        + ".",
        plots=panels,
        columns=("statistic", "group", "layer", "head", "difference", "q"),
        rows=rows,
        methods=("groups",),
    )


def _panel(store: Store, found: _Groups, name: str, unit: str) -> tuple[Volcano | None, list[tuple[Cell, ...]]]:
    """The points of one statistic and their numbers; None where no group could be tested."""
    difference = store.read(f"{name}_difference_by_{found.column}").astype(np.float64)
    q = store.read(f"{name}_q_by_{found.column}").astype(np.float64)
    there = np.isfinite(q) & np.isfinite(difference) & found.enough[:, *[None] * (q.ndim - 1)]
    if not there.any():
        return None, []
    x, y, counts = difference[there], -np.log10(np.maximum(q[there], SMALLEST)), q[there] <= LEVEL
    at: list[list[Any]] = np.argwhere(there).tolist()
    layers = store.spec.layers
    surest = [int(i) for i in np.argsort(-y, kind="stable")[:NAMED] if counts[i]]
    names = tuple((i, f"{found.words[at[i][0]]}, {'.'.join(map(str, [layers[at[i][1]], *at[i][2:]]))}") for i in surest)
    axis = f"mean of the group − mean of the rest, {unit}".rstrip(", ")
    rows: list[tuple[Cell, ...]] = [
        (name, found.words[g], layers[layer], ".".join(map(str, rest)), float(d), float(v))
        for (g, layer, *rest), d, v in zip(at, x, q[there], strict=True)
    ]
    return Volcano(name, axis, x, y, counts, float(-np.log10(LEVEL)), names, colour_of(name)), rows


def _maps(store: Store, found: _Groups) -> Iterator[Part]:
    """Mean rollout of the largest groups."""
    name = f"rollout_mean_by_{found.column}"
    if name not in store:
        return
    largest = [int(g) for g in np.argsort(-found.images, kind="stable")[:SHOWN] if found.enough[g]]
    values = {g: store.read(name, g).astype(np.float64) for g in largest}
    values = {g: v for g, v in values.items() if np.isfinite(v).all() and not why_empty(v)}
    if not values:
        if found.enough.any():
            yield Absent(f"Mean rollout by {found.column}", "No group's mean rollout is known.")
        return
    panels = [
        Panel(f"{found.words[g][:18]}, n = {int(found.images[g])}", v / v.mean(), extent(store))
        for g, v in values.items()
    ]
    low, high = min(p.values.min() for p in panels), max(p.values.max() for p in panels)
    yield Figure(
        name=name,
        title=f"Mean rollout by {found.column}",
        caption=f"Rollout averaged over the images of a group, divided by its mean over patches; the {len(panels)} "
        "groups with the most images, on one scale from the smallest to the largest value. What all maps share is the "
        "model's habit, often the centre ([@abnar2020]). "
        f"n = {counted(int(found.images[list(values)].sum()), 'image')} in these groups.",
        alt=f"{counted(len(panels), 'map')}: " + "; ".join(panel.title for panel in panels) + ".",
        plots=[
            Maps(
                panels,
                "rollout, × mean over patches",
                (6 if len(panels) > 4 else 4, 3),
                (low, high) if high > low else None,
            )
        ],
        columns=("group", "y", "x", "rollout_mean"),
        rows=[(found.words[g], *at, float(value)) for g, v in values.items() for at, value in np.ndenumerate(v)],
        methods=("rollout",),
    )
