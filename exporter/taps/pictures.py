"""Artificial pictures, to trace a model with and to compare it on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["pictures"]


def pictures(images: int, size: tuple[int, int], seed: int = 0) -> NDArray[np.uint8]:
    """Random pictures with structure at every scale, like photographs: (image, y, x, 3) uint8.

    With white noise, all patches would be alike and attention flat.
    """
    random = np.random.default_rng(seed)
    total = np.zeros((images, *size, 3), np.float32)
    for cells, weight in ((2, 0.45), (5, 0.25), (16, 0.2), (max(size), 0.1)):
        coarse = random.random((images, cells, cells, 3), dtype=np.float32)
        ys = np.arange(size[0]) * cells // size[0]
        xs = np.arange(size[1]) * cells // size[1]
        total += weight * coarse[:, ys][:, :, xs]
    return np.clip(total * 255, 0, 255).astype(np.uint8)
