"""Read a JPEG's markers without decoding it: which JPEGs a decoder may have whose pixels or errors could differ."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np

from .decode import MAX_PIXELS

__all__ = ["ordinary", "plain", "whole"]

SCAN, END, RESTART, INTERVAL, ADOBE = 0xDA, 0xD9, 0xD0, 0xDD, 0xEE
FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
# Sequential with Huffman codes. Of the others Pillow refuses some and libjpeg-turbo's versions treat some differently:
# arithmetic codes, lossless, progressive (smoothed where scans are missing).
ORDINARY = {0xC0, 0xC1}
# In a plain header: tables of 8 bits, what Pillow skips or keeps, and what it reads if it begins like this.
TABLES, CODES = 0xDB, 0xC4
KEPT = {CODES, INTERVAL, 0xFE}
READ = {0xE0: (b"JFIF\0", 14), 0xE2: (b"ICC_PROFILE\0", 14), 0xEE: (b"Adobe", 12)}
YCBCR = bytes((1, 2, 3))  # the numbers of the components
AC = 0x10  # of codes of all coefficients of a block but the first
ALL_OF_IT = bytes((0, 63, 0))  # of each block's coefficients, in a scan


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


def whole(data: bytes) -> bytes | None:
    """An ordinary JPEG up to its end, if its markers show nothing that decoders could read differently; else None.

    It has 8 bits a sample, and is grey, or YCbCr whatever the rule to tell; its tables are there and sound; one scan
    holds all components; every restart is where it belongs; and the end follows.
    """
    frames: list[int] = []
    tables: set[tuple[int, int]] = set()
    frame, scan, interval, end = b"", b"", 0, 0
    for kind, start, stop in _segments(data):
        if kind in FRAMES:
            frames.append(kind)
            frame = data[start:stop]
        elif kind in (TABLES, CODES):
            found = (_quantizing if kind == TABLES else _codes)(data[start:stop])
            if not found:
                return None
            tables |= found
        elif kind == INTERVAL:
            interval = int.from_bytes(data[start:stop])
        elif kind == ADOBE and data[start : start + 5] == b"Adobe" and data[start + 11 : start + 12] != b"\x01":
            return None
        elif kind == SCAN:
            scan, end = data[start:stop], stop
    blocks = _blocks(frame, scan, tables) if len(frames) == 1 and frames[0] in ORDINARY else 0
    if not blocks or end >= len(data):
        return None
    restarts = (blocks - 1) // interval if interval else 0
    coded = np.frombuffer(data, np.uint8, offset=end)
    at = np.flatnonzero(coded[:-1] == 0xFF)
    at = at[coded[at + 1] != 0]  # others stand for a byte 0xFF of the codes
    kinds = coded[at + 1]
    expected = [RESTART + i % 8 for i in range(restarts)] + [END]
    if kinds[: restarts + 1].tolist() != expected:
        return None
    return data[: end + int(at[restarts]) + 2]


def _quantizing(segment: bytes) -> frozenset[tuple[int, int]]:
    """(TABLES, number) of the tables of 8 bits that a segment defines; none if anything is unusual."""
    numbers = segment[::65]
    sound = len(segment) == 65 * len(numbers) and max(numbers, default=0) < 4
    return frozenset((TABLES, number) for number in numbers if sound)


@functools.lru_cache(maxsize=256)  # many files have the same
def _codes(segment: bytes) -> frozenset[tuple[int, int]]:
    """(CODES, kind and number) of the tables of Huffman codes that a segment defines; none if one is not sound."""
    found, at = set(), 0
    while at < len(segment):
        kind, counts = segment[at], segment[at + 1 : at + 17]
        symbols = segment[at + 17 : at + 17 + sum(counts)]
        sound = kind & ~AC < 4 and len(counts) == 16 and 0 < len(symbols) == sum(counts) <= 256
        code = 0
        for length, count in enumerate(counts, 1):
            code = 2 * code + count
            sound &= code < 1 << length  # none is of ones alone
        if not sound or (kind < AC and max(symbols) > 15):
            return frozenset()
        found.add((CODES, kind))
        at += 17 + len(symbols)
    return frozenset(found)


def _blocks(frame: bytes, scan: bytes, tables: set[tuple[int, int]]) -> int:
    """How many units the only scan has, between which a restart may stand; 0 where anything is unusual."""
    count = frame[5] if len(frame) > 5 else 0
    components = [frame[6 + 3 * i : 9 + 3 * i] for i in range(count)]
    numbers = bytes(one[0] for one in components) if len(frame) == 6 + 3 * count else b""
    if count not in (1, 3) or frame[0] != 8 or (count == 3 and numbers != YCBCR):
        return 0
    if len(scan) != 2 * count + 4 or scan[0] != count or scan[1:-3:2] != numbers or scan[-3:] != ALL_OF_IT:
        return 0
    needed = {(TABLES, one[2]) for one in components}
    needed |= {(CODES, kind) for both in scan[2:-3:2] for kind in (both >> 4, AC | both & 15)}
    if any(one[1] != 0x11 for one in components[1:]) or not needed <= tables:
        return 0
    # A single component has units of one block, whatever its sampling.
    across, down = (components[0][1] >> 4, components[0][1] & 15) if count == 3 else (1, 1)
    height, width = int.from_bytes(frame[1:3]), int.from_bytes(frame[3:5])
    return -(-height // (8 * down)) * -(-width // (8 * across)) if across and down else 0


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
