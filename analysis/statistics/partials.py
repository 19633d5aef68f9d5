"""Statistics of some units of a store, to be added to those of the other units.

A `Partial` holds plain arrays and pickles small. So any thread, process or machine can compute some units;
`statistics.analyze` hands units out and adds the results.
"""

from __future__ import annotations

import functools
import operator
import os
import pickle
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ...engine.store.store import Store, Template
from ...errors import AttlasError, UsageError
from ..catalog import CATALOG, named, resolved
from ..declared import check_numbers
from ..kernels.fused import Reducer, fused, seen
from ..statistic import Statistic
from .chunks import Chunks
from .extras import Extras
from .gradients import check as check_weighted
from .gradients import computed, normed, weighs
from .groups import Key, check_column, gathered, merged, read_column
from .moments import Moments, Totals

__all__ = [
    "Partial",
    "attention_of",
    "beside",
    "check",
    "groupable",
    "kept_layers",
    "merge",
    "packed",
    "packed_statistics",
    "partial_statistics",
    "templates",
    "unit_statistics",
]

MATRIX = ("attention", "attention_code")

Array = npt.NDArray[Any]
Sum = Moments | Totals | npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Partial:
    """Sums over some units, by name of the statistic; `+` gives the sums over the units of both.

    Attributes:
        units: indices of the units; parts that are added must not share one.
        images: number of valid images in these units.
        sums: `Moments` of statistics with one number per layer and head, `Totals` of maps, counts of histograms.
        groups: the same for each group, by its key, of the statistics that were asked for by group.
        made: names of the arrays to which rows were written.
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
            (*self.units, *other.units),
            self.images + other.images,
            sums,
            groups,
            self.made | other.made,
            self.read + other.read,
        )


def merge(parts: Iterable[Partial]) -> Partial:
    """The sum of all parts. Counts are exact; sums differ from one pass over all units only by rounding."""
    return functools.reduce(operator.add, parts, Partial())


def partial_statistics(
    store: Store | str | os.PathLike[str],
    units: Iterable[int],
    names: Sequence[str | Statistic],
    *,
    by: str = "",
    grouped: Sequence[str | Statistic] | None = None,
    keep_rows: bool = True,
    anew: bool = False,
) -> Partial:
    """Statistics of some units of a store, to be merged with those of others.

    Rows per image that the store holds are read; the rest are computed. They are written if the store has an array for
    them, which `analyze` creates. Every unit has files of its own, so several workers can write to one store.

    Args:
        store: opened, or its path, which other processes and machines take.
        units: indices of units; those that are not done give nothing.
        names: statistics of `catalog.CATALOG`, or of your own.
        by: a column, to gather groups too.
        grouped: what to gather by group; all of `names` that can be, by default.
        keep_rows: whether rows are written.
        anew: whether rows that an earlier analysis wrote are computed again.

    Raises:
        UsageError: a name is unknown, or the store's attention cannot give it.
        AttlasError: the store lacks what a statistic needs, or does not read.
    """
    opened = store if isinstance(store, Store) else Store(store, writable=keep_rows)
    asked = resolved(names)
    shares = resolved(grouped or ()) if grouped is not None or not by else groupable(asked)
    if by:
        check_column(opened, by)
    for statistic in {s.name: s for s in (*asked, *shares)}.values():
        check(opened, statistic)
    return merge(unit_statistics(opened, k, asked, by, shares, keep_rows=keep_rows, anew=anew) for k in units)


def packed(statistics: Sequence[Statistic], grouped: Sequence[Statistic]) -> bytes:
    """Statistics for `packed_statistics` in another process: ours by name, a user's own with their formulas.

    Raises:
        UsageError: a formula is one that no other process can find, such as a lambda.
    """
    for one in (*statistics, *grouped):
        try:
            pickle.dumps(named(one))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise _foreign(f"{one.name}: {error}") from None
    return pickle.dumps([[named(one) for one in some] for some in (statistics, grouped)])


def packed_statistics(store: str, k: int, statistics: bytes, by: str, anew: bool) -> Partial:
    """`partial_statistics` of one unit, in another process.

    Statistics come packed, since a formula that cannot be imported while an executor unpacks its task ends the process
    without a word.

    Raises:
        UsageError: a formula cannot be imported here; and as in `partial_statistics`.
    """
    try:
        asked, grouped = pickle.loads(statistics)
    except (ImportError, AttributeError) as error:
        raise _foreign(str(error)) from None
    return partial_statistics(store, [k], asked, by=by, grouped=grouped, anew=anew)


def _foreign(said: str) -> UsageError:
    return UsageError(
        f"the formula of a statistic cannot be imported by another process ({said}); define it in a module that is "
        "installed there, or use threads"
    )


def unit_statistics(
    store: Store,
    k: int,
    statistics: Sequence[Statistic],
    by: str,
    grouped: Sequence[Statistic],
    *,
    keep_rows: bool = True,
    anew: bool = False,
    valid: npt.NDArray[np.bool_] | None = None,
) -> Partial:
    """`partial_statistics` of one unit, of statistics that were checked; `valid` are its images that could be read."""
    if valid is None:
        images = store.plan.unit_range(k)
        valid = store.read("valid", slice(images.start, images.stop)).astype(np.bool_)
    return _Unit(store, k, statistics, by, grouped, valid, keep_rows=keep_rows, anew=anew).partial()


def groupable(statistics: Iterable[Statistic]) -> list[Statistic]:
    """The statistics that have means by group: one number per layer and head, and the smaller maps."""
    return [s for s in statistics if s.by_group != "no"]


def attention_of(store: Store) -> str:
    """The store's array of attention matrices, empty where there is none."""
    return next((name for name in MATRIX if name in store), "")


def kept_layers(store: Store) -> tuple[int, ...]:
    """The layers whose attention is stored."""
    kept = store.attrs["kept"]["layers"] if attention_of(store) else ()
    return tuple(layer for layer in store.spec.layers if layer in kept)


def templates(store: Store, statistics: Iterable[Statistic]) -> dict[str, Template]:
    """The arrays for the rows of these statistics, by name. One default statistic brings all of them at no cost."""
    found = _with_rows(store, statistics)
    said = {"computed_from": "attention_code"} if attention_of(store) == "attention_code" else {}
    made = {name: s.template(store.spec) for name, s in found.items()}
    return {name: replace(t, attrs={**t.attrs, **said}) for name, t in made.items()}


def _with_rows(store: Store, statistics: Iterable[Statistic]) -> dict[str, Statistic]:
    """These statistics, and those that the same kernel computes, by name; only those that keep rows."""
    found: dict[str, Statistic] = {}
    for statistic in statistics:
        if statistic.name not in found:
            together = fused(store.spec, kept_layers(store)) if "fused" in statistic.kernels else [statistic]
            found |= {s.name: s for s in together if s.rows and s.formula is not None}
    return found


def beside(store: Store, statistic: Statistic) -> list[str]:
    """The arrays that its rows are written to: its own, and those of the statistics that are computed with it."""
    analyzed = store.attrs.get("analyzed", ())
    if statistic.name not in analyzed:
        return []
    return [array for array in _with_rows(store, [statistic]) if array in analyzed]


def check(store: Store, statistic: Statistic) -> None:
    """Refuse a statistic that the store cannot give, and say what the run should have kept. Existing rows are enough.

    Raises:
        UsageError: the store's attention cannot give it.
        AttlasError: the store lacks what it needs.
    """
    where, spec, name = store.path, store.spec, statistic.name
    if statistic.rows and name in store and name not in store.attrs.get("analyzed", ()):
        if name not in CATALOG:
            raise UsageError(f"{where}: {name} is an array of the run; choose another name")
        return
    norms = (one for one in ("value_norm", "token_norm") if one in statistic.needs)
    needed = name if statistic.formula is None else next(norms, "")
    if needed and needed not in store:
        raise AttlasError(f"{where}: {name} needs {needed}, which a run keeps of a graph of `attlas export --norms`")
    if weighs(statistic):
        check_weighted(store, statistic)
    elif normed(statistic):
        pass
    elif statistic.needs and not attention_of(store):
        raise AttlasError(f"{where}: holds no attention, which {name} needs; `attlas run --keep attention` keeps it")
    elif statistic.follows and kept_layers(store) != tuple(range(spec.depth)):
        raise AttlasError(f"{where}: {name} follows all {spec.depth} layers; `attlas run` without --layers keeps them")
    if why := statistic.unfit(spec):
        raise UsageError(f"{name}: {spec.name} {why}")
    # What an earlier version made of codes goes on as it began.
    coded = attention_of(store) == "attention_code" and name not in store
    if coded and statistic.exact and "attention" in statistic.needs:
        raise UsageError(
            f"{where}: holds attention as uint8 codes, good for averages, and {name} depends on single values, which "
            "may be 0.1 to 0.5 of the maximum off; `attlas run --store-dtype float16` keeps the values"
        )
    statistic.shape(spec)
    if why := statistic.refused(spec) or _clash(store, statistic):
        raise UsageError(f"{name}: {why}")


def _clash(store: Store, one: Statistic) -> str:
    """Why a statistic of somebody's own has no place in a store, empty where it has."""
    if one.formula is None or isinstance(named(one), str):
        return ""
    if not one.rows and (weighs(one) or normed(one)):
        return "rows=False is for attention alone; of gradients and norms rows are kept"
    shape = one.shape(store.spec)
    if one.edges is not None and len(one.edges(store.spec)) != shape[-1] + 1:
        return f"{shape[-1]} bins have {shape[-1] + 1} edges, not {len(one.edges(store.spec))}"
    partly = "layer" in one.dims and len(kept_layers(store)) < len(store.spec.layers)
    if partly and one.rows and np.dtype(one.dtype).kind != "f":
        return f"dtype {one.dtype} has no NaN for layers that are not kept; float32 has"
    mine = {one.sum_name: one.dims} | ({one.name: ("image", *one.dims)} if one.rows else {})
    own = {dim: one.sizes[dim] for dim in one.dims if dim in one.sizes}
    for array in store.names:
        dims, there = store.dims(array), store.array(array).shape
        changed = dims != mine.get(array, dims) or (array in mine and there[len(dims) - len(shape) :] != shape)
        if changed or (array == one.name and one.rows and store.array(array).dtype != one.dtype):
            return f"{store.path} has an array {array} of other dimensions, or not {one.dtype}; choose another name"
        for dim, size in zip(dims, there, strict=True):
            if own.get(dim, size) != size:
                return f"{dim} has {own[dim]} entries, and {size} in {array} of {store.path}; choose another name"
    return ""


class _Unit:
    """Computes the rows and sums of one unit from its stored attention."""

    def __init__(
        self,
        store: Store,
        k: int,
        statistics: Sequence[Statistic],
        by: str,
        grouped: Sequence[Statistic],
        valid: npt.NDArray[np.bool_],
        *,
        keep_rows: bool,
        anew: bool,
    ) -> None:
        self._store, self._k, self._by, self._statistics, self._grouped = store, k, by, statistics, grouped
        self._images, self._valid = store.plan.unit_range(k), valid
        self._layers = kept_layers(store)
        self._places = [store.spec.layers.index(layer) for layer in self._layers]
        analyzed = store.attrs.get("analyzed", ())
        asked = {s.name: s for s in (*statistics, *grouped)}
        given = [name for name in analyzed if name not in asked or asked[name].formula is not None]
        self._has = dict.fromkeys(given, False) if anew else {}
        # Rows of the run are there, or lost: then they do not read.
        self._there = {
            name: store.read(name, self._at)
            for name, s in asked.items()
            if s.rows and name in store
            if name not in analyzed or all(map(self._has_rows, beside(store, s) or [name]))
        }
        missing = [s for name, s in asked.items() if name not in self._there and s.formula is not None]
        # Where the run wrote one of the default statistics, or another analysis did, its rows stand.
        self._rows = {
            name: np.full((len(self._images), *t.shape), t.fill, t.dtype)
            for name, t in templates(store, missing).items()
            if any(s.name == name for s in missing) or (name in store and not self._has_rows(name))
        }
        self._written = [name for name in self._rows if keep_rows and name in store and name in analyzed]
        self._fused = any("fused" in s.kernels for s in missing)
        # What reads no attention, or attention and gradients, and the layers that there are of these.
        self._read_whole = [
            ([s for s in missing if weighs(s)], store.attrs["kept"]["layers"], store.kept_layers),
            ([s for s in missing if normed(s)], store.spec.layers, range(len(store.spec.layers))),
        ]
        others = [s for s in missing if "fused" not in s.kernels and not weighs(s) and not normed(s)]
        self._extras = Extras(store, others, self._rows, self._places, int(valid.sum()))
        self._read = 0

    @property
    def _at(self) -> slice:
        return slice(self._images.start, self._images.stop)

    def _has_rows(self, name: str) -> bool:
        if name not in self._has:
            rest = [0] * (len(self._store.array(name).shape) - 1)
            first = self._images.start // self._store.array(name).chunks[0]
            self._has[name] = self._store.storage.exists(self._store.chunk_key(name, (first, *rest)))
        return self._has[name]

    def partial(self) -> Partial:
        """Compute what is missing, write its rows, and gather."""
        if self._extras or self._fused or any(some for some, *_ in self._read_whole):
            self._compute()
        for name in self._written:
            self._store.write(name, self._images.start, self._rows[name])
        values = {name: rows[self._valid] for name, rows in (self._there | self._rows).items()}
        sums = {s.name: _gather(s)(values[s.name]) for s in self._statistics if s.name in values}
        sums |= self._extras.sums
        groups: dict[str, dict[Key, Any]] = {}
        if self._grouped:
            keys, there = read_column(self._store, self._by, self._at)
            keys, there = keys[self._valid], there[self._valid]
            groups = {s.name: gathered(values[s.name], keys, there, _gather(s)) for s in self._grouped}
        return Partial((self._k,), int(self._valid.sum()), sums, groups, frozenset(self._written), self._read)

    def _compute(self) -> None:
        """Compute batch by batch; in a batch from the last layer to the first, as rollouts need them."""
        store, layers = self._store, self._layers
        reducer = Reducer(store.spec, layers=layers) if self._fused else None
        chunks = Chunks(store, attention_of(store)) if self._extras or reducer else None
        for batch in store.plan.batches(self._k):
            at = slice(batch.start - self._images.start, batch.stop - self._images.start)
            there = self._valid[at]
            if chunks is not None:
                pool = self._pool(batch)
                reduction = reducer.begin(len(batch), pool) if reducer is not None else None
                self._extras.begin(batch, pool)
                for place in reversed(self._places):
                    raw = chunks.read(batch, place)
                    self._read += raw.nbytes
                    if reduction is not None:
                        reduction.add(raw)
                    if self._extras:
                        self._extras.add(seen(raw), place, at, there)
                self._extras.end(at, there)
                if reduction is not None:
                    for name, found in reduction.results().items():
                        if name in self._rows:
                            self._put(name, at, there, found, self._places)
            for some, layers, places in self._read_whole:
                derived, read = computed(store, some, slice(batch.start, batch.stop), layers) if some else ({}, 0)
                self._read += read
                for s in some:
                    check_numbers(s, derived[s.name][there])
                    self._put(s.name, at, there, derived[s.name], places)

    def _pool(self, batch: range) -> Array | None:
        """`pool_attention` of a batch, or None if the store has none."""
        if "pool_attention" not in self._store:
            return None
        return self._store.read("pool_attention", slice(batch.start, batch.stop))

    def _put(self, name: str, at: slice, there: Array, found: Array, places: Sequence[int] = ()) -> None:
        """Copy a batch's results into their rows. Results with a layer axis hold only the layers that were kept."""
        rows = self._rows[name][at]
        if places and len(places) < rows.shape[1] and found.shape[1] == len(places):
            block = rows[there]
            block[:, places] = found[there]
            rows[there] = block
        else:
            rows[there] = found[there]


def _gather(statistic: Statistic) -> Callable[[Array], Any]:
    return Moments.of if statistic.scalar else Totals.of
