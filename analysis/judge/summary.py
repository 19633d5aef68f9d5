"""What a judgement says of a dataset: means with intervals, and paired differences between maps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...engine.store.store import Store
from ...errors import AttlasError, UsageError
from ..statistics.clusters import Codes, cluster_codes, cluster_of
from ..statistics.clusters import said as said_of
from ..statistics.inference import EQUAL, METHOD, Range, apart, interval, paired
from ..statistics.moments import Moments
from ..statistics.summary import Source, Summed, spec_of, texts
from .curves import FIGURES, RANGE, SCORE_RANGE, SCORES
from .maps import BASELINES
from .work import Judgement

__all__ = ["GROUPS", "Between", "Verdict", "between", "rows_by_map", "sum_up", "verdicts"]

type Floats = npt.NDArray[np.float64]
type Mask = npt.NDArray[np.bool_]

GROUPS = ("all", "right", "wrong")  # images; those whose predicted class is their label's, and is not
CURVES = ("deletion", "insertion")


@dataclass(frozen=True, slots=True)
class Verdict:
    """A judgement of a dataset, as the store holds it.

    Attributes:
        tag: what names it: the fill, and steps and target where they are not the usual.
        fill, steps, target: what was done.
        maps: their names; baselines come last.
        images: of each of `GROUPS`.
        mean: (group, map, figure), figures as in `curves.FIGURES`; NaN where a group has no image.
        bounds: (bound, group, map, figure), 95 %.
        difference: (group, map, other, figure), the mean over images of map minus other.
        difference_bounds: (bound, group, map, other, figure), 95 %, of the paired differences.
        curves: by name, (group, map, score, step); `curve_bounds`: (bound, group, map, score, step).
        removed: share of patches at each point of a curve: (step).
    """

    tag: str
    fill: str
    steps: int
    target: str
    maps: tuple[str, ...]
    images: tuple[int, ...]
    mean: Floats
    bounds: Floats
    difference: Floats
    difference_bounds: Floats
    curves: dict[str, Floats]
    curve_bounds: dict[str, Floats]
    removed: Floats


def sum_up(source: Source, task: Judgement) -> Verdict:
    """Sum up every map that was judged with the task's choices, write it into the store, all at once, and return it."""
    store = Store(source.store.path, writable=True)
    names = _complete(Source(store, source.done, source.mask), task.tag)
    groups = _groups(source)
    found = _summed(store, task, names, source, groups)
    store.add([spec_of(name, one) for name, one in found.items()], {name: one.values for name, one in found.items()})
    return _verdict(Store(store.path), task.tag)


def verdicts(store: Store) -> list[Verdict]:
    """Every judgement that a store holds, by tag."""
    tags = [name.removeprefix("judged_mean.") for name in store.names if name.startswith("judged_mean.")]
    return [_verdict(store, tag) for tag in tags]


def rows_by_map(store: Store, tag: str, what: str = "judged") -> dict[str, str]:
    """The arrays of rows per image of a judgement, by the name of the map."""
    start = f"{what}.{tag}."
    return {name.removeprefix(start): name for name in store.names if name.startswith(start)}


def _complete(source: Source, tag: str) -> list[str]:
    """The maps that were judged on all done units, baselines last."""
    store = source.store
    names = [name for name, array in rows_by_map(store, tag).items() if store.has_rows(array)[source.done].all()]
    return sorted(names, key=lambda name: (name in BASELINES, list(BASELINES).index(name) if name in BASELINES else 0))


def _groups(source: Source) -> list[Mask]:
    """Masks over all images of the store, as in `GROUPS`."""
    store, none = source.store, np.zeros_like(source.mask)
    if "logits" not in store:
        return [source.mask, none, none]
    label = store.read("label_class")
    hit = none.copy()
    for k in np.flatnonzero(source.done):
        span = store.plan.unit_range(int(k))
        at = slice(span.start, span.stop)
        hit[at] = store.read("logits", at).argmax(-1) == label[at]
    known = source.mask & (label >= 0)
    return [source.mask, known & hit, known & ~hit]


def _summed(
    store: Store, task: Judgement, names: Sequence[str], source: Source, groups: Sequence[Mask]
) -> dict[str, Summed]:
    """The arrays of the dataset by name."""
    tag, axis, step = task.tag, f"judged_map.{task.tag}", f"step_{task.steps}"
    said: dict[str, Any] = {"fill": task.fill, "steps": task.steps, "target": task.target, "units_judged": source.units}
    column, everyone = cluster_of(store), np.arange(store.plan.images)
    codes = cluster_codes([store], [everyone], column)
    drawn = {
        **said,
        "level": 0.95,
        "method": METHOD + EQUAL,
        **said_of(column, None if codes is None else codes[groups[0]]),
    }
    values = np.stack([store.read(f"judged.{tag}.{name}") for name in names], axis=1).astype(np.float64)
    mean, bounds = _by_group(values, groups, codes, RANGE)
    difference, difference_bounds = _paired(values, groups, codes)
    dims = ("judged_group", axis, "judged_figure")
    pairs = ("judged_group", axis, f"judged_other.{tag}", "judged_figure")
    found = {
        axis: Summed((axis,), texts(names), said),
        "judged_group": Summed(("judged_group",), texts(GROUPS), {}),
        "judged_figure": Summed(("judged_figure",), texts(FIGURES), {}),
        "judged_score": Summed(("judged_score",), texts(SCORES), {}),
        "bound": Summed(("bound",), texts(["lower", "upper"]), {}),
        f"judged_images.{tag}": Summed(("judged_group",), np.array([int(g.sum()) for g in groups]), said),
        f"judged_mean.{tag}": Summed(dims, mean, said),
        f"judged_interval.{tag}": Summed(("bound", *dims), bounds, drawn),
        f"judged_difference.{tag}": Summed(pairs, difference, said),
        f"judged_difference_interval.{tag}": Summed(("bound", *pairs), difference_bounds, drawn),
    }
    for curve in CURVES:
        rows = np.stack([store.read(f"{curve}.{tag}.{name}") for name in names], axis=1).astype(np.float64)
        mean, bounds = _by_group(rows, groups, codes, (SCORE_RANGE[0][:, None], SCORE_RANGE[1][:, None]))
        axes = ("judged_group", axis, "judged_score", step)
        found[f"{curve}_mean.{tag}"] = Summed(axes, mean, said)
        found[f"{curve}_interval.{tag}"] = Summed(("bound", *axes), bounds, drawn)
    return found


def _by_group(values: Floats, groups: Sequence[Mask], codes: Codes | None, within: Range) -> tuple[Floats, Floats]:
    """Mean (group, ...) and interval (bound, group, ...) of (image, ...) values; NaN is left out.

    `codes` are the clusters of the images, where they have some; `within` is the range of the values.
    """
    means = [Moments.of(values[mask]).average for mask in groups]
    clusters = [None if codes is None else codes[mask] for mask in groups]
    bounds = [interval(values[m], clusters=own, within=within) for m, own in zip(groups, clusters, strict=True)]
    return np.stack(means), np.stack([np.stack(pair) for pair in bounds], axis=1)


def _paired(values: Floats, groups: Sequence[Mask], codes: Codes | None) -> tuple[Floats, Floats]:
    """Of every pair of maps the difference image by image: (group, map, other, figure) and with bounds in front."""
    maps = values.shape[1]
    one, two = np.triu_indices(maps, 1)
    mean, bounds = _by_group(values[:, one] - values[:, two], groups, codes, apart(RANGE, RANGE))
    shape = (len(groups), maps, maps, values.shape[-1])
    whole, edges = np.zeros(shape), np.zeros((2, *shape))
    whole[:, one, two], whole[:, two, one] = mean, -mean
    edges[:, :, one, two], edges[:, :, two, one] = bounds, -bounds[::-1]
    return whole, edges


def _verdict(store: Store, tag: str) -> Verdict:
    said: Any = dict(store.array(f"judged_mean.{tag}").attrs)
    steps, patches = int(said["steps"]), store.spec.patches
    return Verdict(
        tag=tag,
        fill=str(said["fill"]),
        steps=steps,
        target=str(said["target"]),
        maps=tuple(map(str, store.read(f"judged_map.{tag}"))),
        images=tuple(int(n) for n in store.read(f"judged_images.{tag}")),
        mean=store.read(f"judged_mean.{tag}"),
        bounds=store.read(f"judged_interval.{tag}"),
        difference=store.read(f"judged_difference.{tag}"),
        difference_bounds=store.read(f"judged_difference_interval.{tag}"),
        curves={curve: store.read(f"{curve}_mean.{tag}") for curve in CURVES},
        curve_bounds={curve: store.read(f"{curve}_interval.{tag}") for curve in CURVES},
        removed=np.rint(np.linspace(0, patches, steps + 1)) / patches,
    )


# -- between models ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Between:
    """One map on two models, image by image.

    Attributes:
        map: its name; `figure`: of `curves.FIGURES`.
        images: that both stores hold.
        difference: the mean of the first model's minus the second's; `bounds`: its 95 % interval, (bound).
    """

    map: str
    figure: str
    images: int
    difference: float
    bounds: Floats


def between(first: Any, second: Any, *, tag: str = "mean") -> list[Between]:
    """Paired differences of two models, of every map that both were judged with, over the images of equal paths.

    Only probabilities and correlations are compared: a logit has another scale in every model. Images that depend on
    each other count as clusters, where an analysis of the first store said so.

    Args:
        first: a store that `judge` has judged.
        second: another, such as of another model.
        tag: which judgement, as in `Verdict.tag`.

    Raises:
        AttlasError: one was not judged so.
        UsageError: they have no image in common.
    """
    stores = [Store(first), Store(second)]
    for store in stores:
        if f"judged_mean.{tag}" not in store:
            raise AttlasError(f"{store.path}: holds no judgement {tag}; `attlas judge` makes it")
    places = [{str(path): i for i, path in enumerate(store.read("path"))} for store in stores]
    both = [path for path in places[0] if path in places[1]]
    if not both:
        raise UsageError(f"{stores[0].path} and {stores[1].path} have no image in common")
    at = [np.array([own[path] for path in both]) for own in places]
    codes = cluster_codes(stores[:1], at[:1], cluster_of(stores[0]))
    maps = [tuple(map(str, store.read(f"judged_map.{tag}"))) for store in stores]
    found: list[Between] = []
    for name in (name for name in maps[0] if name in maps[1]):
        one, two = (store.read(f"judged.{tag}.{name}")[own] for store, own in zip(stores, at, strict=True))
        found += _between(name, one, two, codes)
    return found


def _between(name: str, one: npt.NDArray[Any], two: npt.NDArray[Any], codes: Codes | None) -> Iterator[Between]:
    for place, figure in enumerate(FIGURES):
        if figure.endswith("logit"):
            continue
        there = ~np.isnan(one[:, place]) & ~np.isnan(two[:, place])
        if there.any():
            own, within = None if codes is None else codes[there], (RANGE[0][place], RANGE[1][place])
            found = paired(one[there, place], two[there, place], clusters=own, within=within)
            bounds = np.array([found.low, found.high])
            yield Between(name, figure, int(there.sum()), float(found.difference), bounds)
