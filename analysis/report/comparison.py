"""Several stores side by side: on the images they share, in units that compare across models."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ...engine.plan import spread
from ...engine.store import Store
from .. import formulas
from ..statistics.moments import Moments, interval
from . import figures, rasters
from .exhibits import Absent, Exhibit, extent
from .facts import Facts
from .methods import cite
from .pictures import MAPS, example, map_of

__all__ = ["compare", "named"]

Floats = npt.NDArray[np.floating[Any]]


def compare(
    stores: Sequence[Store], facts: Sequence[Facts], examples: int = 0, images: Any = None
) -> tuple[list[Exhibit | Absent], str]:
    """The figures of all stores together, and HTML with their paired differences from the first.

    Args:
        stores: the first is what the others are compared with.
        facts: of each store.
        examples: how many pictures are shown with the maps of every store.
        images: the folder of the originals, for pictures that are in no store's sample.
    """
    chosen, paired = _images(stores)
    if paired:
        n = f"The same n = {len(chosen[0]):,} images in every store, matched by path"
    else:
        counts = ", ".join(f"{f.letter} n = {f.valid:,}" for f in facts)
        n = f"The stores share no images by path, so each is on its own: {counts} images"
    shown: list[Exhibit | Absent] = []
    lines: list[str] = []
    for name, title, unit, text in _FIGURES:
        exhibit, rows = _one(stores, facts, chosen, name, title, unit, f"{text} {n}.")
        shown.append(exhibit)
        if paired and rows is not None:
            found = _paired_lines(stores, facts, rows)
            if found:
                shown.append(_paired_exhibit(found, facts, name, title, unit, f"{n}."))
            lines += _differences(facts, name, unit, rows)
    if paired and examples:
        shown += _pictures(stores, facts, chosen, examples, images)
    return shown, _table(lines, len(chosen[0])) if lines else ""


_FIGURES = (
    (
        "distance_renormalized", "Attention distance over relative depth", "image widths",
        "Mean attention distance among patches, rows renormalised, divided by the input's width "
        f"({cite('park2023')}).",
    ),
    (
        "entropy", "Attention entropy over relative depth", "of ln N",
        "Mean entropy of attention rows over all keys, divided by the logarithm of the number of tokens: 1 is uniform.",
    ),
)  # fmt: skip


def _images(stores: Sequence[Store]) -> tuple[list[npt.NDArray[np.int64]], bool]:
    """The images of each store to use: the ones all share, in one order; else each store's own valid ones."""
    found = []
    for store in stores:
        usable = np.flatnonzero(store.done_images & store.read("valid").astype(bool))
        paths = store.read("path")
        found.append({str(paths[i]): int(i) for i in usable})
    common = sorted(set(found[0]).intersection(*found[1:]))
    if common:
        return [np.array([index[path] for path in common], np.int64) for index in found], True
    return [np.array(sorted(index.values()), np.int64) for index in found], False


def _scale(store: Store, name: str) -> float:
    return 1 / store.spec.image_size[1] if name == "distance_renormalized" else 1 / math.log(store.spec.tokens)


def _read(store: Store, name: str, images: npt.NDArray[np.int64]) -> tuple[Floats, Floats]:
    """A statistic of the chosen images in units that compare: over heads (image, layer), over images (layer, head).

    It is read a unit at a time; what stays in memory is one number an image and layer.
    """
    rows = np.full((store.plan.images, len(store.spec.layers)), np.nan)
    wanted = np.zeros(store.plan.images, np.bool_)
    wanted[images] = True
    total: Moments | None = None
    for k in np.flatnonzero(store.done):
        part = store.plan.unit_range(int(k))
        at = slice(part.start, part.stop)
        values = store.read(name, at).astype(np.float64) * _scale(store, name)
        count = np.isfinite(values).sum(axis=2)
        rows[at] = np.where(count > 0, np.nansum(values, axis=2) / np.maximum(count, 1), np.nan)
        moments = Moments.of(values[wanted[at]])
        total = moments if total is None else total + moments
    assert total is not None
    return rows[images], total.average


def _one(
    stores: Sequence[Store], facts: Sequence[Facts], chosen: Sequence[npt.NDArray[np.int64]], name: str, title: str,
    unit: str, caption: str,
) -> tuple[Exhibit | Absent, list[Floats] | None]:  # fmt: skip
    lacking = [f.letter for store, f in zip(stores, facts, strict=True) if name not in store]
    if lacking:
        return Absent(title, f"Store {', '.join(lacking)} has no <code>{name}</code>."), None
    lines, rows, numbers = [], [], list[tuple[str | int | float, ...]]()
    for store, one, images in zip(stores, facts, chosen, strict=True):
        by_image, heads = _read(store, name, images)
        mean, (low, high) = Moments.of(by_image).average, interval(by_image)
        x = (np.asarray(store.spec.layers, float) + 1) / store.spec.depth
        lines.append(figures.Line(named(one, facts), x, mean, low, high, heads, one.baseline))
        rows.append(by_image)
        numbers += [
            (one.letter, int(layer), float(x[i]), float(mean[i]), float(low[i]), float(high[i]))
            for i, layer in enumerate(store.spec.layers)
        ]
    references = {round(_uniform(store, name), 6) for store in stores}
    reference = references.pop() if len(references) == 1 else None
    told = "; ".join(f"{line.label} from {line.mean[0]:.3g} to {line.mean[-1]:.3g}" for line in lines)
    dashed = f" Dashed: uniform attention, {reference:.3g}." if reference is not None else ""
    return Exhibit(
        name=f"compare_{name}", title=title, wide=False, alt=f"{title}, {unit}: {told}.",
        caption=f"{caption} Line: mean over heads and images; band: its 95 % bootstrap interval over images; dots: "
        f"heads.{dashed}",
        draw=lambda narrow: figures.curves(lines, name, unit, reference, narrow=narrow),
        columns=("store", "layer", "relative_depth", "mean", "low", "high"), rows=numbers,
        methods=("comparison", name, "bootstrap"),
    ), rows  # fmt: skip


def _uniform(store: Store, name: str) -> float:
    if name == "entropy":
        return 1.0
    return formulas.uniform_distance(store.spec.grid, store.spec.patch_size) * _scale(store, name)


def named(one: Facts, facts: Sequence[Facts], after: str = "  ") -> str:
    """A store in a legend: its letter, its model, and where that is not enough its own name."""
    alone = sum(other.spec.name == one.spec.name for other in facts) == 1
    return f"{one.letter}{after}{one.spec.name}" + ("" if alone else f", {one.name.removesuffix('.zarr')}")


def _paired_lines(stores: Sequence[Store], facts: Sequence[Facts], rows: Sequence[Floats]) -> list[figures.Line]:
    """Every store less the first, image by image, at the relative depths of the shallower of the two."""
    depths = [(np.asarray(store.spec.layers, float) + 1) / store.spec.depth for store in stores]
    found = []
    for one, x, values in list(zip(facts, depths, rows, strict=True))[1:]:
        grid = min((x, depths[0]), key=len)
        if len(grid) < 2:
            continue
        difference = _at(values, x, grid) - _at(rows[0], depths[0], grid)
        low, high = interval(difference)
        label = f"{one.letter} − {facts[0].letter}"
        found.append(figures.Line(label, grid, Moments.of(difference).average, low, high, None, one.baseline))
    return found


def _at(values: Floats, x: Floats, grid: Floats) -> Floats:
    """(image, layer) values between layers, at other relative depths."""
    if x.shape == grid.shape and np.array_equal(x, grid):
        return values
    right = np.clip(np.searchsorted(x, grid), 1, len(x) - 1)
    share = np.clip((grid - x[right - 1]) / (x[right] - x[right - 1]), 0, 1)
    between: Floats = values[:, right - 1] * (1 - share) + values[:, right] * share
    return between


def _paired_exhibit(
    lines: list[figures.Line], facts: Sequence[Facts], name: str, title: str, unit: str, n: str
) -> Exhibit:
    first = facts[0]
    told = "; ".join(
        f"{line.label} from {float(line.mean.min()):+.3g} to {float(line.mean.max()):+.3g}" for line in lines
    )
    return Exhibit(
        name=f"compare_{name}_difference", title=f"{title}: difference from {first.letter}", wide=False,
        alt=f"Paired differences of {name}, {unit}: {told}.",
        caption=f"Difference from {first.letter} ({html.escape(first.spec.name)}) in {unit}, image by image, of the "
        "mean over heads; line: mean over images, band: its 95 % bootstrap interval over images. Where blocks differ "
        f"in number, the deeper model is read between its layers. {n}",
        draw=lambda narrow: figures.curves(lines, f"{name}, difference", unit, 0.0, narrow=narrow),
        columns=("difference", "relative_depth", "mean", "low", "high"),
        rows=[
            (line.label, *(float(v[i]) for v in (line.x, line.mean, line.low, line.high)))
            for line in lines for i in range(len(line.x))
        ],
        methods=("comparison", name, "bootstrap"),
    )  # fmt: skip


def _pictures(
    stores: Sequence[Store], facts: Sequence[Facts], chosen: Sequence[npt.NDArray[np.int64]], count: int, images: Any
) -> list[Exhibit | Absent]:
    """The same pictures through every store, one figure a kind of map that all of them can give."""
    sample = np.flatnonzero(np.isin(chosen[0], stores[0].plan.sample) | (images is not None))
    at = [int(sample[i]) for i in spread(len(sample), count)] if sample.size else []
    found: list[Exhibit | Absent] = []
    legend = "; ".join(html.escape(named(f, facts)) for f in facts)
    if not at:
        return found
    own = [[example(store, int(index[i]), images) for i in at] for store, index in zip(stores, chosen, strict=True)]
    for kind, how in MAPS.items():
        maps = [[map_of(store, one.image, kind) for one in row] for store, row in zip(stores, own, strict=True)]
        if any(values is None for row in maps for values in row):
            continue
        rows, numbers = [], list[tuple[str | int | float, ...]]()
        for place, one in enumerate(own[0]):
            panels = [] if one.pixels is None else [rasters.Panel("", one.pixels, extent(stores[0]))]
            for store, row, f in zip(stores, maps, facts, strict=True):
                values = row[place]
                assert values is not None
                panels.append(rasters.Panel("", values, extent(store)))
                numbers += [(one.path, f.letter, *cell, float(v)) for cell, v in np.ndenumerate(values)]
            said = [f"{f.letter}: {row[place].predicted} ({row[place].probability:.2f})"
                    for f, row in zip(facts, own, strict=True) if row[place].predicted]  # fmt: skip
            known = [f"label {one.truth}"] if one.truth else []
            rows.append(rasters.Row(" · ".join(said + known) or one.path, tuple(panels)))
        pictured = [] if own[0][0].pixels is None else [f"input,\nas {facts[0].letter} saw it"]
        unit = "uniform attention" if kind == "attention" else "their mean over patches"
        title = how.heading.partition(",")[0]
        headings = [*pictured, *(f"{f.letter}{' (baseline)' if f.baseline else ''}" for f in facts)]
        labels = [*(None for _ in pictured), *(how.unit for _ in facts)]
        root = [*(False for _ in pictured), *(how.root for _ in facts)]
        found.append(
            Exhibit(
                name=f"compare_{kind}", title=f"The same pictures: {title}",
                caption=f"{len(at)} images that all stores share, evenly spread over the sample of {facts[0].letter} "
                f"by order alone; above each what every model said of it. Maps are divided by {unit}, on one scale. "
                f"Recipes may crop differently. {legend}. n = 1 image each.",
                alt=f"{len(at)} pictures with the {title} of {len(stores)} stores: "
                + "; ".join(row.title for row in rows) + ".",
                draw=_drawn(rows, headings, labels, root), columns=("path", "store", "y", "x", "times_uniform"),
                rows=numbers, methods=(how.method,),
            )
        )  # fmt: skip
    return found


def _drawn(
    rows: list[rasters.Row], headings: list[str], labels: list[str | None], root: list[bool]
) -> Callable[[bool], Any]:
    return lambda narrow: rasters.picture_rows(rows, headings, labels, narrow=narrow, root=root, shared=True)


def _differences(facts: Sequence[Facts], name: str, unit: str, rows: Sequence[Floats]) -> list[str]:
    """Every store against the first, image by image, of the mean over layers and heads: rows of an HTML table."""
    whole = [_mean_layers(r) for r in rows]
    lines = []
    for one, values in list(zip(facts, whole, strict=True))[1:]:
        difference = values - whole[0]
        low, high = interval(difference)
        lines.append(
            f'<tr><th scope="row">{one.letter} − {facts[0].letter}</th>'
            f"<td><code>{html.escape(name)}</code>, {unit}</td>"
            f"<td>{float(np.nanmean(difference)):+.3g}</td><td>{float(low):+.3g} to {float(high):+.3g}</td></tr>"
        )
    return lines


def _table(lines: Sequence[str], n: int) -> str:
    head = "".join(f'<th scope="col">{text}</th>' for text in ("statistic", "difference", "95 % interval"))
    return (
        f'<div class="scroll"><table><caption>Paired differences of the mean over layers and heads; n = {n:,} images.'
        f"</caption><thead><tr><td></td>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _mean_layers(rows: Floats) -> Floats:
    count = np.isfinite(rows).sum(axis=1)
    means: Floats = np.where(count > 0, np.nansum(rows, axis=1) / np.maximum(count, 1), np.nan)
    return means
