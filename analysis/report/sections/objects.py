"""What a report shows of objects: how well maps find their boxes, and how alike their tokens are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ....engine.store.store import Store
from ....words import counted
from ...formulas import boxes as formulas
from ...formulas.boxes import Box, Cover
from ...objects import Objects, find
from ...statistics.clusters import cluster_codes, cluster_of, said
from ...statistics.inference import interval
from ..facts import sample
from ..images import MAPS, example, map_of
from ..numbers import Floats, between
from ..plots.matrices import Matrices
from ..plots.measures import Measure
from ..plots.sheet import Panel
from ..text.markup import code
from .base import Absent, Cell, Context, Figure, Listing, Part, extent, keep

__all__ = ["objects"]

MOST = 12  # boxes of one picture that can still be told apart
LISTED = 10  # boxes that are left out, by name
BASELINES = ("uniform", "centre box")
MEASURES = ("mass in box", "pointing game", "overlap (IoU)")


def objects(context: Context) -> Iterator[Part]:
    """How well maps find the objects in a COCO file, how alike these are, and which boxes are left out."""
    if context.boxes is None:
        return
    store = context.store
    found, left_out = find(store, context.boxes)
    if found:
        yield _localisation(store, found)
        yield _similarity(store, found, context.images)
    else:
        yield Absent("Objects", "No box of this file lies in a valid image of the store.")
    if left_out:
        more = f", the first {LISTED} of {len(left_out):,}" if len(left_out) > LISTED else ""
        yield Listing(f"Boxes that are left out{more}:", left_out[:LISTED])


# -- localisation -----------------------------------------------------------------------------------------------------


def _localisation(store: Store, found: Sequence[Objects]) -> Figure | Absent:
    """How much better than a uniform map, and than a box in the middle, each map finds the objects."""
    title = "Where the objects are"
    scored: dict[str, list[list[tuple[float, ...]]]] = {}
    rows: list[tuple[Cell, ...]] = []
    for one in found:
        maps = {kind: map_of(store, one.image, kind) for kind in MAPS}
        path = str(store.read("path", one.image))
        for kind, values in maps.items():
            if values is not None:
                scored.setdefault(kind, []).append([_scores(values, cover) for cover in one.covers])
        scored.setdefault("uniform", []).append([_uniform(cover) for cover in one.covers])
        scored.setdefault("centre box", []).append(
            [_centre(box, one.crop, cover) for box, cover in zip(one.boxes, one.covers, strict=True)]
        )
        rows += [
            (path, number, kind, which, *scores[-1][number])
            for which, scores in scored.items()
            if which in BASELINES or maps[which] is not None
            for number, kind in enumerate(one.kinds)
        ]
    kinds = [kind for kind in (*MAPS, *BASELINES) if len(scored.get(kind, ())) == len(found)]
    if len(kinds) == len(BASELINES):
        return Absent(title, keep(store, "attention", "the maps of single images"))
    count = sum(len(one.boxes) for one in found)
    means = {kind: np.array([np.mean(image, axis=0) for image in scored[kind]]) for kind in kinds}
    names = {kind: MAPS[kind].heading.partition(",")[0] if kind in MAPS else kind for kind in kinds}
    clusters, in_clusters = _clusters(store, found)
    panels = [
        Measure(measure, tuple(_summed(names[kind], means[kind][:, i], clusters) for kind in kinds), len(BASELINES))
        for i, measure in enumerate(MEASURES)
    ]
    n = f"{sample(len(found), in_clusters)}, {count:,} objects"
    return Figure(
        name="localisation",
        title=title,
        caption="How well single maps find the objects' boxes: the share of the map's mass inside the box; how often "
        f"the map is largest in it (the pointing game, [@zhang2016]); the overlap of the box with the patches "
        "that hold 60 % of the mass. Dot: mean over images, each the mean of its objects; bar: 95 % interval over "
        "images. Grey, what knows nothing of the picture: a uniform map (for the overlap, the whole crop), and a "
        "box in the middle of the crop, which is told the object's size. A map that does no better than the centre "
        f"box has found where photographers put things. {n}.",
        alt=f"{n}. "
        + " ".join(
            f"{panel.title}: " + ", ".join(f"{name} {mean:.2f}" for name, mean, *_ in panel.values) + "."
            for panel in panels
        ),
        plots=panels,
        across=3,
        columns=("path", "object", "category", "map", "mass", "pointing", "iou"),
        rows=rows,
        methods=("localisation", *(MAPS[kind].method for kind in kinds if kind in MAPS), "intervals"),
    )


def _scores(values: Floats, cover: Cover) -> tuple[float, ...]:
    measured = formulas.box_mass, formulas.pointing_hit, formulas.box_jaccard
    return tuple(float(measure(values, cover)) for measure in measured)


def _uniform(cover: Cover) -> tuple[float, ...]:
    """Of a map that is the same everywhere: what chance would give."""
    covered = np.asarray(cover)
    return float(covered.mean()), float((covered >= 0.5).mean()), float(covered.mean())


def _centre(box: Box, crop: Box, cover: Cover) -> tuple[float, ...]:
    """Of a box of the same size in the middle of the crop."""
    middle = formulas.centre_box(box, crop)
    grid = len(cover), len(cover[0])
    mass = float(formulas.box_mass(np.asarray(formulas.cover(middle, crop, grid)), cover))
    y, x = (crop[0] + crop[2]) / 2, (crop[1] + crop[3]) / 2
    return mass, float(box[0] <= y <= box[2] and box[1] <= x <= box[3]), _overlap(box, middle)


def _overlap(a: Box, b: Box) -> float:
    """Intersection over union of two boxes."""
    both = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    return both / (sum((c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)) - both)


def _clusters(store: Store, found: Sequence[Objects]) -> tuple[npt.NDArray[np.int64] | None, dict[str, Any]]:
    """Which of these images depend on each other, and what captions say of it."""
    column, images = cluster_of(store), np.array([one.image for one in found])
    codes = cluster_codes([store], [images], column)
    return codes, said(column, codes)


def _summed(name: str, values: Floats, clusters: npt.NDArray[np.int64] | None) -> tuple[str, float, float, float]:
    mean = float(values.mean())
    # The mass of a map of both signs may be no share.
    low, high = interval(values, clusters=clusters, within=(0, 1) if 0 <= mean <= 1 else None)
    return name, mean, float(low), float(high)


# -- similarity -------------------------------------------------------------------------------------------------------


def _similarity(store: Store, found: Sequence[Objects], images: Any) -> Figure | Absent:
    """How alike the objects of a picture are to the model, by plain and by rollout-weighted mean tokens."""
    title = "How alike the objects are"
    if "tokens" not in store:
        return Absent(title, keep(store, "tokens", "the last block's tokens, which this needs,"))
    several = [one for one in found if len(one.boxes) > 1]
    if not several:
        return Absent(title, "No image shows two objects.")
    rows: list[tuple[Cell, ...]] = []
    plain, weighted = [], []
    for one in several:
        pair = _cosines(store, one)
        if pair is None:
            return Absent(title, keep(store, "attention", "rollout, by which tokens are weighed,"))
        at = np.triu_indices(len(one.boxes), 1)
        path = str(store.read("path", one.image))
        rows += [
            (path, int(i), one.kinds[i], int(j), one.kinds[j], float(pair[0][i, j]), float(pair[1][i, j]))
            for i, j in zip(*at, strict=True)
        ]
        plain.append(float(pair[0][at].mean()))
        weighted.append(float(pair[1][at].mean()))
    change = np.array(weighted) - np.array(plain)
    clusters, in_clusters = _clusters(store, several)
    low, high = (float(v) for v in interval(change, clusters=clusters))
    shown = next((one for one in several if len(one.boxes) <= MOST), several[0])
    panel, cosines = _picture(store, shown, images), _cosines(store, shown)
    assert cosines is not None
    kinds = ", ".join(f"{n} {kind}" for n, kind in enumerate(shown.kinds, 1))
    pairs = [("plain mean of its patches", cosines[0]), ("weighed by rollout", cosines[1])]
    n = f"{sample(len(several), in_clusters)}, with two objects or more"
    return Figure(
        name="object_similarity",
        title=title,
        caption="Cosine between the objects of one picture, each the mean of the last block's patch tokens in its box: "
        f"plain, and weighed by rollout. Shown: {code(str(store.read('path', shown.image)))}, "
        f"the first with two objects or more ({kinds}). Over all: {np.mean(plain):.3f} plain, "
        f"{np.mean(weighted):.3f} weighed; change {change.mean():+.4f} (95 % interval over images: "
        f"{between(low, high, '+.4f')}). Tokens after the last block hold much of the whole picture, so that cosines "
        f"are high even between unlike objects. {n}.",
        alt=f"A picture with {counted(len(shown.boxes), 'numbered box', 'numbered boxes')} and two matrices "
        "of cosines. Mean over images "
        f"{np.mean(plain):.3f} plain, {np.mean(weighted):.3f} weighed by rollout.",
        plots=[Matrices(panel, pairs)],
        columns=("path", "object", "category", "other", "other_category", "plain", "weighed"),
        rows=rows,
        methods=("objects", "rollout", "intervals"),
    )


def _cosines(store: Store, one: Objects) -> tuple[Floats, Floats] | None:
    """(object, object) by plain and by rollout-weighted mean tokens; None without rollout."""
    rollout = map_of(store, one.image, "rollout")
    if rollout is None:
        return None
    tokens = store.read("tokens", one.image).astype(np.float64)
    covers = list(one.covers)
    plain, weighted = (
        np.asarray(formulas.object_similarity(formulas.object_vectors(tokens, covers, weights)))
        for weights in (None, rollout)
    )
    return plain, weighted


def _picture(store: Store, one: Objects, images: Any) -> Panel:
    """The crop with its boxes, grey where the store has no picture of it."""
    (height, width), (top, left, bottom, right) = extent(store), one.crop
    y, x = height / (bottom - top), width / (right - left)
    boxes = tuple(((b[0] - top) * y, (b[1] - left) * x, (b[2] - top) * y, (b[3] - left) * x) for b in one.boxes)
    pixels = example(store, one.image, images).pixels
    values = np.full((height, width, 3), 190, np.uint8) if pixels is None else pixels
    return Panel("objects", values, (height, width), boxes=boxes)
