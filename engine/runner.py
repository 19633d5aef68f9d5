"""A run: plan or resume, then unit after unit on every core, and an account of it."""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np

from ..exporter.errors import AttlasError, Interrupted, UsageError
from ..exporter.spec import GraphSpec
from .job import Estimate, Job, Request, make_job, open_store, versions
from .labels import accuracy
from .layout import Reducer, Statistics, to_append
from .session import Session, cores, resolve_provider
from .sources import Source
from .store import Store
from .unit import Tools, UnitResult, run_unit

__all__ = ["Estimate", "Progress", "RunResult", "run"]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is: handed to `progress` at the start and after every unit.

    Attributes:
        done: images done, those of earlier runs included; `total`: of the plan.
        rate: images per second of this run; `bytes_rate`: raw bytes per second.
        left: seconds left at that rate.
        limit: the stage that takes most of the workers' time.
        estimate: the whole.
    """

    done: int
    total: int
    rate: float
    bytes_rate: float
    left: float | None
    limit: str
    estimate: Estimate


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run did.

    Attributes:
        path: of the store.
        images: in the plan; `done`: by this run; `errors`: that could not be read, in the whole store.
        seconds: of this run; `stages`: the workers' seconds by stage.
        provider: onnxruntime's name of what ran the graph.
        labelled: images whose label names a class; `top1`, `top5`: how many of them are right.
        finished: whether every unit is done (with `shard` this run's part may be all it was asked for).
        notes: what the user should know: a resume under other versions, statistics left out.
    """

    path: Path
    images: int
    done: int
    errors: int
    seconds: float
    stages: dict[str, float]
    provider: str
    labelled: int
    top1: int
    top5: int
    finished: bool
    estimate: Estimate
    notes: tuple[str, ...] = ()


def run(
    graph: str | os.PathLike[str],
    images: str | os.PathLike[str] | Source,
    output: str | os.PathLike[str],
    *,
    keep: Sequence[str] = ("attention",),
    layers: Sequence[int] | None = None,
    store_dtype: str = "float16",
    batch_size: int | None = None,
    provider: str = "auto",
    target: str = "predicted",
    workers: int | None = None,
    shard: tuple[int, int] = (1, 1),
    limit: int | None = None,
    seed: int = 0,
    dry_run: bool = False,
    overwrite: bool = False,
    reducer: Callable[[GraphSpec], Reducer] | None = None,
    statistics: Statistics = "auto",
    progress: Callable[[Progress], None] | None = None,
    stop: threading.Event | None = None,
) -> RunResult:
    """Stream images through a graph into a store, or go on with one that was begun.

    Args:
        graph: an ONNX file from `attlas export`.
        images: a folder, or any `Source`.
        output: the store. One of the same plan is resumed; a finished one is left as it is.
        keep: which large arrays: attention, attention_mean, tokens, or none; of a graph with gradients also gradient,
            gradient_mean and gradient_positive, which are float32 whatever the attention is.
        layers: the blocks whose attention is kept, by index from 0; all by default.
        store_dtype: of the attention: float16, float32, or uint8 codes (for averages only).
        batch_size: images of a batch, which is one chunk of the store; chosen from the model by default.
        provider: `auto`, `cpu`, `cuda` or any name onnxruntime reports.
        target: the class whose logit gradients are of: `predicted`, `label` (the image's own) or a class's number.
        workers: units worked on at once; by default a quarter more than the cores.
        shard: (k, n): do every n-th unit from the k-th on, counted from 1, so that n processes share a store.
        limit: take this many images, evenly spread over the sorted list.
        seed: of the sample of pictures.
        dry_run: plan only; nothing is written.
        overwrite: put aside and delete a store that is at `output`.
        reducer: makes the statistics of a batch from the graph's spec; `attlas.run` passes the analysis room's.
        statistics: where they are computed: `graph`, `host`, or `auto`: in the graph on an accelerator, so that
            attention leaves it only to be stored.
        progress: called in this thread with a `Progress`.
        stop: set it to end the run after the units in flight.

    Raises:
        UsageError: choices that do not fit the graph.
        AttlasError: graph, images or store cannot be read or written, or the store is another run's.
        Interrupted: `stop` was set; the same call resumes.
    """
    if not 1 <= shard[0] <= shard[1]:
        raise UsageError(f"--shard {shard[0]}/{shard[1]}: the first number counts from 1 to the second")
    output = Path(output)
    request = Request(
        graph=Path(graph), output=output, keep=keep, layers=layers, store_dtype=store_dtype, batch_size=batch_size,
        provider=provider, target=target, limit=limit, seed=seed, reducer=reducer, statistics=statistics,
        overwrite=overwrite, dry_run=dry_run,
    )  # fmt: skip
    job = make_job(request, images)
    if dry_run:
        return _result(job, output, None, UnitResult(), 0.0, "")
    store = open_store(job)
    mine = _left(job, store, shard)
    if not mine:
        return _result(job, output, store, UnitResult(), 0.0, _last_provider(store))
    with _locked(store, shard):
        mine = _left(job, store, shard)
        if shard == (1, 1):
            store.sweep()
        started = time.perf_counter()
        count = max(1, min(workers or _workers(), len(mine)))
        session = _session(job, provider, statistics, _threads(count))
        _compare_record(job, store, session.provider)
        total = UnitResult()
        before = int(store.done_images.sum())
        show = progress or (lambda _progress: None)
        show(_progress(job, before, total, 0.0))
        try:
            for result in _units(job, store, session, mine, count, stop or threading.Event()):
                total += result
                show(_progress(job, before, total, time.perf_counter() - started))
        finally:
            _write_record(store, session, count, total, time.perf_counter() - started)
    if stop is not None and stop.is_set() and total.images < sum(len(job.plan.unit_range(k)) for k in mine):
        done = int(store.done_images.sum())
        raise Interrupted(f"{output}: stopped with {done} of {job.plan.images} images done; the same command goes on")
    return _result(job, output, store, total, time.perf_counter() - started, session.provider)


def _units(job: Job, store: Store, session: Session, mine: Sequence[int], count: int, stop: threading.Event) -> Any:
    """Do the units, `count` at once, and yield each result as it comes; on an error the units in flight still end."""
    idle: SimpleQueue[Tools] = SimpleQueue()
    for _ in range(count):
        idle.put(Tools(session, store, job.source, job.items, job.keep, job.kept, job.reducer, job.targets))

    def work(k: int) -> UnitResult:
        tools = idle.get()
        try:
            return run_unit(job.plan, k, tools)
        finally:
            idle.put(tools)

    waiting = iter(mine)
    flying: set[Future[UnitResult]] = set()
    with ThreadPoolExecutor(count, thread_name_prefix="attlas") as pool:
        try:
            while True:
                while len(flying) < count and not stop.is_set() and (k := next(waiting, None)) is not None:
                    flying.add(pool.submit(work, k))
                if not flying:
                    return
                ended, flying = wait(flying, return_when=FIRST_COMPLETED)
                for future in ended:
                    yield future.result()
        except KeyboardInterrupt:
            stop.set()
            wait(flying)
            raise
        finally:
            wait(flying)


def _session(job: Job, provider: str, statistics: Statistics, threads: int) -> Session:
    """The graph, with the statistics behind it where they belong there."""
    accelerator = resolve_provider(provider)[0] != "CPUExecutionProvider"
    appended = to_append(job.spec, job.keep, job.reducer, statistics, accelerator=accelerator)
    if appended is None and accelerator and statistics == "auto" and job.reducer is not None:
        job.notes.append("statistics on the host, which is slower (`pip install 'attlas[gpu]'` puts them in the graph)")
    wanted = list(job.keep.wanted(job.spec, appended=appended is not None).values())
    session = Session(job.request.graph, provider=provider, wanted=wanted, appended=appended, threads=threads)
    if session.on_cpu and appended is not None and statistics == "auto":
        # A card was there and does not work: on a CPU the host's statistics are ten times as fast.
        return _session(job, "cpu", statistics, threads)
    return session


def _left(job: Job, store: Store, shard: tuple[int, int]) -> list[int]:
    """The units of this shard that are not done."""
    done = store.done
    return [k for k in range(shard[0] - 1, job.plan.units, shard[1]) if not done[k]]


def _workers() -> int:
    """A quarter more than the cores: while one worker waits for the disk, another has its core."""
    return -(-cores() * 5 // 4)


def _threads(workers: int) -> int:
    """Onnxruntime's threads within one operation, so that all workers together use the cores once."""
    return max(1, cores() // workers)


def _progress(job: Job, before: int, total: UnitResult, seconds: float) -> Progress:
    done = before + total.images
    rate = total.images / seconds if seconds else 0.0
    left = (job.plan.images - done) / rate if rate else None
    return Progress(
        done=done, total=job.plan.images, rate=rate, bytes_rate=rate * job.estimate.bytes_raw / job.plan.images,
        left=left, limit=max(total.seconds, key=lambda s: total.seconds[s], default=""), estimate=job.estimate,
    )  # fmt: skip


def _result(job: Job, output: Path, store: Store | None, total: UnitResult, seconds: float, provider: str) -> RunResult:
    labelled = top1 = top5 = errors = 0
    finished = False
    if store is not None:
        finished = bool(store.done.all())
        errors = int((store.done_images & ~store.read("valid")).sum())
        if "logits" in store:
            labelled, top1, top5 = _score(store)
    return RunResult(
        path=output, images=job.plan.images, done=total.images, errors=errors, seconds=seconds,
        stages=dict(total.seconds), provider=provider, labelled=labelled, top1=top1, top5=top5, finished=finished,
        estimate=job.estimate, notes=tuple(job.notes),
    )  # fmt: skip


def _score(store: Store) -> tuple[int, int, int]:
    """(images with a class, top-1 right, top-5 right) over what is done, unit by unit."""
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


@contextmanager
def _locked(store: Store, shard: tuple[int, int]) -> Any:
    """Hold the slice of the store that this run writes; the lock of a dead process is free."""
    path = store.path / "run" / f".lock-{shard[0]}-of-{shard[1]}"
    try:
        handle = path.open("w")
    except OSError as error:
        raise AttlasError(f"{store.path}: cannot be written ({error.strerror})") from None
    with handle:
        try:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:
            pass  # no such locks on Windows
        except OSError:
            raise AttlasError(
                f"{store.path}: another run is writing shard {shard[0]}/{shard[1]} of it; wait, or take another shard"
            ) from None
        yield
        with suppress(OSError):
            path.unlink()


def _compare_record(job: Job, store: Store, provider: str) -> None:
    """Note when a store is resumed under another provider, processor or version: its numbers may differ there."""
    last = (store.record.get("runs") or [{}])[-1]
    now = {"provider": provider, "processor": platform.machine(), **versions()}
    then = {"provider": last.get("provider"), "processor": last.get("processor"), **last.get("versions", {})}
    different = [f"{n} {then[n]} before, {now[n]} now" for n in now if then.get(n) not in (None, now[n])]
    if different:
        job.notes.append(f"resumed under other conditions ({'; '.join(different)}): bits may differ from here on")


def _write_record(store: Store, session: Session, workers: int, total: UnitResult, seconds: float) -> None:
    entry = {
        "images": total.images,
        "errors": total.errors,
        "seconds": round(seconds, 3),
        "stages": {name: round(value, 3) for name, value in total.seconds.items()},
        "workers": workers,
        "provider": session.provider,
        "statistics": "graph" if session.appended else "host",
        "processor": platform.machine(),
        "versions": versions(),
    }
    with suppress(OSError):  # on a full disk the account is the least that is lost
        store.write_record({"runs": [*store.record.get("runs", []), entry]})


def _last_provider(store: Store) -> str:
    runs = store.record.get("runs") or [{}]
    return str(runs[-1].get("provider", ""))
