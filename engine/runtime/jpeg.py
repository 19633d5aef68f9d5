"""Decode ordinary JPEGs faster than Pillow does, to the same pixels: the only module that uses simplejpeg.

Both use libjpeg-turbo with the same settings. simplejpeg reads the data at once and refuses what libjpeg warns of,
where Pillow goes on or raises. So only JPEGs in which nothing is unusual are decoded here, and all others by Pillow.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import simplejpeg

from .decode import MAX_PIXELS

__all__ = ["decode_jpeg", "encode_jpeg", "ordinary", "plain"]

SCAN = 0xDA
FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
# Sequential with Huffman codes. Of the others Pillow refuses some and libjpeg-turbo's versions treat some differently:
# arithmetic codes, lossless, progressive (smoothed where scans are missing).
ORDINARY = {0xC0, 0xC1}
# In a plain header: tables of 8 bits, what Pillow skips or keeps, and what it reads if it begins like this.
TABLES = 0xDB
KEPT = {0xC4, 0xDD, 0xFE}
READ = {0xE0: (b"JFIF\0", 14), 0xE2: (b"ICC_PROFILE\0", 14), 0xEE: (b"Adobe", 12)}


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


def ordinary(data: bytes) -> bool:
    """Whether one segment after another leads to the first scan, and the only frame is of an ordinary kind."""
    kinds = [kind for kind, _, _ in _segments(data)]
    return kinds[-1:] == [SCAN] and [kind in ORDINARY for kind in kinds if kind in FRAMES] == [True]


def plain(data: bytes) -> tuple[int, int] | None:
    """(height, width) of an ordinary JPEG in whose header Pillow finds no fault, whatever else it would look at there.

    None if there is anything else. Opening a file costs Pillow a twentieth of decoding it here, under the interpreter's
    lock.
    """
    size = None
    for kind, begin, end in _segments(data) if data.startswith(b"\xff\xd8\xff") else ():
        if kind == SCAN:
            return size if size is not None and 0 < size[0] * size[1] <= MAX_PIXELS else None
        if kind in ORDINARY:
            layers = data[begin + 5] if end > begin + 5 else 0
            if layers not in (1, 3) or end != begin + 6 + 3 * layers or data[begin] != 8 or size is not None:
                return None
            size = int.from_bytes(data[begin + 1 : begin + 3]), int.from_bytes(data[begin + 3 : begin + 5])
        elif kind == TABLES:
            if (end - begin) % 65 or max(data[begin:end:65], default=0) > 15:
                return None
        elif kind not in KEPT:
            start, length = READ.get(kind, (b"", len(data)))
            if end - begin < length or not data.startswith(start, begin):
                return None
    return None


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(kind, first byte, byte after the last) of each segment of the header, and of the first scan's."""
    at = 2
    while len(data) > at + 4 and data[at] == 0xFF:
        kind, end = data[at + 1], at + 2 + (data[at + 2] << 8 | data[at + 3])
        if not at + 4 <= end <= len(data):
            return
        yield kind, at + 4, end
        if kind == SCAN:
            return
        at = end


def encode_jpeg(pixels: npt.NDArray[np.uint8], sampling: str) -> bytes:
    """A JPEG of (row, column, RGB) pixels with this chroma subsampling, such as `420`, or `Gray`."""
    return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), 90, "RGB", sampling))
