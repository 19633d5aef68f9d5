"""Statistics of whole stores: rows per image that the run did not make, and what sums the dataset up.

One pass over the stored attention gives whatever is asked, unit after unit, on several threads; rows are written as
soon as their unit is, and sums are merged in the units' order, so that an interrupted analysis goes on where it
stopped, new units cost only themselves, and several stores are summed up together without reading attention again.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..engine.places import Url
from ..engine.store import ArraySpec, Store
from ..exporter.errors import AttlasError, UsageError
from ..exporter.progress import Display, Show, shows
from .catalog import CATALOG, FUSED, GROUPED_MAPS, MEASURED, find, scalars
from .gradients import WEIGHTED
from .groups import check_column, merged
from .partials import Partial, attention_of, check, groupable, partial_statistics, templates, unit_statistics
from .summary import Source, Summed, spec_of, stored_groups, stored_sum, sum_name, summed_units, sums_up

__all__ = ["AnalyzeResult", "Pooled", "Progress", "analyze", "pooled"]

NAMES = (*FUSED, *CATALOG, *WEIGHTED, *MEASURED)

Mask = npt.NDArray[np.bool_]


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

    path: Path | Url
    images: int
    made: tuple[str, ...]
    summed: tuple[str, ...]
    read: int
    seconds: float
    finished: bool
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Pooled:
    """The statistics of several stores together.

    Attributes:
        images: valid images of all of them.
        arrays: (dims, values, attributes) by name, as `xarray.Dataset(pooled.arrays)` takes them.
        notes: what the user should know.
    """

    images: int
    arrays: dict[str, Summed]
    notes: tuple[str, ...] = ()


@shows("images")
def analyze(
    store_path: str | os.PathLike[str], names: Sequence[str] | None = None, *, by: str = "",
    workers: int | None = None, executor: Executor | None = None, overwrite: bool = False,
    progress: Show[Progress] = None,
) -> AnalyzeResult:  # fmt: skip
    """Compute statistics of a store and write them into it.

    By default: the default statistics that the run did not make, from stored attention, whatever an earlier analysis
    made brought up to date, and of all that the store then holds the dataset's `<name>_mean`, `<name>_std`,
    `<name>_quantile` and `<name>_interval` over valid images.

    Args:
        store_path: a store, finished or not.
        names: statistics of `catalog.CATALOG`, or default ones; only these are summed up. One default statistic
            brings the rows of all, which cost nothing more.
        by: a column of the store (`label`, `predicted`, any array over images alone): everything that is one number
            per image, layer and head, and the mean maps of `catalog.GROUPED_MAPS`, are summed up by it too.
        workers: threads; all processors by default. With an executor, how many units it is handed at once.
        executor: of other processes or machines, which must reach the store by the same path.
        overwrite: compute anew what an earlier analysis wrote. What the run wrote is never replaced.
        progress: True shows a bar; a function is called in this thread with a `Progress`, at the start and after every
            unit.

    Raises:
        UsageError: a name is unknown, or the store's attention cannot give it.
        AttlasError: the store lacks what a statistic needs, or cannot be written.
    """
    started = time.perf_counter()
    show = progress if callable(progress) else (lambda _now: None)
    asked = None if names is None else find(names)
    store = Store(store_path, writable=True)
    try:
        work = _plan(store, asked, by, overwrite)
        pool = executor or ThreadPoolExecutor(workers or _processors(), thread_name_prefix="analyze")
        try:
            _pass(work, pool, workers or _processors(), show, threads=executor is None)
        except KeyboardInterrupt:
            _keep(work)
            raise
        finally:
            if executor is None:
                pool.shutdown(wait=True, cancel_futures=True)
        if isinstance(progress, Display):
            progress.note("summing up")
        summed = _sum_up(work) if work.source.mask.any() else ()
    except OSError as error:
        raise AttlasError(f"{store_path}: cannot be written ({error.strerror or error})") from None
    return AnalyzeResult(
        path=store.path, images=int(work.source.mask.sum()), made=tuple(sorted(work.gathered.made)), summed=summed,
        read=work.gathered.read, seconds=time.perf_counter() - started, finished=bool(work.source.done.all()),
        notes=_notes(work.source, by),
    )  # fmt: skip


def pooled(stores: Sequence[str | os.PathLike[str]], names: Sequence[str] | None = None, *, by: str = "") -> Pooled:
    """The dataset's statistics over the images of several stores of one model: shards, or splits of a dataset.

    Made of what `analyze` wrote into each, without reading attention: counts and histograms are those of one pass,
    means and deviations equal them but for rounding, quantiles and intervals are of all rows together.

    Args:
        stores: of the same graph, each analysed, also by the same column where `by` is given.
        names: statistics; by default all that every store was summed up in.
        by: a column to group by.

    Raises:
        UsageError: the stores are of different graphs, or a name is unknown.
        AttlasError: a statistic is not there in one of them, or not of all its units.
    """
    if not stores:
        raise UsageError("there is no store to sum up")
    sources = [Source.of(Store(path)) for path in stores]
    first = sources[0].store
    for source in sources[1:]:
        if source.store.spec != first.spec:
            raise UsageError(f"{first.path} and {source.store.path} are of different graphs, and are not summed up")
    asked = find(names) if names is not None else [
        name for name in NAMES if all(sum_name(name) in source.store for source in sources)
    ]  # fmt: skip
    for source in sources:
        for name in asked:
            _refuse_behind(source, name, sum_name(name))
    maps = [name for name in asked if not scalars([name])]
    sums: dict[str, Any] = {}
    for name in maps:
        for source in sources:
            part = stored_sum(source.store, name)
            sums[name] = sums[name] + part if name in sums else part
    grouped = groupable(asked) if by else []
    if by and names is None:
        grouped = [name for name in (*scalars(NAMES), *GROUPED_MAPS)
                   if all(f"{name}_mean_by_{by}" in source.store for source in sources)]  # fmt: skip
    groups: dict[str, Any] = {}
    for name in grouped:
        for source in sources:
            _refuse_behind(source, name, f"{name}_mean_by_{by}", by)
            if name in GROUPED_MAPS:
                groups[name] = merged(groups.get(name, {}), stored_groups(source.store, name, by))
    images = sum(int(source.mask.sum()) for source in sources)
    arrays = sums_up(sources, asked, sums, by, grouped, groups) if images else {}
    paths = np.concatenate([source.store.read("path").astype(object)[source.mask] for source in sources])
    twice = len(paths) - len(set(paths.tolist()))
    return Pooled(images, arrays, (f"{twice} paths are in more than one store, and count each time",) if twice else ())


def _refuse_behind(source: Source, name: str, array: str, by: str = "") -> None:
    """Refuse to sum up what an analysis has not seen whole."""
    if array not in source.store or (summed_units(source.store, array, source.done) != source.done).any():
        option = f" --by {by}" if by else ""
        raise AttlasError(
            f"{source.store.path}: {name} is not summed up over all of its units; `attlas analyze {source.store.path} "
            f"{name}{option}` does it"
        )


# -- what is to be done -----------------------------------------------------------------------------------------------


@dataclass
class _Work:
    """One pass: what it makes of which units, and what is gathered so far."""

    store: Store
    source: Source
    names: list[str]
    by: str
    grouped: list[str]
    # Per name the units that it lacks; under the name of the array for groups.
    lacking: dict[str, Mask] = field(default_factory=dict)
    gathered: Partial = field(default_factory=Partial)

    def job(self, k: int) -> tuple[list[str], list[str]]:
        """What is to be made of unit k: names, and names by group."""
        return (
            [name for name in self.names if self.lacking[name][k]],
            [name for name in self.grouped if name in GROUPED_MAPS and self.lacking[f"{name}_mean_by_{self.by}"][k]],
        )

    @property
    def units(self) -> list[int]:
        """The units that something is to be made of."""
        return [int(k) for k in np.flatnonzero(np.any(list(self.lacking.values()), axis=0))] if self.lacking else []


def _plan(store: Store, asked: list[str] | None, by: str, overwrite: bool) -> _Work:
    source = Source.of(store)
    if by:
        check_column(store, by)
    names = _default(store) if asked is None else asked
    # A map that is asked for by group leaves no rows.
    names = [name for name in names if name in store or not (by and name in GROUPED_MAPS[1:])]
    grouped = _grouped(store, asked, by)
    for name in dict.fromkeys((*names, *grouped)):
        check(store, name)
    work = _Work(store, source, names, by, grouped)
    _lay_out(work, overwrite)
    stored: dict[str, Any] = {}
    groups: dict[str, Any] = {}
    for name in names:
        work.lacking[name] = _rows_lacking(work, name)
        if not scalars([name]):
            had = np.zeros_like(source.done) if overwrite else summed_units(store, sum_name(name), source.done)
            if (had & work.lacking[name]).any():  # rows were lost that the sum has
                had[:] = False
            work.lacking[name] = source.done & ~had
            if had.any():
                stored[name] = stored_sum(store, name)
    for name in (name for name in grouped if name in GROUPED_MAPS):
        array = f"{name}_mean_by_{by}"
        had = np.zeros_like(source.done) if overwrite else summed_units(store, array, source.done)
        work.lacking[array] = source.done & ~had
        if had.any():
            groups[name] = stored_groups(store, name, by)
    work.gathered = Partial(sums=stored, groups=groups)
    return work


def _default(store: Store) -> list[str]:
    """The default statistics, the mean score matrix where attention is there, and what an earlier analysis made."""
    analyzed = store.attrs.get("analyzed", ())
    found = [name for name in NAMES if name in store and (name in analyzed or name in (*FUSED, *MEASURED))]
    if attention_of(store):
        found += [*templates(store, FUSED), "score_matrix_mean"]
    names = [name for name in NAMES if name in found]
    if not names:
        raise AttlasError(
            f"{store.path}: holds neither attention nor statistics; `attlas run --keep attention` keeps attention"
        )
    return names


def _grouped(store: Store, asked: list[str] | None, by: str) -> list[str]:
    """What is summed up by group: what is asked, and what an earlier analysis has, since the groups may be more now."""
    if not by:
        return []
    if asked is None:
        held = [name for name in _default(store) if name in groupable([name])]
        maps = [name for name in GROUPED_MAPS[1:] if attention_of(store)]
        chosen = [*held, *(name for name in maps if not (name == "readout_map" and store.spec.readout == "pool"))]
    else:
        chosen = groupable(asked)
        if len(chosen) < len(asked):
            wrong = next(name for name in asked if name not in chosen)
            raise UsageError(
                f"{wrong}: not by {by}; there are the statistics of one number per image, layer and head, and "
                f"{', '.join(GROUPED_MAPS)}"
            )
    there = [name for name in (*scalars(NAMES), *GROUPED_MAPS) if f"{name}_mean_by_{by}" in store]
    return list(dict.fromkeys((*chosen, *there)))


def _lay_out(work: _Work, overwrite: bool) -> None:
    """Lay out the arrays of rows that are not there."""
    store = work.store
    analyzed = store.attrs.get("analyzed", ())
    wanted = templates(store, [n for n in work.names if n not in store or n in analyzed])
    fresh = [t for name, t in wanted.items() if name not in store or (overwrite and name in analyzed)]
    if fresh:
        store.add([ArraySpec.from_template(t, store.plan) for t in fresh])


def _rows_lacking(work: _Work, name: str) -> Mask:
    """The done units that lack rows of `name`."""
    store, done = work.store, work.source.done
    if name not in store.attrs.get("analyzed", ()) or name not in templates(store, [name]):
        return np.zeros_like(done)
    rest = [0] * (len(store.dims(name)) - 1)
    # A unit is a chunk, and a chunk's file is written whole.
    there = {key for key, _ in store.storage.listing(name)}
    return done & ~np.array([store.chunk_key(name, (k, *rest)) in there for k in range(store.plan.units)], np.bool_)


# -- the pass over the attention --------------------------------------------------------------------------------------


def _pass(work: _Work, pool: Executor, ahead: int, show: Callable[[Progress], None], *, threads: bool) -> None:
    store, plan, units = work.store, work.store.plan, work.units
    started, done, total = time.perf_counter(), 0, sum(len(plan.unit_range(k)) for k in units)
    show(Progress(0, total, 0.0))

    def submit(k: int) -> Future[Partial]:
        names, grouped = work.job(k)
        if not threads:
            where = str(store.path.resolve() if isinstance(store.path, Path) else store.path)
            return pool.submit(partial_statistics, where, [k], names, by=work.by, grouped=grouped)
        images = plan.unit_range(k)
        valid = work.source.mask[images.start : images.stop]
        return pool.submit(unit_statistics, store, k, names, work.by, grouped, valid=valid)

    # Parts merge in the units' order, so that workers do not change a bit of the result.
    for part in _in_order(submit, units, ahead):
        work.gathered = work.gathered + part
        done += sum(len(plan.unit_range(k)) for k in part.units)
        show(Progress(done, total, time.perf_counter() - started))


def _in_order(submit: Callable[[int], Future[Partial]], units: Iterable[int], ahead: int) -> Iterator[Partial]:
    """Results in order, with no more than a few units ahead of the reader."""
    running: deque[Future[Partial]] = deque()
    try:
        for k in units:
            running.append(submit(k))
            if len(running) > 2 * ahead:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    finally:
        for future in running:
            future.cancel()


def _keep(work: _Work) -> None:
    """Write the sums gathered before an interruption, so that the next analysis goes on from there."""
    source, seen = work.source, np.zeros_like(work.source.done)
    seen[list(work.gathered.units)] = True
    for name in (n for n in work.names if n in work.gathered.sums and not scalars([n])):
        units = source.done & (seen | ~work.lacking[name])
        mask = source.mask & np.repeat(units, work.store.plan.unit)[: source.mask.size]
        if mask.any():
            part = Source(work.store, units, mask)
            _write(work.store, sums_up([part], [name], {name: work.gathered.sums[name]}))


# -- the dataset ------------------------------------------------------------------------------------------------------


def _sum_up(work: _Work) -> tuple[str, ...]:
    """Write the dataset-level arrays of what the store holds, all of it or what was asked for."""
    sums = {name: value for name, value in work.gathered.sums.items() if not scalars([name])}
    found = sums_up([work.source], work.names, sums, work.by, work.grouped, work.gathered.groups)
    _write(work.store, found)
    return tuple(sorted(found.keys() - {"quantile", "bound"}))


def _write(store: Store, found: dict[str, Summed]) -> None:
    if found:
        specs = [spec_of(name, summed) for name, summed in found.items()]
        store.add(specs, {name: summed.values for name, summed in found.items()})


def _notes(source: Source, by: str) -> tuple[str, ...]:
    plan, found = source.store.plan, []
    done, mask = source.done, source.mask
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
    elif by and f"{by}_group_images" in source.store:
        said: Any = source.store.array(f"{by}_group_images").attrs
        left_out = int(said["left_out"])
        if left_out:
            found.append(f"{left_out} of {int(mask.sum())} images have no {by} and are in no group")
    return tuple(found)


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
