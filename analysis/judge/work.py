"""One unit of a judgement: its pictures without patches, what the graph says of them, and its rows in the store."""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...engine.again import read_pictures
from ...engine.runtime.outputs import Wanted
from ...engine.runtime.session import Session
from ...engine.store.store import Store, Template
from ...engine.targets import PREDICTED
from ...engine.unit import Unit
from ...errors import AttlasError
from .curves import FIGURES, SCORES, counts, figures, mass_correlation, ranks, removals, scores
from .fills import replaced
from .maps import Chosen

__all__ = ["Classifier", "Judgement", "UnitDone", "judge_unit", "once", "opened", "portable", "rows_of"]

type Array = npt.NDArray[Any]

MOST = 128  # pictures that an accelerator is given at once
APART = 0.05  # of the range of an image's logits: how far those of another machine or runtime may be off


@dataclass(frozen=True, slots=True)
class Judgement:
    """What is done to every image; small, and valid on every machine that shares the files.

    Attributes:
        store: path or URL of the store; `graph`: of the graph; `other`: of a second store, or "".
        maps: what is judged, without formulas.
        fill, steps, target: as for `judge`.
        provider: as for a run; `threads`: onnxruntime's, all of a worker's cores where it is None.
        call: another one for each call, so that a process opens a store once for each and never sees an old one.
    """

    store: str
    graph: str
    other: str
    maps: tuple[Chosen, ...]
    fill: str
    steps: int
    target: str
    provider: str
    threads: int | None
    call: str

    @property
    def tag(self) -> str:
        """What names this choice in the store: `mean`, or `blur-32-label` where steps and target are not the usual."""
        return "-".join(
            [
                self.fill,
                *([str(self.steps)] if self.steps != 16 else []),
                *([self.target] if self.target != "predicted" else []),
            ]
        )

    def array(self, what: str, name: str) -> str:
        """The array of a map: `deletion`, `insertion` or `judged`."""
        return f"{what}.{self.tag}.{name}"


@dataclass(frozen=True, slots=True)
class UnitDone:
    """What one unit cost: pictures that the graph saw, and images whose map is not finite, by its name."""

    k: int
    images: int
    forwards: int
    without: dict[str, int]


def rows_of(task: Judgement, chosen: Chosen) -> list[Template]:
    """The arrays of one map's rows; that which is written last comes last."""
    said: dict[str, Any] = {"map": chosen.name, "fill": task.fill, "steps": task.steps, "target": task.target}
    said |= chosen.attrs
    step = f"step_{task.steps}"
    words = {
        "deletion": "score after the patches with the largest values are removed",
        "insertion": "score after the patches with the largest values are put back",
    }
    found = [
        Template(
            task.array(what, chosen.name),
            ("image", "judged_score", step),
            (len(SCORES), task.steps + 1),
            "float32",
            np.nan,
            {"long_name": text, "units": "1", **said},
        )
        for what, text in words.items()
    ]
    dims, text = ("image", "judged_figure"), "areas under the curves, their difference, and the correlation"
    last = Template(
        task.array("judged", chosen.name),
        dims,
        (len(FIGURES),),
        "float32",
        np.nan,
        {"long_name": text, "units": "1", **said},
    )
    return [*found, last]


class Classifier:
    """The graph without its maps: pictures to logits."""

    def __init__(self, graph: str, provider: str, threads: int | None) -> None:
        """Load it; only the logits are asked for, so that onnxruntime drops what only other outputs need."""
        self.session = Session(graph, provider=provider, wanted=[Wanted("logits")], threads=threads)
        self.spec = self.session.spec

    def __call__(self, pictures: npt.NDArray[np.uint8], most: int = MOST) -> npt.NDArray[np.float32]:
        """Logits (picture, class) of (picture, row, column, channel); for an accelerator in batches of `most`."""
        whole = len(pictures) if self.session.on_cpu else min(most, MOST)
        parts = []
        for start in range(0, len(pictures), max(whole, 1)):
            part = np.ascontiguousarray(pictures[start : start + whole])
            count = len(part)
            if count < whole:  # another shape would cost an accelerator more than the pictures that are left over
                part = np.concatenate([part, np.zeros((whole - count, *part.shape[1:]), np.uint8)])
            buffers = self.session.buffers(len(part))
            self.session.run_into(part, buffers, count)
            parts.append(np.array(buffers["logits"][:count]))
        classes = self.session.shapes()["logits"][0]
        return np.concatenate(parts) if parts else np.zeros((0, *classes), np.float32)


_LOCK = threading.Lock()


def once[**P, T](make: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What all units of a process share, made by one thread."""
    with _LOCK:
        return make(*args, **kwargs)


@functools.lru_cache(maxsize=2)
def opened(path: str, call: str) -> Store:
    """A store, opened once for each `call`, so that no process goes on with an old one."""
    return Store(path, writable=True)


@functools.lru_cache(maxsize=1)
def _classifier(graph: str, provider: str, threads: int | None) -> Classifier:
    return Classifier(graph, provider, threads)


def judge_unit(task: Judgement, unit: Unit, valid: npt.NDArray[np.bool_], wanted: Sequence[str]) -> UnitDone:
    """Judge the maps of the names `wanted` on one unit, and write their rows.

    Args:
        task: what is done.
        unit: its images and where they are read; with targets.
        valid: its images that the run could read.
        wanted: names of maps.

    Raises:
        AttlasError: a picture is not that of the run, or cannot be read, or the store cannot be written.
    """
    store = once(opened, task.store, task.call)
    other = once(opened, task.other, task.call) if task.other else store
    classify = once(_classifier, task.graph, task.provider, task.threads)
    images = store.plan.unit_range(unit.k)
    pictures = read_pictures(store.spec, unit.source, unit.items, valid)
    there = np.flatnonzero(valid)
    whole = np.zeros((len(images), *classify.session.shapes()["logits"][0]), np.float32)
    whole[there] = classify(pictures[there])
    _check_logits(store, unit, images, there, whole)
    target = np.full(len(images), PREDICTED) if unit.targets is None else unit.targets
    target = np.where(target < 0, whole.argmax(-1), target)
    gone = np.ones((1, *store.spec.grid), np.bool_)
    empty = np.zeros_like(whole)
    blank = [replaced(pictures[i], gone, task.fill, store.spec, images[i])[0] for i in there]
    empty[there] = classify(np.stack(blank)) if blank else empty[there]
    ends = np.stack([scores(values, target) for values in (whole, empty)], axis=-1)  # (score, image, end)
    forwards, without = 2 * len(there), {}
    for chosen in (one for one in task.maps if one.name in wanted):
        values = chosen.read(other if chosen.other else store, images)
        finite = [int(i) for i in there if np.isfinite(values[i]).all()]
        rows = {t.name: np.full((len(images), *t.shape), t.fill, t.dtype) for t in rows_of(task, chosen)}
        for i in finite:
            curves, said = _judged(task, classify, pictures[i], values[i], images[i], int(target[i]), ends[:, i])
            for name, found in zip(rows, (*curves, said), strict=True):
                rows[name][i] = found
        forwards += len(finite) * 2 * (task.steps - 1)
        if len(finite) < len(there):
            without[chosen.name] = len(there) - len(finite)
        _write(store, images.start, rows)
    return UnitDone(unit.k, len(images), forwards, without)


def _judged(
    task: Judgement, classify: Classifier, picture: Array, values: Array, image: int, target: int, ends: Array
) -> tuple[Array, Array]:
    """Curves (deletion or insertion, score, step) of one map of one image, and its figures.

    `ends` (score, end) are the scores of the whole picture and of one of which nothing is left.
    """
    spec = classify.spec
    removed = counts(values.size, task.steps)
    rank = ranks(values, image)
    away = removals(rank, removed)
    inner = away.reshape(-1, *spec.grid)
    found = scores(classify(replaced(picture, inner, task.fill, spec, image), max(len(inner), 1)), target)
    found = found.reshape(len(SCORES), 2, -1).swapaxes(0, 1)
    (low, high), shape = np.moveaxis(ends, -1, 0), (len(SCORES), 1)
    first, last = low.reshape(shape), high.reshape(shape)
    deletion = np.concatenate([first, found[0], last], axis=-1)
    insertion = np.concatenate([last, found[1], first], axis=-1)
    correlation = mass_correlation(values, rank, deletion[0], removed)
    return np.stack([deletion, insertion]), figures(deletion, insertion, correlation, removed)


def _check_logits(store: Store, unit: Unit, images: range, there: Array, found: Array) -> None:
    """Refuse pictures of which the graph says something else than it did in the run."""
    if "logits" not in store:
        return
    known = store.read("logits", slice(images.start, images.stop))
    for i in there:
        off, extent = np.abs(found[i] - known[i]).max(), np.ptp(known[i])
        if off > APART * max(extent, 1e-6):
            raise AttlasError(
                f"{unit.items.keys[i]}: the graph's logits are not those of the run (off by {off:.2g}, of a range of "
                f"{extent:.2g}): the graph or the images are others than those that made {store.path}"
            )


def _write(store: Store, start: int, rows: dict[str, Array]) -> None:
    try:
        for name, block in rows.items():
            store.write(name, start, block)
    except OSError as error:
        raise AttlasError(
            f"{store.path}: cannot be written ({error.strerror or error}); what is done stays, run the same command "
            "again when it can be"
        ) from None


def portable(chosen: Sequence[Chosen]) -> Iterator[Chosen]:
    """Maps as other processes take them: rows are read by name, and formulas may be anything."""
    for one in chosen:
        if one.statistic is None:
            yield one
        else:
            bare = dataclasses.replace(one.statistic, formula=None, edges=None, kernels={}, given={})
            yield dataclasses.replace(one, statistic=bare)
