"""Pillow's resize, computed by numba for only the part that is needed.

The pixels equal Pillow's bit for bit (`Image.resize` of an 8-bit RGB picture, then `crop`). Coefficients are computed
in float64 and rounded to 22 bits, and the result of each pass is rounded and clipped to 8 bits, so the order of passes
matters (Pillow's `Resample.c`; for `nearest`, `Geometry.c`). It works outside the interpreter's lock.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = ["BITS", "FILTERS", "HALF", "ORDERS", "Order", "coefficients", "resample", "window"]

BITS = 22  # of a coefficient's fraction: 32 bits, less 8 for the pixel and 2 for sums outside of 0 to 1
HALF = 1 << (BITS - 1)
LOW = 11  # bits of a coefficient's lower part: both parts fit into 16 bits
# Coefficients in a group: for pixels of a row, and for rows.
ACROSS, DOWN = 4, 2
COPIES = 4  # of a pixel's coefficient, for its bytes
CHUNK = 16  # bytes of a row that are resized at once
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


# Starts, factors, groups, first source and number of sources (`_packed`).
type Table = tuple[npt.NDArray[np.int64], npt.NDArray[np.int32], int, int, int]
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
        source: (row, column, 4) uint8 in C order, writable (others are one more kind to compile): RGB and one byte of
            anything.
        size: (height, width) after the resize.
        interpolation: one of `FILTERS`.
        offset: (row, column) of the crop in the resized picture; negative where the crop begins before the picture.
        out: (row, column, 3) uint8 in C order: the crop. What lies outside the resized picture is not changed.
        order: whether the vertical pass is first for (height, width, new height, new width).
    """
    support = FILTERS[interpolation][1]
    before = source.shape[0], source.shape[1]
    height, width = _padded(before[0], size[0], support), _padded(before[1], size[1], support)
    if (height, width) != before:
        source = np.pad(source, [(0, height - before[0]), (0, width - before[1]), (0, 0)])
    y, top, rows = window(size[0], offset[0], out.shape[0])
    x, left, columns = window(size[1], offset[1], out.shape[1])
    down = _table(interpolation, before[0], height, size[0], top, rows, DOWN, 1)
    across = _table(interpolation, before[1], width, size[1], left, columns, ACROSS, COPIES)
    _resample(source, rows, columns, down, across, order(*before, *size), out, y, x)


def _padded(edge: int, target: int, support: float) -> int:
    """An edge with as many pixels as a result may have coefficients, in whole groups; added pixels count nothing."""
    count = 2 * math.ceil(support * max(edge / target, 1)) + 1
    return max(edge, -(-count // ACROSS) * ACROSS)


def window(edge: int, offset: int, crop: int) -> tuple[int, int, int]:
    """Of the pixels along an edge after the resize: where in the crop they begin, the first of them, and how many."""
    place, first = max(-offset, 0), max(offset, 0)
    return place, first, min(crop - place, edge - first)


def coefficients(
    name: str, edge: int, target: int, first: int, count: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """How `count` pixels, from `first` on, of an edge resized to `target` are sums of its pixels.

    Returns:
        (pixel, 2) first summand and how many; (pixel, summand) their weights, in units of 2^-`BITS`.
    """
    bounds, weights = _coefficients(*FILTERS[name], edge, target, first, count)
    return bounds, weights


@functools.lru_cache(maxsize=256)  # pictures of a data set often have the same size
def _table(name: str, edge: int, padded: int, target: int, first: int, count: int, group: int, copies: int) -> Table:
    """How `count` results, from `first` on, of an edge resized to `target` are made of its pixels.

    They are padded to `padded` pixels. See `_packed`.
    """
    bounds, weights = coefficients(name, edge, target, first, count)
    found: Table = _packed(bounds, weights, group, copies, padded)
    return found


def _summing(group: Callable[..., Any], results: int, numbers: int) -> Any:
    """For compiled code: `(source, at, step, starts, first, factors, groups, out, to)` makes `CHUNK` bytes.

    They are `results` results from `first` on: bytes of the source, from `source[at + starts[result] * step]` on, by
    coefficients, summed over `groups` groups, rounded and clipped to `out[to:]`. `group(builder, pixels, step, index)`
    gives the bytes of a group as 16 bits, where neighbours belong to the same sum; `factors` has `numbers` numbers for
    each of both parts of its coefficients (`_packed`). Products of 16 bits, added by neighbours, are one instruction,
    which compilers find in this form, but not in a loop.
    """
    lanes = 2 * CHUNK // results if results > 1 else CHUNK

    @intrinsic  # type: ignore[untyped-decorator]
    def summed(
        typing: Any,
        source: Any,
        at: Any,
        step: Any,
        starts: Any,
        first: Any,
        factors: Any,
        groups: Any,
        out: Any,
        to: Any,
    ) -> Any:
        signature = types.void(source, at, step, starts, first, factors, groups, out, to)

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            pointer = functools.partial(_pointer, context, builder, signature, args)
            _, at, step, _, first, _, groups, _, to = args
            size = builder.mul(groups, _number(2 * numbers))
            sums = []
            for number in (builder.add(first, _number(result)) for result in range(results)):
                start = builder.load(pointer(3, number))
                pixels = pointer(0, builder.add(at, builder.mul(start, step)))
                parts = [cgutils.alloca_once_value(builder, _all(0, lanes)) for _ in range(2)]
                sums.append((pixels, pointer(5, builder.mul(number, size)), parts))
            with cgutils.for_range(builder, groups) as loop:
                for pixels, weights, parts in sums:
                    values = group(builder, pixels, step, loop.index)
                    at = builder.gep(weights, [builder.mul(loop.index, _number(2 * numbers))])
                    for number, part in enumerate(parts):
                        factor = _vector(builder, builder.gep(at, [_number(number * numbers)]), 32, numbers)
                        factor = _shuffled(builder, factor, [lane * numbers // lanes for lane in range(lanes)])
                        factor = builder.bitcast(factor, ir.VectorType(ir.IntType(16), 2 * lanes))
                        builder.store(builder.add(builder.load(part), _pairs(builder, values, factor)), part)
            totals = []
            for _, _, parts in sums:
                high, low = (builder.load(part) for part in parts)
                totals.append(builder.add(builder.shl(high, _all(LOW, lanes)), low))
            _store(builder, totals, pointer(7, to))
            return context.get_dummy_value()

        return signature, codegen

    return summed


def _store(builder: Any, totals: list[Any], target: Any) -> None:
    """Write sums as bytes. Of several results, each has its sums in two halves."""
    if len(totals) > 1:
        half = totals[0].type.count // 2
        halves = [[at + lane for at in (start, start + 2 * half) for lane in range(half)] for start in (0, half)]
        pairs = zip(totals[::2], totals[1::2], strict=True)
        totals = [builder.add(*(_shuffled(builder, one, order, two) for order in halves)) for one, two in pairs]
    for number, total in enumerate(totals):
        lanes = total.type.count
        total = builder.ashr(builder.add(total, _all(HALF, lanes)), _all(BITS, lanes))
        for sign, limit in (("<", 0), (">", 255)):
            total = builder.select(builder.icmp_signed(sign, total, _all(limit, lanes)), _all(limit, lanes), total)
        kind = ir.VectorType(ir.IntType(8), lanes)
        place = builder.bitcast(builder.gep(target, [_number(number * lanes)]), kind.as_pointer())
        builder.store(builder.trunc(total, kind), place, align=1)


@intrinsic  # type: ignore[untyped-decorator]
def _rgb(typing: Any, source: Any, at: Any, out: Any, to: Any) -> Any:
    """For compiled code: copies four pixels without their fourth byte."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pixels = _vector(builder, _pointer(context, builder, signature, args, 0, args[1]), 8, 16)
        kept = _shuffled(builder, pixels, [4 * pixel + channel for pixel in range(4) for channel in range(3)])
        target = _pointer(context, builder, signature, args, 2, args[3])
        builder.store(kept, builder.bitcast(target, kept.type.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(source, at, out, to), codegen


def _pointer(context: Any, builder: Any, signature: Any, args: Any, number: int, index: Any) -> Any:
    """The address of an element of the array that is the argument of this number."""
    array = context.make_array(signature.args[number])(context, builder, args[number])
    return builder.gep(array.data, [index])


def _number(value: int) -> Any:
    return ir.Constant(ir.IntType(64), value)


def _all(value: int, lanes: int) -> Any:
    return ir.Constant(ir.VectorType(ir.IntType(32), lanes), [value] * lanes)


def _vector(builder: Any, pointer: Any, bits: int, count: int) -> Any:
    return builder.load(builder.bitcast(pointer, ir.VectorType(ir.IntType(bits), count).as_pointer()), align=1)


def _shuffled(builder: Any, values: Any, order: Iterable[int], others: Any = None) -> Any:
    indices = list(order)
    mask = ir.Constant(ir.VectorType(ir.IntType(32), len(indices)), indices)
    return builder.shuffle_vector(values, ir.Constant(values.type, ir.Undefined) if others is None else others, mask)


def _pairs(builder: Any, values: Any, factors: Any) -> Any:
    """Products of 16 bits, each added to its neighbour's."""
    wide = ir.VectorType(ir.IntType(32), values.type.count)
    products = builder.mul(builder.sext(values, wide), builder.sext(factors, wide))
    return builder.add(*(_shuffled(builder, products, range(at, wide.count, 2)) for at in (0, 1)))


def _of_a_row(builder: Any, pixels: Any, step: Any, index: Any) -> Any:
    """Four pixels of 4 bytes, which follow one another: bytes of the first two in turn, then of the others."""
    values = _vector(builder, builder.gep(pixels, [builder.mul(index, _number(4 * ACROSS))]), 8, 4 * ACROSS)
    values = _shuffled(
        builder, values, [pair + byte + pixel for pair in (0, 8) for byte in range(4) for pixel in (0, 4)]
    )
    return builder.zext(values, ir.VectorType(ir.IntType(16), 4 * ACROSS))


def _of_two_rows(builder: Any, pixels: Any, step: Any, index: Any) -> Any:
    """Bytes of two rows in turn."""
    upper = builder.gep(pixels, [builder.mul(index, builder.mul(step, _number(DOWN)))])
    rows = [_vector(builder, row, 8, CHUNK) for row in (upper, builder.gep(upper, [step]))]
    values = _shuffled(builder, rows[0], [byte + row for byte in range(CHUNK) for row in (0, CHUNK)], rows[1])
    return builder.zext(values, ir.VectorType(ir.IntType(16), DOWN * CHUNK))


_pixels = _summing(_of_a_row, CHUNK // 4, COPIES * ACROSS // 2)
_chunk = _summing(_of_two_rows, 1, 1)


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
def _packed(bounds: Any, weights: Any, group: int, copies: int, edge: int) -> Any:
    """Coefficients as `_summing` reads them: starts, factors, groups of each result; first and number of their sources.

    Starts count from the first source. Factors (result, group, part, number) hold two coefficients in a number. Each
    result has as many groups, so that some coefficients are 0, and results that count nothing fill the last `CHUNK`.
    """
    count, groups = len(bounds), (bounds[:, 1].max() + group - 1) // group
    first, last = bounds[0, 0], bounds[-1, 0] + bounds[-1, 1]
    sources = max(last - first, groups * group, CHUNK // 4)
    first = min(first, edge - sources)
    starts = np.full((count + CHUNK // 4 - 1) // (CHUNK // 4) * (CHUNK // 4), sources - groups * group)
    factors = np.zeros((len(starts), groups, 2, group // 2 * copies), np.int32)
    for i in range(count):
        starts[i] = min(bounds[i, 0] - first, starts[i])
        for k in range(bounds[i, 1]):
            at, weight = bounds[i, 0] - first - starts[i] + k, weights[i, k]
            number, shift = at % group // 2 * copies, at % 2 * 16
            for copy in range(copies):
                factors[i, at // group, 0, number + copy] |= ((weight >> LOW) & 0xFFFF) << shift
                factors[i, at // group, 1, number + copy] |= (weight & ((1 << LOW) - 1)) << shift
    return starts, factors.reshape(-1), groups, first, sources


@njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _across(source: Any, start: int, stride: int, rows: int, table: Any, out: Any) -> None:
    """The horizontal pass over `rows` rows of `stride` bytes; a row of `out` is as many whole `CHUNK`s as it needs."""
    starts, factors, groups, _, _ = table
    for y in range(rows):
        for x in range(0, len(starts), CHUNK // 4):
            _pixels(source, start + y * stride, 4, starts, x, factors, groups, out, (y * len(starts) + x) * 4)


@njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _down(source: Any, start: int, stride: int, size: int, rows: int, table: Any, out: Any) -> None:
    """The vertical pass over `size` bytes, at least a `CHUNK`, of rows of `stride` bytes."""
    starts, factors, groups, _, _ = table
    for y in range(rows):
        for byte in range(0, size, CHUNK):
            x = min(byte, size - CHUNK)
            _chunk(source, start + x, stride, starts, y, factors, groups, out, y * size + x)


@njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _resample(
    source: Any, rows: int, columns: int, down: Any, across: Any, down_first: bool, out: Any, y: int, x: int
) -> None:
    stride, size = source.shape[1] * 4, len(across[0]) * 4
    row, lines, column, wide = down[3], down[4], across[3], across[4]
    start, flat = row * stride + column * 4, source.reshape(-1)
    done = np.empty(rows * size, np.uint8)
    if down_first:
        between = np.empty(rows * wide * 4, np.uint8)
        _down(flat, start, stride, wide * 4, rows, down, between)
        _across(between, 0, wide * 4, rows, across, done)
    else:
        between = np.empty(lines * size, np.uint8)
        _across(flat, start, stride, lines, across, between)
        _down(between, 0, size, size, rows, down, done)
    pixels = out.reshape(-1)
    for i in range(rows):
        at, to = i * size, ((y + i) * out.shape[1] + x) * 3
        for j in range(columns // 4):
            _rgb(done, at + 16 * j, pixels, to + 12 * j)
        for j in range(columns // 4 * 4, columns):
            for channel in range(3):
                pixels[to + 3 * j + channel] = done[at + 4 * j + channel]
