"""`judge`: how faithful maps are to the model that they explain, over a whole dataset."""

from __future__ import annotations

import dataclasses
import os
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...engine.again import check_graph, image_items
from ...engine.runtime.providers import accelerates, cores
from ...engine.sources import Items, Source
from ...engine.sources.files import is_url
from ...engine.store.storage import Url
from ...engine.store.store import ArraySpec, Store
from ...engine.targets import choose
from ...engine.unit import Unit
from ...errors import AttlasError, UsageError
from ...progress import Display, Show, shows
from ..catalog import CATALOG
from ..statistic import Statistic
from ..statistics.analysis import Progress, analyze, in_order
from ..statistics.summary import Source as Summed
from .fills import FILLS
from .maps import OTHER, Chosen, baselines, chosen
from .summary import Verdict, sum_up
from .work import Judgement, UnitDone, judge_unit, portable, rows_of

__all__ = ["JudgeResult", "Where", "absolute", "judge", "lacking_units"]

type Where = str | os.PathLike[str]
type Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class JudgeResult:
    """What a judgement did, and what it found.

    Attributes:
        path: of the store.
        images: valid images of done units.
        forwards: pictures that the graph saw in this call.
        seconds: of the whole call; `judging`: of the pictures alone, reading and summing up not counted.
        verdict: means, intervals and paired differences, as they are in the store.
        notes: what the user should know.
    """

    path: Path | Url
    images: int
    forwards: int
    seconds: float
    judging: float
    verdict: Verdict
    notes: tuple[str, ...] = ()


@shows("images")
def judge(
    store: Where,
    graph: Where,
    images: Where | Source,
    *,
    maps: Sequence[str | Statistic],
    steps: int = 16,
    fill: str = "mean",
    target: str = "predicted",
    other: Where | None = None,
    provider: str = "auto",
    workers: int | None = None,
    executor: Executor | None = None,
    overwrite: bool = False,
    progress: Show[Progress] = None,
) -> JudgeResult:
    """Remove and insert patches in the order of maps, and write into the store what the model says of it.

    Beside every map stand three that know nothing of the picture: uniform, centre (a Gaussian) and random. Rows per
    image are written unit by unit, and what is there is not made again; then means over images with intervals, and
    paired differences between maps, all at once (docs/judge.md).

    Args:
        store: of a run, finished or not; maps that it lacks are computed first, as by `analyze`.
        graph: the graph that made it, or one of the same model and weights.
        images: where the run's images are: what the run was given.
        maps: `rollout`, `readout_map:layer=11`, any statistic that is a map of the patches, or your own `Statistic`.
        steps: in how many steps all patches are removed.
        fill: what takes the place of a patch: mean, blur, black or noise.
        target: the class whose logit and probability are followed: `predicted` on the whole picture, `label`, or a
            class index.
        other: a second store of the same images, such as one of random weights: its maps are judged on this graph too.
        provider: `auto`, `cpu`, `cuda` or any name onnxruntime reports.
        workers: units at once; by default a core each, or on an accelerator two.
        executor: of other processes or machines, which must reach the files by the same paths.
        overwrite: judge again what was judged.
        progress: True shows a bar; a function is called with a `Progress` at the start and after every unit.

    Raises:
        UsageError: a map is unknown or none of each image, or `steps`, `fill` or `target` do not fit.
        AttlasError: the graph is not of the store's model, images are others, or the store cannot be written.
    """
    started = time.perf_counter()
    show = progress if callable(progress) else (lambda _now: None)
    opened = Store(store, writable=True)
    try:
        plan = _planned(opened, graph, images, maps, (steps, fill, target), other, provider, overwrite)
        before = time.perf_counter()
        if executor is not None:
            done = _pass(plan, executor, workers or cores(), None, show)
        else:
            # A session of one thread for each unit that is in work: no core ever waits for a picture to be prepared.
            count = workers or (2 if accelerates(provider) else cores())
            with ThreadPoolExecutor(count, thread_name_prefix="judge") as pool:
                done = _pass(plan, pool, count, max(1, cores() // count), show)
        judging = time.perf_counter() - before
        if isinstance(progress, Display):
            progress.note("summing up")
        verdict = sum_up(plan.source, plan.task)
    except OSError as error:
        raise AttlasError(f"{store}: cannot be written ({error.strerror or error})") from None
    return JudgeResult(
        path=opened.path,
        images=int(plan.source.mask.sum()),
        forwards=sum(one.forwards for one in done),
        seconds=time.perf_counter() - started,
        judging=judging,
        verdict=verdict,
        notes=(*plan.notes, *_notes(plan, done)),
    )


@dataclass
class _Plan:
    """What is to be done: `lacking` are the units without rows, by the name of the map."""

    source: Summed
    task: Judgement
    images: Source
    items: Items
    targets: npt.NDArray[np.int64]
    lacking: dict[str, Mask]
    notes: list[str] = field(default_factory=list)

    @property
    def units(self) -> list[int]:
        return [int(k) for k in np.flatnonzero(np.any(list(self.lacking.values()), axis=0))]


def _planned(
    store: Store, graph: Where, images: Where | Source, names: Sequence[str | Statistic],
    choice: tuple[int, str, str], other: Where | None, provider: str, overwrite: bool,
) -> _Plan:  # fmt: skip
    """Everything that can be refused is refused here, before any picture is read."""
    steps, fill, target = choice
    spec = check_graph(store, graph)
    if spec.output("logits") is None:
        raise UsageError(f"{graph}: has no classes, so that there is no logit to follow")
    if not 2 <= steps <= spec.patches:
        raise UsageError(f"--steps {steps}: from 2 to {spec.patches}, the number of patches")
    if fill not in FILLS:
        raise UsageError(f"--fill {fill}: there are {', '.join(FILLS)}")
    source, items = image_items(store, images)
    targets = choose(target, spec, items.labels)
    asked = chosen(store, names)
    second = _second(store, other) if other is not None else None
    _compute(store, asked)
    store = Store(store.path, writable=True)  # with the rows that were made
    every = [*asked]
    if second is not None:
        theirs = [Chosen(f"{OTHER}{one.name}", one.statistic, one.layer, one.head, other=True) for one in asked]
        _compute(second, asked)
        every += theirs
    every += baselines()
    task = Judgement(
        absolute(store.path), absolute(graph), "" if second is None else absolute(second.path),
        tuple(portable(every)), fill, steps, target, provider, None, uuid.uuid4().hex,
    )  # fmt: skip
    specs = [ArraySpec.from_template(rows, store.plan) for one in task.maps for rows in rows_of(task, one)]
    _refuse_other(store, second, task)
    fresh = [one for one in specs if one.name not in store]
    if fresh:
        store.add([_of_second(one, second) for one in fresh])
    found = Summed.of(Store(store.path, writable=True))
    lacking = {one.name: lacking_units(found, task.array("judged", one.name), overwrite) for one in task.maps}
    return _Plan(found, task, source, items, targets, lacking, _differing(store, asked, targets))


def _second(store: Store, where: Where) -> Store:
    """A second store of the same images and patches."""
    second = Store(where, writable=True)
    if second.spec.grid != store.spec.grid:
        raise AttlasError(f"{where}: has a grid of {second.spec.grid} patches, {store.path} of {store.spec.grid}")
    if second.plan.images != store.plan.images or (second.read("path") != store.read("path")).any():
        raise AttlasError(f"{where}: is of other images than {store.path}; run it on the same ones")
    if (store.done_images & ~second.done_images).any():
        raise AttlasError(f"{where}: lacks images that are done in {store.path}; `attlas run` goes on with it")
    return second


def _compute(store: Store, maps: Sequence[Chosen]) -> None:
    """Make the rows of maps that a store lacks."""
    needed = {one.statistic.name: one.statistic for one in maps if one.statistic is not None}
    analyze(store.path, [one for one in needed.values() if one.formula is not None or one.name in CATALOG])


def _refuse_other(store: Store, second: Store | None, task: Judgement) -> None:
    """Refuse to mix the maps of two second stores under one name."""
    for one in (one for one in task.maps if one.other):
        name = task.array("judged", one.name)
        if second is not None and name in store:
            said = dict(store.array(name).attrs).get("other")
            if said != _identity(second):
                raise AttlasError(
                    f"{store.path}: {one.name} was judged from another second store than {second.path}; name that one"
                )


def _of_second(array: ArraySpec, second: Store | None) -> ArraySpec:
    if second is not None and f".{OTHER}" in array.name:
        said = {"other": _identity(second), "other_weights": second.spec.weights.source}
        return dataclasses.replace(array, attrs={**array.attrs, **said})
    return array


def _identity(store: Store) -> str:
    return str(store.plan.identity.get("graph", ""))


def lacking_units(found: Summed, array: str, overwrite: bool) -> Mask:
    """The done units without rows: a unit is a chunk, and a chunk's file is written whole."""
    if overwrite:
        return found.done.copy()
    store = found.store
    rest = [0] * (len(store.dims(array)) - 1)
    there = {key for key, _ in store.storage.listing(array)}
    keys = (store.chunk_key(array, (k, *rest)) for k in range(store.plan.units))
    return found.done & ~np.array([key in there for key in keys], np.bool_)


def _pass(
    plan: _Plan, pool: Executor, ahead: int, threads: int | None, show: Callable[[Progress], None]
) -> list[UnitDone]:
    store, units = plan.source.store, plan.units
    task = dataclasses.replace(plan.task, threads=threads)
    started, done, total = time.perf_counter(), 0, sum(len(store.plan.unit_range(k)) for k in units)
    show(Progress(0, total, 0.0))

    def submit(k: int) -> Future[UnitDone]:
        span = store.plan.unit_range(k)
        at = slice(span.start, span.stop)
        unit = Unit(k, plan.items[at], plan.images, plan.targets[at]).alone()
        wanted = [name for name, lacks in plan.lacking.items() if lacks[k]]
        return pool.submit(judge_unit, task, unit, plan.source.mask[at], wanted)

    found = []
    for one in in_order(submit, units, ahead):
        found.append(one)
        done += one.images
        show(Progress(done, total, time.perf_counter() - started))
    return found


def _differing(store: Store, maps: Sequence[Chosen], targets: npt.NDArray[np.int64]) -> list[str]:
    """A note where maps follow the gradient of another class than the one that is judged."""
    weighs = [one.name for one in maps if one.statistic is not None
              and {"gradient", "weighted", "positive"} & set(one.statistic.needs)]  # fmt: skip
    if not weighs or "target" not in store or "logits" not in store:
        return []
    source = Summed.of(store)
    theirs = store.read("target")
    ours = targets.copy()
    for k in np.flatnonzero(source.done):
        span = store.plan.unit_range(int(k))
        at = slice(span.start, span.stop)
        ours[at] = np.where(ours[at] < 0, store.read("logits", at).argmax(-1), ours[at])
    other = int((source.mask & (theirs != ours)).sum())
    if not other:
        return []
    return [f"{', '.join(weighs)}: of {other:,} images the run's gradients are of another class than is judged"]


def _notes(plan: _Plan, done: Sequence[UnitDone]) -> list[str]:
    found = []
    source, without = plan.source, dict[str, int]()
    if not source.done.all():
        found.append(
            f"the store is unfinished: {int(source.done.sum())} of {source.done.size} units are judged; run "
            "`attlas run` and this again for the rest"
        )
    for one in done:
        for name, count in one.without.items():
            without[name] = without.get(name, 0) + count
    found += [f"{name}: {count:,} images have no finite map and are left out" for name, count in without.items()]
    return found


def absolute(path: Where | Url) -> str:
    """A path as other processes find it; a URL as it is."""
    text = os.fspath(path)
    return text if is_url(text) else os.path.abspath(text)  # noqa: PTH100 - links stay as they are named
