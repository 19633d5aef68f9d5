"""Pillow's resize, computed for only the part that is needed: the only module of the engine that uses numba.

The pixels equal Pillow's bit for bit (`Image.resize` of an 8-bit RGB picture, then `crop`). Coefficients are computed
in float64 and rounded to 22 bits, and the result of each pass is rounded and clipped to 8 bits, so the order of passes
matters (Pillow's `Resample.c`; for `nearest`, `Geometry.c`). It works outside the interpreter's lock.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = ["BITS", "FILTERS", "HALF", "ORDERS", "Order", "passes", "resample"]

BITS = 22  # of a coefficient's fraction: 32 bits, less 8 for the pixel and 2 for sums outside of 0 to 1
HALF = 1 << (BITS - 1)
# (number, support in pixels) of a filter
FILTERS = {
    "nearest": (0, 0.0),
    "box": (1, 0.5),
    "bilinear": (2, 1.0),
    "hamming": (3, 1.0),
    "bicubic": (4, 2.0),
    "lanczos": (5, 3.0),
}
# As C compilers read Pillow's 0.54f and 0.46f.
HAMMING = (float(np.float32(0.54)), float(np.float32(0.46)))


type Order = Callable[[int, int, int, int], bool]


def _since_13(height: int, width: int, new_height: int, new_width: int) -> bool:
    return height - new_height > 2 * max(width - new_width, 0)


def _of_12_2(height: int, width: int, new_height: int, new_width: int) -> bool:
    return height > 100 * width and new_height < height


def _earlier(height: int, width: int, new_height: int, new_width: int) -> bool:
    return False


# When Pillow takes the vertical pass first, by its version. `fast` finds the one of the Pillow that is installed.
ORDERS: tuple[Order, ...] = (_since_13, _of_12_2, _earlier)


def resample(
    source: npt.NDArray[np.uint8],
    size: tuple[int, int],
    interpolation: str,
    offset: tuple[int, int],
    out: npt.NDArray[np.uint8],
    order: Order = ORDERS[0],
) -> None:
    """Resize a picture, and take the crop that lies in it.

    Args:
        source: (row, column, 4) uint8 in C order: RGB and one byte of anything.
        size: (height, width) after the resize.
        interpolation: one of `FILTERS`.
        offset: (row, column) of the crop in the resized picture; negative where the crop begins before the picture.
        out: (row, column, 3) uint8 in C order: the crop. What lies outside the resized picture is not changed.
        order: whether the vertical pass is first for (height, width, new height, new width).
    """
    number, support = FILTERS[interpolation]
    before = source.shape[0], source.shape[1]
    _resample(source, number, support, size, offset, order(*before, *size), out)


@intrinsic  # type: ignore[untyped-decorator]
def _pixel(typingctx: Any, source: Any, at: Any, weights: Any, first: Any, count: Any, out: Any, to: Any) -> Any:
    """Write to `out[to:to + 4]` the sum of `count` pixels of 4 bytes, from `source[at]` on, by `weights[first:]`.

    All four bytes at once, which compilers do not find by themselves: half the time.
    """
    signature = types.void(source, at, weights, first, count, out, to)
    byte, word = ir.VectorType(ir.IntType(8), 4), ir.VectorType(ir.IntType(32), 4)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def pointer(number: int, index: Any) -> Any:
            array = context.make_array(signature.args[number])(context, builder, args[number])
            return builder.gep(array.data, [index])

        def all_of(value: int) -> Any:
            return ir.Constant(word, [value] * 4)

        pixels = builder.bitcast(pointer(0, args[1]), byte.as_pointer())
        factors = pointer(2, args[3])
        total = cgutils.alloca_once_value(builder, all_of(HALF))
        with cgutils.for_range(builder, args[4]) as loop:
            pixel = builder.zext(builder.load(builder.gep(pixels, [loop.index]), align=1), word)
            factor = builder.load(builder.gep(factors, [loop.index]))
            factor = builder.insert_element(ir.Constant(word, ir.Undefined), factor, ir.Constant(ir.IntType(32), 0))
            factor = builder.shuffle_vector(factor, ir.Constant(word, ir.Undefined), all_of(0))
            builder.store(builder.add(builder.load(total), builder.mul(pixel, factor)), total)
        value = builder.ashr(builder.load(total), all_of(BITS))
        value = builder.select(builder.icmp_signed("<", value, all_of(0)), all_of(0), value)
        value = builder.select(builder.icmp_signed(">", value, all_of(255)), all_of(255), value)
        target = builder.bitcast(pointer(5, args[6]), byte.as_pointer())
        builder.store(builder.trunc(value, byte), target, align=1)
        return context.get_dummy_value()

    return signature, codegen


@njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _sinc(x: float) -> float:
    return 1.0 if x == 0.0 else math.sin(x * math.pi) / (x * math.pi)


@njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _weight(number: int, x: float) -> float:
    """The value of a filter at x, by Pillow's own expressions."""
    if number == 1:
        return 1.0 if -0.5 < x <= 0.5 else 0.0
    if number == 5:
        return _sinc(x) * _sinc(x / 3) if -3.0 <= x < 3.0 else 0.0
    x = abs(x)
    if number == 2:
        return 1.0 - x if x < 1.0 else 0.0
    if number == 3:
        if x == 0.0:
            return 1.0
        return _sinc(x) * (HAMMING[0] + HAMMING[1] * math.cos(x * math.pi)) if x < 1.0 else 0.0
    if x < 1.0:
        return (1.5 * x - 2.5) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * -0.5 if x < 2.0 else 0.0


@njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _coefficients(number: int, support: float, edge: int, target: int, first: int, count: int) -> Any:
    """(start, number of sources) and weights of `count` pixels, from `first` on, of an edge resized to `target`."""
    scale = edge / target
    stretch = max(scale, 1.0)
    bounds = np.empty((count, 2), np.int64)
    weights = np.zeros((count, math.ceil(support * stretch) * 2 + 1), np.int32)
    if number == 0:
        position = scale * 0.5
        for i in range(first + count):
            if i >= first:
                bounds[i - first, 0] = min(int(position), edge - 1)
                bounds[i - first, 1] = 1
                weights[i - first, 0] = 1 << BITS
            position += scale  # adds up, as Pillow does it
        return bounds, weights
    exact = np.empty(weights.shape[1], np.float64)
    for i in range(count):
        centre = (first + i + 0.5) * scale
        start = max(int(centre - support * stretch + 0.5), 0)
        length = min(int(centre + support * stretch + 0.5), edge) - start
        total = 0.0
        for k in range(length):
            exact[k] = _weight(number, (k + start - centre + 0.5) * (1.0 / stretch))
            total += exact[k]
        for k in range(length):
            value = (exact[k] / total if total != 0.0 else exact[k]) * (1 << BITS)
            weights[i, k] = int(value - 0.5) if value < 0 else int(value + 0.5)
        bounds[i, 0] = start
        bounds[i, 1] = length
    return bounds, weights


@njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _across(source: Any, start: int, stride: int, rows: int, bounds: Any, shift: int, weights: Any, out: Any) -> None:
    """The horizontal pass over `rows` lines of `stride` bytes from byte `start` on; `shift` is their first column."""
    columns, length, flat = weights.shape[0], weights.shape[1], weights.reshape(-1)
    for y in range(rows):
        for x in range(columns):
            at = start + y * stride + (bounds[x, 0] - shift) * 4
            _pixel(source, at, flat, x * length, bounds[x, 1], out, (y * columns + x) * 4)


@njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _down(source: Any, start: int, stride: int, size: int, bounds: Any, shift: int, weights: Any, out: Any) -> None:
    """The vertical pass over `size` bytes of lines of `stride` bytes from byte `start` on, which is of row `shift`."""
    total = np.empty(size, np.int32)
    for y in range(weights.shape[0]):
        for x in range(size):
            total[x] = HALF
        for k in range(bounds[y, 1]):
            at, factor = start + (bounds[y, 0] - shift + k) * stride, weights[y, k]
            line = source[at : at + size]
            for x in range(size):
                total[x] += np.int32(line[x]) * factor
        line = out[y * size : (y + 1) * size]
        for x in range(size):
            line[x] = min(max(total[x] >> BITS, 0), 255)


@njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def passes(
    number: int, support: float, source: tuple[int, int], size: tuple[int, int], offset: tuple[int, int],
    crop: tuple[int, int],
) -> Any:  # fmt: skip
    """What both passes need, from (row, column) each: where the picture lies in the crop, and coefficients.

    Returns:
        (row, column) of the picture in the crop; bounds and weights of `_coefficients` across; the same down.
    """
    y, x = max(-offset[0], 0), max(-offset[1], 0)
    top, left = max(offset[0], 0), max(offset[1], 0)
    rows, columns = min(crop[0] - y, size[0] - top), min(crop[1] - x, size[1] - left)
    across, horizontal = _coefficients(number, support, source[1], size[1], left, columns)
    down, vertical = _coefficients(number, support, source[0], size[0], top, rows)
    return (y, x), across, horizontal, down, vertical


@njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _resample(
    source: Any, number: int, support: float, size: tuple[int, int], offset: tuple[int, int], down_first: bool, out: Any
) -> None:
    before, crop = (source.shape[0], source.shape[1]), (out.shape[0], out.shape[1])
    (y, x), across, horizontal, down, vertical = passes(number, support, before, size, offset, crop)
    rows, columns = len(down), len(across)
    flat, stride = source.reshape(-1), source.shape[1] * 4
    row, lines = down[0, 0], down[rows - 1, 0] + down[rows - 1, 1] - down[0, 0]
    column, wide = across[0, 0], across[columns - 1, 0] + across[columns - 1, 1] - across[0, 0]
    done = np.empty(rows * columns * 4, np.uint8)
    if down_first:
        between = np.empty(rows * wide * 4, np.uint8)
        _down(flat, column * 4, stride, wide * 4, down, 0, vertical, between)
        _across(between, 0, wide * 4, rows, across, column, horizontal, done)
    else:
        between = np.empty(lines * columns * 4, np.uint8)
        _across(flat, row * stride, stride, lines, across, 0, horizontal, between)
        _down(between, 0, columns * 4, columns * 4, down, row, vertical, done)
    for i in range(rows):
        for j in range(columns):
            at = (i * columns + j) * 4
            for channel in range(3):
                out[y + i, x + j, channel] = done[at + channel]
