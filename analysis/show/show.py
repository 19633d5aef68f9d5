"""`attlas.show`: one picture, or several, as a figure."""

from __future__ import annotations

import dataclasses
import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsIndex

from ... import arguments
from ...arguments import Where
from ...arguments import whole_or_none as _or_none
from ...errors import UsageError
from ...exporter.spec import GraphSpec
from ...files import appearing
from ..originals import folder_of
from ..report.plots.overlay import Look
from ..report.plots.style import style as styled
from ..report.plots.style import svg
from ..statistics.gradients import weighs
from .choose import Selection
from .maps import Choice, Layers, check_choice, named, needed
from .subject import Subject, of_graph, of_store
from .together import check_together
from .views import Request, drawn, titled
from .walk import NEEDED as WALKED
from .walk import walk as walked

__all__ = ["FORMATS", "Shown", "check_output", "patch_at", "show"]

FORMATS = (".png", ".pdf", ".svg")
DPI = 200
METADATA: dict[str, dict[str, Any]] = {
    ".png": {"Software": None},
    ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    ".svg": {"Date": None, "Creator": None},
}


@dataclass(frozen=True)
class Shown:
    """A figure of what was asked for; a notebook shows it, `save` writes it.

    Attributes:
        figure: matplotlib's Figure.
        title: what it is of.
        path: where it was written, None where it was not.
    """

    figure: Any
    title: str
    path: Path | None = None

    def __repr__(self) -> str:
        return f"{self.title}{f', written to {self.path}' if self.path else ''}"

    def _repr_png_(self) -> bytes:
        target = io.BytesIO()
        with styled():
            self.figure.savefig(target, format="png", dpi=DPI, metadata=METADATA[".png"])
        return target.getvalue()

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write it as PNG, PDF or SVG; a file appears only when it is whole.

        Raises:
            UsageError: the name ends in something else, or `path` exists.
            AttlasError: it cannot be written.
        """
        path = Path(path)
        check_output(path, overwrite)
        kind = path.suffix.lower()
        with appearing(path) as beside, styled():
            if kind == ".svg":
                beside.write_text(svg(self.figure, DPI), "utf-8")
            else:
                self.figure.savefig(beside, format=kind[1:], dpi=DPI, metadata=METADATA[kind])
        return path


def check_output(path: Path, overwrite: bool) -> None:
    """Refuse a name that is no picture's, or that is taken.

    Raises:
        UsageError: with what to do.
    """
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"{path}: a figure is {', '.join(f'NAME{kind}' for kind in FORMATS)}")
    if path.is_dir() or (path.exists() and not overwrite):
        raise UsageError(f"{path}: exists; choose another name with -o, or --overwrite")


def show(
    source: Where,
    picture: Any = None,
    *,
    output: str | os.PathLike[str] | None = None,
    layer: Layers = None,
    head: int | None = None,
    maps: str | Sequence[str] = (),
    patch: tuple[int, int] | None = None,
    at: tuple[float, float] | None = None,
    matrix: bool = False,
    walk: bool = False,
    threshold: float | None = None,
    style: Look = "overlay",
    target: int = -1,
    image: str | int | Sequence[str | int] = (),
    random: int | None = None,
    sort: str | None = None,
    count: int | None = None,
    seed: int = 0,
    images: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
) -> Shown:
    """Show what a model looks at in a picture: its maps over the crop, every head, rollout, the likeliest classes.

    Args:
        source: a graph, which is run on `picture`, or a store.
        picture: for a graph: a path, encoded bytes, a Pillow image or a uint8 array; a list of these for several.
        output: write the figure here, NAME.png, .pdf or .svg; by default nothing is written.
        layer: the block, by index from 0, or "all"; the last by default.
        head: one head only, by index from 0.
        maps: names of the catalog, such as `rollout:discard=0.9` or `chefer`.
        patch: (row, column), from 0, of a patch whose attention is shown.
        at: (x, y), the same in pixels of the original picture.
        matrix: whole matrices, query by key.
        walk: one tall figure from patches to prediction.
        threshold: outline the fewest patches that hold this share of a map (0.6 in DINO).
        style: `overlay`, or `side` for maps beside the picture.
        target: for maps by gradients of a graph: the class, -1 for the predicted one.
        image: from a store: a path or an index, or several.
        random: from a store: so many, drawn by chance.
        sort: from a store: the sharpest first (entropy), wrong answers first (error), or by label.
        count: from a store: at most so many; 4 by default.
        seed: of `random`.
        images: the run's folder of images, for pictures that are not in the store's sample.
        overwrite: replace a file at `output`.

    Raises:
        UsageError: an option does not fit the graph, the store or the picture, or `output` exists.
        AttlasError: something cannot be read, or was not exported or kept.
    """
    check_together({
        "maps": maps, "patch": patch, "at": at, "matrix": matrix, "walk": walk, "threshold": threshold, "style": style,
        "layer": layer, "image": image, "random": random, "sort": sort, "count": count, "seed": seed,
    })  # fmt: skip
    if output is not None:
        check_output(Path(arguments.path(output, "output")), overwrite)
    source, head = arguments.path(source, "source", "the path of a graph or a store"), _or_none(head, "head")
    patch = None if patch is None else arguments.pair(patch, "patch", "(row, column), such as (3, 7)")
    threshold = None if threshold is None else arguments.number(threshold, "threshold")
    at = None if at is None else arguments.pair(at, "at", "(x, y) in pixels, such as (120, 80)", fractions=True)
    chosen = tuple(named(name) for name in arguments.names(maps, "maps"))
    image = arguments.several(image, "image", (str, SupportsIndex), "a path or an index, or a list of them")
    random, count, seed = _or_none(random, "random"), _or_none(count, "count"), arguments.whole(seed, "seed")
    check_choice(chosen, Choice(layer, head), pinned=patch is not None or at is not None)
    selection = Selection(image, random, sort, count, seed)
    target = arguments.whole(target, "target", "the index of a class, or -1")
    subjects = _subjects(source, picture, chosen, target, walk, images, selection)
    patch = patch if at is None else patch_at(subjects, at)
    request = Request(Choice(layer, head), chosen, _on_grid(patch, subjects[0].spec), matrix, threshold, style)
    shown = Shown((walked if walk else drawn)(subjects, request), titled(subjects))
    return shown if output is None else dataclasses.replace(shown, path=shown.save(output, overwrite=overwrite))


def _subjects(
    source: str | os.PathLike[str], picture: Any, maps: Sequence[Any], target: int, walk: bool, images: Any,
    selection: Selection,
) -> list[Subject]:  # fmt: skip
    """The pictures, from a graph or a store."""
    if _is_graph(source):
        if picture is None:
            raise UsageError(f"{source}: which picture? `attlas show {source} cat.jpg`")
        if selection.given or images is not None:
            raise UsageError(f"{source}: is a graph; --image, --random, --sort, --count and --images are for a store")
        pictures = list(picture) if isinstance(picture, list | tuple) else [picture]
        for one in pictures:
            if isinstance(one, str | os.PathLike) and Path(one).is_dir():
                raise UsageError(f"{one}: is a folder; name one picture, or `attlas run` the folder and show the store")
        if target != -1 and not any(weighs(one) for one in maps):
            raise UsageError(f"--target {target}: is for maps by gradients; name one, such as --map chefer")
        from ...engine.sources.files import expanded

        return of_graph(Path(expanded(source)), pictures, needed(maps), WALKED if walk else (), target)
    from ...engine.store.storage import locate
    from ...engine.store.store import Store

    store = Store(locate(source))
    if picture is not None:
        raise UsageError(f"{source}: is a store; choose its images with --image PATH or INDEX, --random N or --sort")
    if target != -1:
        raise UsageError(f"--target {target}: of a store, the class is that of the run, `attlas run --target`")
    folder = folder_of(images)
    chosen = selection.of(store)
    return [
        dataclasses.replace(of_store(store, one, folder), note=note)
        for one, note in zip(chosen, selection.notes(store, chosen), strict=True)
    ]


def _is_graph(source: str | os.PathLike[str]) -> bool:
    """Whether a path is that of a graph: a file, or something that is called so."""
    text = os.fspath(source)
    return text.endswith(".onnx") or Path(text).is_file()


# -- a patch -----------------------------------------------------------------------------------------------------------


def patch_at(subjects: Iterable[Subject], at: tuple[float, float]) -> tuple[int, int]:
    """The patch that holds a pixel of the original picture.

    Raises:
        UsageError: the pixel lies outside the crop, or the original's size is not known.
    """
    from ...engine.runtime.decode import crop_box

    found = set()
    for one in subjects:
        if one.size is None:
            raise UsageError(f"{one.name}: is a crop already, so that --at has no original; use --patch ROW,COLUMN")
        spec = one.spec
        top, left, bottom, right = crop_box(*one.size, spec.recipe)
        x, y = at
        height, width = spec.image_size
        row = int((y - top) / (bottom - top) * height // spec.patch_size[0])
        column = int((x - left) / (right - left) * width // spec.patch_size[1])
        inside = top <= y < bottom and left <= x < right and 0 <= y < one.size[0] and 0 <= x < one.size[1]
        if not inside or row >= spec.grid[0] or column >= spec.grid[1]:
            raise UsageError(
                f"--at {x:g},{y:g}: lies outside what the model sees of {one.name} ({one.size[1]} x {one.size[0]} "
                f"pixels): x {max(left, 0):.0f} to {min(right, one.size[1]):.0f}, "
                f"y {max(top, 0):.0f} to {min(bottom, one.size[0]):.0f}"
            )
        found.add((row, column))
    if len(found) > 1:
        raise UsageError("--at: is another patch in each of these pictures; use --patch, or one picture")
    return found.pop()


def _on_grid(patch: tuple[int, int] | None, spec: GraphSpec) -> tuple[int, int] | None:
    if patch is None or (0 <= patch[0] < spec.grid[0] and 0 <= patch[1] < spec.grid[1]):
        return patch
    rows, columns = spec.grid
    raise UsageError(f"--patch {patch[0]},{patch[1]}: the grid has rows 0 to {rows - 1} and columns 0 to {columns - 1}")
