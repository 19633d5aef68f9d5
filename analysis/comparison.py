"""Several stores side by side: on the images they share, in units that compare across models."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..engine.store import Store
from . import figures, formulas
from .exhibits import Absent, Exhibit
from .facts import Facts
from .methods import cite
from .moments import Moments, interval

__all__ = ["compare"]

Floats = npt.NDArray[np.floating[Any]]


def compare(stores: Sequence[Store], facts: Sequence[Facts]) -> tuple[list[Exhibit | Absent], str]:
    """The figures of all stores together, and HTML with their paired differences."""
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
            lines += _differences(facts, name, unit, rows)
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
        lines.append(figures.Line(f"{one.letter}  {one.spec.name}", x, mean, low, high, heads))
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
