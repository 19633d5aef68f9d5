"""Every default statistic of attention that lies in a CUDA card's memory, in two launches by numba-cuda.

`statistics` has a block for each (layer, image, head) and a warp for a query's row, which is read once and coalesced;
sums are float32, and warps add theirs by shuffles. Tokens, grid and heads are constants of the compiled kernel, so that
loops over a row are unrolled, and a lane has eight loads under way at once. Distances depend on the offset of two
patches alone: a table of a few KiB, which stays in the first cache and is read in order.

`follow` has a block for each image, and takes the readout's row through the layers from last to first: a vector times a
matrix for each layer, limited by memory. A product of N x N matrices, by cuBLAS or by hand, would read the same maps
and multiply N times as much. Sums of rows come from the first kernel, and those of warps are added in a fixed order, so
that the same attention gives the same bits.

Estimated for an H100, base/16 in float16, 32 images: the maps are read twice, 2 x 0.1 ms at 4 TB/s, and logarithms take
about as long; inference takes 8 ms. Compiled for sm_90: 96 and 62 registers, nothing spilt, no float64. Not timed yet.

numba's simulator (NUMBA_ENABLE_CUDASIM=1) runs the same kernels with few threads. It has no shuffles, so that there
alone warps add through shared memory.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from numba import cuda, float32

from ...engine.runtime.cuda import Memory
from ...engine.runtime.launching import SIMULATED, array_at, available
from ...engine.store.store import Template
from ...exporter.spec import GraphSpec
from ..formulas import patch_distances, readout_rows

__all__ = ["OnCard", "available"]

RESIDUAL = 0.5  # the weight of the attention beside the residual connection, as published
LANES, WARPS, ROLLOUT_WARPS = (3, 2, 2) if SIMULATED else (32, 4, 32)
ROLLOUT_THREADS = LANES * ROLLOUT_WARPS
STEPS = 8  # keys that a lane reads at once, into registers
SUMS = 6  # of a warp's rows
MOST_PREFIX = LANES if SIMULATED else 32  # a lane keeps the mass on one prefix token

ZERO, ONE = np.float32(0), np.float32(1)
TINY = np.float32(1e-38)  # 0 ln 0 is 0, without asking


@dataclass(frozen=True)
class Shape:
    """What is constant in a compiled kernel."""

    tokens: int
    prefix: int
    heads: int
    layers: int
    grid: tuple[int, int]
    rolled: bool = True
    pool: tuple[int, int] = (0, 0)  # rows (head and query), and keys of the pool's own map


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
            kernels[0][(heads, batch, layers), (LANES, WARPS), stream](*statistics)
            kernels[1][(batch,), (LANES, ROLLOUT_WARPS), stream](*follow)
            stream.synchronize()

        if not SIMULATED:
            reduce()  # compiled before any other work is under way, which loading a kernel could disturb
        return reduce


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


# -- kernels -----------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=8)
def _kernels(shape: Shape) -> tuple[Any, Any]:
    """Compiled at the first launch, once for all slots."""
    return _statistics(shape), _follow(shape)


if SIMULATED:

    @cuda.jit(device=True)  # type: ignore[untyped-decorator]
    def warp_sums(a: Any, b: Any, c: Any, d: Any, e: Any) -> Any:
        """The sums of five values over a warp, in each lane."""
        lane, warp = cuda.threadIdx.x, cuda.threadIdx.y
        values = cuda.shared.array((5, WARPS, LANES), float32)
        values[:, warp, lane] = a, b, c, d, e
        cuda.syncthreads()
        found = [values[one, warp].sum() for one in range(5)]
        cuda.syncthreads()
        return found

else:

    @cuda.jit(device=True)  # type: ignore[untyped-decorator]
    def warp_sums(a: Any, b: Any, c: Any, d: Any, e: Any) -> Any:
        """The sums of five values over a warp, in each lane: chains of shuffles that do not wait for each other."""
        for far in (16, 8, 4, 2, 1):
            a += cuda.shfl_xor_sync(0xFFFFFFFF, a, far)
            b += cuda.shfl_xor_sync(0xFFFFFFFF, b, far)
            c += cuda.shfl_xor_sync(0xFFFFFFFF, c, far)
            d += cuda.shfl_xor_sync(0xFFFFFFFF, d, far)
            e += cuda.shfl_xor_sync(0xFFFFFFFF, e, far)
        return a, b, c, d, e


def _row(shape: Shape) -> Any:
    """One lane's sums over its keys of a query's row, which begins at `at`.

    Without a branch, and all loads before the first sum, so that `STEPS` of them are under way at once.
    """
    tokens, prefix, (rows, columns) = shape.tokens, shape.prefix, shape.grid
    wide, tiles, last = 2 * columns - 1, -(-tokens // (STEPS * LANES)), tokens - 1

    @cuda.jit(device=True)  # type: ignore[untyped-decorator]
    def row(attention: Any, at: Any, query: Any, lane: Any, far_of: Any) -> Any:
        """Of patches: mass, mass x distance, a ln a; of prefix tokens: mass, a ln a, and that on the lane's own."""
        values = cuda.local.array(STEPS, float32)
        mass, far, spread = ZERO, ZERO, ZERO
        front, front_spread, own = ZERO, ZERO, ZERO
        patch = max(query - prefix, 0)  # of a prefix token's distance nothing is kept
        here = (patch // columns + rows - 1) * wide + patch % columns + columns - 1
        for tile in range(tiles):
            first = tile * STEPS * LANES + lane
            for step in range(STEPS):
                values[step] = np.float32(attention[at + min(first + step * LANES, last)])
            for step in range(STEPS):
                key = first + step * LANES
                a = values[step] if key < tokens else ZERO
                part = a * np.float32(math.log(max(a, TINY)))
                before = key < prefix
                other = max(min(key, last) - prefix, 0)
                front += a if before else ZERO
                front_spread += part if before else ZERO
                own = a if before else own
                a = ZERO if before else a
                mass += a
                spread += ZERO if before else part
                far += a * far_of[here - other // columns * wide - other % columns]
        return mass, far, spread, front, front_spread, own

    return row


def _statistics(shape: Shape) -> Any:
    """The statistics of one (layer, image, head) by one block."""
    tokens, prefix, heads = shape.tokens, shape.prefix, shape.heads
    turns, fronts, square = -(-tokens // WARPS), max(shape.prefix, 1), shape.tokens**2
    row, finish = _row(shape), _finish(shape)

    @cuda.jit  # type: ignore[untyped-decorator]
    def statistics(
        attention: Any, stride: Any, far_of: Any, totals: Any, distance: Any, renormalized: Any, entropy: Any,
        entropy_patch: Any, masses: Any, empty: Any, prefix_rows: Any,
    ) -> None:  # fmt: skip
        head, image, layer = cuda.blockIdx.x, cuda.blockIdx.y, cuda.blockIdx.z
        lane, warp = cuda.threadIdx.x, cuda.threadIdx.y
        sums = cuda.shared.array((WARPS, SUMS), float32)
        lots = cuda.shared.array((WARPS, fronts), float32)
        start = layer * stride + (image * heads + head) * square
        near, nearer, spreads, inner, lot = ZERO, ZERO, ZERO, ZERO, ZERO
        gone, void = ZERO, ZERO
        for turn in range(turns):
            # The last rows may be one row again, so that all warps come to each sum equally often.
            query = min(turn * WARPS + warp, tokens - 1)
            at = start + query * tokens
            mass, far, spread, front, front_spread, own = row(attention, at, query, lane, far_of)
            mass, far, spread, front, front_spread = warp_sums(mass, far, spread, front, front_spread)
            if turn * WARPS + warp < tokens:
                if lane == 0:
                    totals[image, layer, head, query] = mass + front
                if query < prefix:
                    for key in range(lane, tokens, LANES):
                        prefix_rows[image, layer, head, query, key] = attention[at + key]
                spreads += spread + front_spread
                there = mass != ZERO
                if there:
                    inner += np.float32(math.log(mass)) - spread / mass if mass > ZERO else ZERO
                else:
                    void += ONE
                if query >= prefix:
                    near += far
                    lot += own
                    if there:
                        nearer += far / mass
                    else:
                        gone += ONE
        if lane == 0:
            sums[warp, 0], sums[warp, 1], sums[warp, 2] = near, nearer, spreads
            sums[warp, 3], sums[warp, 4], sums[warp, 5] = inner, gone, void
        if lane < prefix:
            lots[warp, lane] = lot
        cuda.syncthreads()
        if warp == 0:
            finish(
                sums, lots, lane, (image, layer, head), distance, renormalized, entropy, entropy_patch, masses, empty
            )

    return statistics


def _finish(shape: Shape) -> Any:
    """From the sums of a block's warps to the statistics of `at` (image, layer, head)."""
    tokens, prefix = shape.tokens, shape.prefix
    patches = tokens - prefix

    @cuda.jit(device=True)  # type: ignore[untyped-decorator]
    def finish(
        sums: Any, lots: Any, lane: Any, at: Any, distance: Any, renormalized: Any, entropy: Any, entropy_patch: Any,
        masses: Any, empty: Any,
    ) -> None:  # fmt: skip
        image, layer, head = at
        if lane < prefix:
            lot = ZERO
            for warp in range(WARPS):
                lot += lots[warp, lane]
            masses[image, layer, head, lane] = lot / np.float32(patches)
        if lane == 0:
            for warp in range(1, WARPS):
                for one in range(SUMS):
                    sums[0, one] += sums[warp, one]
            gone, void = sums[0, 4], sums[0, 5]
            distance[image, layer, head] = sums[0, 0] / np.float32(patches)
            entropy[image, layer, head] = -sums[0, 2] / np.float32(tokens)
            nothing = np.float32(math.nan)
            renormalized[image, layer, head] = sums[0, 1] / (np.float32(patches) - gone) if gone < patches else nothing
            entropy_patch[image, layer, head] = sums[0, 3] / (np.float32(tokens) - void) if void < tokens else nothing
            empty[image, layer, head] = np.int32(void)

    return finish


def _follow(shape: Shape) -> Any:
    """The rollout of one image by one block, and whether each layer is finite."""
    tokens, prefix, heads, (_, columns) = shape.tokens, shape.prefix, shape.heads, shape.grid
    layers, rolled, (pool_rows, pool_keys) = shape.layers, shape.rolled, shape.pool
    share, rest, square = np.float32(RESIDUAL / heads), np.float32(1 - RESIDUAL), tokens * tokens
    product = _product(shape)

    @cuda.jit  # type: ignore[untyped-decorator]
    def follow(
        attention: Any, stride: Any, totals: Any, start: Any, partial: Any, finite: Any, rollout: Any
    ) -> None:  # fmt: skip
        image = cuda.blockIdx.x
        thread = cuda.threadIdx.y * LANES + cuda.threadIdx.x
        vector = cuda.shared.array(tokens, float32)
        weights = cuda.shared.array(tokens, float32)
        for query in range(thread, tokens, ROLLOUT_THREADS):
            weight = ZERO
            if pool_rows == 0:
                weight = start[0, query]
            elif query >= tokens - pool_keys:  # some pools attend to the patches alone
                for one in range(pool_rows):
                    weight += start[image, one, query - tokens + pool_keys] / np.float32(pool_rows)
            vector[query] = weight
        for back in range(layers):
            layer = layers - 1 - back
            good = 1
            for query in range(thread, tokens, ROLLOUT_THREADS):
                whole = ZERO
                for head in range(heads):
                    whole += totals[image, layer, head, query]
                if not math.isfinite(whole):
                    good = 0
                weights[query] = vector[query] / (share * whole + rest)
            good = cuda.syncthreads_and(good)
            if thread == 0:
                finite[image, layer] = good != 0
            if rolled:
                product(attention, layer * stride + image * heads * square, weights, partial[image])
                cuda.syncthreads()
                for key in range(thread, tokens, ROLLOUT_THREADS):
                    total = ZERO
                    for warp in range(ROLLOUT_WARPS):
                        total += partial[image, warp, key]
                    vector[key] = weights[key] * rest + total * share
                cuda.syncthreads()
        for key in range(thread, tokens, ROLLOUT_THREADS):
            if rolled and key >= prefix:
                rollout[image, (key - prefix) // columns, (key - prefix) % columns] = vector[key]

    return follow


def _product(shape: Shape) -> Any:
    """Each warp's share of (query) weights times a layer, summed over its heads: into `partial` (warp, key)."""
    tokens, lines = shape.tokens, shape.heads * shape.tokens
    tiles = -(-tokens // (STEPS * LANES))

    @cuda.jit(device=True)  # type: ignore[untyped-decorator]
    def product(attention: Any, start: Any, weights: Any, partial: Any) -> None:
        lane, warp = cuda.threadIdx.x, cuda.threadIdx.y
        sums = cuda.local.array(STEPS, float32)
        for tile in range(tiles):
            first = tile * STEPS * LANES + lane
            for step in range(STEPS):
                sums[step] = ZERO
            for line in range(warp, lines, ROLLOUT_WARPS):
                weight = weights[line % tokens]
                at = start + line * tokens + first
                for step in range(STEPS):
                    if first + step * LANES < tokens:
                        sums[step] += weight * np.float32(attention[at + step * LANES])
            for step in range(STEPS):
                if first + step * LANES < tokens:
                    partial[warp, first + step * LANES] = sums[step]

    return product
