"""Read a JPEG's markers without decoding it: which JPEGs a decoder may have whose pixels or errors could differ."""

from __future__ import annotations

__all__ = ["ordinary"]

SCAN = 0xDA
FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
# Sequential with Huffman codes. Of the others Pillow refuses some and libjpeg-turbo's versions treat some differently:
# arithmetic codes, lossless, progressive (smoothed where scans are missing).
ORDINARY = {0xC0, 0xC1}


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
