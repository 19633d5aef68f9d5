"""`judge`: how faithful maps are to the model that they explain, over a whole dataset."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ... import arguments
from ...arguments import Where
from ...engine.amounts import duration
from ...engine.runtime.providers import accelerates, cores
from ...engine.sources import Source
from ...engine.store.storage import Url
from ...engine.store.store import Store
from ...engine.unit import Unit
from ...errors import AttlasError
from ...progress import Display, Show, shows
from ...words import counted
from ..statistic import Statistic
from ..statistics.analysis import Progress, few_notes, in_order
from ..statistics.writing import writing
from .lines import outlined_lines, verdict_lines
from .localisation import Localisation, localise
from .planning import Choice, File, Mask, Plan, planned
from .segmentation import Segmentation, segment_unit
from .segmentation import sum_up as sum_up_masks
from .summary import Verdict, sum_up
from .work import UnitDone, judge_unit

__all__ = ["JudgeResult", "judge"]


@dataclass(frozen=True, slots=True, repr=False)
class JudgeResult:
    """What a judgement did, and what it found.

    Attributes:
        path: of the store.
        images: valid images of done units.
        forwards: pictures that the graph saw in this call.
        seconds: of the whole call; `judging`: of the pictures alone, reading and summing up not counted.
        verdict: means, intervals and paired differences, as they are in the store.
        segmentation: against masks, where there are some; `localisation`: against boxes.
        notes: what the user should know.
    """

    path: Path | Url
    images: int
    forwards: int
    seconds: float
    judging: float
    verdict: Verdict
    segmentation: Segmentation | None = None
    localisation: Localisation | None = None
    notes: tuple[str, ...] = ()

    @property
    def said(self) -> str:
        """What was done, in one line."""
        rate = f", {self.forwards / self.judging:.1f} pictures/s" if self.forwards else ""
        return f"{counted(self.images, 'image')}, {counted(self.forwards, 'picture')}{rate}, {duration(self.seconds)}"

    def outlined(self) -> Iterator[str]:
        """Lines on every map by masks and boxes, where there are some."""
        masked, boxed = self.segmentation, self.localisation
        if masked is not None:
            yield from outlined_lines(f"against the masks of {counted(masked.images, 'image')}:", masked)
        if boxed is not None:
            boxes = f"against {counted(boxed.objects, 'box', 'boxes')} in {counted(boxed.images, 'image')}:"
            yield from outlined_lines(boxes, boxed)

    def __repr__(self) -> str:
        return "\n".join([f"{self.path}: {self.said}", *verdict_lines(self.verdict), *self.outlined(), *self.notes])


@shows("images")
def judge(
    store: Where,
    graph: File,
    images: File | Source,
    *,
    maps: Sequence[str | Statistic] | str | Statistic,
    steps: int = 16,
    fill: str = "mean",
    target: str | int = "predicted",
    other: Where | None = None,
    masks: File | None = None,
    boxes: File | None = None,
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
        masks: a folder of PNGs, named like the images, in which the object is not 0: maps are also judged as
            segmentations.
        boxes: a COCO JSON file of objects in the original images, by file name: the pointing game and the mass inside.
        provider: `auto`, `cpu`, `cuda` or any name onnxruntime reports.
        workers: units at once; by default a core each, or on an accelerator two.
        executor: of other processes or machines, which must reach the files by the same paths.
        overwrite: judge again what was judged.
        progress: True shows a bar; a function is called with a `Progress` at the start and after every unit.

    Raises:
        UsageError: a map is unknown or none of each image, or `steps`, `fill` or `target` do not fit.
        AttlasError: the graph is not of the store's model, images are others, the store cannot be written, or another
            analysis is writing it.
    """
    steps, workers = arguments.whole(steps, "steps"), arguments.whole_or_none(workers, "workers")
    provider = arguments.text(provider, "provider")
    store, graph = arguments.path(store, "store"), arguments.path(graph, "graph")
    choice = Choice(maps, steps, fill, str(target), other, masks, boxes, provider, overwrite)
    show = progress if callable(progress) else (lambda _now: None)
    said = progress.note if isinstance(progress, Display) else (lambda _line: None)
    try:
        with writing(store) as where:
            return _judged(where, graph, images, choice, (workers, executor), show, said)
    except OSError as error:
        raise AttlasError(f"{store}: cannot be read or written ({error.strerror or error})") from None


def _judged(
    store: Store,
    graph: File,
    images: File | Source,
    choice: Choice,
    who: tuple[int | None, Executor | None],
    show: Callable[[Progress], None],
    say: Callable[[str], None],
) -> JudgeResult:
    started = time.perf_counter()
    plan, (workers, executor) = planned(store, graph, images, choice), who
    before = time.perf_counter()
    if executor is not None:
        done = _all(plan, executor, workers or cores(), None, show)
    else:
        # A session of one thread for each unit that is in work: no core ever waits for a picture to be prepared.
        count = workers or (2 if accelerates(choice.provider) else cores())
        with ThreadPoolExecutor(count, thread_name_prefix="judge") as pool:
            done = _all(plan, pool, count, max(1, cores() // count), show)
    judging = time.perf_counter() - before
    say("summing up")
    task = plan.task
    verdict = sum_up(plan.source, task)
    return JudgeResult(
        path=store.path,
        images=int(plan.source.mask.sum()),
        forwards=sum(one.forwards for one in done),
        seconds=time.perf_counter() - started,
        judging=judging,
        verdict=verdict,
        segmentation=sum_up_masks(plan.source, task.maps) if plan.masks is not None else None,
        localisation=None
        if plan.objects is None
        else localise(store.path, plan.task.other, plan.task.maps, plan.objects),
        notes=(*plan.notes, *few_notes(plan.source), *_notes(plan, done)),
    )


def _all(
    plan: Plan, pool: Executor, ahead: int, threads: int | None, show: Callable[[Progress], None]
) -> list[UnitDone]:
    """Judge what lacks rows, and count everything against masks."""
    task, span = dataclasses.replace(plan.task, threads=threads), plan.source.store.plan.unit_range

    def judge_of(k: int, wanted: list[str]) -> Future[UnitDone]:
        at = slice(span(k).start, span(k).stop)
        unit = Unit(k, plan.items[at], plan.images, plan.targets[at]).alone()
        return pool.submit(judge_unit, task, unit, plan.source.mask[at], wanted)

    def segment_of(k: int, wanted: list[str]) -> Future[int]:
        where, valid = (task.store, task.other, task.call), plan.source.mask[span(k).start : span(k).stop]
        return pool.submit(segment_unit, where, str(plan.masks), task.maps, k, valid, wanted)

    done = _pass(plan, plan.lacking, judge_of, ahead, show)
    # All of them: what is in the store may be of other masks, and counting costs little.
    masked = {one.name: plan.source.done for one in task.maps} if plan.masks is not None else {}
    _pass(plan, masked, segment_of, ahead, show)
    return done


def _pass[T](
    plan: Plan,
    lacking: dict[str, Mask],
    submit: Callable[[int, list[str]], Future[T]],
    ahead: int,
    show: Callable[[Progress], None],
) -> list[T]:
    """Do what is lacking, by the jobs of `divided`."""
    jobs = divided(lacking, ahead)
    sizes = {k: len(plan.source.store.plan.unit_range(k)) for k, _ in jobs}
    last = {k: place for place, (k, _) in enumerate(jobs)}
    started, done, found = time.perf_counter(), 0, []
    show(Progress(0, sum(sizes.values()), 0.0))
    for place, one in enumerate(in_order(lambda at: submit(*jobs[at]), range(len(jobs)), ahead)):
        found.append(one)
        if last[k := jobs[place][0]] == place:
            done += sizes[k]
            show(Progress(done, sum(sizes.values()), time.perf_counter() - started))
    return found


def divided(lacking: dict[str, Mask], workers: int) -> list[tuple[int, list[str]]]:
    """Jobs, each a unit and the maps of it that are lacking.

    Units that are left over when the others are shared out equally are divided by maps, so that no worker has nothing
    to do at the end. The rows of each map are the same: only the pictures are read once more.
    """
    units = np.flatnonzero(np.any(list(lacking.values()), axis=0)).tolist() if lacking else []
    jobs = [(k, [name for name, lacks in lacking.items() if lacks[k]]) for k in units]
    rest = len(jobs) % workers
    if not rest:
        return jobs
    most = max(len(names) for _, names in jobs[-rest:])
    # How long the last round takes, as a share of a unit's time.
    parts = min(range(1, most + 1), key=lambda parts: math.ceil(rest * parts / workers) / parts)
    ends = [(k, names[i::parts]) for k, names in jobs[-rest:] for i in range(parts) if names[i::parts]]
    return jobs[:-rest] + ends


def _notes(plan: Plan, done: Sequence[UnitDone]) -> list[str]:
    found = []
    source, without = plan.source, dict[str, int]()
    if not source.done.all():
        found.append(
            f"the store is unfinished: {int(source.done.sum())} of {counted(source.done.size, 'unit')} judged; run "
            "`attlas run` and this again for the rest"
        )
    for one in done:
        for name, count in one.without.items():
            without[name] = without.get(name, 0) + count
    found += [f"{name}: {counted(count, 'image')} without a finite map, left out" for name, count in without.items()]
    return found
