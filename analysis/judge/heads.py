"""What a model loses with each of its heads: accuracy, logit and distribution, image by image."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from ... import arguments
from ...arguments import Where
from ...engine.again import check_graph, image_items, read_pictures
from ...engine.amounts import duration
from ...engine.runtime.outputs import Wanted
from ...engine.runtime.providers import accelerates, cores
from ...engine.runtime.session import Session
from ...engine.sources import Source
from ...engine.store.storage import Url
from ...engine.store.store import ArraySpec, Store, Template
from ...engine.unit import Unit
from ...errors import AttlasError, UsageError
from ...exporter.spec import GraphSpec
from ...progress import Show, shows
from ...words import counted
from ..statistics.analysis import Progress, few_notes, in_order
from ..statistics.clusters import Codes, cluster_codes, cluster_of
from ..statistics.clusters import said as said_of
from ..statistics.inference import EQUAL, METHOD, interval
from ..statistics.moments import Moments
from ..statistics.summary import Source as Units
from ..statistics.summary import Summed, spec_of, texts
from ..statistics.writing import writing
from .lines import rows_of_heads
from .planning import File, absolute, lacking_units
from .work import once, opened

__all__ = ["LOSSES", "SILENCES", "HeadsResult", "judge_heads"]

type Floats = npt.NDArray[np.float64]

SILENCES = ("zero", "mean")  # what stands in place of a head: nothing, or what it writes on average
# What is lost of the class that the whole model predicts; how far the distribution moves; of those labelled, the hits.
LOSSES = ("logit", "kl", "accuracy")
RANGE = np.array([-np.inf, 0, -1]), np.array([np.inf, np.inf, 1])  # a logit may rise, a divergence is never below 0
RESAMPLES, STEP = 1000, 100


@dataclass(frozen=True, slots=True, repr=False)
class HeadsResult:
    """What was found, as the store holds it.

    Attributes:
        path: of the store.
        images: valid images of done units.
        loss: (layer, head, figure), means over images of `LOSSES`; accuracy is NaN where no image has a class.
        bounds: (bound, layer, head, figure), 95 %.
        rank: Spearman's correlation over heads of each loss with first-order importance, (figure); None where the store
            has no gradients to compute that from.
        rank_bounds: (bound, figure), 95 %, bootstrap over images.
        forwards: pictures that the graph saw; `seconds` of the whole call.
        notes: what the user should know.
    """

    path: Path | Url
    images: int
    loss: Floats
    bounds: Floats
    rank: Floats | None
    rank_bounds: Floats | None
    forwards: int
    seconds: float
    notes: tuple[str, ...] = ()

    @property
    def said(self) -> str:
        """What was done, in one line."""
        return f"{counted(self.images, 'image')}, {counted(self.forwards, 'picture')}, {duration(self.seconds)}"

    def lines(self) -> Iterator[str]:
        """A line for each head, and how well first-order importance has their order."""
        at = np.ndindex(self.loss.shape[:2])
        heads = [(f"{layer}, {head}", self.loss[layer, head], self.bounds[:, layer, head]) for layer, head in at]
        yield from rows_of_heads(LOSSES, heads)
        if self.rank is not None and self.rank_bounds is not None:
            yield "rank correlation over heads with first-order importance"
            yield list(rows_of_heads(LOSSES, [("", self.rank, self.rank_bounds)]))[1]

    def __repr__(self) -> str:
        return "\n".join([f"{self.path}: {self.said}", *self.lines(), *self.notes])


@dataclass(frozen=True, slots=True)
class _Task:
    store: str
    graph: str
    silence: str
    provider: str
    threads: int | None
    call: str

    @property
    def array(self) -> str:
        return f"judged_heads.{self.silence}"


@shows("images", "judge --heads")
def judge_heads(
    store: Where,
    graph: File,
    images: File | Source,
    *,
    silence: str = "zero",
    provider: str = "auto",
    workers: int | None = None,
    executor: Executor | None = None,
    overwrite: bool = False,
    progress: Show[Progress] = None,
) -> HeadsResult:
    """Silence every head, one after another, and write into the store what the model loses on each image.

    Beside it the rank correlation over heads with `head_importance` (Michel et al. 2019), which estimates this loss
    from one gradient, where the store has that or can compute it.

    Args:
        store: of a run, finished or not.
        graph: of the same weights, from `attlas export --ablate`.
        images: where the run's images are.
        silence: what stands in place of a head's output: `zero`, or its `mean` over tokens and images of this store.
        provider: as for `judge`.
        workers: as for `judge`.
        executor: as for `judge`.
        overwrite: judge again what was judged.
        progress: as for `judge`.

    Raises:
        UsageError: `silence` is unknown, or the graph takes no heads to silence, or has no classes.
        AttlasError: the graph is not of the store's model, images are others, the store cannot be written, or another
            analysis is writing it.
    """
    started = time.perf_counter()
    show = progress if callable(progress) else (lambda _now: None)
    store, graph = arguments.path(store, "store"), arguments.path(graph, "graph")
    workers, provider = arguments.whole_or_none(workers, "workers"), arguments.text(provider, "provider")
    if silence not in SILENCES:
        raise UsageError(f"--silence {silence}: there are {', '.join(SILENCES)}")
    where = Store(store)
    spec = check_graph(where, graph)
    if not spec.ablate:
        raise UsageError(f"{graph}: takes no heads to silence; `attlas export --ablate` makes a graph that does")
    if spec.output("logits") is None:
        raise UsageError(f"{graph}: has no classes, so that there is nothing to lose")
    count = workers or (2 if accelerates(provider) else cores())
    threads = None if executor is not None else max(1, cores() // count)
    task = _Task(absolute(where.path), absolute(graph), silence, provider, threads, os.urandom(8).hex())
    pool = executor or ThreadPoolExecutor(count, thread_name_prefix="judge")
    try:
        with writing(store) as where:
            forwards = _pass(task, where, spec, images, pool, count, overwrite, show)
            found = _summed(task, spec)
    except OSError as error:
        raise AttlasError(f"{store}: cannot be read or written ({error.strerror or error})") from None
    finally:
        if executor is None:
            pool.shutdown(wait=True, cancel_futures=True)
    notes = tuple(few_notes(Units.of(Store(where.path))))
    return HeadsResult(where.path, *found, forwards, time.perf_counter() - started, notes)


def _pass(
    task: _Task,
    store: Store,
    spec: GraphSpec,
    images: File | Source,
    pool: Executor,
    ahead: int,
    overwrite: bool,
    show: Callable[[Progress], None],
) -> int:
    """Everything that is not there yet; returns how many pictures the graph saw."""
    source, items = image_items(store, images)
    rows = Template(
        task.array,
        ("image", _axis(store), "head", "judged_loss"),
        (spec.depth, spec.heads, len(LOSSES)),
        "float32",
        np.nan,
        {"silence": task.silence, "long_name": "loss of the model without the head", "units": "1"},
    )
    fresh = [] if rows.name in store else [ArraySpec.from_template(rows, store.plan)]
    if fresh:
        store.add(fresh)
    found = Units.of(Store(store.path, writable=True))
    plan, started, forwards = store.plan, time.perf_counter(), 0

    def over(units: list[int], do: Callable[..., Any], *more: Any) -> list[Any]:
        def submit(k: int) -> Future[Any]:
            span = plan.unit_range(k)
            at = slice(span.start, span.stop)
            return pool.submit(do, task, Unit(k, items[at], source).alone(), found.mask[at], *more)

        results, done, total = [], 0, sum(len(plan.unit_range(k)) for k in units)
        show(Progress(0, total, time.perf_counter() - started))
        for k, one in zip(units, in_order(submit, units, ahead), strict=True):
            results.append(one)
            done += len(plan.unit_range(k))
            show(Progress(done, total, time.perf_counter() - started))
        return results

    todo = [int(k) for k in np.flatnonzero(lacking_units(found, task.array, overwrite))]
    fill = np.zeros(_fill_shape(spec), np.float32)
    if task.silence == "mean" and todo:
        every = [int(k) for k in np.flatnonzero(found.done)]
        sums = over(every, _outputs)
        forwards += sum(n for _, n in sums)
        # In the units' order, so that the number of workers does not change a bit.
        fill = (sum(total for total, _ in sums) / max(forwards, 1)).astype(np.float32)
    return forwards + sum(int(n) for n in over(todo, _losses, fill))


def _axis(store: Store) -> str:
    """Heads of all blocks are silenced; those whose attention the store's graph gives may be fewer."""
    return "layer" if len(store.spec.layers) == store.spec.depth else "block"


def _fill_shape(spec: GraphSpec) -> tuple[int, ...]:
    output = spec.output("head_output.0")
    assert output is not None
    return (spec.depth, *(n for n in output.shape if n is not None))


@functools.lru_cache(maxsize=2)
def _session(graph: str, provider: str, threads: int | None) -> Session:
    return Session(graph, provider=provider, wanted=[Wanted("logits")], threads=threads, ablate=True)


def _outputs(task: _Task, unit: Unit, valid: npt.NDArray[np.bool_]) -> tuple[Floats, int]:
    """The sum over images of what each head writes, (layer, head, channel), and how many images there are."""
    store = once(opened, task.store, task.call)
    spec = store.spec
    wanted = tuple(Wanted(f"head_output.{layer}") for layer in range(spec.depth))
    session = once(_writes, task.graph, task.provider, task.threads, wanted)
    pictures = read_pictures(spec, unit.source, unit.items, valid)[valid]
    found = session(pictures)["head_output"] if len(pictures) else np.zeros((0, *_fill_shape(session.spec)))
    return np.asarray(found.astype(np.float64).sum(axis=0)), len(pictures)


@functools.lru_cache(maxsize=1)
def _writes(graph: str, provider: str, threads: int | None, wanted: tuple[Wanted, ...]) -> Session:
    return Session(graph, provider=provider, wanted=wanted, threads=threads)


def _losses(task: _Task, unit: Unit, valid: npt.NDArray[np.bool_], fill: npt.NDArray[np.float32]) -> int:
    """Write one unit's rows; returns how many pictures the graph saw."""
    store = once(opened, task.store, task.call)
    session = once(_session, task.graph, task.provider, task.threads)
    spec, images = session.spec, store.plan.unit_range(unit.k)
    pictures = read_pictures(spec, unit.source, unit.items, valid)[valid]
    label = store.read("label_class", slice(images.start, images.stop))[valid]
    every = np.ones((spec.depth, spec.heads), np.float32)
    rows = np.full((len(images), spec.depth, spec.heads, len(LOSSES)), np.nan, np.float32)
    if len(pictures):
        whole = session.run_without(pictures, every, fill)
        for at in np.ndindex(*every.shape):
            mask = every.copy()
            mask[at] = 0
            rows[(valid, *at)] = losses(whole, session.run_without(pictures, mask, fill), label)
    store.write(task.array, images.start, rows)
    return len(pictures) * (1 + every.size)


def losses(whole: npt.NDArray[Any], without: npt.NDArray[Any], label: npt.NDArray[Any]) -> Floats:
    """`LOSSES` of each image: (image, class) logits of the whole model and of it without a head -> (image, figure)."""
    one, two = (np.asarray(logits, np.float64) for logits in (whole, without))
    predicted = one.argmax(-1)
    at = np.arange(len(one))
    log_one, log_two = (x - x.max(-1, keepdims=True) for x in (one, two))
    log_one, log_two = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (log_one, log_two))
    moved = (np.exp(log_one) * (log_one - log_two)).sum(-1)
    hits = (predicted == label).astype(float) - (two.argmax(-1) == label)
    return np.stack([one[at, predicted] - two[at, predicted], moved, np.where(label >= 0, hits, np.nan)], axis=-1)


# -- the dataset ------------------------------------------------------------------------------------------------------


def _summed(task: _Task, spec: GraphSpec) -> tuple[int, Floats, Floats, Floats | None, Floats | None]:
    store = Store(task.store, writable=True)
    source = Units.of(store)
    rows = store.read(task.array)[source.mask].astype(np.float64)
    column = cluster_of(store)
    codes = cluster_codes([store], [source.mask], column)
    mean, bounds = Moments.of(rows).average, np.stack(interval(rows, clusters=codes, within=RANGE))
    dims = (_axis(store), "head", "judged_loss")
    said: dict[str, Any] = {"silence": task.silence, "images": int(source.mask.sum())}
    found = {
        "judged_loss": Summed(("judged_loss",), texts(list(LOSSES)), {}),
        f"judged_heads_mean.{task.silence}": Summed(dims, mean, said),
        f"judged_heads_interval.{task.silence}": Summed(
            ("bound", *dims), bounds, {**said, "method": METHOD + EQUAL, **said_of(column, codes)}
        ),
    }
    rank = rank_bounds = None
    importance = _importance(store)
    if importance is not None:
        heads = rows[:, list(store.spec.layers)]
        rank, rank_bounds = rank_correlation(importance[source.mask], heads, codes=codes)
        drawn = {"method": "Spearman's correlation over heads; percentile bootstrap over images", "seed": 0}
        found[f"judged_heads_rank.{task.silence}"] = Summed(("judged_loss",), rank, {**said, **drawn})
        found[f"judged_heads_rank_interval.{task.silence}"] = Summed(("bound", "judged_loss"), rank_bounds, drawn)
    store.add([spec_of(name, one) for name, one in found.items()], {name: one.values for name, one in found.items()})
    return int(source.mask.sum()), mean, bounds, rank, rank_bounds


def _importance(store: Store) -> Floats | None:
    """First-order importance of every image and head, (image, layer, head), where the store has or can compute it."""
    from ..statistics.analysis import analyze

    try:
        analyze(store.path, ["head_importance"])
    except AttlasError:
        return None
    return Store(store.path).read("head_importance").astype(np.float64)


def rank_correlation(
    importance: Floats, rows: Floats, seed: int = 0, codes: Codes | None = None
) -> tuple[Floats, Floats]:
    """Spearman's correlation over heads of mean importance with mean losses, and its interval over images.

    Args:
        importance: (image, layer, head).
        rows: (image, layer, head, figure); NaN is left out.
        seed: of the bootstrap's draws.
        codes: (image), the cluster of each; whole clusters are drawn then.

    Returns:
        (figure), and (bound, figure) of the percentile bootstrap; NaN where a figure is never known.
    """
    flat, figures = importance.reshape(len(importance), -1), rows.reshape(len(rows), -1)
    there = ~np.isnan(figures)
    known, shape = np.where(there, figures, 0), (-1, flat.shape[1], rows.shape[-1])

    def correlations(weights: Floats) -> Floats:
        """(draw, image) to (draw, figure)."""
        with np.errstate(invalid="ignore", divide="ignore"):
            means = ((weights @ known) / (weights @ there.astype(np.float64))).reshape(shape)
        return _spearman((weights @ flat)[..., None], means)

    own = np.arange(len(flat)) if codes is None else np.unique(codes, return_inverse=True)[1]
    random, count = np.random.default_rng(seed), int(own.max(initial=-1)) + 1
    whole = correlations(np.ones((1, len(flat))))[0]
    drawn = []
    for start in range(0, RESAMPLES, STEP):
        draws = random.integers(0, count, (min(STEP, RESAMPLES - start), count))
        drawn.append(correlations(np.stack([np.bincount(row, minlength=count)[own] for row in draws]).astype(float)))
    every = np.concatenate(drawn)
    bounds = np.full((2, rows.shape[-1]), np.nan)
    some = ~np.isnan(every).all(axis=0)
    if count > 1:
        bounds[:, some] = np.nanquantile(every[:, some], (0.025, 0.975), axis=0)
    return whole, bounds


def _spearman(one: Floats, two: Floats) -> Floats:
    """Of (draw, head, figure) with each other: (draw, figure); NaN where a figure is not known or always the same."""
    ranks = [rankdata(values, axis=1) for values in np.broadcast_arrays(one, two)]
    off = [rank - rank.mean(axis=1, keepdims=True) for rank in ranks]
    norm = np.sqrt((off[0] ** 2).sum(axis=1) * (off[1] ** 2).sum(axis=1))
    with np.errstate(invalid="ignore", divide="ignore"):
        found = (off[0] * off[1]).sum(axis=1) / np.where(norm > 0, norm, np.nan)
    return np.asarray(np.where(np.isfinite(two).all(axis=1), found, np.nan))
