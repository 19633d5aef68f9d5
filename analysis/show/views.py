"""Which cells a request shows: an overview of one picture, chosen maps, matrices, or a row for each of several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

import numpy as np

from ...errors import UsageError
from ...words import counted
from ..formulas import mass_mask
from ..report.numbers import Floats
from ..report.plots.overlay import Look
from ..statistic import Statistic
from .maps import (
    MEAN,
    SHARE,
    UNIFORM,
    Choice,
    View,
    check_codes,
    maps_of,
    matrices,
    mean_view,
    query_views,
    readout_views,
    rollout_view,
)
from .page import Block, Cell, bars, matrix, over, photograph, sheet
from .subject import Subject

__all__ = ["Request", "cell_of", "cells_of", "drawn", "facts", "hard", "legend", "titled", "views_of"]

INLINE = 4  # maps that stand beside the crop
KINDS = {"class": "class token", "distillation": "distillation token", "register": "register"}


@dataclass(frozen=True, slots=True)
class Request:
    """What is shown of a picture.

    Attributes:
        choice: of layers and heads.
        maps: of the catalog; `patch`: (row, column) of one whose attention is shown.
        matrix: whole matrices instead.
        threshold: outlines the fewest patches that hold this share of a map.
        look: maps over the picture, or beside it.
    """

    choice: Choice = field(default_factory=Choice)
    maps: tuple[Statistic, ...] = ()
    patch: tuple[int, int] | None = None
    matrix: bool = False
    threshold: float | None = None
    look: Look = "overlay"

    def __post_init__(self) -> None:
        if self.look not in ("overlay", "side"):
            raise UsageError(f"style {self.look!r} is none of overlay, side")
        if self.threshold is not None and not 0 < self.threshold <= 1:
            raise UsageError(f"threshold {self.threshold:g} does not lie above 0 and up to 1")

    @property
    def plain(self) -> bool:
        """Whether nothing in particular is asked for."""
        return not self.maps and self.patch is None and not self.matrix and self.choice == Choice()


def drawn(subjects: Sequence[Subject], request: Request) -> Any:
    """The figure of one picture, or of several, a row each."""
    if len(subjects) > 1:
        return _rows(subjects, request)
    (one,) = subjects
    if request.matrix:
        return _matrices(one, request)
    return _overview(one, request) if request.plain else _chosen(one, request)


def titled(subjects: Sequence[Subject]) -> str:
    """What a figure is of."""
    return (
        subjects[0].title if len(subjects) == 1 else f"{len(subjects)} pictures of {PurePath(subjects[0].where).name}"
    )


def views_of(subject: Subject, request: Request) -> list[View]:
    """The maps that a request names."""
    check_codes(subject, request.maps, request.patch, request.threshold)
    views = [view for one in request.maps for view in maps_of(subject, one, request.choice)]
    if request.patch is not None:
        views += query_views(subject, request.patch, request.choice)
    return views or readout_views(subject, request.choice)


def _overview(one: Subject, request: Request) -> Any:
    """The crop, the readout, rollout, the likeliest classes, and every head of the last layer."""
    heads = readout_views(one, request.choice)
    views = [mean_view(one, heads), *rollout_view(one)]
    cells = [*_crop(one, request), *cells_of(one, views, request), *_classes(one)]
    blocks = [Block(cells, len(cells))]
    if len(heads) > 1:
        each = cells_of(one, heads, request, [f"head {head}" for head in range(len(heads))])
        heading = f"The {counted(len(heads), 'head')} of layer {one.spec.layers[-1]}, on one scale"
        blocks.append(Block(each, _columns(len(each)), heading))
    return sheet(one.title, facts(one), blocks, legend(one, views, request))


def _chosen(one: Subject, request: Request) -> Any:
    """The crop and the maps that are asked for: in one row, or under a heading for each kind of map."""
    views, title = views_of(one, request), one.title
    if request.patch is not None:
        title += " · what the patch in row {}, column {} looks at".format(*request.patch)
    if len(views) <= INLINE:
        cells = [*_crop(one, request), *cells_of(one, views, request)]
        blocks = [Block(cells, len(cells), largest=2.6)]
    else:
        first = [*_crop(one, request), *_classes(one)]
        blocks = [Block(first, 4)] if first else []
        for name in dict.fromkeys(view.name for view in views):
            kind = [view for view in views if view.name == name]
            cells = cells_of(one, kind, request, [view.label for view in kind])
            blocks.append(Block(cells, _columns(len(cells)), name[:1].upper() + name[1:], largest=2.6))
    key = "" if all(view.unit == SHARE for view in views) and request.choice.layers != "all" else "maximum"
    return sheet(title, facts(one), blocks, legend(one, views, request), key)


def _crop(one: Subject, request: Request) -> list[Cell]:
    """What the model sees, with the frame of a chosen patch."""
    if one.pixels is None:
        return []
    grid = None if request.patch is None else one.spec.grid
    return [photograph("what the model sees", one.pixels, grid, request.patch)]


def _classes(one: Subject) -> list[Cell]:
    """The likeliest classes, where the model has any."""
    shares = one.top()
    return [bars("predicted", shares, _size(one)[0] / _size(one)[1])] if shares else []


def _matrices(one: Subject, request: Request) -> Any:
    """Whole matrices, rows are queries."""
    views, prefix = matrices(one, request.choice), len(one.spec.prefix)
    cells = [matrix(v.label, v.values, prefix, printed=f"max {v.values.max():.3g} {v.unit}") for v in views]
    foot = (
        "Rows are queries, columns keys. × uniform: 1 is what even attention gives, "
        f"1/{one.spec.tokens}; square-root scale. Each matrix has a scale of its own, and its largest 0.5 % are alike."
        + " Prefix tokens stand apart, first and wider."
        * (prefix > 0)
    )
    blocks = [Block(cells, _columns(len(cells)), largest=3.3)]
    return sheet(one.title, facts(one), blocks, foot, "largest 0.5 %")


def _rows(subjects: Sequence[Subject], request: Request) -> Any:
    """A row for each picture."""
    if request.matrix:
        raise UsageError("--matrix: is of one picture; choose it with --image")
    blocks, drawn_views = [], []
    for one in subjects:
        views = views_of(one, request)
        if request.plain:
            views = [mean_view(one, views), *rollout_view(one)]
        cells = [*_crop(one, request), *cells_of(one, views, request), *_classes(one)]
        blocks.append(Block(cells, min(len(cells), 6), one.title, largest=2.0))
        drawn_views += views
    first = subjects[0]
    return sheet(titled(subjects), facts(first), blocks, legend(first, drawn_views, request))


def cells_of(one: Subject, views: Sequence[View], request: Request, labels: Sequence[str] = ()) -> list[Cell]:
    """Maps over their picture; heads of one layer have one scale."""
    most: dict[tuple[str, int | None], float] = {}
    for view in views:
        kind = (view.name, view.layer)
        most[kind] = max(most.get(kind, 0.0), float(view.values.max()))
    titles = labels or [view.title for view in views]
    return [
        cell_of(one, view, request, most[view.name, view.layer], title)
        for view, title in zip(views, titles, strict=True)
    ]


def cell_of(one: Subject, view: View, request: Request, limit: float | None = None, label: str | None = None) -> Cell:
    """A map over its picture, with its maximum; a mask in hard cells, with the picture's own colours inside."""
    values, mask, printed = view.values, None, f"max {{:.3g}} {view.unit}".rstrip()
    if request.threshold is not None:
        mask = mass_mask(values, request.threshold)
    if view.unit == SHARE and np.isin(values, (0, 1)).all():
        mask = values > 0
        printed = f"{int(mask.sum())} of {mask.size} patches"
        if request.look == "overlay" and one.pixels is not None:
            values = np.where(mask, np.nan, 0.0)
    elif view.unit == SHARE:
        values, printed = hard(one, values), "max {:.0%} of the heads"
    options: dict[str, Any] = {"root": view.root, "mask": mask, "patch": view.patch, "limit": limit}
    title = view.label if label is None else label
    return over(title, one.pixels, values, _size(one), look=request.look, printed=printed, size=6, **options)


def hard(one: Subject, values: Floats) -> Floats:
    """(row, column) of patches at the pixels of the crop: cells that nothing smooths."""
    cells: Floats = np.kron(values, np.ones(one.spec.patch_size))
    return cells


def _columns(count: int) -> int:
    """So many that rows are full, where that is possible, and maps are not too small."""
    if count <= 4:
        return count
    likely = (3, 4, 6) if count <= 9 else (6, 4, 5)
    return next((n for n in likely if count % n == 0), 6 if count > 9 else 4)


def _size(one: Subject) -> tuple[int, int]:
    """(height, width) of the crop in pixels, as far as patches cover it."""
    return one.spec.image_size


def facts(one: Subject) -> str:
    """The model in one line."""
    spec = one.spec
    kinds = [KINDS.get(kind, kind) for kind in dict.fromkeys(spec.prefix)]
    before = [f"{spec.prefix.count(kind)} registers" if kind == "register" and spec.prefix.count(kind) > 1 else word
              for kind, word in zip(dict.fromkeys(spec.prefix), kinds, strict=True)]  # fmt: skip
    tokens = " + ".join([*before, f"{spec.grid[0]} × {spec.grid[1]} patches"])
    random = " (random weights: these maps mean nothing)" if spec.weights.source == "random" else ""
    layers = counted(spec.depth, "layer") + (f" (0 to {spec.depth - 1})" if spec.depth > 1 else "")
    return f"{spec.name}{random} · {layers} of {spec.heads} head{'s' * (spec.heads > 1)} · {tokens}"


def legend(one: Subject, views: Sequence[View], request: Request) -> str:
    """How the colours of these maps are read."""
    told = []
    for unit, words in (
        (UNIFORM, f"1 is what even attention gives, 1/{one.spec.tokens}"),
        (MEAN, "1 is the map's own mean"),
    ):
        names: dict[bool, dict[str, None]] = {}
        for view in views:
            if view.unit == unit:
                names.setdefault(view.root, {})[view.name] = None
        scales = [
            f"{'square-root' if root else 'linear'} scale{f' ({", ".join(names[root])})' * (len(names) > 1)}"
            for root in names
        ]
        told += [f"{unit}: {words}; {', '.join(scales)}."] if scales else []
    heads = {(view.name, view.layer, view.label) for view in views if view.unit != SHARE}
    if len(heads) > len({kind[:2] for kind in heads}):
        told.append("Heads of one layer share a scale, up to the largest of them.")
    every = request.choice.layers == "all" and request.choice.head is None and one.spec.heads > 1
    if every and (not request.maps or any("head" in one.dims for one in request.maps)):
        told.append("Of each layer: the mean over heads.")
    elif any(view.unit == SHARE for view in views) and request.look == "overlay":
        told.append("A mask's patches have the picture's colours.")
    if request.threshold is not None:
        told.append(f"Outlined: the fewest patches that hold {request.threshold:g} of the map.")
    return " ".join(told)
