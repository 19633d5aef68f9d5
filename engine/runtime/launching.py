"""What kernels by numba-cuda need: whether one runs here, and arrays in the card's memory.

numba's simulator (NUMBA_ENABLE_CUDASIM=1) runs the same kernels on the host, whose memory is then the card's.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numba import config, cuda

from .cuda import Memory

__all__ = ["SIMULATED", "allocate", "array_at", "available", "stream_at"]

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
    """The values there, for a kernel."""
    if not SIMULATED:
        return cuda.as_cuda_array(memory)
    block = (ctypes.c_byte * memory.nbytes).from_address(memory.pointer)
    played = type(cuda.device_array(1, np.uint8))  # arrays of numpy's would be copied to the card and back
    return played(np.frombuffer(block, memory.dtype).reshape(memory.shape))


def allocate(*shape: int) -> Memory:
    """Room for uint8 in the card's memory."""
    array = cuda.device_array(shape, np.uint8)
    pointer = array.ctypes.data if SIMULATED else array.__cuda_array_interface__["data"][0]
    return Memory(int(pointer), shape, "uint8", array)


def stream_at(number: int) -> Any:
    """The stream that CUDA knows by a number, for a kernel."""
    return cuda.stream() if SIMULATED else cuda.external_stream(number)
