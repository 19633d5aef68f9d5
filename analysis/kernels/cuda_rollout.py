"""The rollout on a CUDA card: a kernel of `cuda`, which says how it goes about it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import cuda, float32

from ...engine.runtime.launching import SIMULATED
from .warps import LANES, STEPS, ZERO, Shape

__all__ = ["ROLLOUT_WARPS", "follow_of"]

RESIDUAL = 0.5  # the weight of the attention beside the residual connection, as published
ROLLOUT_WARPS = 2 if SIMULATED else 32
ROLLOUT_THREADS = LANES * ROLLOUT_WARPS
# A block has all registers of a multiprocessor: 65,536. The simulator knows none.
BOUNDED: dict[str, Any] = {} if SIMULATED else {"max_registers": 65536 // ROLLOUT_THREADS}


def follow_of(shape: Shape) -> Any:
    """The rollout of one image by one block, and whether each layer is finite."""
    tokens, prefix, heads, (_, columns) = shape.tokens, shape.prefix, shape.heads, shape.grid
    layers, rolled, (pool_rows, pool_keys) = shape.layers, shape.rolled, shape.pool
    share, rest, square = np.float32(RESIDUAL / heads), np.float32(1 - RESIDUAL), tokens * tokens
    product = _product(shape)

    @cuda.jit(**BOUNDED)  # type: ignore[untyped-decorator]
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
    """Each warp's share of (query) weights times a layer, summed over its heads: into `partial` (warp, key).

    Two lines at a time, all of whose loads are under way before the first product. Keys after the last are what follows
    in memory: of them nothing is kept.
    """
    tokens, lines = shape.tokens, shape.heads * shape.tokens
    tiles = -(-tokens // (STEPS * LANES))
    steps = -(-tokens // (tiles * LANES))  # of a lane, from one key to the next

    @cuda.jit(device=True)  # type: ignore[untyped-decorator]
    def product(attention: Any, start: Any, weights: Any, partial: Any) -> None:
        lane, warp = cuda.threadIdx.x, cuda.threadIdx.y
        sums = cuda.local.array(STEPS, float32)
        values = cuda.local.array(STEPS, float32)
        others = cuda.local.array(STEPS, float32)
        start = np.uint64(start)
        tile = 0
        while tile < tiles:
            first = tile * steps * LANES + lane
            step = 0
            while step < steps:
                sums[step] = ZERO
                step += 1
            line = warp
            while line < lines:
                other = min(line + ROLLOUT_WARPS, lines - 1)
                weight = weights[np.uint32(line) % np.uint32(tokens)]
                second = weights[np.uint32(other) % np.uint32(tokens)] if line + ROLLOUT_WARPS < lines else ZERO
                at, beside = start + np.uint64(line * tokens + first), start + np.uint64(other * tokens + first)
                step = 0
                while step < steps:
                    values[step] = np.float32(attention[at + np.uint64(step * LANES)])
                    others[step] = np.float32(attention[beside + np.uint64(step * LANES)])
                    step += 1
                step = 0
                while step < steps:
                    sums[step] += weight * values[step] + second * others[step]
                    step += 1
                line += 2 * ROLLOUT_WARPS
            step = 0
            while step < steps:
                if first + step * LANES < tokens:
                    partial[warp, first + step * LANES] = sums[step]
                step += 1
            tile += 1

    return product
