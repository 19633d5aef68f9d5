"""What a judgement has to do: which maps, of which units, and what is there already."""

from __future__ import annotations

import dataclasses
import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...arguments import Where
from ...engine.again import check_graph, image_items
from ...engine.sources import Items, Source
from ...engine.sources.files import expanded, is_url
from ...engine.store.storage import Url
from ...engine.store.store import ArraySpec, Store
from ...engine.targets import choose
from ...errors import AttlasError, UsageError
from ...words import counted
from ..catalog import CATALOG
from ..objects import Objects, required
from ..statistic import Statistic
from ..statistics.analysis import analyze
from ..statistics.summary import Source as Units
from . import segmentation
from .fills import FILLS
from .maps import OTHER, Chosen, baselines, chosen
from .work import Judgement, portable, rows_of

__all__ = ["Choice", "File", "Mask", "Plan", "absolute", "lacking_units", "planned"]

type File = str | os.PathLike[str]
type Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Choice:
    """The arguments of `judge` that say what is judged, and how."""

    maps: Sequence[str | Statistic] | str | Statistic
    steps: int
    fill: str
    target: str
    other: Where | None
    masks: File | None
    boxes: File | None
    provider: str
    overwrite: bool


@dataclass
class Plan:
    """What is to be done.

    Attributes:
        source: the store, its done units and valid images.
        task: for its workers; `masks`: the folder of masks, or None.
        images: where pictures are read; `items`: the store's, in order; `targets`: (image), as of `targets.choose`.
        objects: by the boxes, or None without.
        lacking: units without rows, by the name of the map.
        notes: what the user should know.
    """

    source: Units
    task: Judgement
    images: Source
    items: Items
    targets: npt.NDArray[np.int64]
    lacking: dict[str, Mask]
    masks: Path | None = None
    objects: list[Objects] | None = None
    notes: list[str] = field(default_factory=list)


def planned(store: Store, graph: File, images: File | Source, choice: Choice) -> Plan:
    """Everything that can be refused is refused here, before any picture is read; errors as in `judge`."""
    spec = check_graph(store, graph)
    if spec.output("logits") is None:
        raise UsageError(f"{graph}: has no classes, so that there is no logit to follow")
    if not 2 <= choice.steps <= spec.patches:
        raise UsageError(f"--steps {choice.steps}: from 2 to {spec.patches}, the number of patches")
    if choice.fill not in FILLS:
        raise UsageError(f"--fill {choice.fill}: there are {', '.join(FILLS)}")
    source, items = image_items(store, images)
    targets = choose(choice.target, spec, items.labels)
    asked = chosen(store, choice.maps)
    second = _second(store, choice.other) if choice.other is not None else None
    masks = Path(expanded(choice.masks, "masks")) if choice.masks is not None else None
    if masks is not None:
        segmentation.check_masks(store, masks, Units.of(store).mask)
    objects, left_out = _objects(store, choice.boxes)
    _compute(store, asked)
    every = [*asked, *baselines()]
    if second is not None:
        _compute(second, asked)
        theirs = [Chosen(f"{OTHER}{one.name}", one.statistic, one.layer, one.head, other=True) for one in asked]
        every[len(asked) : len(asked)] = theirs
    task = Judgement(
        absolute(store.path),
        absolute(graph),
        "" if second is None else absolute(second.path),
        tuple(portable(every)),
        choice.fill,
        choice.steps,
        choice.target,
        choice.provider,
        None,
        uuid.uuid4().hex,
    )
    store = Store(store.path, writable=True)  # with the rows that were made
    _refuse_other(store, second, task)
    _lay_out(store, task, second, masked=masks is not None)
    found, again = Units.of(Store(store.path, writable=True)), choice.overwrite
    lacking = {one.name: lacking_units(found, task.array("judged", one.name), again) for one in task.maps}
    plan = Plan(found, task, source, items, targets, lacking, masks, notes=_differing(store, asked, targets))
    plan.objects = objects
    if left_out:
        plan.notes.append(
            f"--boxes: {counted(len(left_out), 'box is', 'boxes are')} left out; the first: {left_out[0]}"
        )
    if spec.gradients:
        plan.notes.append(
            f"{Path(graph).name} has gradients, and gives logits at less than half the speed of a graph without; one "
            "of the same weights (`attlas export` without --gradients) judges the same maps"
        )
    return plan


def _lay_out(store: Store, task: Judgement, second: Store | None, *, masked: bool) -> None:
    """The arrays of rows that are not there."""
    templates = [rows for one in task.maps for rows in rows_of(task, one)]
    templates += [segmentation.rows_of(one) for one in task.maps] if masked else []
    fresh = [ArraySpec.from_template(rows, store.plan) for rows in templates if rows.name not in store]
    if fresh:
        store.add([_of_second(one, second) for one in fresh])


def _objects(store: Store, boxes: File | None) -> tuple[list[Objects] | None, list[str]]:
    """The objects of the store's images, and the boxes that are left out."""
    return (None, []) if boxes is None else required(boxes, [store])


def _second(store: Store, other: Where) -> Store:
    """A second store of the same images and patches."""
    second = Store(other, writable=True)
    where = second.path
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


def lacking_units(found: Units, array: str, overwrite: bool) -> Mask:
    """The done units without rows of an array; all of them to overwrite it."""
    return found.done.copy() if overwrite else found.done & ~found.store.has_rows(array)


def _differing(store: Store, maps: Sequence[Chosen], targets: npt.NDArray[np.int64]) -> list[str]:
    """A note where maps follow the gradient of another class than the one that is judged."""
    weighs = [
        one.name
        for one in maps
        if one.statistic is not None and {"gradient", "weighted", "positive"} & set(one.statistic.needs)
    ]
    if not weighs or "target" not in store or "logits" not in store:
        return []
    source = Units.of(store)
    theirs = store.read("target")
    ours = targets.copy()
    for k in np.flatnonzero(source.done):
        span = store.plan.unit_range(int(k))
        at = slice(span.start, span.stop)
        ours[at] = np.where(ours[at] < 0, store.read("logits", at).argmax(-1), ours[at])
    other = int((source.mask & (theirs != ours)).sum())
    if not other:
        return []
    return [
        f"{', '.join(weighs)}: of {counted(other, 'image')} the run's gradients are of another class than is judged"
    ]


def absolute(path: File | Url) -> str:
    """A path as other processes find it; a URL as it is."""
    text = os.fspath(path)
    return text if is_url(text) else os.path.abspath(text)  # noqa: PTH100 - links stay as they are named
