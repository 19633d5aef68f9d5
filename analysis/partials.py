"""What some units of a store contribute to the dataset's statistics: computed anywhere, merged by adding.

A `Partial` is plain arrays and pickles small, so that threads, processes and machines may each take units;
`statistics.analyze` hands them out and adds the results up.
"""

from __future__ import annotations

import functools
import math
import operator
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..engine.store import Store, Template
from ..exporter.errors import AttlasError, UsageError
from . import compiled
from .catalog import CATALOG, FUSED, GROUPED_MAPS, MEASURED, Statistic, find, scalars
from .chunks import Chunks
from .gradients import WEIGHTED
from .gradients import check as check_weighted
from .gradients import computed as compute_weighted
from .groups import Key, check_column, gathered, merged, read_column
from .kernel import Batch, Reducer, seen
from .layer import Layer
from .moments import Moments, Totals

__all__ = [
    "Partial", "attention_of", "check", "groupable", "kept_layers", "merge", "partial_statistics", "templates",
    "unit_statistics",
]  # fmt: skip

MATRIX = ("attention", "attention_code")

Array = npt.NDArray[Any]
Sum = Moments | Totals | npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Partial:
    """Sums over some units, by name of the statistic. Two of them add up to what their units together give.

    Attributes:
        units: which; no unit may be in two that are added.
        images: valid ones among them.
        sums: `Moments` of statistics with one number per layer and head, `Totals` of maps, counts of histograms.
        groups: the same by key of the column, for those that were asked for by group.
        made: arrays of the store that rows were written to.
        read: bytes of attention that were read, uncompressed.
    """

    units: tuple[int, ...] = ()
    images: int = 0
    sums: dict[str, Sum] = field(default_factory=dict)
    groups: dict[str, dict[Key, Any]] = field(default_factory=dict)
    made: frozenset[str] = frozenset()
    read: int = 0

    def __add__(self, other: Partial) -> Partial:
        both = set(self.units) & set(other.units)
        if both:
            raise UsageError(f"unit {min(both)} is in both parts, and would be counted twice")
        sums: dict[str, Any] = dict(self.sums)
        for name, value in other.sums.items():
            sums[name] = sums[name] + value if name in sums else value
        groups = dict(self.groups)
        for name, of in other.groups.items():
            groups[name] = merged(groups.get(name, {}), of)
        return Partial(
            (*self.units, *other.units), self.images + other.images, sums, groups, self.made | other.made,
            self.read + other.read,
        )  # fmt: skip


def merge(parts: Iterable[Partial]) -> Partial:
    """What all parts together give; counts are exact, and sums those of one pass but for rounding."""
    return functools.reduce(operator.add, parts, Partial())


def partial_statistics(
    store: Store | str | os.PathLike[str], units: Iterable[int], names: Sequence[str], *, by: str = "",
    grouped: Sequence[str] | None = None, keep_rows: bool = True,
) -> Partial:  # fmt: skip
    """Statistics of some units of a store, to be merged with those of others.

    Rows per image that the store has are read, and others computed; those that it has a place for (`analyze` makes
    one) are written, a unit a file, so that several may work on one store, each on its own units.

    Args:
        store: opened, or its path, which other processes and machines take.
        units: whose; only units that are done hold anything.
        names: statistics of `catalog.CATALOG`, default ones, or `catalog.MEASURED`.
        by: a column, to gather groups too.
        grouped: what to gather by group; all of `names` that can be, by default.
        keep_rows: whether rows are written.

    Raises:
        UsageError: a name is unknown, or the store's attention cannot give it.
        AttlasError: the store lacks what a statistic needs, or does not read.
    """
    opened = store if isinstance(store, Store) else Store(store, writable=keep_rows)
    names, shares = find(names), tuple(groupable(names) if grouped is None and by else grouped or ())
    if by:
        check_column(opened, by)
    for name in {*names, *shares}:
        check(opened, name)
    return merge(unit_statistics(opened, k, names, by, shares, keep_rows=keep_rows) for k in units)


def unit_statistics(
    store: Store, k: int, names: Sequence[str], by: str, grouped: Sequence[str], *, keep_rows: bool = True,
    valid: npt.NDArray[np.bool_] | None = None,
) -> Partial:  # fmt: skip
    """`partial_statistics` of one unit, of names that were checked; `valid` are its images that could be read."""
    if valid is None:
        images = store.plan.unit_range(k)
        valid = store.read("valid", slice(images.start, images.stop)).astype(np.bool_)
    return _Unit(store, k, tuple(names), by, tuple(grouped), keep_rows, valid).partial()


def groupable(names: Iterable[str]) -> list[str]:
    """Those of `names` whose means are taken by group: one number per layer and head, and the smaller maps."""
    names = list(names)
    return [*scalars(names), *(name for name in names if name in GROUPED_MAPS)]


def attention_of(store: Store) -> str:
    """The store's array of attention matrices, empty where there is none."""
    return next((name for name in MATRIX if name in store), "")


def kept_layers(store: Store) -> tuple[int, ...]:
    """The layers whose attention is stored."""
    kept = store.attrs["kept"]["layers"] if attention_of(store) else ()
    return tuple(layer for layer in store.spec.layers if layer in kept)


def fused_templates(store: Store) -> dict[str, Template]:
    """The default statistics that the store's attention gives, by name, with all layers of the graph."""
    return {t.name: _whole(t, store) for t in Reducer(store.spec, layers=kept_layers(store)).templates}


def templates(store: Store, names: Iterable[str]) -> dict[str, Template]:
    """The arrays that rows of `names` are kept in; one default statistic brings all, which cost nothing more."""
    found: dict[str, Template] = {}
    for name in names:
        if name in FUSED:
            found |= fused_templates(store)
        elif name in WEIGHTED:
            found[name] = WEIGHTED[name].template(store.spec)
        elif name in CATALOG and CATALOG[name].per_image:
            found[name] = CATALOG[name].template(store.spec)
    return found


def check(store: Store, name: str) -> None:
    """Say which choice of the run would have kept what `name` needs, unless its rows are there.

    Raises:
        UsageError: the store's attention cannot give it.
        AttlasError: the store lacks what it needs.
    """
    where, statistic, spec = store.path, CATALOG.get(name), store.spec
    made = name in store and name not in store.attrs.get("analyzed", ())
    if made:
        return
    if name in MEASURED or (statistic is not None and statistic.needs and statistic.needs not in store):
        needed = statistic.needs if statistic is not None else name
        raise AttlasError(f"{where}: {name} needs {needed}, which a run keeps of a graph of `attlas export --norms`")
    if name in WEIGHTED:
        check_weighted(store, name)
        return
    if not attention_of(store):
        raise AttlasError(f"{where}: holds no attention, which {name} needs; `attlas run --keep attention` keeps it")
    follows = name == "rollout" or (statistic is not None and statistic.follow is not None)
    if follows and kept_layers(store) != tuple(range(spec.depth)):
        raise AttlasError(f"{where}: {name} follows all {spec.depth} layers; `attlas run` without --layers keeps them")
    if name in FUSED and name not in fused_templates(store):
        reason = "has no prefix tokens" if name == "prefix_mass" else "mixes its attention after the softmax"
        raise UsageError(f"{name}: {spec.name} {reason}")
    if statistic is None:
        return
    if statistic.exact and attention_of(store) == "attention_code":
        raise UsageError(
            f"{where}: holds attention as uint8 codes, from which {name} comes out 0.1 to 0.5 of its maximum wrong; "
            "`attlas run --store-dtype float16` keeps the values"
        )
    if statistic.probability and spec.attention_kind != "probability":
        raise UsageError(
            f"{name}: this model's attention is mixed after the softmax, and its rows are no probabilities"
        )
    row = name.startswith(("readout_map", "norm_weighted_readout_map", "rollout_vit_explain"))
    if row and spec.readout == "pool":
        raise UsageError(f"{name}: this model reads its tokens by attention pooling, not from a row")


def _whole(template: Template, store: Store) -> Template:
    """The template with all layers of the graph, of which those not kept stay fill."""
    if "layer" not in template.dims:
        return template
    shape = (len(store.spec.layers), *template.shape[1:])
    return Template(template.name, template.dims, shape, template.dtype, template.fill, template.attrs)


class _Unit:
    """One unit on its way from stored attention to rows and sums."""

    def __init__(
        self, store: Store, k: int, names: tuple[str, ...], by: str, grouped: tuple[str, ...], keep_rows: bool,
        valid: npt.NDArray[np.bool_],
    ) -> None:  # fmt: skip
        self._store, self._k, self._by, self._names, self._grouped = store, k, by, names, grouped
        self._images, self._valid = store.plan.unit_range(k), valid
        self._layers = kept_layers(store)
        self._places = [store.spec.layers.index(layer) for layer in self._layers]
        asked = dict.fromkeys((*names, *grouped))
        self._there = {
            name: store.read(name, self._at) for name in asked if self._laid_out(name) and self._has_rows(name)
        }
        missing = [name for name in asked if name not in self._there]
        wanted = templates(store, missing)
        # Where the run wrote one of the default statistics, or another analysis did, its rows stand.
        self._rows = {
            name: np.full((len(self._images), *t.shape), t.fill, t.dtype)
            for name, t in wanted.items() if name in missing or (self._laid_out(name) and not self._has_rows(name))
        }  # fmt: skip
        analyzed = store.attrs.get("analyzed", ()) if keep_rows else ()
        self._written = [name for name in self._rows if self._laid_out(name) and name in analyzed]
        self._extras = [CATALOG[name] for name in missing if name in CATALOG]
        self._weighted = [name for name in missing if name in WEIGHTED]
        self._fused = any(name in FUSED for name in missing)
        self._sums: dict[str, Any] = {}
        self._read = 0

    @property
    def _at(self) -> slice:
        return slice(self._images.start, self._images.stop)

    def _laid_out(self, name: str) -> bool:
        per_image = name not in CATALOG or CATALOG[name].per_image
        return per_image and name in self._store

    def _has_rows(self, name: str) -> bool:
        rest = [0] * (len(self._store.array(name).shape) - 1)
        first = self._images.start // self._store.array(name).chunks[0]
        return self._store.storage.exists(self._store.chunk_key(name, (first, *rest)))

    def partial(self) -> Partial:
        """Compute what is missing, write its rows, and gather."""
        if self._extras or self._fused or self._weighted:
            self._compute()
        for name in self._written:
            self._store.write(name, self._images.start, self._rows[name])
        values = {name: rows[self._valid] for name, rows in (self._there | self._rows).items()}
        sums = {name: _gather(name)(values[name]) for name in self._names if name in values} | self._sums
        groups: dict[str, dict[Key, Any]] = {}
        if self._grouped:
            keys, there = read_column(self._store, self._by, self._at)
            keys, there = keys[self._valid], there[self._valid]
            groups = {name: gathered(values[name], keys, there, _gather(name)) for name in self._grouped}
        return Partial((self._k,), int(self._valid.sum()), sums, groups, frozenset(self._written), self._read)

    def _compute(self) -> None:
        """Batch by batch, and in a batch from the last layer to the first, which is how rollouts need them."""
        store, spec = self._store, self._store.spec
        source, layers = attention_of(store), self._layers
        reducer = Reducer(spec, layers=layers) if self._fused else None
        chunks = Chunks(store, source) if self._extras or reducer else None
        shown = Layer(spec) if self._extras else None
        for batch in store.plan.batches(self._k):
            at = slice(batch.start - self._images.start, batch.stop - self._images.start)
            there = self._valid[at]
            if chunks is not None:
                reduction = self._begin(reducer, batch)
                norms = {s.needs: store.read(s.needs, slice(batch.start, batch.stop)) for s in self._extras if s.needs}
                follow = {s.name: Reducer(spec).start(len(batch)) for s in self._extras if s.follow is not None}
                for place in reversed(self._places):
                    raw = chunks.read(batch, place)
                    self._read += raw.nbytes
                    if reduction is not None:
                        reduction.add(raw)
                    if shown is not None:
                        self._show(shown, seen(raw), place, at, there, norms, follow)
                for name, row in follow.items():
                    self._put(name, at, there, _scaled(row[:, len(spec.prefix) :]).reshape(-1, *spec.grid))
                if reduction is not None:
                    for name, found in reduction.results().items():
                        if name in self._rows:
                            self._put(name, at, there, found, self._places)
            if self._weighted:
                derived, read = compute_weighted(store, self._weighted, slice(batch.start, batch.stop))
                self._read += read
                for name, found in derived.items():
                    self._put(name, at, there, found, store.kept_layers)

    def _begin(self, reducer: Reducer | None, batch: range) -> Batch | None:
        if reducer is None:
            return None
        pools = "pool_attention" in self._store
        pool = self._store.read("pool_attention", slice(batch.start, batch.stop)) if pools else None
        return reducer.begin(len(batch), pool)

    def _show(
        self, shown: Layer, codes: Array, place: int, at: slice, there: Array, norms: dict[str, Array],
        follow: dict[str, Array],
    ) -> None:  # fmt: skip
        """Every extra statistic of one layer of a batch."""
        shown.take(codes)
        for s in self._extras:
            if s.whole is not None:
                found = s.whole(shown)[there]
                if s.per_image:
                    self._rows[s.name][at][there, place] = found
                else:
                    self._add(s, place, np.add.reduce(found, axis=0, dtype=np.float64))
        singly = [s for s in self._extras if s.whole is None]
        for image in np.flatnonzero(there) if singly else ():
            shown.show(int(image), norms["value_norm"][image, place] if "value_norm" in norms else None)
            for s in singly:
                if s.follow is not None:
                    follow[s.name][image] = s.follow(shown, follow[s.name][image])
                    continue
                assert s.function is not None
                found = s.function(shown)
                if s.per_image:
                    self._rows[s.name][at.start + image, place] = found
                else:
                    self._add(s, place, found)

    def _add(self, s: Statistic, place: int, found: Array) -> None:
        """Add one image's layer to the sum of a statistic whose rows are not kept."""
        if s.name not in self._sums:
            shape = s.shape(self._store.spec)
            total = np.full(shape, math.nan)
            total[self._places] = 0
            counts = s.edges is not None
            self._sums[s.name] = np.zeros(shape, np.int64) if counts else Totals(float(self._valid.sum()), total)
        if s.edges is not None:
            self._sums[s.name][place] += found
            return
        total = self._sums[s.name].total[place]
        if found.dtype == np.float32 and found.flags.c_contiguous:
            compiled.accumulate(total.reshape(-1), found.reshape(-1))
        else:
            total += found

    def _put(self, name: str, at: slice, there: Array, found: Array, places: Sequence[int] = ()) -> None:
        """A batch's results in their rows; those with a layer axis have the kept layers alone."""
        rows = self._rows[name][at]
        if places and len(places) < rows.shape[1] and found.shape[1] == len(places):
            block = rows[there]
            block[:, places] = found[there]
            rows[there] = block
        else:
            rows[there] = found[there]


def _gather(name: str) -> Callable[[Array], Any]:
    return Moments.of if scalars([name]) else Totals.of


def _scaled(row: Array) -> Array:
    """(image, patch) over its maximum; without any mass it stays 0."""
    top = row.max(axis=-1, keepdims=True)
    return np.asarray(row / np.where(top == 0, 1, top))
