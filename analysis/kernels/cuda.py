"""Every default statistic of attention that lies in a CUDA card's memory, in two launches by numba-cuda.

`statistics` has a block for each (layer, image, head). Each warp takes 32 queries' rows and reads a tile of 32 keys at
a time, coalesced, into shared memory. There a thread has a row of its own, so that its sums need no other thread, and
what depends on the key alone is the same for all of a warp: keys' places are in constant memory. Sums are float32, tile
by tile. Distances depend on the offset of two patches alone: a table of a few KiB, which stays in the first cache and
is read in order. Tokens, grid and heads are constants of the compiled kernel.

`follow` has a block for each image, and takes the readout's row through the layers from last to first: a vector times a
matrix for each layer, limited by memory. A product of N x N matrices, by cuBLAS or by hand, would read the same maps
and multiply N times as much. Sums of rows come from the first kernel, and those of warps are added in a fixed order, so
that the same attention gives the same bits.

Inner loops are `while` loops with unsigned indices, and read past the last row and key: what is left of a `range`, of
an index that may be negative and of one that has to be compared took 40 instructions a key, where these take 17.

numba's simulator (NUMBA_ENABLE_CUDASIM=1) runs the same kernels with few threads. It has neither warps nor shuffles:
all threads of a block wait for each other instead, and add through shared memory.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from numba import cuda, float32

from ...engine.runtime.cuda import Memory, out_of_memory
from ...engine.runtime.launching import SIMULATED, array_at, available
from ...engine.store.store import Template
from ...errors import AttlasError, first_line
from ...exporter.spec import GraphSpec
from ..formulas import patch_distances, readout_rows
from .cuda_rollout import ROLLOUT_WARPS, follow_of
from .warps import LANES, ONE, STEPS, WARPS, ZERO, Shape, log2, together, warp_sum

__all__ = ["OnCard", "available"]

# A thread's sums over rows: both distances, both entropies, and rows without mass on patches: of patches, and of all.
NEAR, NEARER, SPREAD, INNER, GONE, EMPTY = range(SUMS := 6)
MOST_PREFIX = LANES  # all prefix tokens are in a row's first tile

TINY = np.finfo(np.float32).tiny  # 0 ln 0 is 0, without asking
LN2 = np.float32(math.log(2))


class OnCard:
    """The statistics of a graph's attention on a card; see `engine.runtime.cuda.OnCard`.

    Attributes:
        dtype: of the attention that it takes.
        outputs: the arrays that it fills by name: shape without the image axis, and dtype. `templates`, `_finite`, and
            with prefix tokens `prefix_attention`, in `dtype`.
    """

    def __init__(self, spec: GraphSpec, templates: Sequence[Template], dtype: Literal["float16", "float32"]) -> None:
        """For the statistics of `templates`, as `fused.Reducer` has them."""
        self.dtype: Literal["float16", "float32"] = dtype
        layers, heads, prefix = len(spec.layers), spec.heads, len(spec.prefix)
        self.outputs: dict[str, tuple[tuple[int, ...], str]] = {t.name: (t.shape, t.dtype) for t in templates}
        self.outputs["_finite"] = (layers,), "bool"
        if prefix:
            self.outputs["prefix_attention"] = (layers, heads, prefix, spec.tokens), dtype
        self._spec = spec
        pool = spec.output("pool_attention") if spec.readout == "pool" else None
        known = (0, 0) if pool is None else (int(pool.shape[1] or 0) * int(pool.shape[2] or 0), int(pool.shape[3] or 0))
        self._shape = Shape(spec.tokens, prefix, heads, layers, spec.grid, "rollout" in self.outputs, known)
        self.pool = self._shape.rolled and pool is not None
        self.margin = STEPS * spec.tokens + LANES  # lines are read `STEPS` at a time, and keys `LANES`

    def bind(
        self, batch: int, attention: Memory, stride: int, outputs: Mapping[str, Memory], pool: Memory | None = None
    ) -> Callable[[], None]:
        """See `engine.runtime.cuda.OnCard`; one thread at a time."""
        shape = self._shape
        layers, heads, tokens = shape.layers, shape.heads, shape.tokens
        found = {name: array_at(memory) for name, memory in outputs.items()}

        def out(name: str, *own: int, dtype: str = "float32") -> Any:
            """An output, or room for what nobody asked for: both kernels write all of it."""
            return found[name] if name in found else cuda.device_array((batch, *own), dtype)

        each = layers, heads
        totals = cuda.device_array((batch, *each, tokens), np.float32)
        statistics = (
            array_at(attention), stride, cuda.to_device(_by_offset(self._spec)), totals,
            *(out(name, *each) for name in ("distance", "distance_renormalized", "entropy", "entropy_patch")),
            out("prefix_mass", *each, max(shape.prefix, 1)), out("rows_without_patch_mass", *each, dtype="int32"),
            out("prefix_attention", 1, 1, 1, 1, dtype=self.dtype),
        )  # fmt: skip
        start = cuda.to_device(_readout(self._spec)) if pool is None else array_at(pool).reshape(batch, *shape.pool)
        follow = (
            array_at(attention), stride, totals, start, cuda.device_array((batch, ROLLOUT_WARPS, tokens), np.float32),
            out("_finite", layers, dtype="bool"), out("rollout", *shape.grid),
        )  # fmt: skip
        kernels, stream = _kernels(shape), cuda.stream()

        def reduce() -> None:
            kernels[0][(heads, batch, layers), (LANES, _warps(tokens)), stream](*statistics)
            kernels[1][(batch,), (LANES, ROLLOUT_WARPS), stream](*follow)
            stream.synchronize()

        if not SIMULATED:
            _tried(reduce)  # compiled before any other work is under way, which loading a kernel could disturb
        return reduce


def _tried(reduce: Callable[[], None]) -> None:
    """Run it once.

    Raises:
        AttlasError: this card cannot; for want of memory CUDA's own error, after which fewer images are tried.
    """
    try:
        reduce()
    except Exception as error:  # what drives a card raises what it likes
        if out_of_memory(error):
            raise
        raise AttlasError(
            f"statistics on the card: its kernels fail ({first_line(error)}); attlas.run(statistics='graph') has none"
        ) from None


def _readout(spec: GraphSpec) -> npt.NDArray[np.float32]:
    """The readout as weights over the last layer's queries: (1, query); 0 where it is the pool's."""
    row = np.zeros((1, spec.tokens), np.float32)
    if spec.readout != "pool":
        rows = list(readout_rows(spec.prefix, spec.grid, spec.readout))
        row[:, rows] = 1 / len(rows)
    return row


def _by_offset(spec: GraphSpec) -> npt.NDArray[np.float32]:
    """Distance by offset in rows and columns, (2 rows - 1) x (2 columns - 1) flat, pixels."""
    rows, columns = spec.grid
    # As from the first patch of a grid that is nearly twice as large, mirrored.
    y, x = (np.abs(np.arange(1 - n, n)) for n in (rows, columns))
    far = np.asarray(patch_distances(spec.grid, spec.patch_size), np.float32)[0].reshape(rows, columns)
    return np.ascontiguousarray(far[np.ix_(y, x)]).reshape(-1)


def _places(shape: Shape) -> npt.NDArray[np.uint32]:
    """What each key subtracts from a query's place in `_by_offset`; 0 for prefix tokens and after the last token."""
    rows, columns = shape.grid
    found = np.zeros(-(-shape.tokens // LANES) * LANES, np.uint32)
    row, column = np.divmod(np.arange(rows * columns), columns)
    found[shape.prefix : shape.tokens] = row * (2 * columns - 1) + column
    return found


def _warps(tokens: int) -> int:
    """Warps of a block of `statistics`: no more than have rows."""
    return min(WARPS, -(-tokens // LANES))


# -- kernels -----------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=8)
def _kernels(shape: Shape) -> tuple[Any, Any]:
    """Compiled at the first launch, once for all slots."""
    return _statistics(shape), follow_of(shape)


def _read(shape: Shape) -> Any:
    """Read a tile of a warp's rows from `low`, a row a line: the keys from `first`; 0 after the last key.

    Lines after the last row are what follows in memory, or are not read: of them nothing is kept.
    """
    tokens = shape.tokens

    @cuda.jit(device=True)  # type: ignore[untyped-decorator]
    def read(attention: Any, start: Any, low: Any, first: Any, tile: Any) -> None:
        lane, warp = cuda.threadIdx.x, cuda.threadIdx.y
        values = cuda.local.array(STEPS, tile.dtype)
        at = start + np.uint64(low * tokens + first + lane)
        there = first + lane < tokens
        line = 0
        while line < min(LANES, tokens - low):
            step = 0
            while step < STEPS:
                values[step] = attention[at + np.uint64(step * tokens)]
                step += 1
            step = 0
            while step < STEPS:
                if there:
                    tile[warp, line + step, lane] = values[step]
                else:
                    tile[warp, line + step, lane] = ZERO
                step += 1
            line += STEPS
            at += np.uint64(STEPS * tokens)

    return read


def _add(shape: Shape) -> Any:
    """A thread's sums over its row of a tile: mass, mass x distance, a log2 a."""
    tokens, where = shape.tokens, _places(shape)

    @cuda.jit(device=True)  # type: ignore[untyped-decorator]
    def add(tile: Any, far_of: Any, here: Any, first: Any) -> Any:
        places = cuda.const.array_like(where)
        lane, warp = cuda.threadIdx.x, cuda.threadIdx.y
        mass, far, spread = ZERO, ZERO, ZERO
        count, k = np.uint32(min(LANES, tokens - first)), np.uint32(0)
        while k < count:
            step = 0
            while step < STEPS:
                a = np.float32(tile[warp, lane, k + step])
                mass += a
                spread += a * log2(max(a, TINY))
                far += a * far_of[np.uint32(here - places[np.uint32(first + k + step)])]
                step += 1
            k = np.uint32(k + STEPS)
        return mass, far, spread

    return add


def _end(shape: Shape) -> Any:
    """Add a query's row to a thread's sums, in `found`."""
    prefix = shape.prefix

    @cuda.jit(device=True)  # type: ignore[untyped-decorator]
    def end(found: Any, query: Any, mass: Any, far: Any, spread: Any, inner: Any) -> None:
        there = mass != ZERO
        found[SPREAD] += spread
        if mass > ZERO:
            found[INNER] += np.float32(math.log(mass)) - inner / mass
        if not there:
            found[EMPTY] += ONE
        if query >= prefix:
            found[NEAR] += far
            if there:
                found[NEARER] += far / mass
            else:
                found[GONE] += ONE

    return end


def _statistics(shape: Shape) -> Any:
    """The statistics of one (layer, image, head) by one block."""
    tokens, prefix, heads, (rows, columns) = shape.tokens, shape.prefix, shape.heads, shape.grid
    warps, fronts, square = _warps(tokens), max(shape.prefix, 1), shape.tokens**2
    turns, tiles = -(-tokens // (warps * LANES)), -(-tokens // LANES)
    wide, pitch = 2 * columns - 1, LANES + 1  # a tile's rows begin in different banks
    read, add, end, finish = _read(shape), _add(shape), _end(shape), _finish(shape)

    @cuda.jit  # type: ignore[untyped-decorator]
    def statistics(
        attention: Any, stride: Any, far_of: Any, totals: Any, distance: Any, renormalized: Any,
        entropy: Any, entropy_patch: Any, masses: Any, empty: Any, prefix_rows: Any,
    ) -> None:  # fmt: skip
        head, image, layer = cuda.blockIdx.x, cuda.blockIdx.y, cuda.blockIdx.z
        lane, warp = cuda.threadIdx.x, cuda.threadIdx.y
        tile = cuda.shared.array((warps, LANES, pitch), attention.dtype)
        lot = cuda.local.array(fronts, float32)
        for token in range(prefix):
            lot[token] = ZERO
        found = cuda.local.array(SUMS, float32)
        for one in range(SUMS):
            found[one] = ZERO
        start = np.uint64(layer * stride + (image * heads + head) * square)
        for key in range(warp * LANES + lane, prefix * tokens, warps * LANES):
            prefix_rows[image, layer, head, key // tokens, key % tokens] = attention[start + key]
        for turn in range(turns):
            low = (turn * warps + warp) * LANES
            query = low + lane
            patch = min(max(query, prefix), tokens - 1) - prefix  # of a prefix token's distance nothing is kept
            here = np.uint32((patch // columns + rows - 1) * wide + patch % columns + columns - 1)
            mass, far, spread, front, front_spread = ZERO, ZERO, ZERO, ZERO, ZERO
            for one in range(tiles):
                together()
                read(attention, start, low, one * LANES, tile)
                together()
                if one == 0:
                    for token in range(prefix):
                        a = np.float32(tile[warp, lane, token])
                        tile[warp, lane, token] = ZERO
                        front += a
                        front_spread += a * log2(max(a, TINY))
                        if prefix <= query < tokens:
                            lot[token] += a
                some, some_far, some_spread = add(tile, far_of, here, one * LANES)
                mass += some
                far += some_far
                spread += some_spread
            if query < tokens:
                totals[image, layer, head, query] = mass + front
                end(found, query, mass, far, (spread + front_spread) * LN2, spread * LN2)
        finish(found, lot, (image, layer, head), distance, renormalized, entropy, entropy_patch, masses, empty)

    return statistics


def _finish(shape: Shape) -> Any:
    """From the sums of a block's threads to the statistics of `at` (image, layer, head)."""
    tokens, prefix, warps = shape.tokens, shape.prefix, _warps(shape.tokens)
    patches, fronts = tokens - prefix, max(prefix, 1)

    @cuda.jit(device=True)  # type: ignore[untyped-decorator]
    def finish(
        found: Any, lot: Any, at: Any, distance: Any, renormalized: Any, entropy: Any, entropy_patch: Any, masses: Any,
        empty: Any,
    ) -> None:  # fmt: skip
        lane, warp = cuda.threadIdx.x, cuda.threadIdx.y
        sums = cuda.shared.array((warps, SUMS), float32)
        lots = cuda.shared.array((warps, fronts), float32)
        for one in range(SUMS):
            whole = warp_sum(found[one])
            if lane == 0:
                sums[warp, one] = whole
        for token in range(prefix):
            whole = warp_sum(lot[token])
            if lane == 0:
                lots[warp, token] = whole
        cuda.syncthreads()
        if warp > 0:
            return
        image, layer, head = at
        if lane < prefix:
            mass = ZERO
            for other in range(warps):
                mass += lots[other, lane]
            masses[image, layer, head, lane] = mass / np.float32(patches)
        if lane == 0:
            for other in range(1, warps):
                for one in range(SUMS):
                    sums[0, one] += sums[other, one]
            gone, void, nothing = sums[0, GONE], sums[0, EMPTY], np.float32(math.nan)
            far, spread = sums[0, NEARER], sums[0, INNER]
            distance[image, layer, head] = sums[0, NEAR] / np.float32(patches)
            entropy[image, layer, head] = -sums[0, SPREAD] / np.float32(tokens)
            renormalized[image, layer, head] = far / (np.float32(patches) - gone) if gone < patches else nothing
            entropy_patch[image, layer, head] = spread / (np.float32(tokens) - void) if void < tokens else nothing
            empty[image, layer, head] = np.int32(void)

    return finish
