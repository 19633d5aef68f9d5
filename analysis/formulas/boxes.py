"""Boxes of objects on the patch grid, and how maps and tokens agree with them.

A box is (top, left, bottom, right) in pixels of the original picture, and so is the crop
(`engine.runtime.decode.crop_box`). A box's cover is the share of each patch inside it, (y, x) in 0..1; all formulas
take covers.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

from ...errors import AttlasError, UsageError
from .arrays import Array, constant, floating, namespace
from .maps import mass_mask

__all__ = [
    "Box",
    "box_jaccard",
    "box_mass",
    "centre_box",
    "cover",
    "object_similarity",
    "object_vectors",
    "pointing_hit",
    "read_coco",
]

Box = tuple[float, float, float, float]
Cover = list[list[float]]


def read_coco(path: str | os.PathLike[str]) -> tuple[dict[str, list[tuple[str, Box]]], list[str]]:
    """Boxes of a COCO JSON file.

    Returns:
        (category, box) by file name, in the file's order; and a line for each box that cannot be used, because it has
        no area or its image is not in the file. A box without a category is an "object"; a category without a name, and
        a box without an id, are named by number (a box by its position in the file, from 1).

    Raises:
        AttlasError: the file does not read, or has no `images` and `annotations`.
    """
    try:
        data: dict[str, Any] = json.loads(Path(path).read_text("utf-8"))
        files = {image["id"]: str(image["file_name"]) for image in data["images"]}
        names = {None: "object"}
        names |= {kind["id"]: str(kind["name"]) for kind in data.get("categories") or () if kind.get("name")}
        given = [
            (place if a.get("id") is None else a["id"], a["image_id"], a.get("category_id"), *map(float, a["bbox"]))
            for place, a in enumerate(data["annotations"], 1)
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise AttlasError(f"{path}: is no COCO file with images and annotations ({error})") from None
    found: dict[str, list[tuple[str, Box]]] = defaultdict(list)
    left_out = []
    for number, image, kind, x, y, width, height in given:
        if image not in files:
            left_out.append(f"box {number}: image {image} is unknown")
        elif not (width > 0 and height > 0):
            left_out.append(f"box {number} of {files[image]}: has no area ({width:g} x {height:g})")
        else:
            found[files[image]].append((names.get(kind, f"category {kind}"), (y, x, y + height, x + width)))
    return dict(found), left_out


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
