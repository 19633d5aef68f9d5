"""What kernels by numba-cuda need: whether one runs here, and arrays in the card's memory.

numba's simulator (NUMBA_ENABLE_CUDASIM=1) runs the same kernels on the host, whose memory is then the card's.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numba import config, cuda

from .cuda import Memory

__all__ = ["SIMULATED", "array_at", "available"]

SIMULATED = bool(config.ENABLE_CUDASIM)  # each thread of a block is then a thread of Python

config.CUDA_LOW_OCCUPANCY_WARNINGS = 0  # of few images, to users who can do nothing about it


def available() -> bool:
    """Whether numba has a card that runs what it compiles, or plays one."""
    if SIMULATED:
        return True
    if not hasattr(np, "row_stack"):  # numba-cuda 0.30 asks for it before it compiles, and numpy 2.5 lacks it
        setattr(np, "row_stack", np.vstack)  # noqa: B010 - unknown to numpy's types
    try:
        _nothing[1, 1]()
        cuda.synchronize()
    except Exception:  # no driver, no compiler, one that is older than the driver, another numpy: each raises its own
        return False
    return True


@cuda.jit  # type: ignore[untyped-decorator]
def _nothing() -> None:
    """To see whether a kernel runs."""


def array_at(memory: Memory) -> Any:
    """The values there, for a kernel: the simulator's memory is the host's."""
    if not SIMULATED:
        return cuda.as_cuda_array(memory)
    block = (ctypes.c_byte * memory.nbytes).from_address(memory.pointer)
    return np.frombuffer(block, memory.dtype).reshape(memory.shape)
