"""Read JPEGs' markers without decoding them: which a decoder may have whose pixels or errors could differ.

numba does it, many at once and outside the interpreter's lock.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from .decode import MAX_PIXELS

__all__ = ["Markers", "ordinary", "plain", "read"]

START, SCAN, END, RESTART = 0xD8, 0xDA, 0xD9, 0xD0
TABLES, CODES, INTERVAL, COMMENT, JFIF, PROFILE, ADOBE = 0xDB, 0xC4, 0xDD, 0xFE, 0xE0, 0xE2, 0xEE
# How segments begin that Pillow reads.
TEXTS = tuple(np.frombuffer(text, np.uint8) for text in (b"JFIF\0", b"ICC_PROFILE\0", b"Adobe"))
_compiled = njit(nogil=True, cache=True, error_model="numpy")
BLOCK = 256  # bytes that are looked at together


class Markers(NamedTuple):
    """What the markers of a file show.

    Attributes:
        height: of the picture, where it is `ordinary`.
        width: likewise.
        ordinary: one segment after another leads to the first scan, and the only frame is sequential with Huffman
            codes. Of the others Pillow refuses some and libjpeg-turbo's versions treat some differently: arithmetic
            codes, lossless, progressive (smoothed where scans are missing).
        plain: it is ordinary, and Pillow finds no fault in the header, whatever else it would look at there: tables of
            8 bits, and what it skips, keeps, or reads if it begins like `TEXTS`. Opening a file costs Pillow a
            twentieth of decoding it here, under the interpreter's lock.
        end: the byte after the end of an ordinary JPEG whose markers show nothing that decoders could read
            differently; else 0. It has 8 bits a sample, and is grey, or YCbCr whatever the rule to tell; its tables
            are there and sound; one scan holds all components; every restart is where it belongs; the end follows.
    """

    height: int
    width: int
    ordinary: int
    plain: int
    end: int


def read(files: Sequence[bytes], *, whole: bool = True) -> list[Markers]:
    """The markers of each file; only those of the header if not `whole`: `end` is then 0."""
    addresses = np.frombuffer((ctypes.c_char_p * len(files))(*files), np.intp)
    found = np.zeros((len(files), len(Markers._fields)), np.int64)
    _read(addresses, np.array([len(data) for data in files], np.int64), whole, found)
    return [Markers(*row) for row in found.tolist()]


def ordinary(data: bytes) -> bool:
    """See `Markers`."""
    return bool(read([data], whole=False)[0].ordinary)


def plain(data: bytes) -> tuple[int, int] | None:
    """(height, width) of a plain JPEG (see `Markers`), else None."""
    found = read([data], whole=False)[0]
    return (found.height, found.width) if found.plain else None


@intrinsic  # type: ignore[untyped-decorator]
def _pointer(typing: Any, address: Any) -> Any:
    """For compiled code: a pointer from a number."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], cgutils.voidptr_t)

    return types.voidptr(types.intp), generate


@_compiled  # type: ignore[untyped-decorator]
def _begins(data: Any, at: int, text: Any) -> bool:
    if at + len(text) > len(data):
        return False
    for i in range(len(text)):  # noqa: SIM110 - compiled
        if data[at + i] != text[i]:
            return False
    return True


@_compiled  # type: ignore[untyped-decorator]
def _number(data: Any, at: int) -> Any:
    """Two bytes."""
    return np.int64(data[at]) << 8 | np.int64(data[at + 1])


@_compiled  # type: ignore[untyped-decorator]
def _quantizing(data: Any, begin: int, end: int) -> int:
    """The tables of 8 bits that a segment defines, bit k for number k; -1 if anything is unusual."""
    mask = 0
    for at in range(begin, end, 65):
        if data[at] > 15 or at + 65 > end:
            return -1
        mask |= 1 << data[at]
    return mask


@_compiled  # type: ignore[untyped-decorator]
def _codes(data: Any, begin: int, end: int) -> int:
    """The tables of Huffman codes that a segment defines; 0 if one is not sound.

    Bit k is that of the first coefficients with number k, bit k + 4 that of all others.
    """
    at, mask = begin, 0
    while at < end:
        kind: Any = np.int64(data[at])
        if kind & ~16 > 3 or at + 17 > end:
            return 0
        code: Any = 0
        count: Any = 0
        for length in range(1, 17):
            count += data[at + length]
            code = 2 * code + data[at + length]
            if code >= 1 << length:  # none is of ones alone
                return 0
        if not 0 < count <= 256 or at + 17 + count > end:
            return 0
        for k in range(at + 17, at + 17 + count):
            if kind < 16 and data[k] > 15:
                return 0
        mask |= 1 << ((kind & 3) + (kind >> 4 << 2))
        at += 17 + count
    return mask


@_compiled  # type: ignore[untyped-decorator]
def _blocks(data: Any, frame: int, frame_end: int, scan: int, scan_end: int, quantizing: int, codes: int) -> Any:
    """How many units the only scan has, between which a restart may stand; 0 where anything is unusual."""
    count = np.int64(data[frame + 5]) if frame_end > frame + 5 else 0
    if count not in (1, 3) or frame_end != frame + 6 + 3 * count or data[frame] != 8:
        return 0
    if scan_end != scan + 2 * count + 4 or data[scan] != count:
        return 0
    # All of each block's coefficients.
    if data[scan_end - 3] != 0 or data[scan_end - 2] != 63 or data[scan_end - 1] != 0:
        return 0
    for i in range(count):
        one, tables = frame + 6 + 3 * i, np.int64(data[scan + 2 + 2 * i])
        if data[scan + 1 + 2 * i] != data[one] or (count == 3 and data[one] != i + 1) or data[one + 2] > 3:
            return 0
        if tables >> 4 > 3 or tables & 15 > 3 or (i and data[one + 1] != 0x11):
            return 0
        needed = 1 << (tables >> 4) | 16 << (tables & 15)
        if codes & needed != needed or not quantizing >> data[one + 2] & 1:
            return 0
    # A single component has units of one block, whatever its sampling.
    across, down = (np.int64(data[frame + 7]) >> 4, np.int64(data[frame + 7]) & 15) if count == 3 else (1, 1)
    height, width = _number(data, frame + 1), _number(data, frame + 3)
    if not across or not down:
        return 0
    return -(-height // (8 * down)) * -(-width // (8 * across))


@_compiled  # type: ignore[untyped-decorator]
def _after(data: Any, at: int, restarts: int) -> int:
    """The byte after the end of the codes from `at` on; 0 if another marker comes before, or none."""
    seen, last = 0, len(data) - 1
    while at < last:
        stop = min(at + BLOCK, last)
        these, followers = data[at:stop], data[at + 1 : stop + 1]
        marked = 0
        for k in range(len(these)):  # in few instructions
            marked += (these[k] == 0xFF) & (followers[k] != 0)
        if not marked:
            at = stop
        while at < stop:
            kind = data[at + 1]
            if data[at] == 0xFF and kind != 0:  # 0 stands for a byte 0xFF of the codes
                if kind != (END if seen == restarts else RESTART + seen % 8):
                    return 0
                if seen == restarts:
                    return at + 2
                seen += 1
            at += 1
    return 0


@_compiled  # type: ignore[untyped-decorator]
def _one(data: Any, whole: bool, found: Any) -> None:
    """Write the fields of `Markers`."""
    at, frame, frame_end, frames, interval, quantizing, codes = 2, 0, 0, 0, 0, 0, 0
    usual = plain = alike = len(data) > 2 and data[0] == 0xFF and data[1] == START and data[2] == 0xFF
    while len(data) > at + 4 and data[at] == 0xFF:
        kind, begin, end = data[at + 1], at + 4, at + 2 + _number(data, at + 2)
        if not begin <= end <= len(data):
            return
        if kind == SCAN:
            break
        if 0xC0 <= kind <= 0xCF and kind not in (CODES, 0xC8, 0xCC):
            frame, frame_end, frames = begin, end, frames + 1
            usual &= kind <= 0xC1
            layers = data[begin + 5] if end > begin + 5 else 0
            plain &= layers in (1, 3) and end == begin + 6 + 3 * layers and data[begin] == 8
        elif kind == TABLES:
            mask = _quantizing(data, begin, end)
            plain &= mask >= 0
            alike &= 0 < mask < 16
            quantizing |= mask
        elif kind == CODES:
            mask = _codes(data, begin, end)
            alike &= mask > 0
            codes |= mask
        elif kind == INTERVAL:
            interval = _number(data, begin) if end == begin + 2 else 0
            alike &= end == begin + 2
        elif kind == ADOBE:
            own = _begins(data, begin, TEXTS[2])
            plain &= own and end >= begin + 12
            alike &= not own or (len(data) > begin + 11 and data[begin + 11] == 1)
        elif kind in (JFIF, PROFILE):
            plain &= end >= begin + 14 and _begins(data, begin, TEXTS[0] if kind == JFIF else TEXTS[1])
        else:
            plain &= kind == COMMENT
        at = end
    else:
        return
    if frames == 1 and usual:
        if frame_end >= frame + 5:
            found[0], found[1] = _number(data, frame + 1), _number(data, frame + 3)
        found[2] = 1
        found[3] = plain and 0 < found[0] * found[1] <= MAX_PIXELS
        blocks = _blocks(data, frame, frame_end, begin, end, quantizing, codes) if whole and alike else 0
        if blocks:
            found[4] = _after(data, end, (blocks - 1) // interval if interval else 0)


@_compiled  # type: ignore[untyped-decorator]
def _read(addresses: Any, lengths: Any, whole: bool, found: Any) -> None:
    for i in range(len(addresses)):
        _one(carray(_pointer(addresses[i]), lengths[i], np.uint8), whole, found[i])
