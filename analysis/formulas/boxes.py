"""Boxes of objects on the patch grid, and how maps and tokens agree with them.

A box is (top, left, bottom, right) in pixels of the original picture, and so is the crop
(`engine.runtime.decode.crop_box`). A box's cover is the share of each patch inside it, (y, x) in 0..1; all formulas
take covers.
"""

from __future__ import annotations

import math
import os
import reprlib
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import AttlasError, UsageError
from ...files import from_json
from .arrays import Array, constant, floating, namespace
from .maps import mass_mask

__all__ = [
    "Box",
    "Marked",
    "box_jaccard",
    "box_mass",
    "centre_box",
    "cover",
    "object_similarity",
    "object_vectors",
    "pointing_hit",
    "read_coco",
    "rescaled",
]

Box = tuple[float, float, float, float]
Cover = list[list[float]]


class Marked(NamedTuple):
    """A box of a COCO file: its category in words, and (height, width) of the picture it is marked in, if given."""

    kind: str
    box: Box
    size: tuple[float, float] | None


def read_coco(path: str | os.PathLike[str]) -> tuple[dict[str, list[Marked]], list[str]]:
    """Boxes of a COCO JSON file.

    Returns:
        By file name, in the file's order; and a line for each box that cannot be used, because it has no area or its
        image is not in the file. A box without a category is an "object"; a category without a name, and a box without
        an id, are named by number (a box by its position in the file, from 1).

    Raises:
        AttlasError: the file does not read, or has no `images` and `annotations`.
    """
    try:
        data: dict[str, Any] = from_json(Path(path).read_text("utf-8"))
        files = {image["id"]: (str(image["file_name"]), _size(image)) for image in data["images"]}
        names = {None: "object"}
        names |= {kind["id"]: str(kind["name"]) for kind in data.get("categories") or () if kind.get("name")}
        found: dict[str, list[Marked]] = defaultdict(list)
        left_out = []
        for place, one in enumerate(data["annotations"], 1):
            number, image, kind = place if one.get("id") is None else one["id"], one["image_id"], one.get("category_id")
            x, y, width, height = _numbers(one["bbox"], number)
            if image not in files:
                left_out.append(f"box {number}: image {image} is unknown")
                continue
            name, size = files[image]
            if not (0 < width < math.inf and 0 < height < math.inf):
                left_out.append(f"box {number} of {name}: has no area ({width:g} x {height:g})")
            elif not (math.isfinite(x) and math.isfinite(y)):
                left_out.append(f"box {number} of {name}: is nowhere (at {x:g}, {y:g})")
            else:
                box = y, x, y + height, x + width
                found[name].append(Marked(names.get(kind, f"category {kind}"), box, size))
    except (OSError, ValueError, ArithmeticError, KeyError, TypeError, AttributeError) as error:
        raise AttlasError(f"{path}: is no COCO file with images and annotations ({error})") from None
    return dict(found), left_out


def _numbers(bbox: Any, number: Any) -> list[float]:
    """The four numbers of a box: x, y, width, height."""
    try:
        x, y, width, height = map(float, bbox)
    except (ValueError, ArithmeticError, TypeError):
        said = reprlib.repr(bbox)
        raise ValueError(f"box {reprlib.repr(number)}: bbox is {said}, not x, y, width and height in pixels") from None
    return [x, y, width, height]


def _size(image: dict[str, Any]) -> tuple[float, float] | None:
    height, width = image.get("height"), image.get("width")
    return None if height is None or width is None else (float(height), float(width))


def rescaled(box: Box, size: tuple[float, float], picture: tuple[int, int]) -> Box:
    """The box in a picture (height, width), marked in a copy of it of another size.

    Raises:
        UsageError: the two differ in shape by more than a pixel, to which a resize rounds: neither is the other's copy.
    """
    (height, width), (rows, columns) = size, picture
    same = abs(columns * height - rows * width) < max(width + height, columns + rows)
    if not (same and height > 0 and width > 0):
        raise UsageError(
            f"marked in a picture of {width:g} x {height:g} pixels, another shape than the store's {columns} x {rows}"
        )
    y, x = rows / height, columns / width
    return box[0] * y, box[1] * x, box[2] * y, box[3] * x


def cover(box: Box, crop: Box, grid: tuple[int, int]) -> Cover:
    """Share of each patch that a box covers: (y, x), in 0..1.

    Raises:
        UsageError: the box has no area, or lies outside the crop.
    """
    if not (box[2] > box[0] and box[3] > box[1]):
        raise UsageError(f"box {box} has no area")
    parts = []
    for low, high, start, stop, count in (
        (box[0], box[2], crop[0], crop[2], grid[0]),
        (box[1], box[3], crop[1], crop[3], grid[1]),
    ):
        size = (stop - start) / count
        edges = [start + i * size for i in range(count)]
        parts.append([max(0.0, min(high, edge + size) - max(low, edge)) / size for edge in edges])
    if not (any(parts[0]) and any(parts[1])):
        raise UsageError(f"box {box} lies outside the crop {crop}")
    return [[y * x for x in parts[1]] for y in parts[0]]


def centre_box(box: Box, crop: Box) -> Box:
    """A box of the same size in the middle of the crop: the baseline for pictures with centred objects."""
    height, width = box[2] - box[0], box[3] - box[1]
    top, left = (crop[0] + crop[2] - height) / 2, (crop[1] + crop[3] - width) / 2
    return top, left, top + height, left + width


def box_mass(maps: Array, covered: Cover) -> Array:
    """Share of a map's mass inside a box: (..., y, x) -> (...). For a uniform map it is the mean of the cover."""
    xp, m = namespace(maps), floating(maps)
    return xp.sum(m * constant(covered, m), axis=(-2, -1)) / xp.sum(m, axis=(-2, -1))


def pointing_hit(maps: Array, covered: Cover) -> Array:
    """Whether the box covers at least half of the patch where the map is largest: (..., y, x) -> (...), 0 or 1.

    The pointing game of Zhang et al. 2016 (arXiv 1608.00507), at the resolution of patches. Of several patches that are
    largest it is the share that hit, which chance would.
    """
    xp, m = namespace(maps), floating(maps)
    zero, one = xp.zeros_like(m), xp.ones_like(m)
    largest = xp.where(m == xp.max(xp.max(m, axis=-1, keepdims=True), axis=-2, keepdims=True), one, zero)
    hit = xp.where(constant(covered, m) >= 0.5, largest, zero)
    return xp.sum(hit, axis=(-2, -1)) / xp.sum(largest, axis=(-2, -1))


def box_jaccard(maps: Array, covered: Cover, threshold: float = 0.6) -> Array:
    """Intersection over union of a box and the patches that hold `threshold` of the mass: (..., y, x) -> (...)."""
    xp, m = namespace(maps), floating(maps)
    inside, mask = constant(covered, m), mass_mask(m, threshold)
    ones = xp.where(mask, xp.ones_like(m), xp.zeros_like(m))
    both = xp.sum(ones * inside, axis=(-2, -1))
    return both / (xp.sum(ones, axis=(-2, -1)) + xp.sum(inside) - both)


def object_vectors(tokens: Array, covers: list[Cover], weights: Array | None = None) -> Array:
    """Mean patch token of each object: (token, channel) -> (object, channel).

    Args:
        tokens: after the final norm; prefix tokens, all before the last y x, are dropped.
        covers: one per object.
        weights: a map (y, x), such as the rollout, that multiplies the cover.
    """
    xp, t = namespace(tokens), floating(tokens)
    share = constant(covers, t)
    share = share if weights is None else share * weights
    share = xp.reshape(share, (len(covers), -1))
    share = share / xp.sum(share, axis=-1, keepdims=True)
    return xp.matmul(share, t[t.shape[0] - share.shape[1] :, :])


def object_similarity(vectors: Array) -> Array:
    """Cosine between objects: (object, channel) -> (object, object), in -1..1."""
    xp = namespace(vectors)
    unit = vectors / xp.sqrt(xp.sum(vectors * vectors, axis=-1, keepdims=True))
    return xp.matmul(unit, xp.moveaxis(unit, 0, 1))
