"""The resize of `resample` on a CUDA card, for many pictures at once and to the same bytes.

The host computes the coefficients, as for itself, and a card adds up in integers. Each pass is one launch for all
pictures, which lie anywhere in the card's memory: the kernel sees all of it between the lowest and the highest of
their addresses as one array, and is told for each picture where in it to read and to write.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import cuda

from .cuda import Memory
from .launching import SIMULATED, allocate, array_at
from .resample import BITS, HALF, Order, coefficients, window

__all__ = ["Job", "Resizer"]

THREADS, BLOCKS = (1, 2) if SIMULATED else (256, 64)  # of a block, and for each picture
# What the kernel is told of a picture in a pass, in this order. Lines are rows of the result, places its pixels:
# `HEIGHT` x `WIDTH` of them are written, those outside of (`TOP`, `LEFT`), `ROWS` x `COLUMNS` in one `COLOUR`. A pixel
# is the sum of pixels `STEP` bytes apart, from `SOURCE` and what `BY_ROW`, `BY_COLUMN` and its coefficients add.
FIELDS = (
    "height", "width", "top", "left", "rows", "columns", "out", "out_line", "source", "by_row", "by_column", "step",
    "down", "table", "length", "colour",
)  # fmt: skip
(HEIGHT, WIDTH, TOP, LEFT, ROWS, COLUMNS, OUT, OUT_LINE, SOURCE, BY_ROW, BY_COLUMN, STEP, DOWN, TABLE, LENGTH,
 COLOUR) = range(len(FIELDS))  # fmt: skip


class Job(NamedTuple):
    """One picture.

    Attributes:
        source: its pixels, (row, column, channel) uint8 RGB.
        size: (height, width) after the resize.
        interpolation: as for `resample.resample`.
        offset: (row, column) of the crop in the resized picture; negative where the crop begins before the picture.
        out: the crop, (row, column, channel) uint8.
        border: RGB of what lies outside the resized picture.
    """

    source: Memory
    size: tuple[int, int]
    interpolation: str
    offset: tuple[int, int]
    out: Memory
    border: tuple[int, int, int]


class Resizer:
    """Resizes on a stream of its own, which the pixels may be made on; one thread at a time.

    Attributes:
        stream: the number by which CUDA knows the stream.
    """

    def __init__(self, order: Order) -> None:
        """`order` is as for `resample.resample`."""
        self._order, self._stream = order, cuda.stream()
        self.stream = 0 if SIMULATED else int(self._stream)
        self._between = allocate(1)

    def __call__(self, jobs: Sequence[Job]) -> None:
        """Resize and crop pictures; returns when the card has finished."""
        tables: dict[int, tuple[int, _Known]] = {}
        steps: list[tuple[list[int], list[int]]] = []
        size = room = 0
        for job in jobs:
            known = _known(job, self._order)
            if id(known) not in tables:
                tables[id(known)] = size, known
                size += known.table.size
            first, last, needed = _passes(job, known, tables[id(known)][0], room)
            steps.append((first, last))
            room += needed
        if room > self._between.nbytes:
            self._between = allocate(room)
        places = [self._between, *(job.source for job in jobs), *(job.out for job in jobs)]
        low = min(place.pointer for place in places)
        whole = array_at(Memory(low, (max(place.pointer + place.nbytes for place in places) - low,), "uint8"))
        table = self._sent(np.concatenate([known.table for _, known in tables.values()]))
        for k, moved in ((0, OUT), (1, SOURCE)):  # the two that are in `_between`
            told = np.array([step[k] for step in steps], np.int64)
            told[:, moved] += self._between.pointer
            told[:, [OUT, SOURCE]] -= low
            _pass[(BLOCKS, len(jobs)), THREADS, self._stream](whole, table, self._sent(told))
        self._stream.synchronize()

    def _sent(self, values: npt.NDArray[Any]) -> Any:
        return cuda.to_device(values, stream=self._stream)


class _Known(NamedTuple):
    """What is the same for all pictures of one size: their place in the crop, and the two passes' coefficients.

    `table` has `across` rows of `wide` numbers and then `down` rows of `long`: first pixel, how many, weights.
    """

    place: tuple[int, int]
    table: npt.NDArray[np.int32]
    across: int
    wide: int
    down: int
    long: int
    down_first: bool
    columns: tuple[int, int]  # the first that is read, and how many
    lines: tuple[int, int]


def _known(job: Job, order: Order) -> _Known:
    (height, width, _), crop = job.source.shape, job.out.shape[:2]
    down_first = order(height, width, *job.size)
    return _computed(job.interpolation, (height, width), job.size, job.offset, (crop[0], crop[1]), down_first)


@functools.lru_cache(maxsize=1024)
def _computed(
    interpolation: str, before: tuple[int, int], size: tuple[int, int], offset: tuple[int, int],
    crop: tuple[int, int], down_first: bool,
) -> _Known:  # fmt: skip
    (y, top, rows), (x, left, columns) = (
        window(edge, at, whole) for edge, at, whole in zip(size, offset, crop, strict=True)
    )
    across, horizontal = coefficients(interpolation, before[1], size[1], left, columns)
    down, vertical = coefficients(interpolation, before[0], size[0], top, rows)
    parts = [np.concatenate(both, 1, dtype=np.int32) for both in ((across, horizontal), (down, vertical))]
    columns_read, lines_read = ((int(b[0, 0]), int(b[-1].sum() - b[0, 0])) for b in (across, down))
    table = np.concatenate([part.reshape(-1) for part in parts])
    wide, long = (part.shape[1] for part in parts)
    return _Known((y, x), table, columns, wide, rows, long, down_first, columns_read, lines_read)


def _passes(job: Job, known: _Known, table: int, room: int) -> tuple[list[int], list[int], int]:
    """What the kernel is told in both passes, and the bytes between them; addresses there count from its beginning."""
    stride, (column, columns), (row, lines) = 3 * job.source.shape[1], known.columns, known.lines
    red, green, blue = job.border
    colour = red | green << 8 | blue << 16
    across = {"down": 0, "table": table, "length": known.wide}
    down = {"down": 1, "table": table + known.across * known.wide, "length": known.long}
    if known.down_first:
        height, width, line = known.down, columns, 3 * columns
        first = down | {"source": job.source.pointer + 3 * column, "by_row": 0, "by_column": 3, "step": stride}
        last = across | {"source": room - 3 * column, "by_row": line, "by_column": 0, "step": 3}
    else:
        height, width, line = lines, known.across, 3 * known.across
        first = across | {"source": job.source.pointer + row * stride, "by_row": stride, "by_column": 0, "step": 3}
        last = down | {"source": room - row * line, "by_row": 0, "by_column": 3, "step": line}
    first |= {"height": height, "width": width, "top": 0, "left": 0, "rows": height, "columns": width}
    first |= {"out": room, "out_line": line, "colour": 0}
    last |= {"height": job.out.shape[0], "width": job.out.shape[1], "top": known.place[0], "left": known.place[1]}
    last |= {"rows": known.down, "columns": known.across, "colour": colour}
    last |= {"out": job.out.pointer, "out_line": 3 * job.out.shape[1]}
    return [first[name] for name in FIELDS], [last[name] for name in FIELDS], height * line


@cuda.jit(device=True)  # type: ignore[untyped-decorator]
def _rounded(total: Any) -> Any:
    return min(max(total >> np.int32(BITS), np.int32(0)), np.int32(255))


@cuda.jit  # type: ignore[untyped-decorator]
def _pass(memory: Any, tables: Any, told: Any) -> None:
    """One pass for all pictures: a row of blocks for each, a thread for a pixel."""
    job = told[cuda.blockIdx.y]
    width, step = job[WIDTH], job[STEP]
    at = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    while at < job[HEIGHT] * width:
        line, place = at // width, at % width
        row, column = line - job[TOP], place - job[LEFT]
        out = job[OUT] + line * job[OUT_LINE] + place * 3
        if 0 <= row < job[ROWS] and 0 <= column < job[COLUMNS]:
            entry = job[TABLE] + (row if job[DOWN] else column) * job[LENGTH]
            source = job[SOURCE] + row * job[BY_ROW] + column * job[BY_COLUMN] + tables[entry] * step
            red, green, blue = np.int32(HALF), np.int32(HALF), np.int32(HALF)
            for k in range(tables[entry + 1]):
                weight, pixel = tables[entry + 2 + k], source + k * step
                red = np.int32(red + np.int32(memory[pixel]) * weight)
                green = np.int32(green + np.int32(memory[pixel + 1]) * weight)
                blue = np.int32(blue + np.int32(memory[pixel + 2]) * weight)
            memory[out], memory[out + 1], memory[out + 2] = _rounded(red), _rounded(green), _rounded(blue)
        else:
            colour = job[COLOUR]
            memory[out], memory[out + 1], memory[out + 2] = colour & 255, (colour >> 8) & 255, (colour >> 16) & 255
        at += cuda.gridDim.x * cuda.blockDim.x
