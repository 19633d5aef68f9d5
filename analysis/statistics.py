"""Statistics of a whole store: rows per image that the run did not make, and what sums the dataset up.

One pass over the stored attention gives whatever is asked, unit after unit, on several threads; every result is
written as soon as its unit is, so that an interrupted analysis goes on where it stopped and new units cost only
themselves.
"""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..engine.store import ArraySpec, Store, Template
from ..exporter.errors import AttlasError, UsageError
from .catalog import CATALOG, FUSED, SCALARS, Statistic, find
from .formulas import decode_codes
from .gradients import WEIGHTED
from .gradients import check as check_weighted
from .gradients import computed as compute_weighted
from .kernel import Reducer
from .moments import QUANTILES, RESAMPLES, Moments, interval, quantiles

__all__ = ["AnalyzeResult", "Progress", "analyze"]

COLUMN_BYTES = 256 * 2**20  # of per-image values held at once while they are summed up
MATRIX = ("attention", "attention_code")

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the pass over the attention is, in images; `seconds` since it began."""

    done: int
    total: int
    seconds: float


@dataclass(frozen=True, slots=True)
class AnalyzeResult:
    """What an analysis did.

    Attributes:
        path: of the store.
        images: valid images of units that are done: what the dataset's statistics are of.
        made: per-image arrays that this call wrote rows of.
        summed: dataset-level arrays that it wrote.
        read: bytes of attention that it read, uncompressed.
        seconds: of the whole call.
        finished: whether the run that made the store had done every unit.
        notes: what the user should know.
    """

    path: Path
    images: int
    made: tuple[str, ...]
    summed: tuple[str, ...]
    read: int
    seconds: float
    finished: bool
    notes: tuple[str, ...] = ()


def analyze(
    store_path: str | os.PathLike[str], names: Sequence[str] | None = None, *, workers: int | None = None,
    overwrite: bool = False, progress: Callable[[Progress], None] | None = None,
) -> AnalyzeResult:  # fmt: skip
    """Compute statistics of a store and write them into it.

    By default: the default statistics that the run did not make, from stored attention, and of all that the store
    then holds the dataset's `<name>_mean`, `<name>_std`, `<name>_quantile` and `<name>_interval` over valid images.

    Args:
        store_path: a store, finished or not.
        names: statistics of `catalog.CATALOG`, or default ones; only these are summed up. One default statistic
            brings the rows of all, which cost nothing more.
        workers: threads; all processors by default.
        overwrite: compute anew what an earlier analysis wrote. What the run wrote is never replaced.
        progress: called in this thread with a `Progress`, at the start and after every unit.

    Raises:
        UsageError: a name is unknown, or the store's attention cannot give it.
        AttlasError: the store lacks what a statistic needs, or cannot be written.
    """
    started = time.perf_counter()
    asked = None if names is None else find(names)
    store = Store(store_path, writable=True)
    try:
        work = _plan(store, asked, overwrite)
        _pass(store, work, workers or _processors(), progress)
        mask = _valid(store, work.done)
        notes = _notes(store, work.done, mask)
        summed = _sum_up(store, asked, mask, work) if mask.any() else ()
    except OSError as error:
        raise AttlasError(f"{store_path}: cannot be written ({error.strerror or error})") from None
    return AnalyzeResult(
        path=store.path, images=int(mask.sum()), made=tuple(sorted(work.made)), summed=summed, read=work.read,
        seconds=time.perf_counter() - started, finished=bool(work.done.all()), notes=notes,
    )  # fmt: skip


# -- what is to be done -----------------------------------------------------------------------------------------------


@dataclass
class _Work:
    """One pass over the attention: which rows and which means it makes, of which units."""

    done: npt.NDArray[np.bool_]
    source: str = ""
    layers: tuple[int, ...] = ()
    rows: dict[str, Template] = field(default_factory=dict)
    extras: list[Statistic] = field(default_factory=list)
    weighted: list[str] = field(default_factory=list)
    todo: dict[str, npt.NDArray[np.bool_]] = field(default_factory=dict)
    reducer: Reducer | None = None
    means: dict[str, Moments] = field(default_factory=dict)
    made: set[str] = field(default_factory=set)
    read: int = 0

    @property
    def units(self) -> list[int]:
        """The units that something is to be made of."""
        return [int(k) for k in np.flatnonzero(np.any(list(self.todo.values()), axis=0))] if self.todo else []


def _plan(store: Store, asked: list[str] | None, overwrite: bool) -> _Work:
    # Read once, so that a run that goes on meanwhile changes nothing of what this call is of.
    work = _Work(store.done, source=next((name for name in MATRIX if name in store), ""))
    kept = tuple(store.attrs["kept"]["layers"]) if work.source else ()
    work.layers = tuple(layer for layer in store.spec.layers if layer in kept)
    analyzed = store.attrs.get("analyzed", ())
    wanted = _default(store, work) if asked is None else asked
    fused: dict[str, Template] = {}
    if any(name in FUSED and (name not in store or name in analyzed) for name in wanted):
        _refuse_missing(store, work, next(n for n in wanted if n in FUSED and (n not in store or n in analyzed)))
        work.reducer = Reducer(store.spec, layers=work.layers)
        fused = {t.name: t for t in work.reducer.templates if t.name not in store or t.name in analyzed}
        _refuse_left_out(store, asked or (), fused)
    for name in wanted:
        if name in CATALOG and (CATALOG[name].per_image or name not in store or name in analyzed):
            _refuse_missing(store, work, name)
            work.extras.append(CATALOG[name])
    work.weighted = [name for name in wanted if name in WEIGHTED]
    for name in work.weighted:
        check_weighted(store, name)
    work.rows = {t.name: _whole(t, store) for t in fused.values()}
    work.rows |= {s.name: s.template(store.spec) for s in work.extras if s.per_image}
    work.rows |= {name: WEIGHTED[name].template(store.spec) for name in work.weighted}
    _lay_out(store, work, overwrite)
    if not any(name in work.todo and work.todo[name].any() for name in fused):
        work.reducer = None
    return work


def _default(store: Store, work: _Work) -> list[str]:
    """The default statistics, and the mean score matrix where attention is there to read."""
    if work.source:
        possible = {t.name for t in Reducer(store.spec, layers=work.layers).templates}
        return [*(name for name in FUSED if name in possible), "score_matrix_mean"]
    if not any(name in store for name in FUSED):
        raise AttlasError(
            f"{store.path}: holds neither attention nor statistics; `attlas run --keep attention` keeps the one, and "
            "with `pip install 'attlas[analysis]'` a run makes the other"
        )
    return [name for name in FUSED if name in store]


def _refuse_missing(store: Store, work: _Work, name: str) -> None:
    """Say which choice of the run would have kept what `name` needs."""
    where, statistic = store.path, CATALOG.get(name)
    if not work.source:
        raise AttlasError(f"{where}: holds no attention, which {name} needs; `attlas run --keep attention` keeps it")
    follows = name == "rollout" or (statistic is not None and statistic.follows)
    if follows and work.layers != tuple(range(store.spec.depth)):
        raise AttlasError(
            f"{where}: {name} follows all {store.spec.depth} layers; `attlas run` without --layers keeps them"
        )
    if statistic is None:
        return
    if statistic.exact and work.source == "attention_code":
        raise UsageError(
            f"{where}: holds attention as uint8 codes, from which {name} comes out 0.1 to 0.5 of its maximum wrong; "
            "`attlas run --store-dtype float16` keeps the values"
        )
    if statistic.probability and store.spec.attention_kind != "probability":
        raise UsageError(
            f"{name}: this model's attention is mixed after the softmax, and its rows are no probabilities"
        )


def _refuse_left_out(store: Store, asked: Sequence[str], fused: dict[str, Template]) -> None:
    for name in asked:
        if name in FUSED and name not in fused and name not in store:
            reason = "has no prefix tokens" if name == "prefix_mass" else "mixes its attention after the softmax"
            raise UsageError(f"{name}: {store.spec.name} {reason}")


def _whole(template: Template, store: Store) -> Template:
    """The template with all layers of the graph, of which those not kept stay fill."""
    if "layer" not in template.dims:
        return template
    shape = (len(store.spec.layers), *template.shape[1:])
    return Template(template.name, template.dims, shape, template.dtype, template.fill, template.attrs)


def _lay_out(store: Store, work: _Work, overwrite: bool) -> None:
    """Lay out the arrays that are not there, and note what is to be made of which units."""
    done = work.done
    fresh = [t for name, t in work.rows.items() if overwrite or name not in store]
    if fresh:
        store.add([ArraySpec.from_template(t, store.plan) for t in fresh])
    for name, template in work.rows.items():
        # A unit is a chunk, and a chunk's file is written whole.
        rest = [0] * len(template.shape)
        there = [store.chunk_path(name, (k, *rest)).is_file() for k in range(store.plan.units)]
        work.todo[name] = done & ~np.array(there, np.bool_)
    for statistic in work.extras:
        if not statistic.per_image:
            had = np.zeros_like(done) if overwrite else _summed_units(store, statistic.name)
            if (had & ~done).any():  # a unit was reopened since: its share cannot be taken out again
                had[:] = False
            if had.any():
                work.means[statistic.name] = _stored_mean(store, statistic.name)
            work.todo[statistic.name] = done & ~had


# -- the pass over the attention --------------------------------------------------------------------------------------


def _pass(store: Store, work: _Work, workers: int, progress: Callable[[Progress], None] | None) -> None:
    units, started, done = work.units, time.perf_counter(), 0
    total = sum(len(store.plan.unit_range(k)) for k in units)
    if progress is not None:
        progress(Progress(0, total, 0.0))
    for k, parts, read in _in_order(lambda k: _unit(store, work, k), units, workers):
        # Parts merge in the units' order, so that threads do not change a bit of the result.
        for name, part in parts.items():
            work.means[name] = work.means[name] + part if name in work.means else part
        work.made.update(name for name in work.rows if work.todo[name][k])
        work.read += read
        done += len(store.plan.unit_range(k))
        if progress is not None:
            progress(Progress(done, total, time.perf_counter() - started))


def _in_order(
    make: Callable[[int], tuple[int, dict[str, Moments], int]], units: Sequence[int], workers: int
) -> Iterator[tuple[int, dict[str, Moments], int]]:
    """Results in order, with no more than a few units ahead of the reader."""
    with ThreadPoolExecutor(workers, thread_name_prefix="analyze") as threads:
        running: deque[Future[tuple[int, dict[str, Moments], int]]] = deque()
        try:
            for k in units:
                running.append(threads.submit(make, k))
                if len(running) > workers:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            for future in running:
                future.cancel()


def _unit(store: Store, work: _Work, k: int) -> tuple[int, dict[str, Moments], int]:
    """Make what unit k lacks: write its rows, and return its part of the means and the bytes read."""
    images = store.plan.unit_range(k)
    valid = store.read("valid", slice(images.start, images.stop)).astype(np.bool_)
    rows = {
        name: np.full((len(images), *t.shape), t.fill, t.dtype) for name, t in work.rows.items() if work.todo[name][k]
    }
    parts: dict[str, list[Moments]] = {s.name: [] for s in work.extras if not s.per_image and work.todo[s.name][k]}
    read = 0
    for batch in store.plan.batches(k):
        at = slice(batch.start - images.start, batch.stop - images.start)
        there = valid[at]
        found, size = _computed(store, work, batch, rows.keys() | parts.keys())
        read += size
        for name, values in found.items():
            if name in rows:
                rows[name][at][there] = values[there]
            elif name in parts:
                parts[name].append(Moments.of_mean(values if there.all() else values[there]))
    for name, values in rows.items():
        store.write(name, images.start, values)
    return k, {name: sum(found[1:], start=found[0]) for name, found in parts.items()}, read


def _computed(store: Store, work: _Work, batch: range, names: set[str]) -> tuple[dict[str, Array], int]:
    """Every result of a batch by name, each with all layers of the graph, and the bytes read.

    Layers are read from last to first, which is how the rollout needs them, and each is let go before the next.
    """
    spec, at = store.spec, slice(batch.start, batch.stop)
    extras = [s for s in work.extras if s.name in names]
    layered: dict[str, list[Array]] = {s.name: [] for s in extras if not s.follows}
    reduction = None
    if work.reducer is not None and any(name in names for name in FUSED):
        reduction = work.reducer.begin(
            len(batch), store.read("pool_attention", at) if "pool_attention" in store else None
        )
    floats: list[Array] = []
    derived, read = compute_weighted(store, [name for name in work.weighted if name in names], at)
    for layer in reversed(work.layers if extras or reduction is not None else ()):
        raw = store.read(work.source, (at, spec.layers.index(layer)))
        read += raw.nbytes
        if reduction is not None:
            reduction.add(raw)
        wide = raw if all(s.raw for s in extras) else _floats(raw)
        for s in extras:
            if not s.follows:
                layered[s.name].insert(0, s.function(raw if s.raw else wide, spec))
        if any(s.follows for s in extras):
            floats.insert(0, wide)
    found = {name: np.stack(values, axis=1) for name, values in layered.items()}
    found |= {s.name: s.function(floats, spec) for s in extras if s.follows} | derived
    if reduction is not None:
        found |= {name: values for name, values in reduction.results().items() if name in names}
    return {name: _spread(store, work, name, values) for name, values in found.items()}, read


def _floats(raw: Array) -> Array:
    """Stored attention as float32."""
    return np.asarray(decode_codes(raw)) if raw.dtype == np.uint8 else raw.astype(np.float32, copy=False)


def _spread(store: Store, work: _Work, name: str, values: Array) -> Array:
    """(image, kept layer, ...) -> (image, layer, ...), with fill for layers that were not kept."""
    dims = work.rows[name].dims[1:] if name in work.rows else CATALOG[name].dims
    kept = store.attrs["kept"]["layers"]
    if "layer" not in dims or values.shape[1] == len(store.spec.layers):
        return values
    fill = work.rows[name].fill if name in work.rows else math.nan
    whole = np.full((len(values), len(store.spec.layers), *values.shape[2:]), fill, values.dtype)
    whole[:, [store.spec.layers.index(layer) for layer in kept]] = values
    return whole


# -- the dataset ------------------------------------------------------------------------------------------------------


def _sum_up(store: Store, asked: list[str] | None, mask: npt.NDArray[np.bool_], work: _Work) -> tuple[str, ...]:
    """Write the dataset-level arrays of what the store holds, all of it or what was asked for."""
    images, units = int(mask.sum()), _ranges(work.done)
    found: list[tuple[ArraySpec, Any]] = []
    for name in (n for n in (*FUSED, *CATALOG, *WEIGHTED) if asked is None or n in asked):
        statistic = CATALOG.get(name) or WEIGHTED.get(name)
        if statistic is not None and not statistic.per_image:
            if name in work.means and work.todo[name].any():
                attrs = {**statistic.attrs, "images": images, "units_summed": units}
                found.append(_array(name, statistic.dims, work.means[name].average, attrs))
        elif name in store:
            dims, attrs = store.dims(name)[1:], dict(store.array(name).attrs)
            attrs = {key: attrs[key] for key in ("units", "long_name", "source") if key in attrs}
            attrs |= {"images": images, "units_summed": units}
            if name in SCALARS or (statistic is not None and statistic.scalar):
                found += _scalar(store, name, dims, mask, attrs)
            else:
                found.append(_array(f"{name}_mean", dims, _mean_rows(store, name, work.done, mask).average, attrs))
    if any(array.dims and array.dims[0] == "quantile" for array, _ in found):
        found.append(_array("quantile", ("quantile",), np.array(QUANTILES), {}))
        bounds = np.array(["lower", "upper"], dtype=np.dtypes.StringDType())
        found.append((ArraySpec("bound", ("bound",), (2,), (2,), "str", ""), bounds))
    # A map's mean may come both from its rows and straight from the attention.
    unique = {array.name: (array, values) for array, values in found}
    if unique:
        store.add([array for array, _ in unique.values()], {name: values for name, (_, values) in unique.items()})
    return tuple(sorted(unique.keys() - {"quantile", "bound"}))


def _scalar(
    store: Store, name: str, dims: tuple[str, ...], mask: npt.NDArray[np.bool_], attrs: dict[str, Any]
) -> list[tuple[ArraySpec, Any]]:
    """Mean, deviation, quantiles and interval of one number per layer (and head, prefix token)."""
    shape = store.array(name).shape[1:]
    columns = max(1, math.prod(shape[1:])) * mask.size * 8
    step = max(1, min(shape[0], COLUMN_BYTES // columns))
    parts: list[tuple[Floats, Floats, Floats, Floats]] = []
    for start in range(0, shape[0], step):
        values = store.read(name, (slice(None), slice(start, start + step)))[mask]
        moments = Moments.of(values)
        parts.append((moments.average, moments.std, quantiles(values), interval(values)))
    mean, std, quantile, bounds = zip(*parts, strict=True)
    said = {**attrs, "long_name": attrs.get("long_name", name)}
    if name in ("distance_renormalized", "entropy_patch") and "rows_without_patch_mass" in store:
        left_out = store.read("rows_without_patch_mass")[mask]
        said["rows_left_out"] = int(np.maximum(left_out, 0).sum())
    drawn = {"method": "percentile bootstrap over images", "level": 0.95, "resamples": RESAMPLES, "seed": 0}
    return [
        _array(f"{name}_mean", dims, np.concatenate(mean), said),
        _array(f"{name}_std", dims, np.concatenate(std), {**said, "ddof": 1}),
        _array(f"{name}_quantile", ("quantile", *dims), np.concatenate(quantile, axis=1), said),
        _array(f"{name}_interval", ("bound", *dims), np.concatenate(bounds, axis=1), said | drawn),
    ]


def _mean_rows(store: Store, name: str, done: npt.NDArray[np.bool_], mask: npt.NDArray[np.bool_]) -> Moments:
    """Moments of an array's rows, a unit at a time."""
    total: Moments | None = None
    for k in np.flatnonzero(done):
        images = store.plan.unit_range(int(k))
        at = slice(images.start, images.stop)
        part = Moments.of_mean(store.read(name, at)[mask[at]])
        total = part if total is None else total + part
    assert total is not None
    return total


def _array(name: str, dims: tuple[str, ...], values: Array, attrs: dict[str, Any]) -> tuple[ArraySpec, Any]:
    return ArraySpec(name, dims, values.shape, values.shape, "float64", math.nan, attrs), values


def _summed_units(store: Store, name: str) -> npt.NDArray[np.bool_]:
    """Which units an earlier analysis has in this mean."""
    had = np.zeros(store.plan.units, np.bool_)
    if name in store:
        for start, stop in store.array(name).attrs.get("units_summed", ()):  # type: ignore[union-attr, misc]
            had[start:stop] = True
    return had


def _stored_mean(store: Store, name: str) -> Moments:
    mean = store.read(name)
    images = float(store.array(name).attrs["images"])  # type: ignore[arg-type]
    return Moments(np.where(np.isnan(mean), 0.0, images), np.nan_to_num(mean), np.zeros_like(mean))


def _ranges(done: npt.NDArray[np.bool_]) -> list[list[int]]:
    """[start, stop) of the runs of units that are done."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], done.astype(np.int8), [0]])))
    return [[int(start), int(stop)] for start, stop in zip(edges[::2], edges[1::2], strict=True)]


def _valid(store: Store, done: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Images that could be read, in units that are done: (image), bool."""
    images = np.repeat(done, store.plan.unit)[: store.plan.images]
    return np.asarray(store.read("valid").astype(np.bool_) & images)


def _notes(store: Store, done: npt.NDArray[np.bool_], mask: npt.NDArray[np.bool_]) -> tuple[str, ...]:
    plan, found = store.plan, []
    if not done.all():
        found.append(
            f"the store is unfinished: {int(done.sum())} of {plan.units} units are done, and these statistics are of "
            f"their {int(mask.sum())} images; run `attlas run` again for the rest"
        )
    tried = int(np.repeat(done, plan.unit)[: plan.images].sum())
    unreadable = tried - int(mask.sum())
    if unreadable:
        found.append(f"{unreadable} of {tried} images could not be read and are left out")
    if not mask.any():
        found.append("no image is done and readable: there is nothing to sum up")
    return tuple(found)


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
