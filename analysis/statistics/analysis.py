"""Statistics of whole stores: rows per image that the run did not make, and what sums the dataset up.

One pass over the stored attention gives whatever is asked, unit after unit, on several threads; rows are written as
soon as their unit is, and sums are merged in the units' order, so that an interrupted analysis goes on where it
stopped, new units cost only themselves, and several stores are summed up together without reading attention again.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ... import arguments
from ...arguments import Paths, Where
from ...engine.amounts import amount, duration
from ...engine.runtime.providers import cores
from ...engine.store.storage import Url
from ...engine.store.store import Store
from ...errors import AttlasError, UsageError
from ...progress import Display, Show, shows
from ...words import counted, part_of
from ..catalog import PREDICTED, held, resolved
from ..statistic import Statistic
from .clusters import ALONE, cluster_codes, cluster_of
from .groups import merged, read_column
from .inference import FEW, effective_number
from .partials import Partial, groupable, packed, packed_statistics, unit_statistics
from .summary import Source, Summed, spec_of, stored_groups, stored_sum, summed_units, sums_up
from .work import Work, grouped_before, means_by, planned
from .writing import writing

__all__ = ["AnalyzeResult", "Pooled", "Progress", "analyze", "few_notes", "in_order", "pooled"]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the pass over the attention is, in images; `seconds` since it began."""

    done: int
    total: int
    seconds: float


@dataclass(frozen=True, slots=True, repr=False)
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

    @property
    def said(self) -> str:
        """What was read, in one line."""
        return f"{counted(self.images, 'image')}, {amount(self.read)} of attention read, {duration(self.seconds)}"

    def __repr__(self) -> str:
        rows = [f"rows of {', '.join(self.made)}"] if self.made else []
        wrote = f"wrote {' and '.join([*rows, counted(len(self.summed), 'array') + ' of the dataset'])}"
        return "\n".join([f"{self.path}: {self.said}", wrote, *self.notes])


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
    store_path: Where,
    names: Sequence[str | Statistic] | str | Statistic | None = None,
    *,
    by: str = "",
    cluster: str | None = None,
    workers: int | None = None,
    executor: Executor | None = None,
    overwrite: bool = False,
    progress: Show[Progress] = None,
) -> AnalyzeResult:
    """Compute statistics of a store and write them into it.

    By default these are the default statistics that the run did not make, and those of earlier analyses, brought up to
    date; then `<name>_mean`, `<name>_std`, `<name>_quantile` and `<name>_interval` over valid images.

    Args:
        store_path: a store, finished or not: its path, a `Store`, or what `attlas.open` gives.
        names: statistics of `catalog.CATALOG`, with parameters (`rollout:start=1,fusion=max`) or without, or your own
            `Statistic`s; only these are summed up.
        by: a column of the store (`label`, any array over images alone), or `predicted`, the class of the largest
            logit. Scalars, and mean maps of rollout, readout and received attention, are then also summed up by group.
        cluster: a column of images that depend on each other (patients, videos, slides): intervals and q values are
            then over its clusters, all of the store's, and later analyses keep to it. `image`: every image by itself
            again.
        workers: threads; all processors by default. With an executor: units in flight.
        executor: of other processes or machines, which must reach the store by the same path.
        overwrite: compute again what an earlier analysis wrote; what the run wrote is never replaced.
        progress: True shows a bar; a function is called with a `Progress` at the start and after every unit.

    Raises:
        UsageError: a name is unknown, or the store's attention cannot give it.
        AttlasError: the store lacks what a statistic needs, cannot be written, or another analysis is writing it.
    """
    started = time.perf_counter()
    show = progress if callable(progress) else (lambda _now: None)
    asked = None if names is None else resolved(names)
    where, workers = arguments.path(store_path, "store_path"), arguments.whole_or_none(workers, "workers")
    by, cluster = arguments.text(by, "by"), arguments.text(cluster or "", "cluster") or None
    try:
        with writing(where) as store:
            work = planned(store, asked, by, overwrite, cluster)
            _work_through(work, executor, workers or cores(), show)
            if isinstance(progress, Display):
                progress.note("summing up")
            summed, without = _sum_up(work) if work.source.mask.any() else ((), ())
    except OSError as error:
        raise AttlasError(f"{where}: cannot be read or written ({error.strerror or error})") from None
    return AnalyzeResult(
        path=store.path,
        images=int(work.source.mask.sum()),
        made=tuple(sorted(work.gathered.made)),
        summed=summed,
        read=work.gathered.read,
        seconds=time.perf_counter() - started,
        finished=bool(work.source.done.all()),
        notes=(*_notes(work.source, by), *without, *_inference_notes(work.source, by, cluster)),
    )


def pooled(stores: Paths, names: Sequence[str | Statistic] | str | Statistic | None = None, *, by: str = "") -> Pooled:
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
    opened = [Store(path) for path in arguments.paths(stores, "stores")]
    if not opened:
        raise UsageError("there is no store to sum up")
    clusters = [cluster_of(store) for store in opened]
    sources = [Source.of(store, clusters[0]) for store in opened]
    first = sources[0].store
    for source in sources[1:]:
        if source.store.spec != first.spec:
            raise UsageError(f"{first.path} and {source.store.path} are of different graphs, and are not summed up")
    if len(set(clusters)) > 1:
        said = ", ".join(f"{store.path}: {column or ALONE}" for store, column in zip(opened, clusters, strict=True))
        raise UsageError(f"stores have intervals over different clusters ({said}); analyze them with one --cluster")
    known = held(first) if names is None else resolved(names)
    asked = [one for one in known if names is not None or all(one.sum_name in source.store for source in sources)]
    for source in sources:
        for one in asked:
            _refuse_behind(source, one, one.sum_name)
    sums: dict[str, Any] = {}
    for one in (one for one in asked if not one.scalar):
        for source in sources:
            part = stored_sum(source.store, one)
            sums[one.name] = sums[one.name] + part if one.name in sums else part
    grouped = groupable(asked) if by else []
    if by and names is None:
        grouped = [
            one for one in groupable(held(first)) if all(means_by(one, by) in source.store for source in sources)
        ]
    groups: dict[str, Any] = {}
    for one in grouped:
        for source in sources:
            _refuse_behind(source, one, means_by(one, by), by)
            if not one.scalar:
                groups[one.name] = merged(groups.get(one.name, {}), stored_groups(source.store, one, by))
    images = sum(int(source.mask.sum()) for source in sources)
    arrays = sums_up(sources, asked, sums, by, grouped, groups) if images else {}
    paths = np.concatenate([source.store.read("path").astype(object)[source.mask] for source in sources])
    return Pooled(images, arrays, _twice(paths))


def _refuse_behind(source: Source, one: Statistic, array: str, by: str = "") -> None:
    """Refuse to sum up what an analysis has not seen whole."""
    if array not in source.store or (summed_units(source.store, array, source.done) != source.done).any():
        option = f" --by {by}" if by else ""
        raise AttlasError(
            f"{source.store.path}: {one.name} is not summed up over all of its units; `attlas analyze "
            f"{source.store.path} {one.name}{option}` does it"
        )


# -- the pass over the attention --------------------------------------------------------------------------------------


def _work_through(work: Work, executor: Executor | None, workers: int, show: Callable[[Progress], None]) -> None:
    """The pass by an executor or by threads; what an interruption leaves is kept."""
    pool = executor or ThreadPoolExecutor(workers, thread_name_prefix="analyze")
    try:
        _pass(work, pool, workers, show, threads=executor is None)
    except KeyboardInterrupt:
        _keep(work)
        raise
    finally:
        if executor is None:
            pool.shutdown(wait=True, cancel_futures=True)


def _pass(work: Work, pool: Executor, ahead: int, show: Callable[[Progress], None], *, threads: bool) -> None:
    store, plan, units = work.store, work.store.plan, work.units
    started, done, total = time.perf_counter(), 0, sum(len(plan.unit_range(k)) for k in units)
    show(Progress(0, total, 0.0))

    def submit(k: int) -> Future[Partial]:
        statistics, grouped = work.job(k)
        if not threads:
            where = str(store.path.resolve() if isinstance(store.path, Path) else store.path)
            return pool.submit(packed_statistics, where, k, packed(statistics, grouped), work.by, work.anew)
        images = plan.unit_range(k)
        valid = work.source.mask[images.start : images.stop]
        return pool.submit(unit_statistics, store, k, statistics, work.by, grouped, anew=work.anew, valid=valid)

    # Parts merge in the units' order, so that workers do not change a bit of the result.
    for part in in_order(submit, units, ahead):
        work.gathered = work.gathered + part
        done += sum(len(plan.unit_range(k)) for k in part.units)
        show(Progress(done, total, time.perf_counter() - started))


def in_order[T](submit: Callable[[int], Future[T]], units: Iterable[int], ahead: int) -> Iterator[T]:
    """Results in order, with no more than a few units ahead of the reader."""
    running: deque[Future[T]] = deque()
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


def _keep(work: Work) -> None:
    """Write the sums gathered before an interruption, so that the next analysis goes on from there."""
    source, seen = work.source, np.zeros_like(work.source.done)
    seen[list(work.gathered.units)] = True
    found: dict[str, Summed] = {}
    for one in (one for one in work.statistics if one.name in work.gathered.sums and not one.scalar):
        units = source.done & (seen | ~work.lacking[one.name])
        mask = source.mask & np.repeat(units, work.store.plan.unit)[: source.mask.size]
        more = (summed_units(work.store, one.sum_name, source.done) & ~units).any()  # a sum of more stays
        if mask.any() and not more:
            part = Source(work.store, units, mask)
            found |= sums_up([part], [one], {one.name: work.gathered.sums[one.name]})
    _write(work.store, found)


# -- the dataset ------------------------------------------------------------------------------------------------------


def _sum_up(work: Work) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Write the dataset-level arrays of what the store holds, all of it or what was asked for.

    Returns:
        Their names, and notes on statistics without a value.
    """
    maps = {one.name for one in work.statistics if not one.scalar}
    sums = {name: value for name, value in work.gathered.sums.items() if name in maps}
    found = sums_up([work.source], work.statistics, sums, work.by, work.grouped, work.gathered.groups)
    for column, statistics, source in grouped_before(work):
        again = sums_up([source], [], {}, column, statistics)
        found |= {name: summed for name, summed in again.items() if not name.startswith(f"{column}_group")}
    _write(work.store, found)
    empty = [one for one in work.statistics if one.sum_name in found and _nowhere(found[one.sum_name].values)]
    why = {True: "no image has a value", False: "no entry has a value in every image"}
    without = tuple(f"{one.name}: its mean is NaN: {why[one.scalar]}" for one in empty)
    return tuple(sorted(found.keys() - {"quantile", "bound"})), without


def _nowhere(mean: Any) -> bool:
    return np.size(mean) > 0 and bool(np.isnan(mean).all())


def _write(store: Store, found: dict[str, Summed]) -> None:
    if found:
        specs = [spec_of(name, summed) for name, summed in found.items()]
        store.add(specs, {name: summed.values for name, summed in found.items()})


def _twice(paths: Any) -> tuple[str, ...]:
    twice = len(paths) - len(set(paths.tolist()))
    return (f"{counted(twice, 'path is', 'paths are')} in more than one store, and each counts again",) if twice else ()


def _notes(source: Source, by: str) -> tuple[str, ...]:
    plan, found = source.store.plan, []
    done, mask = source.done, source.mask
    if not done.all():
        found.append(
            f"the store is unfinished: {part_of(int(done.sum()), plan.units, 'unit')} done, and these statistics are "
            f"of their {counted(int(mask.sum()), 'image')}; run `attlas run` again for the rest"
        )
    tried = int(np.repeat(done, plan.unit)[: plan.images].sum())
    unreadable = tried - int(mask.sum())
    if unreadable:
        found.append(f"{part_of(unreadable, tried, 'image')} left out, which could not be read")
    if by == PREDICTED and by in source.store:
        found.append(f"{by} is the class of the largest logit, not the store's own column of that name")
    if not mask.any():
        found.append("no image is done and readable: there is nothing to sum up")
    elif by and f"{by}_group_images" in source.store:
        said: Any = source.store.array(f"{by}_group_images").attrs
        left_out = int(said["left_out"])
        count = source.store.array(f"{by}_group_images").shape[0]
        found.append(f"{counted(count, 'group')} by {by}; `attlas report` shows them")
        if left_out:
            found.append(f"{part_of(left_out, int(mask.sum()), 'image')} in no group, without {by}")
    return tuple(found)


def _inference_notes(source: Source, by: str, cluster: str | None) -> Iterator[str]:
    """What there is to know of intervals and tests."""
    store, column = source.store, source.cluster
    codes = cluster_codes([store], [source.mask], column)
    if codes is not None:
        n = effective_number(codes)
        known = read_column(store, column)[1][source.mask]
        yield (
            f"intervals and q values are over {counted(len(np.unique(codes)), 'cluster')} by {column}, effective "
            f"n = {n:.4g}"
            + ("" if known.all() else f"; {counted(int((~known).sum()), 'image')} without {column} taken alone")
            + ("" if cluster else f" (as before; --cluster {ALONE} takes every image by itself)")
        )
    yield from few_notes(source)
    tests = [name for name in store.names if by and name.endswith(f"_q_by_{by}")]
    if tests:
        without = int(dict[str, Any](store.array(tests[0]).attrs).get("groups_without_test", 0))
        count = store.array(tests[0]).shape[0]
        if without:
            two = f"two {_units(source)} in a group and outside it"
            yield f"{part_of(without, count, 'group')} without a test by {by}: it takes {two}"


def few_notes(source: Source) -> Iterator[str]:
    """A line where intervals are of few images, or of few clusters."""
    codes = cluster_codes([source.store], [source.mask], source.cluster)
    n = float(source.mask.sum()) if codes is None else effective_number(codes)
    if 0 < n < FEW:
        yield f"effective n = {n:.4g} {_units(source)}" + (
            ": there are no intervals" if n <= 1 else f": with fewer than {FEW}, intervals are wide and rough"
        )


def _units(source: Source) -> str:
    """What intervals are over, in words."""
    return f"clusters of {source.cluster}" if source.cluster else "images"
