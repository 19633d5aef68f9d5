"""Decode ordinary JPEGs faster than Pillow does, to the same pixels: the only module that uses simplejpeg.

Both use libjpeg-turbo with the same settings. simplejpeg reads the data at once and refuses what libjpeg warns of,
where Pillow goes on or raises. So only JPEGs in which nothing is unusual are decoded here, and all others by Pillow.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import simplejpeg

__all__ = ["decode_jpeg", "encode_jpeg", "ordinary"]

SCAN = 0xDA
FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
# Sequential with Huffman codes. Of the others Pillow refuses some and libjpeg-turbo's versions treat some differently:
# arithmetic codes, lossless, progressive (smoothed where scans are missing).
ORDINARY = {0xC0, 0xC1}


def decode_jpeg(data: bytes, size: tuple[int, int]) -> npt.NDArray[np.uint8] | None:
    """The pixels of an ordinary JPEG of grey or RGB: (row, column, 4) uint8, RGB and a byte of anything.

    None if it is not `ordinary`, or libjpeg warns of anything, or finds another (height, width) than `size`.
    """
    if not ordinary(data):
        return None
    try:
        pixels: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGBX")
    except (ValueError, RuntimeError):
        return None
    return pixels if pixels.shape == (*size, 4) else None


def ordinary(data: bytes) -> bool:
    """Whether one segment after another leads to the first scan, and the only frame is of an ordinary kind."""
    frames: list[int] = []
    at = 2
    while data[at : at + 1] == b"\xff" and len(data) > at + 4:
        kind = data[at + 1]
        if kind == SCAN:
            return len(frames) == 1 and frames[0] in ORDINARY
        if kind in FRAMES:
            frames.append(kind)
        at += 2 + int.from_bytes(data[at + 2 : at + 4])
    return False


def encode_jpeg(pixels: npt.NDArray[np.uint8], sampling: str) -> bytes:
    """A JPEG of (row, column, RGB) pixels with this chroma subsampling, such as `420`, or `Gray`."""
    return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), 90, "RGB", sampling))
