"""Which cells a request shows: an overview of one picture, chosen maps, matrices, or a row for each of several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from ...errors import UsageError
from ..formulas import mass_mask
from ..report.images import rollout_map
from ..report.plots.overlay import Look
from ..statistic import Statistic
from .maps import MEAN, READS, Choice, View, check_codes, maps_of, matrices, mean_of, query_views, readout_views
from .page import Block, Cell, bars, matrix, over, photograph, sheet
from .subject import Subject

__all__ = ["Request", "cell_of", "drawn", "facts", "titled", "views_of"]

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
    spec, size = one.spec, _size(one)
    heads = readout_views(one, request.choice)
    mean = mean_of(heads)
    cells = [photograph("what the model sees", one.pixels)] if one.pixels is not None else []
    cells.append(cell_of(one, View(f"{READS[one.spec.readout]}, layer {spec.layers[-1]}", mean), request))
    rolled = rollout_map(one.store, one.image)
    if rolled is not None:
        cells.append(cell_of(one, View("rollout, all layers", rolled / rolled.mean(), MEAN, False), request))
    if shares := one.top():
        cells.append(bars("predicted", shares, size[0] / size[1]))
    blocks = [Block(cells, len(cells))]
    if len(heads) > 1:
        most = max(float(view.values.max()) for view in heads)
        each = [cell_of(one, view, request, most, f"head {head}") for head, view in enumerate(heads)]
        heading = f"The {len(heads)} heads of layer {spec.layers[-1]}, on one scale"
        blocks.append(Block(each, _columns(len(each)), heading))
    return sheet(one.title, facts(one), blocks, _foot(one, request))


def _chosen(one: Subject, request: Request) -> Any:
    """The crop and the maps that are asked for: in one row, or under a heading for each kind of map."""
    views, grid, title = views_of(one, request), one.spec.grid, one.title
    first = [photograph("what the model sees", one.pixels, grid, request.patch)] if one.pixels is not None else []
    if request.patch is not None:
        title += " · what the patch in row {}, column {} looks at".format(*request.patch)
    if len(views) <= INLINE:
        cells = [*first, *(cell_of(one, view, request, label=view.title) for view in views)]
        blocks = [Block(cells, len(cells), largest=2.6)]
    else:
        if shares := one.top():
            first.append(bars("predicted", shares, _size(one)[0] / _size(one)[1]))
        blocks = [Block(first, 4)] if first else []
        for name in dict.fromkeys(view.name for view in views):
            cells = [cell_of(one, view, request) for view in views if view.name == name]
            blocks.append(Block(cells, _columns(len(cells)), name[:1].upper() + name[1:]))
    return sheet(title, facts(one), blocks, _foot(one, request))


def _matrices(one: Subject, request: Request) -> Any:
    """Whole matrices, rows are queries."""
    views, prefix = matrices(one, request.choice), len(one.spec.prefix)
    cells = [matrix(view.label, view.values, prefix) for view in views]
    told = " Lines part the prefix tokens from the patches." if prefix else ""
    foot = f"Rows are queries, columns keys, × uniform, square-root scale, each matrix up to its largest 0.5 %.{told}"
    return sheet(one.title, facts(one), [Block(cells, _columns(len(cells)), largest=3.3)], foot)


def _rows(subjects: Sequence[Subject], request: Request) -> Any:
    """A row for each picture."""
    if request.matrix:
        raise UsageError("--matrix: is of one picture; choose it with --image")
    blocks = []
    for one in subjects:
        views = views_of(one, request)
        if request.plain:
            views = [View(f"layer {one.spec.layers[-1]}", mean_of(views), name=READS[one.spec.readout])]
            rolled = rollout_map(one.store, one.image)
            views += [] if rolled is None else [View("rollout", rolled / rolled.mean(), MEAN, False)]
        cells = [photograph("", one.pixels, one.spec.grid, request.patch)] if one.pixels is not None else []
        cells += [cell_of(one, view, request, label=view.title) for view in views]
        if shares := one.top():
            cells.append(bars("predicted", shares, _size(one)[0] / _size(one)[1]))
        blocks.append(Block(cells, min(len(cells), 6), one.title, largest=2.0))
    first = subjects[0]
    return sheet(titled(subjects), facts(first), blocks, _foot(first, request))


def cell_of(one: Subject, view: View, request: Request, limit: float | None = None, label: str | None = None) -> Cell:
    """A map over its picture, with its maximum."""
    mask = None if request.threshold is None else mass_mask(view.values, request.threshold)
    printed = f"max {{:.3g}} {view.unit}".rstrip()
    options: dict[str, Any] = {"root": view.root, "mask": mask, "patch": view.patch, "limit": limit}
    title = view.label if label is None else label
    return over(title, one.pixels, view.values, _size(one), look=request.look, printed=printed, size=6, **options)


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
    layers = f"{spec.depth} layers (0 to {spec.depth - 1})" if spec.depth > 1 else "1 layer"
    return f"{spec.name}{random} · {layers} of {spec.heads} head{'s' * (spec.heads > 1)} · {tokens}"


def _foot(one: Subject, request: Request) -> str:
    """How colours are read."""
    told = f"× uniform: 1 is what even attention gives, 1/{one.spec.tokens}; square-root scale. × mean: of the map."
    if request.threshold is not None:
        told += f" Outlined: the fewest patches that hold {request.threshold:g} of the map."
    return told
