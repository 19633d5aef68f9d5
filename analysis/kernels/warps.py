"""What a warp does together. numba's simulator has neither warps nor shuffles, and does it in a way of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import cuda, float32

from ...engine.runtime.launching import SIMULATED

__all__ = ["LANES", "ONE", "STEPS", "WARPS", "ZERO", "Shape", "log2", "together", "warp_sum"]

LANES, WARPS = (8, 2) if SIMULATED else (32, 8)  # threads of a warp, and the most warps of a block that use these
STEPS = LANES if SIMULATED else 8  # loads of a lane that are under way at once, into registers

ZERO, ONE = np.float32(0), np.float32(1)


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


if SIMULATED:

    @cuda.jit(device=True)  # type: ignore[untyped-decorator]
    def warp_sum(value: Any) -> Any:
        """The sum of a value over a warp, in each lane."""
        lane, warp = cuda.threadIdx.x, cuda.threadIdx.y
        values = cuda.shared.array((WARPS, LANES), float32)
        values[warp, lane] = value
        cuda.syncthreads()
        found = values[warp].sum()
        cuda.syncthreads()
        return found

    @cuda.jit(device=True)  # type: ignore[untyped-decorator]
    def together() -> None:
        """Wait for the block, as whose warps the threads run here."""
        cuda.syncthreads()

    log2 = np.log2

else:
    from llvmlite import ir
    from numba.cuda.extending import intrinsic

    @cuda.jit(device=True)  # type: ignore[untyped-decorator]
    def warp_sum(value: Any) -> Any:
        """The sum of a value over a warp, in each lane."""
        for far in (16, 8, 4, 2, 1):
            value += cuda.shfl_xor_sync(0xFFFFFFFF, value, far)
        return value

    @cuda.jit(device=True)  # type: ignore[untyped-decorator]
    def together() -> None:
        """Wait for the warp: what one lane has written, all see."""
        cuda.syncwarp()

    @intrinsic  # type: ignore[untyped-decorator]
    def log2(_typing: Any, _value: Any) -> Any:
        """By the card's own instruction, to 2e-7 of the larger of 1 and itself; of a normal number.

        libdevice's function asks first whether the number is normal, and takes twice as long.
        """

        def lower(_context: Any, builder: Any, _signature: Any, given: Any) -> Any:
            number = ir.FloatType()
            kind = ir.FunctionType(number, [number])
            return builder.call(ir.InlineAsm(kind, "lg2.approx.ftz.f32 $0, $1;", "=f,f"), given)

        return float32(float32), lower
