"""Several stores side by side: on the images they share, in units that compare across models."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ....engine.plan import spread
from ....engine.store.store import Store
from ...catalog import CATALOG
from ...statistics.clusters import cluster_codes, cluster_of, said
from ...statistics.inference import interval
from ...statistics.moments import Moments
from ..facts import Facts, sample
from ..images import MAPS, example, map_of
from ..numbers import Floats, between, mean_of, why_empty
from ..plots.curves import Line, curves
from ..plots.pictures import Column, Row, pictures
from ..plots.sheet import Panel
from ..plots.style import DIFFERENCES, QUIET, SERIES
from .base import Absent, Cell, Context, Figure, Part, Table, extent

__all__ = ["comparison", "named"]

Images = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Measure:
    """A statistic in a unit that compares across models.

    Attributes:
        name: the statistic.
        title: of its figure.
        axis: what stands at the axis and in the table; `unit`: after a number in a sentence.
        text: begins the caption.
    """

    name: str
    title: str
    axis: str
    unit: str
    text: str

    def scale(self, store: Store) -> float:
        """By what the store's own numbers are multiplied."""
        spec = store.spec
        return 1 / spec.image_size[1] if self.name == "distance_renormalized" else 1 / math.log(spec.tokens)

    def uniform(self, store: Store) -> float:
        """What uniform attention gives."""
        value = CATALOG[self.name].uniform(store.spec)
        return math.nan if value is None else value * self.scale(store)


MEASURES = (
    _Measure(
        "distance_renormalized",
        "Attention distance over relative depth",
        "image widths",
        "in image widths",
        "Mean attention distance among patches, rows renormalised, divided by the input's width ([@park2023]).",
    ),
    _Measure(
        "entropy",
        "Attention entropy over relative depth",
        "share of ln N",
        "as a share of ln N",
        "Mean entropy of attention rows over all N keys, divided by ln N, which uniform attention has.",
    ),
)


@dataclass(frozen=True, slots=True)
class _Read:
    """One store's numbers of one measure: its images' means over heads, (image, layer), and its heads' over images.

    `clusters` are those of its images, where they depend on each other.
    """

    context: Context
    x: Floats
    rows: Floats
    heads: Floats
    colour: str
    clusters: Images | None

    @property
    def facts(self) -> Facts:
        return self.context.facts


def comparison(contexts: Sequence[Context]) -> Iterator[Part]:
    """The figures of all stores together, and the paired differences from the first."""
    stores, facts = [c.store for c in contexts], [c.facts for c in contexts]
    chosen, paired = _images(stores)
    if paired:
        column = cluster_of(stores[0])
        size = sample(len(chosen[0]), said(column, cluster_codes(stores[:1], chosen[:1], column)))
        n = f"The same {size} in every store, matched by path."
    else:
        size = "; ".join(f"{f.letter} {f.n}" for f in facts)
        n = f"The stores share no images by path, so each is on its own: {size}."
    lines: list[tuple[str, ...]] = []
    for measure in MEASURES:
        lacking = [f.letter for store, f in zip(stores, facts, strict=True) if measure.name not in store]
        if lacking:
            yield Absent(measure.title, f"Store {', '.join(lacking)} has no `{measure.name}`.")
            continue
        read = [_read(*one, measure) for one in zip(contexts, chosen, _colours(facts), strict=True)]
        empty = [f"In `{measure.name}` of {one.facts.letter} {why}." for one in read if (why := why_empty(one.rows))]
        if empty:
            yield Absent(measure.title, " ".join(empty))
            continue
        yield _side_by_side(read, facts, measure, n)
        if paired:
            yield from _difference(read, measure, n)
            lines += _table_rows(read, measure)
    if paired and contexts[0].examples:
        yield from _pictures(contexts, chosen)
    if lines:
        caption = f"Paired differences of the mean over layers and heads; {size}."
        yield Table(caption, ("", "statistic", "difference", "95 % interval"), lines)


def named(one: Facts, facts: Sequence[Facts], after: str = "  ") -> str:
    """A store in a legend: its letter, its model, and where that is not enough its own name."""
    alone = sum(other.spec.name == one.spec.name for other in facts) == 1
    return f"{one.letter}{after}{one.spec.name}" + ("" if alone else f", {one.name.removesuffix('.zarr')}")


def _colours(facts: Sequence[Facts]) -> list[str]:
    """One for each store, grey for baselines."""
    return [QUIET if one.baseline else SERIES[at % len(SERIES)] for at, one in enumerate(facts)]


def _images(stores: Sequence[Store]) -> tuple[list[Images], bool]:
    """The images of each store to use: the ones all share, in one order; else each store's own valid ones."""
    found = []
    for store in stores:
        usable = np.flatnonzero(store.done_images & store.read("valid").astype(bool))
        paths = store.read("path")
        found.append({str(paths[i]): int(i) for i in usable})
    common = sorted(set(found[0]).intersection(*found[1:]))
    if common:
        return [np.array([index[path] for path in common], np.int64) for index in found], True
    return [np.array(sorted(index.values()), np.int64) for index in found], False


def _read(context: Context, images: Images, colour: str, measure: _Measure) -> _Read:
    """A statistic is read a unit at a time; what stays in memory is one number an image and layer."""
    store = context.store
    rows = np.full((store.plan.images, len(store.spec.layers)), np.nan)
    wanted = np.zeros(store.plan.images, np.bool_)
    wanted[images] = True
    total: Moments | None = None
    for k in np.flatnonzero(store.done):
        part = store.plan.unit_range(int(k))
        at = slice(part.start, part.stop)
        values = store.read(measure.name, at).astype(np.float64) * measure.scale(store)
        rows[at] = mean_of(values, axis=2)
        moments = Moments.of(values[wanted[at]])
        total = moments if total is None else total + moments
    assert total is not None
    x = (np.asarray(store.spec.layers, float) + 1) / store.spec.depth
    clusters = cluster_codes([store], [images], cluster_of(store))
    return _Read(context, x, rows[images], total.average, colour, clusters)


def _side_by_side(read: Sequence[_Read], facts: Sequence[Facts], measure: _Measure, n: str) -> Figure:
    """Every store as a line over relative depth."""
    lines = []
    for one in read:
        low, high = interval(one.rows, clusters=one.clusters)
        mean = Moments.of(one.rows).average
        lines.append(Line(named(one.facts, facts), one.colour, one.x, mean, low, high, one.heads, one.facts.baseline))
    numbers: list[tuple[Cell, ...]] = [
        (one.facts.letter, int(layer), *(float(v[i]) for v in (line.x, line.mean, line.low, line.high)))
        for one, line in zip(read, lines, strict=True)
        for i, layer in enumerate(one.context.store.spec.layers)
    ]
    references = {round(measure.uniform(one.context.store), 6) for one in read}
    reference = references.pop() if len(references) == 1 else None
    told = "; ".join(f"{line.label} from {line.mean[0]:.3g} to {line.mean[-1]:.3g}" for line in lines)
    dashed = f" Dashed: uniform attention, {reference:.3g}." if reference is not None else ""
    return Figure(
        name=f"compare_{measure.name}",
        title=measure.title,
        wide=False,
        alt=f"{measure.title}, {measure.axis}: {told}.",
        caption=f"{measure.text} {n} Line: mean over heads and images; band: its 95 % interval over images; "
        f"dots: heads.{dashed}",
        draw=lambda narrow: curves(lines, measure.name, measure.axis, reference, narrow=narrow),
        columns=("store", "layer", "relative_depth", "mean", "low", "high"),
        rows=numbers,
        methods=("comparison", measure.name, "intervals"),
    )


def _difference(read: Sequence[_Read], measure: _Measure, n: str) -> Iterator[Figure]:
    """Every store less the first, image by image, at the relative depths of the shallower of the two."""
    first, lines = read[0], []
    for place, one in enumerate(read[1:]):
        grid = min((one.x, first.x), key=len)
        if len(grid) < 2:
            continue
        difference = _at(one.rows, one.x, grid) - _at(first.rows, first.x, grid)
        low, high = interval(difference, clusters=first.clusters)
        label, colour = f"{one.facts.letter} − {first.facts.letter}", DIFFERENCES[place % len(DIFFERENCES)]
        lines.append(Line(label, colour, grid, Moments.of(difference).average, low, high, None, one.facts.baseline))
    if not lines:
        return
    letter = first.facts.letter
    told = "; ".join(f"{line.label} from {line.mean.min():+.3g} to {line.mean.max():+.3g}" for line in lines)
    yield Figure(
        name=f"compare_{measure.name}_difference",
        title=f"{measure.title}: difference from {letter}",
        wide=False,
        alt=f"Paired differences of {measure.name}, {measure.axis}: {told}.",
        caption=f"Difference from {letter} ({first.facts.spec.name}) {measure.unit}, image by image, of the mean over "
        "heads; line: mean over images, band: its 95 % interval over images. Where blocks differ in number, "
        f"the deeper model is read between its layers. {n}",
        draw=lambda narrow: curves(lines, f"{measure.name}, difference", measure.axis, 0.0, narrow=narrow),
        columns=("difference", "relative_depth", "mean", "low", "high"),
        rows=[
            (line.label, *(float(v[i]) for v in (line.x, line.mean, line.low, line.high)))
            for line in lines
            for i in range(len(line.x))
        ],
        methods=("comparison", measure.name, "intervals"),
    )


def _at(values: Floats, x: Floats, grid: Floats) -> Floats:
    """(image, layer) values between layers, at other relative depths."""
    if x.shape == grid.shape and np.array_equal(x, grid):
        return values
    right = np.clip(np.searchsorted(x, grid), 1, len(x) - 1)
    share = np.clip((grid - x[right - 1]) / (x[right] - x[right - 1]), 0, 1)
    between: Floats = values[:, right - 1] * (1 - share) + values[:, right] * share
    return between


def _table_rows(read: Sequence[_Read], measure: _Measure) -> list[tuple[str, ...]]:
    """Every store against the first, image by image, of the mean over layers and heads."""
    whole = [mean_of(one.rows, axis=1) for one in read]
    found: list[tuple[str, ...]] = []
    for one, values in list(zip(read, whole, strict=True))[1:]:
        difference = values - whole[0]
        low, high = (float(v) for v in interval(difference, clusters=read[0].clusters))
        found.append(
            (
                f"{one.facts.letter} − {read[0].facts.letter}",
                f"{measure.name}, {measure.axis}",
                f"{float(mean_of(difference, axis=0)):+.3g}",
                between(low, high),
            )
        )
    return found


# -- the same pictures -------------------------------------------------------------------------------------------------


def _pictures(contexts: Sequence[Context], chosen: Sequence[Images]) -> Iterator[Figure]:
    """The same pictures through every store, one figure for each kind of map that all of them can give."""
    first = contexts[0]
    sample = np.flatnonzero(np.isin(chosen[0], first.store.plan.sample) | (first.images is not None))
    at = [int(sample[i]) for i in spread(len(sample), first.examples)] if sample.size else []
    if not at:
        return
    own = [
        [example(context.store, int(index[i]), first.images) for i in at]
        for context, index in zip(contexts, chosen, strict=True)
    ]
    titles = []
    for examples in zip(*own, strict=True):
        said = [
            f"{c.facts.letter}: {one.predicted} ({one.probability:.2f})"
            for c, one in zip(contexts, examples, strict=True)
            if one.predicted
        ]
        known = [f"label {examples[0].truth}"] if examples[0].truth else []
        titles.append(" · ".join(said + known) or examples[0].path)
    pixels = [one.pixels for one in own[0]]
    for kind in MAPS:
        maps = [[map_of(c.store, one.image, kind) for one in row] for c, row in zip(contexts, own, strict=True)]
        found = [[values for values in row if values is not None] for row in maps]
        if all(len(row) == len(at) for row in found):
            yield _one_kind(contexts, kind, [one.path for one in own[0]], titles, pixels, found)


def _one_kind(
    contexts: Sequence[Context],
    kind: str,
    paths: Sequence[str],
    titles: Sequence[str],
    pixels: Sequence[npt.NDArray[np.uint8] | None],
    maps: Sequence[Sequence[Floats]],
) -> Figure:
    """A row for each picture, a column for each store."""
    how, facts = MAPS[kind], [context.facts for context in contexts]
    letters = [one.letter for one in facts]
    shown = [Panel("", one, extent(contexts[0].store)) for one in pixels if one is not None]
    pictured = len(shown) == len(paths)
    rows = [
        Row(
            title,
            (
                *([shown[at]] if pictured else []),
                *(Panel("", row[at], extent(c.store)) for c, row in zip(contexts, maps, strict=True)),
            ),
        )
        for at, title in enumerate(titles)
    ]
    columns = [Column(f"input,\nas {letters[0]} saw it")] if pictured else []
    columns += [Column(f"{f.letter}{' (baseline)' if f.baseline else ''}", how.unit, how.root) for f in facts]
    unit = "uniform attention" if kind == "attention" else "their mean over patches"
    title, legend = how.heading.partition(",")[0], "; ".join(named(one, facts) for one in facts)
    return Figure(
        name=f"compare_{kind}",
        title=f"The same pictures: {title}",
        caption=f"{len(paths)} images that all stores share, evenly spread over the sample of {letters[0]} by order "
        f"alone; above each what every model said of it. Maps are divided by {unit}, on one scale. Recipes may crop "
        f"differently. {legend}. n = 1 image each.",
        alt=f"{len(paths)} pictures with the {title} of {len(facts)} stores: {'; '.join(titles)}.",
        draw=lambda narrow: pictures(rows, columns, narrow=narrow, shared=True),
        columns=("path", "store", "y", "x", "times_uniform"),
        rows=[
            (path, letter, *cell, float(value))
            for at, path in enumerate(paths)
            for letter, row in zip(letters, maps, strict=True)
            for cell, value in np.ndenumerate(row[at])
        ],
        methods=(how.method,),
    )
