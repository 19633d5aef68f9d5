"""Several stores side by side: on the images they share, in units that compare across models."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ....engine.store.store import Store
from ....words import counted
from ...catalog import CATALOG, held
from ...statistic import Statistic
from ...statistics.clusters import cluster_codes, cluster_of, said
from ...statistics.inference import apart, interval
from ...statistics.moments import Moments
from ..facts import Facts, sample
from ..numbers import Floats, along, between, mean_of, why_empty
from ..plots.curves import Curves, Line
from ..plots.style import INK, SERIES
from .base import Absent, Cell, Context, Figure, Listing, Part, Section, Table
from .same import same_pictures

__all__ = ["comparison"]

Images = npt.NDArray[np.int64]

TITLE = "Side by side"
MAIN = {
    "distance_renormalized": "Mean attention distance among patches, rows renormalised, divided by the input's width "
    "([@park2023]).",
    "entropy": "Mean entropy of attention rows over all N keys, divided by ln N, which uniform attention has.",
}
HEADINGS = {
    "distance_renormalized": "Attention distance over relative depth",
    "entropy": "Attention entropy over relative depth",
}
NOT_COMPARED = {"rows_without_patch_mass"}  # counts of what is left out


@dataclass(frozen=True, slots=True)
class _Measure:
    """A statistic in a unit that compares across models: pixels in image widths, nats in what uniform attention has."""

    statistic: Statistic

    @property
    def name(self) -> str:
        return self.statistic.name

    @property
    def axis(self) -> str:
        """What stands at the axis and in the table."""
        units = self.statistic.units
        if units == "nats":
            return {"entropy": "share of ln N"}.get(self.name, "share of uniform attention's")
        return {"pixels": "image widths", "1": "share" if "mass" in self.name else "1"}.get(units, units)

    @property
    def unit(self) -> str:
        """After a number in a sentence."""
        return {"share of ln N": "as a share of ln N", "1": "", "share": "as a share"}.get(self.axis, f"in {self.axis}")

    def scale(self, store: Store) -> float:
        """By what the store's own numbers are multiplied."""
        if self.statistic.units == "pixels":
            return 1 / store.spec.image_size[1]
        even = self.statistic.uniform(store.spec) if self.statistic.units == "nats" else None
        return 1 / even if even else 1.0

    def within(self, store: Store) -> tuple[float, float] | None:
        """The smallest and the largest value that there can be, in this unit."""
        found = self.statistic.bounds(store.spec)
        if found is None:
            return None
        least, most = found
        return least * self.scale(store), most * self.scale(store)

    def uniform(self, store: Store) -> float:
        """What uniform attention gives."""
        value = self.statistic.uniform(store.spec)
        if value is None:
            return math.nan
        tokens = len(store.spec.prefix) if self.statistic.dims[-1] == "prefix" else 1
        return value * tokens * self.scale(store)


@dataclass(frozen=True, slots=True)
class _Read:
    """One store's numbers of one measure: its images' means over heads, (image, layer), and its heads' over images.

    `clusters` are those of its images, where they depend on each other.
    """

    context: Context
    x: Floats
    rows: Floats
    heads: Floats | None
    colour: str
    clusters: Images | None
    within: tuple[float, float] | None

    @property
    def facts(self) -> Facts:
        return self.context.facts


class _Stores:
    """Stores to compare: their images, matched by path where they can be, and each one's colour."""

    def __init__(self, contexts: Sequence[Context]) -> None:
        self.contexts, self.facts = contexts, [context.facts for context in contexts]
        self.colours = [INK if one.baseline else SERIES[at % len(SERIES)] for at, one in enumerate(self.facts)]

    @cached_property
    def matched(self) -> tuple[list[Images], bool]:
        """The images of each store to use: the ones all share, in one order; else each store's own valid ones."""
        found = []
        for store in (context.store for context in self.contexts):
            usable = np.flatnonzero(store.done_images & store.read("valid").astype(bool))
            paths = store.read("path")
            found.append({str(paths[i]): int(i) for i in usable})
        common = sorted(set(found[0]).intersection(*found[1:]))
        if common:
            return [np.array([index[path] for path in common], np.int64) for index in found], True
        return [np.array(sorted(index.values()), np.int64) for index in found], False

    @property
    def size(self) -> str:
        """How many images."""
        chosen, paired = self.matched
        if not paired:
            return "; ".join(f"{f.label} {f.n}" for f in self.facts)
        store = self.contexts[0].store
        column = cluster_of(store)
        return sample(len(chosen[0]), said(column, cluster_codes([store], chosen[:1], column)))

    @property
    def n(self) -> str:
        """The same as captions say it."""
        if self.matched[1]:
            return f"The same {self.size} in every store, matched by path."
        return f"The stores share no images by path, so each is on its own: {self.size}."

    def read(self, measure: _Measure) -> list[_Read]:
        """A statistic of every store."""
        chosen, _ = self.matched
        return [_read(*one, measure) for one in zip(self.contexts, chosen, self.colours, strict=True)]


def comparison(contexts: Sequence[Context]) -> list[Section]:
    """What all stores have in common, and the paired differences from the first."""
    stores, read = _Stores(contexts), dict[str, list[_Read]]()
    further: list[Figure] = []  # maps of the same pictures beyond the first kind

    def compare_pictures(_: Context) -> Iterator[Part]:
        if stores.matched[1] and contexts[0].examples:
            shown = list(same_pictures(contexts, stores.matched[0]))
            yield from shown[:1]
            further.extend(shown[1:])

    def compare(_: Context) -> Iterator[Part]:
        for name in MAIN:
            yield from _main(stores, _Measure(CATALOG[name]), read)

    def compare_further(_: Context) -> Iterator[Part]:
        yield from further
        yield from _others(stores, read)

    return [
        Section(TITLE, compare_pictures, TITLE),
        Section(TITLE, compare, TITLE),
        Section("Further statistics, side by side", compare_further, TITLE, more=True),
    ]


def _main(stores: _Stores, measure: _Measure, shown: dict[str, list[_Read]]) -> Iterator[Part]:
    """One of the two statistics that say most: all stores, and their differences from the first."""
    title = HEADINGS[measure.name]
    lacking = [c.facts.label for c in stores.contexts if measure.name not in c.store]
    if lacking:
        yield Absent(title, f"{', '.join(lacking)}: there is no `{measure.name}`.")
        return
    read = stores.read(measure)
    empty = [f"In `{measure.name}` of {one.facts.label} {why}." for one in read if (why := why_empty(one.rows))]
    if empty:
        yield Absent(title, " ".join(empty))
        return
    shown[measure.name] = read
    yield _side_by_side(read, measure, title, f"{MAIN[measure.name]} {stores.n}")
    if stores.matched[1]:
        yield from _difference(read, measure, title, stores.n)


def _others(stores: _Stores, shown: dict[str, list[_Read]]) -> Iterator[Part]:
    """Every other number of heads or layers that all stores hold, and a table of all differences."""
    names = [{one.name: one for one in held(c.store) if one.scalar and one.name in c.store} for c in stores.contexts]
    everywhere = [one for name, one in names[0].items() if all(name in found for found in names[1:])]
    curves, rows, methods = [], list[tuple[Cell, ...]](), []
    for one in everywhere:
        if one.name in {*MAIN, *NOT_COMPARED} or "layer" not in one.dims:
            continue
        measure = _Measure(one)
        read = stores.read(measure)
        if any(why_empty(part.rows) for part in read):
            continue
        shown[one.name] = read
        lines = _lines(read)
        curves.append(Curves(one.name, measure.axis, lines, _reference(read, measure)))
        rows += [(one.name, *row) for row in _numbers(read, lines)]
        methods.append(one.name)
    if curves:
        yield Figure(
            name="compare_further",
            title="Further statistics over relative depth",
            wide=len(curves) > 1,
            caption="Every other number of heads or layers that all stores hold: distances in image widths, entropies "
            f"as a share of what uniform attention has, masses summed over prefix tokens. {stores.n} Line: mean over "
            "heads and images; band: its 95 % interval over images; dots: heads; dashed: uniform attention.",
            alt=" ".join(_told(c.title, c.unit, c.lines) for c in curves),
            plots=curves,
            columns=("statistic", "store", "layer", "relative_depth", "mean", "low", "high"),
            rows=rows,
            methods=("comparison", *methods, "intervals"),
        )
    some = {name for found in names for name in found} - {one.name for one in everywhere}
    if some:
        yield Listing("Not compared, since not all stores hold them:", sorted(some))
    if stores.matched[1] and shown:
        left = _left_out(next(iter(shown.values())))
        caption = f"Paired differences of the mean over heads and over the blocks compared; {left}{stores.size}."
        head = ("", "statistic", "difference", "95 % interval")
        yield Table(caption, head, [row for name, read in shown.items() for row in _table_rows(read, name)])


def _read(context: Context, images: Images, colour: str, measure: _Measure) -> _Read:
    """A statistic is read a unit at a time; what stays in memory is one number an image and layer."""
    store, one = context.store, measure.statistic
    rows = np.full((store.plan.images, len(store.spec.layers)), np.nan)
    wanted = np.zeros(store.plan.images, np.bool_)
    wanted[images] = True
    total: Moments | None = None
    for k in np.flatnonzero(store.done):
        part = store.plan.unit_range(int(k))
        at = slice(part.start, part.stop)
        values = store.read(one.name, at).astype(np.float64) * measure.scale(store)
        if one.dims[-1] == "prefix":
            values = values.sum(axis=-1)
        values = values.reshape(*values.shape[:2], -1)
        rows[at] = mean_of(values, axis=2)
        moments = Moments.of(values[wanted[at]])
        total = moments if total is None else total + moments
    assert total is not None
    x = (np.asarray(store.spec.layers, float) + 1) / store.spec.depth
    heads = total.average if "head" in one.dims else None
    clusters = cluster_codes([store], [images], cluster_of(store))
    return _Read(context, x, rows[images], heads, colour, clusters, measure.within(store))


def _lines(read: Sequence[_Read]) -> list[Line]:
    """Every store as a line over relative depth."""
    lines = []
    for one in read:
        low, high = interval(one.rows, clusters=one.clusters, within=one.within)
        mean = Moments.of(one.rows).average
        lines.append(Line(one.facts.label, one.colour, one.x, mean, low, high, one.heads, one.facts.baseline))
    return lines


def _numbers(read: Sequence[_Read], lines: Sequence[Line]) -> list[tuple[Cell, ...]]:
    return [
        (one.facts.label, int(layer), *(float(v[i]) for v in (line.x, line.mean, line.low, line.high)))
        for one, line in zip(read, lines, strict=True)
        for i, layer in enumerate(one.context.store.spec.layers)
    ]


def _reference(read: Sequence[_Read], measure: _Measure) -> float | None:
    """What uniform attention gives, where it gives the same for every store."""
    found = {round(measure.uniform(one.context.store), 6) for one in read}
    return found.pop() if len(found) == 1 and not math.isnan(next(iter(found))) else None


def _told(name: str, unit: str, lines: Sequence[Line]) -> str:
    ends = "; ".join(f"{line.label} {along(line.mean)}" for line in lines)
    return f"{name}, {unit}: {ends}."


def _side_by_side(read: Sequence[_Read], measure: _Measure, title: str, text: str) -> Figure:
    lines, reference = _lines(read), _reference(read, measure)
    dashed = f" Dashed: uniform attention, {reference:.3g}." if reference is not None else ""
    return Figure(
        name=f"compare_{measure.name}",
        title=title,
        wide=False,
        alt=_told(title, measure.axis, lines),
        caption=f"{text} Line: mean over heads and images; band: its 95 % interval over images; dots: heads.{dashed}",
        plots=[Curves(measure.name, measure.axis, lines, reference)],
        columns=("store", "layer", "relative_depth", "mean", "low", "high"),
        rows=_numbers(read, lines),
        methods=("comparison", measure.name, "intervals"),
    )


def _difference(read: Sequence[_Read], measure: _Measure, title: str, n: str) -> Iterator[Figure]:
    """Every store less the first, image by image, at the relative depths of the shallower of the two."""
    first, lines = read[0], []
    for one in read[1:]:
        difference, x = _paired(one, first)
        if len(x) < 2 or why_empty(difference):
            continue
        low, high = _interval(difference, one, first)
        label, colour = f"{one.facts.label} − {first.facts.label}", one.colour
        lines.append(Line(label, colour, x, Moments.of(difference).average, low, high, None, one.facts.baseline))
    if not lines:
        return
    label = first.facts.label
    told = "; ".join(f"{line.label} from {np.nanmin(line.mean):+.3g} to {np.nanmax(line.mean):+.3g}" for line in lines)
    yield Figure(
        name=f"compare_{measure.name}_difference",
        title=f"{title}: difference from {label}",
        wide=False,
        alt=f"Paired differences of {measure.name}, {measure.axis}: {told}.",
        caption=f"Difference from {label} {measure.unit}, image by image, of the mean over "
        "heads; line: mean over images, band: its 95 % interval over images. Where blocks differ in number, "
        f"the deeper model is read between its layers. {_left_out(read)}{n}",
        plots=[Curves(f"{measure.name}, difference", measure.axis, lines, 0.0)],
        columns=("difference", "relative_depth", "mean", "low", "high"),
        rows=[
            (line.label, *(float(v[i]) for v in (line.x, line.mean, line.low, line.high)))
            for line in lines
            for i in range(len(line.x))
        ],
        methods=("comparison", measure.name, "intervals"),
    )


def _paired(one: _Read, first: _Read) -> tuple[Floats, Floats]:
    """(image, block) differences of `one` from `first` where both have the block, and their relative depths.

    Of models of different depth the blocks are those of the shallower one, and the other is read between its own, where
    it has both.
    """
    shallow, deep = sorted((one, first), key=lambda read: read.context.store.spec.depth)
    few, many = shallow.context.store.spec, deep.context.store.spec
    blocks = [block for block in few.layers if {*_around(block, few.depth, many.depth)} <= {*many.layers}]
    places = np.array([(block + 1) * many.depth / few.depth - 1 for block in blocks])
    around = np.array([_around(block, few.depth, many.depth) for block in blocks], np.int64).reshape(-1, 2)
    below, above = (deep.rows[:, [many.layers.index(int(k)) for k in side]] for side in around.T)
    between = np.where(around[:, 0] == around[:, 1], below, below + (above - below) * (places - around[:, 0]))
    own = shallow.rows[:, [few.layers.index(block) for block in blocks]]
    x = (np.array(blocks, float) + 1) / few.depth
    return (between - own, x) if deep is one else (own - between, x)


def _around(block: int, depth: int, deeper: int) -> tuple[int, int]:
    """The blocks of a deeper model between which a block of a shallower one lies; twice the same at the same depth."""
    whole, rest = divmod((block + 1) * deeper, depth)
    return whole - 1, whole - (rest == 0)


def _left_out(read: Sequence[_Read]) -> str:
    """A sentence on blocks that have none beside them, where stores hold some layers alone; empty if there are none."""
    said = []
    for one in read[1:]:
        count = len(_paired(one, read[0])[1])
        specs = [part.context.store.spec for part in (one, read[0])]
        depth = min(spec.depth for spec in specs)
        lost = len({block for spec in specs if spec.depth == depth for block in spec.layers}) - count
        if lost:
            names = f"{one.facts.label} − {read[0].facts.label}"
            said.append(f"{names}: {counted(count, 'block')}, without {lost} that one of them lacks")
    return f"{'; '.join(said)}. " if said else ""


def _interval(difference: Floats, one: _Read, first: _Read) -> tuple[Floats, Floats]:
    """Of (image, ...) differences between two stores, within the range that there can be."""
    within = apart(one.within, first.within) if one.within and first.within else None
    return interval(difference, clusters=first.clusters, within=within)


def _table_rows(read: Sequence[_Read], name: str) -> Iterator[tuple[str, ...]]:
    """Every store against the first, image by image, of the mean over heads and the blocks that are compared."""
    axis = _Measure(next(one for one in held(read[0].context.store) if one.name == name)).axis
    for one in read[1:]:
        difference = mean_of(_paired(one, read[0])[0], axis=1)
        low, high = (float(v) for v in _interval(difference, one, read[0]))
        label = f"{one.facts.label} − {read[0].facts.label}"
        yield label, f"{name}, {axis}", f"{float(mean_of(difference, axis=0)):+.3g}", between(low, high)
