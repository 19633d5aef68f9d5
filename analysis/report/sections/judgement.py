"""Which map is better? What a judgement of the store's maps found, where `attlas judge` has made one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ....engine.store.store import Store
from ....words import counted
from ...statistics.clusters import cluster_of
from ..images import example
from ..numbers import Floats, between
from ..plots.curves import Curves, Line
from ..plots.pictures import Column, Pictures, Row
from ..plots.style import INK, POINTS, QUIET, SERIES
from .base import Cell, Context, Figure, Listing, Part, Table, extent

if TYPE_CHECKING:
    from ...judge import Verdict

__all__ = ["judgement"]

BASELINES = ("uniform", "centre", "random")
GREYS = dict(zip(BASELINES, (POINTS, INK, QUIET), strict=True))
SHOWN = ("deletion_probability", "insertion_probability", "difference_probability")
MOST = 10  # images on which maps disagree; heads without which most is lost
SILENCES = {"zero": "nothing", "mean": "what it writes on average"}  # what stands in place of a head


def judgement(context: Context) -> Iterator[Part]:
    """Of every choice of fill, steps and target: curves, differences, where maps disagree; masks, boxes and heads."""
    if any(name.startswith("judged_mean.") for name in context.store.names):
        yield from _judged(context)
    if "segmentation_mean" in context.store:
        yield _segmentation(context.store)
    if "localisation_mean" in context.store:
        yield _localisation(context.store)
    for silence in SILENCES:
        if f"judged_heads_mean.{silence}" in context.store:
            yield _heads(context.store, silence)


def _judged(context: Context) -> Iterator[Part]:
    from ...judge import verdicts  # which needs onnxruntime

    found = verdicts(context.store)
    if (note := _stale(context.store, [verdict.tag for verdict in found])) is not None:
        yield note
    for verdict in found:
        yield _curves(verdict)
        yield _areas(verdict)
        yield _differences(verdict)
    # The fill that is usual, or the first.
    main = next((one for one in found if one.tag == "mean"), found[0])
    if (figure := _disagreement(context, main)) is not None:
        yield figure


def _stale(store: Store, tags: Sequence[str]) -> Listing | None:
    """What is said where intervals are over other samples than those of the other figures."""
    column = cluster_of(store)
    of = {tag: str(dict[str, Any](store.array(f"judged_interval.{tag}").attrs).get("cluster", "")) for tag in tags}
    other = [
        f"{tag}: over {f'clusters by {name}' if name else 'single images'}"
        for tag, name in of.items()
        if name != column
    ]
    if not other:
        return None
    now = f"clusters by {column}" if column else "single images"
    return Listing(f"The other figures' intervals are over {now}, these are not; judging again mends it:", other)


def _named(verdict: Verdict) -> str:
    """What was done, in words."""
    fill = {
        "mean": "by the mean colour",
        "blur": "by the blurred picture",
        "black": "by black",
        "noise": "by noisy linear imputation",
    }[verdict.fill]
    aim = {"predicted": "predicted class", "label": "label's class"}.get(verdict.target, f"class {verdict.target}")
    return f"Patches replaced {fill} in {counted(verdict.steps, 'step')}; probability of the {aim}"


def _n(verdict: Verdict) -> str:
    return f"n = {counted(verdict.images[0], 'image')}"


def _curves(verdict: Verdict) -> Figure:
    """Deletion and insertion, a line for each map."""
    colours = dict(zip([m for m in verdict.maps if m not in BASELINES], itertools.cycle(SERIES), strict=False)) | GREYS
    plots, rows = [], list[tuple[Cell, ...]]()
    for curve, words in (
        ("deletion", "removed, largest values first"),
        ("insertion", "inserted, largest values first"),
    ):
        mean, bounds = verdict.curves[curve][0, :, 1], verdict.curve_bounds[curve][:, 0, :, 1]
        lines = []
        for i, name in enumerate(verdict.maps):
            own = name not in BASELINES  # bands of all would hide each other
            low, high = bounds[:, i] if own else (mean[i], mean[i])
            lines.append(Line(name, colours[name], verdict.removed, mean[i], low, high, baseline=not own))
        plots.append(Curves(curve, "probability", lines, None, depth=f"share of patches {words}"))
        rows += [
            (curve, name, float(share), float(mean[i, at]), float(bounds[0, i, at]), float(bounds[1, i, at]))
            for i, name in enumerate(verdict.maps)
            for at, share in enumerate(verdict.removed)
        ]
    area = _figure(verdict, "difference_probability")
    return Figure(
        name=f"judgement-{verdict.tag}",
        title="Which map is better?",
        caption=f"{_named(verdict)}, mean over images and its 95 % interval (band). Of a map that finds what the model "
        "uses the left curve falls early and the right one rises early. Dotted: maps that know nothing of the picture; "
        "a map has to beat the centre, where photographers put things. Pictures without patches are unlike any that "
        f"the model was trained on, and another fill gives other curves. {_n(verdict)}.",
        alt="Area between insertion and deletion: "
        + ", ".join(f"{name} {value:.3f}" for name, value in zip(verdict.maps, area, strict=True))
        + ".",
        plots=plots,
        columns=("curve", "map", "share", "mean", "low", "high"),
        rows=rows,
        methods=("faithfulness", "intervals"),
    )


def _place(figure: str) -> int:
    from ...judge.curves import FIGURES

    return FIGURES.index(figure)


def _figure(verdict: Verdict, figure: str) -> Floats:
    return np.asarray(verdict.mean[0, :, _place(figure)])


def _areas(verdict: Verdict) -> Table:
    """Every map's figures, and the areas' difference split by right and wrong predictions."""
    columns = [(0, _place(name)) for name in (*SHOWN, "correlation")]
    split = {1: "right", 2: "wrong"} if all(verdict.images[1:]) else {}  # else the column of one is that of all images
    columns += [(group, _place("difference_probability")) for group in split]
    rows = [
        (name, *(_number(verdict.mean[g, i, f], verdict.bounds[:, g, i, f]) for g, f in columns))
        for i, name in enumerate(verdict.maps)
    ]
    _, right, wrong = verdict.images
    caption = (
        f"{_named(verdict)}: areas under the curves, their difference (insertion less deletion: larger is better), and "
        "the correlation over steps of the map's mass with the logit's drop; 95 % intervals over images. "
    )
    if split:
        caption += (
            f"The last two columns are of the {right:,} images that were classified right, and of the {wrong:,} that "
            "were not, of whose class a map may well find nothing. "
        )
    caption += f"{_n(verdict)}."
    head = (
        "map",
        "deletion",
        "insertion",
        "difference",
        "correlation",
        *(f"difference, {of}" for of in split.values()),
    )
    return Table(caption, head, rows)


def _differences(verdict: Verdict) -> Table:
    """Paired differences of every map from every other, and from the baselines."""
    own = [i for i, name in enumerate(verdict.maps) if name not in BASELINES]
    others = [i for i, name in enumerate(verdict.maps) if name in BASELINES]
    pairs = [*itertools.combinations(own, 2), *itertools.product(own, others)]
    rows = []
    for i, j in pairs:
        cells = [
            _number(verdict.difference[0, i, j, f], verdict.difference_bounds[:, 0, i, j, f], sign=True)
            for f in map(_place, SHOWN)
        ]
        rows.append((f"{verdict.maps[i]} less {verdict.maps[j]}", *cells))
    caption = (
        f"{_named(verdict)}: differences between two maps, taken image by image, with 95 % intervals; {_n(verdict)}. "
        "An interval that holds 0 leaves open which of the two is better."
    )
    return Table(caption, ("maps", "deletion", "insertion", "difference"), rows)


def _number(mean: Any, bounds: Any, *, sign: bool = False) -> str:
    form = "+z.3f" if sign else "z.3f"  # z: no -0.000
    return "–" if np.isnan(mean) else f"{mean:{form}} ({between(bounds[0], bounds[1], form)})"


# -- where maps disagree ----------------------------------------------------------------------------------------------


def _disagreement(context: Context, verdict: Verdict) -> Figure | None:
    """The images on which the area between the curves differs most between maps."""
    from ...judge.maps import stored
    from ...judge.summary import rows_by_map

    store = context.store
    arrays = rows_by_map(store, verdict.tag)
    known = {
        name: one
        for name in verdict.maps
        if (one := stored(store, name, dict(store.array(arrays[name]).attrs))) is not None
    }
    if len(known) < 2:
        return None
    place = _place("difference_probability")
    areas = np.stack([store.read(arrays[name])[:, place].astype(np.float64) for name in known])
    extent_of = np.ptp(areas, axis=0)
    usable = np.flatnonzero(np.isfinite(extent_of))
    if context.images is None:
        usable = np.intersect1d(usable, store.plan.sample)  # only these have pictures
    picked = [int(i) for i in usable[np.argsort(-extent_of[usable], kind="stable")][:MOST]]
    if not picked:
        return None
    rows = [_row(context, store, image, known, areas[:, image]) for image in picked]
    numbers: list[tuple[Cell, ...]] = [
        (str(store.read("path", image)), name, float(areas[at, image]))
        for image in picked
        for at, name in enumerate(known)
    ]
    among = "of the store's sample" if context.images is None else "of the dataset"
    return Figure(
        name="judgement-disagreement",
        title="Where maps disagree most",
        caption=f"Chosen after looking: the {len(picked)} images {among} on which the area between insertion and "
        f"deletion differs most between maps ({_named(verdict).lower()}); n = 1 image each. Above each picture the "
        "areas, in the order of the columns.",
        alt="; ".join(f"{path} {name} {float(value):.2f}" for path, name, value in numbers) + ".",
        plots=[Pictures(rows, [Column(_wrapped(name), "× mean") for name in known], extent(store), store.spec.grid)],
        columns=("path", "map", "difference_probability"),
        rows=numbers,
        methods=("faithfulness",),
    )


def _row(context: Context, store: Store, image: int, known: Any, areas: Floats) -> Row:
    one = example(store, image, context.images)
    values: Sequence[Floats] = [chosen.read(store, range(image, image + 1))[0] for chosen in known.values()]
    scaled = tuple(v / v.mean() if v.mean() > 0 else v for v in values)
    title = f"{', '.join(f'{area:+.2f}' for area in areas)} · {one.title}"
    return Row(title, one.pixels, scaled)


def _wrapped(name: str) -> str:
    """A map's name on two lines, where it has parameters."""
    base, dot, rest = name.partition(".")
    return f"{base}\n{rest}" if dot else f"{base}\n"


# -- masks, boxes and heads --------------------------------------------------------------------------------------------


def _segmentation(store: Store) -> Table:
    """Every map against masks."""
    said: Any = store.array("segmentation_mean").attrs
    caption = (
        "Maps against masks of the objects, by the protocol of Chefer, Gur and Wolf 2021: a map says object above its "
        "own mean. 95 % intervals over images. A large object makes every map look good: read the centre and the "
        f"uniform map first. n = {counted(int(said['images']), 'image')}."
    )
    return _outlined(store, "segmentation", caption)


def _localisation(store: Store) -> Table:
    """Every map against boxes."""
    said: Any = store.array("localisation_mean").attrs
    caption = (
        "Maps against boxes of the objects: how often the map is largest in a patch that lies in the box at least by "
        "half (the pointing game), and the share of the map's mass inside (energy); of an image the mean of its "
        "objects. 95 % intervals over images. A large object makes every map look good: read the centre and the "
        f"uniform map first. n = {counted(int(said['images']), 'image')}, {counted(int(said['objects']), 'object')}."
    )
    return _outlined(store, "localisation", caption)


def _outlined(store: Store, kind: str, caption: str) -> Table:
    """Every map by what people have outlined."""
    maps, figures = store.read(f"{kind}_map"), [str(name) for name in store.read(f"{kind}_figure")]
    mean, bounds = store.read(f"{kind}_mean"), store.read(f"{kind}_interval")
    rows = [
        (str(name), *(_number(mean[i, f], bounds[:, i, f]) for f in range(len(figures)))) for i, name in enumerate(maps)
    ]
    return Table(caption, ("map", *(name.replace("_", " ") for name in figures)), rows)


def _heads(store: Store, silence: str) -> Table:
    """The heads without which most is lost."""
    mean, bounds = store.read(f"judged_heads_mean.{silence}"), store.read(f"judged_heads_interval.{silence}")
    order = np.argsort(-mean[..., 0], axis=None, kind="stable")[:MOST]
    rows = []
    for at in order:
        layer, head = divmod(int(at), mean.shape[1])
        cells = [_number(mean[layer, head, f], bounds[:, layer, head, f], sign=True) for f in range(mean.shape[2])]
        rows.append((f"layer {layer}, head {head}", *cells))
    rank = ""
    if (name := f"judged_heads_rank.{silence}") in store:
        value, edges = store.read(name)[0], store.read(f"judged_heads_rank_interval.{silence}")[:, 0]
        rank = " Spearman's correlation of the logit's drop with first-order importance over all heads: "
        rank += f"{_number(value, edges, sign=True)}."
    said: Any = store.array(f"judged_heads_mean.{silence}").attrs
    caption = (
        f"What the model loses without a head, in whose place stands {SILENCES[silence]}: the {len(rows)} of "
        f"{mean.shape[0] * mean.shape[1]} heads with the largest drop of the predicted class's logit; the divergence "
        "of the class probabilities from those of the whole model, in nats; and the drop in accuracy. 95 % intervals "
        f"over images.{rank} n = {counted(int(said['images']), 'image')}."
    )
    return Table(caption, ("head", "logit", "divergence", "accuracy"), rows)
