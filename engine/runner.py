"""A run: plan or resume, do all units on all cores, and record the result."""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np

from .. import arguments
from ..errors import AttlasError, Interrupted, UsageError, no_memory
from ..exporter.spec import GraphSpec
from ..progress import Display, Show, shows
from ..words import counted
from .amounts import estimate_lines
from .contents import Reducer, Statistics
from .executors.base import Executor, Local, Task, WorkerInfo
from .executors.threads import Threads
from .job import Estimate, Job, Request, make_job, open_store
from .labels import accuracy
from .outcome import RunResult
from .runtime.decoders import HOST, Decoder
from .runtime.providers import Precision
from .sources import Source
from .sources.files import expanded, is_url
from .store.coordinates import Reserved, nothing_reserved
from .store.locks import locked
from .store.schema import CODEC
from .store.storage import Url, locate
from .store.store import Store
from .unit import UnitResult
from .versions import versions

__all__ = ["Estimate", "Progress", "RunResult", "run"]

# What to do where a store without enough memory has begun: its batches cannot become smaller.
AGAIN = (
    "what is done stays, and its batches have the size that was planned: free memory or use fewer --workers, and run "
    "the same command again without --overwrite"
)


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of a run: passed to `progress` at the start and after every unit.

    Attributes:
        done: images marked done in the store, by any run; `total`: images in the plan.
        rate: images per second of this run; `bytes_rate`: raw bytes per second.
        left: seconds left of this run at that rate.
        limit: the stage that takes most of the workers' time.
        estimate: the estimate of the whole run.
        workers: the workers as text; "" if this process does the work.
    """

    done: int
    total: int
    rate: float
    bytes_rate: float
    left: float | None
    limit: str
    estimate: Estimate
    workers: str = ""

    @property
    def note(self) -> str:
        """The stage that takes most of the time, as text."""
        return f"mostly {self.limit}" if self.rate else ""


@shows("images")
def run(
    graph: str | os.PathLike[str],
    images: str | os.PathLike[str] | Source,
    output: str | os.PathLike[str],
    *,
    keep: Sequence[str] | str = ("attention",),
    layers: Sequence[int] | None = None,
    store_dtype: str = "float16",
    codec: str = CODEC,
    batch_size: int | None = None,
    provider: str = "auto",
    precision: Precision = "float32",
    decoder: Decoder = "host",
    target: str | int = "predicted",
    workers: int | None = None,
    scheduler: str | Executor | None = None,
    threads: int | None = None,
    shard: tuple[int, int] = (1, 1),
    limit: int | None = None,
    seed: int = 0,
    dry_run: bool = False,
    overwrite: bool = False,
    reducer: Callable[[GraphSpec], Reducer] | None = None,
    reserved: Reserved = nothing_reserved,
    statistics: Statistics = "auto",
    progress: Show[Progress] = None,
    stop: threading.Event | None = None,
) -> RunResult:
    """Run images through a graph into a store, or resume an unfinished store.

    Args:
        graph: an ONNX file from `attlas export`.
        images: a folder, a table, tar or Parquet files (path or URL, see `open_source`), or any `Source`.
        output: the store. An unfinished store with the same plan is resumed; a finished one is not changed.
        keep: the large arrays: attention, attention_mean, gradient, gradient_mean, gradient_positive, tokens, or none.
        layers: the blocks whose attention is kept, by index from 0; all by default.
        store_dtype: dtype of the stored attention: float16, float32, or uint8 codes (for averages only).
        codec: compression of the large arrays: lz4, zstd or none.
        batch_size: images per batch; one batch is one chunk of the store. Chosen from the model by default.
        provider: `auto`, `cpu`, `cuda`, `openvino` or any name onnxruntime reports.
        precision: `bfloat16` computes in half as many bits, only with `openvino`, on processors that can.
        decoder: `host`, or `cuda` for JPEGs decoded on the card that infers; their pixels differ by a little.
        target: the class whose logit is differentiated: `predicted`, `label` (the image's own) or a class index.
        workers: number of local processes, each with its own cores (or card); by default this process does the work.
        scheduler: address of a Dask scheduler, `tcp://HOST:8786`, whose workers do the work, or any `Executor`.
        threads: units processed at once in this process, or in each of `workers`; by default one per core, and on an
            accelerator three more.
        shard: (k, n): do every n-th unit starting with the k-th, counted from 1, so that n processes share a store.
        limit: take this many images, evenly spread over the sorted list.
        seed: seed for choosing the sample pictures.
        dry_run: plan only; write nothing.
        overwrite: replace an existing store at `output`.
        reducer: makes a `Reducer` for the graph's spec; `attlas.run` passes the analysis room's.
        reserved: whether a name is reserved, given all columns, so that no column of the images may have it.
        statistics: where statistics are computed: `card` (by kernels on a CUDA card), `graph`, `host`, or `auto`: the
            card, else the graph on an accelerator, else the host.
        progress: True shows a bar; a function is called in this thread, also while it waits for workers.
        stop: set it to end the run after the units in flight.

    Raises:
        AttlasError: choices do not fit, files cannot be read or written, the store is of another run, or `stop` is set.
    """
    path, store = Path(expanded(graph, "graph", "the path of an ONNX file")), locate(output)
    keep, layers = arguments.names(keep, "keep"), None if layers is None else arguments.numbers(layers, "layers")
    limit, batch_size = arguments.whole_or_none(limit, "limit"), arguments.whole_or_none(batch_size, "batch_size")
    workers, threads = arguments.whole_or_none(workers, "workers"), arguments.whole_or_none(threads, "threads")
    provider, codec = arguments.text(provider, "provider"), arguments.text(codec, "codec")
    if statistics not in (known := get_args(Statistics.__value__)):
        raise UsageError(f"statistics: pass one of {', '.join(known)}, not {arguments.brief(statistics)}")
    seed, shard = arguments.whole(seed, "seed"), arguments.pair(shard, "shard", "two whole numbers, such as (1, 4)")
    with _executor(workers, scheduler, threads) as team:
        how = (team.provider(provider), precision, decoder)
        own = (keep, layers, store_dtype, codec, batch_size, *how, str(target), limit, seed)
        request = Request(path, store, *own, reducer, statistics, overwrite, dry_run, reserved)
        try:
            return _start(request, images, shard, team, _shown(progress), stop or threading.Event())
        except MemoryError as error:
            new = overwrite or not store.exists()
            advice = "choose a smaller --batch-size" if new else AGAIN
            raise AttlasError(f"{store}: {no_memory(error)}; {advice}") from None


def _start(
    request: Request,
    images: str | os.PathLike[str] | Source,
    shard: tuple[int, int],
    team: Executor,
    show: Callable[[Progress], None],
    stop: threading.Event,
) -> RunResult:
    """Plan or resume, and do the rest of a shard."""
    if not 1 <= shard[0] <= shard[1]:
        raise UsageError(f"--shard {shard[0]}/{shard[1]}: the first number counts from 1 to the second")
    if not isinstance(team, Local) and isinstance(images, str | os.PathLike) and not is_url(os.fspath(images)):
        images = os.path.abspath(expanded(images))  # noqa: PTH100 - workers may start in other folders
    job = make_job(request, images, team.probe, team.threads * shard[1])
    if request.dry_run:
        return _result(job, request.output, None)
    job, store = _laid_out(job, team)
    if not _left(job, store, shard):
        return _result(job, request.output, store, provider=_last_provider(store))
    with locked(store.path, shard):
        try:
            return _run(job, store, shard, team, show, stop)
        except MemoryError as error:
            begun = shard != (1, 1) or store.done.any()  # another shard may have begun what this one has not
            advice = AGAIN if begun else "nothing is in it yet: choose a smaller --batch-size, with --overwrite"
            raise AttlasError(f"{store.path}: {no_memory(error)}; {advice}") from None


def _run(
    job: Job,
    store: Store,
    shard: tuple[int, int],
    team: Executor,
    show: Callable[[Progress], None],
    stop: threading.Event,
) -> RunResult:
    """Do the rest of a shard whose lock is held."""
    mine = _left(job, store, shard)
    if shard == (1, 1):
        store.sweep()
    count = _Count(job, store, mine)
    show(count.progress(UnitResult(), team))
    info = team.open(Task.of(job, store), len(mine), job.unit(mine[0]), stop)
    job.notes.extend(info.notes)
    _compare_record(job, store, info.provider)
    total = UnitResult()
    count.start()
    show(count.progress(total, team))
    try:
        for result in team.units(mine, job.unit, stop):
            total += result
            show(count.progress(total, team))
        if shard == (1, 1) and team.kind != Threads.kind:
            store.sweep()  # files of workers that were killed during the run
    finally:
        _write_record(store, info, team, total, count.seconds)
    job.notes.extend(f"{number:,} {remark}" for remark, number in total.remarks.items())
    if stop.is_set() and total.images < count.mine:
        done = int(store.done_images.sum())
        raise Interrupted(
            f"{store.path}: stopped with {done} of {counted(job.plan.images, 'image')} done; the same command goes on"
        )
    alone = total.alone(team.threads, team.workers)
    return _result(job, job.request.output, store, total, count.seconds, alone, info.provider)


def _shown(progress: Show[Progress]) -> Callable[[Progress], None]:
    """The function to call with every `Progress`; a display also shows the estimate and the workers once."""
    if not isinstance(progress, Display):
        return progress if callable(progress) else (lambda _now: None)
    display, shown = progress, set[str]()

    def show(now: Progress) -> None:
        for line in (*estimate_lines(now.estimate), now.workers):
            if line and line not in shown:
                shown.add(line)
                display.note(line)
        display(now)

    return show


def _executor(workers: int | None, scheduler: str | Executor | None, threads: int | None) -> Executor:
    """The executor for these arguments; its module is imported only here."""
    if workers is not None and workers < 1:
        raise UsageError(f"--workers {workers}: at least one process")
    if scheduler is not None and (workers is not None or threads is not None):
        raise UsageError("--scheduler: its own workers do the work; leave out --workers and threads")
    if scheduler is not None and not isinstance(scheduler, str):
        if not hasattr(scheduler, "units"):
            wanted = "its address, such as tcp://HOST:8786, or an Executor"
            raise UsageError(f"scheduler: pass {wanted}, not {arguments.brief(scheduler)}")
        return scheduler
    if scheduler is not None:
        from .executors.dask import Dask

        return Dask(scheduler)
    if workers is not None:
        from .executors.processes import Processes

        return Processes(workers, threads)
    return Threads(threads)


def _laid_out(job: Job, team: Executor) -> tuple[Job, Store]:
    """The job and its store. If another process creates the store at the same time, its plan is used."""
    try:
        store = open_store(job)
        if store.plan == job.plan:
            return job, store
    except AttlasError:
        if job.request.overwrite or not job.request.output.exists():
            raise
    job = make_job(job.request, job.source, team.probe)  # refuses the plan of a different run
    return job, open_store(job)


def _left(job: Job, store: Store, shard: tuple[int, int]) -> list[int]:
    """Numbers of the units of this shard that are not done."""
    done = store.done
    return [k for k in range(shard[0] - 1, job.plan.units, shard[1]) if not done[k]]


class _Count:
    """Counts progress. Images are done by the store's marks, so that all executors and `inspect` agree."""

    def __init__(self, job: Job, store: Store, mine: Sequence[int]) -> None:
        self._job, self._store = job, store
        self.mine = sum(len(job.plan.unit_range(k)) for k in mine)
        self._done, self._again = 0, 0.0
        self.start()

    def start(self) -> None:
        """Start counting seconds."""
        self._started = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._started

    def progress(self, total: UnitResult, team: Executor) -> Progress:
        """The progress after `total`, the sum of this run's units."""
        job, rate = self._job, total.images / self.seconds if total.images else 0.0
        return Progress(
            done=self._marked(total.images >= self.mine),
            total=job.plan.images,
            rate=rate,
            bytes_rate=rate * job.estimate.bytes_raw / job.plan.images,
            left=(self.mine - total.images) / rate if rate else None,
            limit=next(iter(total.alone(team.threads, team.workers)), ""),
            estimate=job.estimate,
            workers=team.description,
        )

    def _marked(self, now: bool) -> int:
        """Number of images done; listed at intervals, because listing the marks of a large store takes time."""
        began = time.perf_counter()
        if now or began >= self._again:
            self._done = int(self._store.done_images.sum())
            ended = time.perf_counter()
            self._again = ended + 50 * (ended - began)
        return self._done


def _result(
    job: Job,
    output: Path | Url,
    store: Store | None,
    total: UnitResult | None = None,
    seconds: float = 0.0,
    alone: Mapping[str, float] = {},
    provider: str = "",
) -> RunResult:
    total = total or UnitResult()
    labelled = top1 = top5 = errors = 0
    finished = False
    if store is not None:
        finished = bool(store.done.all())
        errors = int((store.done_images & ~store.read("valid")).sum())
        if "logits" in store:
            labelled, top1, top5 = _score(store)
    return RunResult(
        path=output,
        images=job.plan.images,
        done=total.images,
        errors=errors,
        seconds=seconds,
        stages=dict(total.seconds),
        alone=dict(alone),
        provider=provider,
        labelled=labelled,
        top1=top1,
        top5=top5,
        finished=finished,
        estimate=job.estimate,
        notes=tuple(job.notes),
    )


def _score(store: Store) -> tuple[int, int, int]:
    """(images with a class, top-1 correct, top-5 correct) over all done units."""
    target = store.read("label_class")
    usable = store.done_images & store.read("valid") & (target >= 0)
    right = {1: 0, 5: 0}
    for k in np.flatnonzero(store.done) if usable.any() else ():
        images = store.plan.unit_range(int(k))
        rows = usable[images.start : images.stop]
        if rows.any():
            logits = store.read("logits", slice(images.start, images.stop))[rows]
            for n, hits in accuracy(logits, target[images.start : images.stop][rows]).items():
                right[n] += hits
    return int(usable.sum()), right[1], right[5]


def _compare_record(job: Job, store: Store, provider: str) -> None:
    """Note that a store is resumed with another provider, processor or version: the numbers may differ slightly."""
    last = (store.record.get("runs") or [{}])[-1]
    now = {"provider": provider, "processor": platform.machine(), **versions(provider, job.request.decoder)}
    then = {"provider": last.get("provider"), "processor": last.get("processor"), **last.get("versions", {})}
    different = [f"{n} {then[n]} before, {now[n]} now" for n in now if then.get(n) not in (None, now[n])]
    if different:
        job.notes.append(f"resumed under other conditions ({'; '.join(different)}): bits may differ from here on")


def _write_record(store: Store, info: WorkerInfo, team: Executor, total: UnitResult, seconds: float) -> None:
    decoder = store.plan.identity.get("decoder", HOST)
    entry = {
        "images": total.images,
        "errors": total.errors,
        "remarks": dict(total.remarks),
        "seconds": round(seconds, 3),
        "stages": {name: round(value, 3) for name, value in total.seconds.items()},
        "alone": total.alone(team.threads, team.workers),
        "batches": total.batches,
        "seconds_per_batch": {
            name: {"mean": round(value / max(total.batches, 1), 6), "max": round(total.slowest[name], 6)}
            for name, value in total.seconds.items()
        },
        "executor": team.kind,
        "workers": team.workers,
        "units_at_once": team.threads,
        "provider": info.provider,
        "decoder": decoder,
        "statistics": info.statistics,
        "processor": platform.machine(),
        "versions": versions(info.provider, decoder),
    }
    with suppress(OSError):  # a full disk: the record matters least
        store.record_run(entry)


def _last_provider(store: Store) -> str:
    runs = store.record.get("runs") or [{}]
    return str(runs[-1].get("provider", ""))
