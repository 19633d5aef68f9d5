"""Boxes: objects in the original picture, seen through the crop on the patch grid, and how maps and tokens meet them.

A box is (top, left, bottom, right) in pixels of the original picture, as is the crop (`engine.runtime.decode.crop_box`
gives it). What a box covers of each patch is its cover, (y, x) in 0..1, and everything else is formulas of covers.
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
        (category, box) by file name, in the file's order; and a line for each box that cannot be used: of no area, or
        of an image that the file does not name. Without a category a box is an "object"; one whose category has no
        name is called by its number, as is a box without an id, by its place in the file from 1.

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
    """How much of each patch a box covers: (y, x), in 0..1.

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
    """A box of the same size in the middle of the crop: the baseline that photographers' habits set."""
    height, width = box[2] - box[0], box[3] - box[1]
    top, left = (crop[0] + crop[2] - height) / 2, (crop[1] + crop[3] - width) / 2
    return top, left, top + height, left + width


def box_mass(maps: Array, covered: Cover) -> Array:
    """Share of a map's mass inside a box: (..., y, x) -> (...). The mean of the cover is what a uniform map has."""
    xp, m = namespace(maps), floating(maps)
    return xp.sum(m * constant(covered, m), axis=(-2, -1)) / xp.sum(m, axis=(-2, -1))


def pointing_hit(maps: Array, covered: Cover) -> Array:
    """Whether the box covers at least half of a patch where the map is largest: (..., y, x) -> bool (...).

    The pointing game of Zhang et al. 2016 (arXiv 1608.00507), at the resolution of patches.
    """
    xp, m = namespace(maps), floating(maps)
    top = xp.max(xp.max(m, axis=-1, keepdims=True), axis=-2, keepdims=True)
    return xp.any(xp.any((m == top) & (constant(covered, m) >= 0.5), axis=-1), axis=-1)


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
        tokens: after the final norm; those before the last y x of the grid belong to prefix tokens and are dropped.
        covers: one per object.
        weights: a map (y, x), the rollout, by which patches weigh beside their cover.
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
