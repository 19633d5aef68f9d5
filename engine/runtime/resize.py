"""The resize of `resample` on a CUDA card, for many pictures at once and to the same bytes.

The host computes the coefficients, as for itself, and a card adds up in integers. Each pass is one launch for all
pictures, which lie anywhere in the card's memory: the kernel sees all of it between the lowest and the highest of
their addresses as one array, and is told for each picture where in it to read and to write.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import cuda

from .cuda import Memory
from .launching import SIMULATED, allocate, array_at, stream_at
from .resample import BITS, HALF, Order, coefficients, window

__all__ = ["Batch", "Resizer", "Way", "way"]

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


@dataclass(frozen=True, slots=True, eq=False)
class Way:
    """How every picture of one size becomes a crop.

    Attributes:
        told: (pass, field) int64 of `FIELDS`. `SOURCE` and `OUT` count from the beginnings of the picture, of what is
            between the passes, and of the crop; `TABLE` from that of `table`.
        table: int32. Of the columns of the crop that are inside the picture, and then of the rows: the first pixels,
            how many, and their first weights, their second, and so on.
        source: bytes of the picture.
        between: bytes between the passes.
        out: bytes of the crop.
    """

    told: npt.NDArray[np.int64]
    table: npt.NDArray[np.int32]
    source: int
    between: int
    out: int


def way(
    before: tuple[int, int], size: tuple[int, int], interpolation: str, offset: tuple[int, int],
    crop: tuple[int, int], border: tuple[int, int, int], order: Order,
) -> Way:  # fmt: skip
    """How pictures are resized and cropped.

    Args:
        before: (height, width) of the pictures.
        size: (height, width) after the resize.
        interpolation: as for `resample.resample`.
        offset: (row, column) of the crop in the resized picture; negative where the crop begins before the picture.
        crop: (height, width) of the crop.
        border: RGB of what lies outside the resized picture.
        order: as for `resample.resample`.
    """
    (y, top, rows), (x, left, columns) = (
        window(edge, at, whole) for edge, at, whole in zip(size, offset, crop, strict=True)
    )
    across, horizontal = coefficients(interpolation, before[1], size[1], left, columns)
    down, vertical = coefficients(interpolation, before[0], size[0], top, rows)
    parts = [np.concatenate(both, 1, dtype=np.int32).T for both in ((across, horizontal), (down, vertical))]
    # The first that is read, and how many.
    (column, wide), (row, lines) = ((int(b[0, 0]), int(b[-1].sum() - b[0, 0])) for b in (across, down))
    stride = 3 * before[1]
    sideways = {"down": 0, "table": 0, "length": parts[0].shape[1]}
    upright = {"down": 1, "table": parts[0].size, "length": parts[1].shape[1]}
    if order(*before, *size):
        height, width, line = rows, wide, 3 * wide
        first = upright | {"source": 3 * column, "by_row": 0, "by_column": 3, "step": stride}
        last = sideways | {"source": -3 * column, "by_row": line, "by_column": 0, "step": 3}
    else:
        height, width, line = lines, columns, 3 * columns
        first = sideways | {"source": row * stride, "by_row": stride, "by_column": 0, "step": 3}
        last = upright | {"source": -row * line, "by_row": 0, "by_column": 3, "step": line}
    first |= {"height": height, "width": width, "top": 0, "left": 0, "rows": height, "columns": width}
    first |= {"out": 0, "out_line": line, "colour": 0}
    last |= {"height": crop[0], "width": crop[1], "top": y, "left": x, "rows": rows, "columns": columns}
    last |= {"out": 0, "out_line": 3 * crop[1], "colour": border[0] | border[1] << 8 | border[2] << 16}
    told = np.array([[one[name] for name in FIELDS] for one in (first, last)], np.int64)
    table = np.concatenate([part.reshape(-1) for part in parts])
    return Way(told, table, before[0] * stride, height * line, 3 * crop[0] * crop[1])


class Batch:
    """What the kernel is told of pictures, but for where they lie: any thread may prepare it."""

    def __init__(self, ways: Sequence[Way], outs: npt.NDArray[np.int64]) -> None:
        """`outs` are the addresses of the crops."""
        kinds = list(dict.fromkeys(ways))
        number = {kind: i for i, kind in enumerate(kinds)}
        which = np.array([number[one] for one in ways])
        told = np.stack([kind.told for kind in kinds])
        lengths = np.array([kind.table.size for kind in kinds])
        told[:, :, TABLE] += (np.cumsum(lengths) - lengths)[:, None]
        sizes = np.array([(kind.source, kind.between, kind.out) for kind in kinds])[which]
        rooms = np.cumsum(sizes[:, 1])
        self.told = np.ascontiguousarray(told[which].swapaxes(0, 1))  # (pass, picture, field)
        self.told[0, :, OUT] += rooms - sizes[:, 1]
        self.told[1, :, SOURCE] += rooms - sizes[:, 1]
        self.told[1, :, OUT] += outs
        self.table = np.concatenate([kind.table for kind in kinds])
        self.between, self.sources = int(rooms[-1]), sizes[:, 0]
        self.low, self.high = int(outs.min()), int((outs + sizes[:, 2]).max())


class Resizer:
    """Resizes on a stream, which the pixels may be made on; one thread at a time.

    Its memory is used again, since CUDA frees memory only when all work on the card has ended, inference too.

    Attributes:
        stream: the number by which CUDA knows the stream.
    """

    def __init__(self, stream: int) -> None:
        self.stream, self._stream = stream, stream_at(stream)
        self._between, self._table, *self._told = (_Room() for _ in range(4))

    def __call__(self, batch: Batch, sources: npt.NDArray[np.int64]) -> None:
        """Resize and crop pictures, (row, column, channel) uint8 RGB at these addresses; returns when it is done."""
        between, told = self._between.memory(batch.between), batch.told.copy()
        low = min(between.pointer, batch.low, int(sources.min()))
        high = max(between.pointer + between.nbytes, batch.high, int((sources + batch.sources).max()))
        told[0, :, SOURCE] += sources - low
        told[0, :, OUT] += between.pointer - low
        told[1, :, SOURCE] += between.pointer - low
        told[1, :, OUT] -= low
        whole = array_at(Memory(low, (high - low,), "uint8"))
        table = self._table.filled(batch.table, self._stream)
        for rows, room in zip(told, self._told, strict=True):
            _pass[(BLOCKS, len(sources)), THREADS, self._stream](whole, table, room.filled(rows, self._stream))
        self._stream.synchronize()


class _Room:
    """Memory of the card that grows."""

    def __init__(self) -> None:
        self._memory = allocate(1)

    def memory(self, size: int) -> Memory:
        """`size` bytes or more, with any values."""
        if size > self._memory.nbytes:
            self._memory = allocate(size + size // 2)  # so that it seldom grows
        return self._memory

    def filled(self, values: npt.NDArray[Any], stream: Any) -> Any:
        """An array with these values, for a kernel on the stream."""
        room = Memory(self.memory(values.nbytes).pointer, values.shape, values.dtype.str)
        array = array_at(room)
        array.copy_to_device(values, stream=stream)
        return array


@cuda.jit(device=True)  # type: ignore[untyped-decorator]
def _rounded(total: Any) -> Any:
    return min(max(total >> np.int32(BITS), np.int32(0)), np.int32(255))


@cuda.jit  # type: ignore[untyped-decorator]
def _pass(memory: Any, tables: Any, told: Any) -> None:
    """One pass for all pictures: blocks for each, which share its lines, and in a line a thread for a pixel."""
    job = told[cuda.blockIdx.y]
    width, left, columns, step = np.int32(job[WIDTH]), np.int32(job[LEFT]), np.int32(job[COLUMNS]), job[STEP]
    down, length, colour = job[DOWN], job[LENGTH], np.int32(job[COLOUR])
    line = cuda.blockIdx.x
    while line < job[HEIGHT]:
        row = line - job[TOP]
        place = np.int32(cuda.threadIdx.x)
        while place < width:
            column = np.int32(place - left)
            out = np.uint64(job[OUT] + line * job[OUT_LINE] + place * 3)
            if 0 <= row < job[ROWS] and 0 <= column < columns:
                entry = np.uint64(job[TABLE] + (row if down else column))
                pixel = job[SOURCE] + row * job[BY_ROW] + column * job[BY_COLUMN] + tables[entry] * step
                count, k = tables[entry + np.uint64(length)], np.int32(0)
                weight = entry + np.uint64(2 * length)
                red, green, blue = np.int32(HALF), np.int32(HALF), np.int32(HALF)
                while k < count:
                    share, at = tables[weight], np.uint64(pixel)
                    red = np.int32(red + np.int32(memory[at]) * share)
                    green = np.int32(green + np.int32(memory[at + np.uint64(1)]) * share)
                    blue = np.int32(blue + np.int32(memory[at + np.uint64(2)]) * share)
                    pixel += step
                    weight += np.uint64(length)
                    k = np.int32(k + 1)
                memory[out] = _rounded(red)
                memory[out + np.uint64(1)] = _rounded(green)
                memory[out + np.uint64(2)] = _rounded(blue)
            else:
                memory[out] = colour & np.int32(255)
                memory[out + np.uint64(1)] = (colour >> np.int32(8)) & np.int32(255)
                memory[out + np.uint64(2)] = (colour >> np.int32(16)) & np.int32(255)
            place = np.int32(place + cuda.blockDim.x)
        line += cuda.gridDim.x
