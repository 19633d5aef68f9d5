"""Decode ordinary JPEGs faster than Pillow does, to the same pixels: the only module that uses simplejpeg.

Both use libjpeg-turbo with the same settings. simplejpeg reads the data at once and refuses what libjpeg warns of,
where Pillow goes on or raises. So only ordinary JPEGs are decoded here, and all others by Pillow.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import simplejpeg

from .markers import ordinary, plain

__all__ = ["decode_jpeg", "encode_jpeg"]


def decode_jpeg(data: bytes, size: tuple[int, int] | None = None) -> npt.NDArray[np.uint8] | None:
    """The pixels of an ordinary JPEG of grey or RGB: (row, column, 4) uint8, RGB and a byte of anything.

    None if it is not `ordinary` (without a size: `plain`), or libjpeg warns of anything, or finds another size.

    Args:
        data: the file.
        size: (height, width) that Pillow found; None if Pillow has not opened it.
    """
    if size is None:
        size = plain(data)
    elif not ordinary(data):
        return None
    if size is None:
        return None
    try:
        pixels: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGBX")
    except (ValueError, RuntimeError):
        return None
    return pixels if pixels.shape == (*size, 4) else None


def encode_jpeg(pixels: npt.NDArray[np.uint8], sampling: str) -> bytes:
    """A JPEG of (row, column, RGB) pixels with this chroma subsampling, such as `420`, or `Gray`."""
    return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), 90, "RGB", sampling))
