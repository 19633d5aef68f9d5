"""The objects that people have marked by boxes, as the crops of a store's images show them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..engine.runtime.decode import crop_box
from ..engine.sources.files import expanded
from ..engine.store.store import Store
from ..errors import AttlasError, UsageError
from .formulas import boxes as formulas
from .formulas.boxes import Box, Cover

__all__ = ["Objects", "find", "required"]


@dataclass(frozen=True, slots=True)
class Objects:
    """The objects of one image of a store, as its crop shows them.

    Attributes:
        image: its index.
        kinds: of each object, in words.
        boxes: (top, left, bottom, right) each, in pixels of the original, cut off at the crop; `crop`: likewise.
        covers: how much of each patch each covers.
    """

    image: int
    kinds: tuple[str, ...]
    boxes: tuple[Box, ...]
    crop: Box
    covers: tuple[Cover, ...]


def find(store: Store, path: str | os.PathLike[str]) -> tuple[list[Objects], list[str]]:
    """The objects of a COCO file that a store's valid images show, and a line for each box that is left out.

    A file name is an image's path in the store, or its last part where only one image ends so. Boxes that were marked
    at another resolution, by the size that the file gives, are rescaled to the store's pictures.

    Raises:
        AttlasError: the file is no COCO file.
    """
    given, left_out = formulas.read_coco(path)
    usable = store.done_images & store.read("valid").astype(bool)
    paths = {str(p): i for i, p in enumerate(store.read("path"))}
    ends: dict[str, int] = {}
    for name, index in paths.items():
        end = PurePosixPath(name).name
        ends[end] = -1 if end in ends else index
    heights, widths = store.read("height"), store.read("width")
    found = []
    for name, marked in sorted(given.items()):
        image = paths.get(name, ends.get(PurePosixPath(name).name, -1))
        if image < 0 or not usable[image]:
            reason = "is not in the store" if image < 0 else "is not done or could not be read"
            left_out += [f"{one.kind} of {name}: the image {reason}" for one in marked]
            continue
        picture = int(heights[image]), int(widths[image])
        crop = crop_box(*picture, store.spec.recipe)
        seen = []
        for kind, box, size in marked:
            try:
                box = box if size is None else formulas.rescaled(box, size, picture)
            except UsageError as error:
                left_out.append(f"{kind} of {name}: {error}")
                continue
            try:
                covered = formulas.cover(box, crop, store.spec.grid)
            except UsageError:
                left_out.append(f"{kind} of {name}: lies outside the crop")
                continue
            seen.append((kind, _cut(box, crop), covered))
        if seen:
            kinds, boxes, covers = zip(*seen, strict=True)
            found.append(Objects(image, kinds, boxes, crop, covers))
    return found, left_out


def required(path: str | os.PathLike[str], stores: Sequence[Store]) -> tuple[list[Objects], list[str]]:
    """`find` in the first of the stores that shows a box.

    Raises:
        UsageError: there is no such file, or it is no path.
        AttlasError: it is no COCO file, or all its boxes are left out.
    """
    path = expanded(path, "boxes")
    if not Path(path).is_file():
        raise UsageError(f"--boxes {path}: there is no such file; it is COCO JSON")
    first = ""
    for store in stores:
        found, left_out = find(store, path)
        if found:
            return found, left_out
        first = first or f" ({left_out[0]})" if left_out else ""
    of = " or ".join(str(store.path) for store in stores)
    raise AttlasError(f"{path}: no box lies in a valid image of {of}{first}")


def _cut(box: Box, crop: Box) -> Box:
    return max(box[0], crop[0]), max(box[1], crop[1]), min(box[2], crop[2]), min(box[3], crop[3])
