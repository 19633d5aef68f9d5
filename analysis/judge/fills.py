"""What takes the place of removed patches: the fills that the field disputes, on uint8 pictures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from ...exporter.spec import GraphSpec
from ..kernels.imputation import impute

__all__ = ["BLUR", "FILLS", "NOISE", "covered", "replaced"]

type Pixels = npt.NDArray[np.uint8]
type Mask = npt.NDArray[np.bool_]

BLUR = 10.0  # pixels, the standard deviation of the blur of Fong & Vedaldi 2017 (arXiv 1704.03296)
NOISE = 0.01  # of the range of pixels, the standard deviation of the noise of ROAD's own code


def _mean(picture: Pixels, spec: GraphSpec) -> Pixels:
    """The mean colour of the recipe, which the graph normalises to 0."""
    return np.broadcast_to(np.rint(255 * np.array(spec.recipe.mean)).astype(np.uint8), picture.shape)


def _blurred(picture: Pixels, spec: GraphSpec) -> Pixels:
    """The picture through a Gaussian of `BLUR` pixels."""
    soft = ndimage.gaussian_filter(picture.astype(np.float32), (BLUR, BLUR, 0), mode="nearest")
    return np.asarray(np.rint(soft).clip(0, 255).astype(np.uint8))


def _black(picture: Pixels, spec: GraphSpec) -> Pixels:
    return np.zeros_like(picture)


# By name: what a picture becomes where nothing of it is left. `noise` depends on what is left, and has its own way.
_CONSTANT: dict[str, Callable[[Pixels, GraphSpec], Pixels]] = {"mean": _mean, "blur": _blurred, "black": _black}
FILLS = (*_CONSTANT, "noise")


def replaced(picture: Pixels, removed: Mask, fill: str, spec: GraphSpec, seed: int = 0) -> Pixels:
    """One picture without some of its patches, several times.

    Args:
        picture: (row, column, channel) uint8, the graph's crop.
        removed: (step, y, x), the patches that are taken away in each step.
        fill: one of `FILLS`. `mean`: the recipe's mean colour; `blur`: the picture through a Gaussian; `black`: 0;
            `noise`: each pixel the weighted mean of its neighbours, solved for all removed pixels at once, and Gaussian
            noise on top (Rong et al. 2022, arXiv 2202.00449, "noisy linear imputation").
        spec: of the graph.
        seed: of the noise.

    Returns:
        (step, row, column, channel) uint8. Pixels beyond the grid of patches stay.
    """
    found = np.repeat(picture[None], len(removed), axis=0)
    if fill == "noise":
        _imputed(found, picture, covered(removed, spec), spec, seed)
        return found
    (height, width), (rows, columns) = spec.patch_size, spec.grid
    shape = (len(removed), rows, height, columns, width, 3)
    within = found[:, : rows * height, : columns * width]
    part = _CONSTANT[fill](picture, spec)[: rows * height, : columns * width]
    # A view by patches, so that a mask of patches is broadcast and never made as large as the picture.
    patches = within.reshape(shape) if within.flags.c_contiguous else None
    if patches is None:
        within[:] = np.where(covered(removed, spec)[:, : rows * height, : columns * width, None], part, within)
    else:
        np.copyto(patches, part.reshape(shape[1:]), where=removed[:, :, None, :, None, None])
    return found


def covered(removed: Mask, spec: GraphSpec) -> Mask:
    """Masks of patches as masks of pixels: (..., y, x) -> (..., row, column); pixels beyond the grid are not in any."""
    height, width = spec.image_size
    large = removed.repeat(spec.patch_size[0], axis=-2).repeat(spec.patch_size[1], axis=-1)[..., :height, :width]
    missing = [(0, 0)] * (removed.ndim - 2) + [(0, height - large.shape[-2]), (0, width - large.shape[-1])]
    return np.pad(large, missing)


def _imputed(found: Pixels, picture: Pixels, removed: Mask, spec: GraphSpec, seed: int) -> None:
    """Fill `found` (step, row, column, channel) where `removed` (step, row, column)."""
    noise = np.random.default_rng(seed).normal(scale=255 * NOISE, size=picture.shape).astype(np.float32)
    mean: Any = 255 * np.array(spec.recipe.mean, np.float32)
    for step, mask in enumerate(removed):
        values = picture.astype(np.float32)
        if mask.all():
            values[:] = mean  # nothing is left to impute from
        elif mask.any():
            values[mask] = values[~mask].mean(axis=0)  # where the solution begins
            impute(values, mask)
        found[step] = np.where(mask[..., None], np.rint(values + noise).clip(0, 255), picture).astype(np.uint8)
