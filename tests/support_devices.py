"""What the tests of devices share."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
from attlas.engine import Store


def assert_same_store(one: Path, other: Path, tolerance: float) -> None:
    """The same arrays, floats within `tolerance` of their largest value."""
    a, b = Store(one), Store(other)
    assert a.names == b.names
    for name in a.names:
        x, y = a.read(name), b.read(name)
        assert (x.shape, x.dtype) == (y.shape, y.dtype), name
        if x.dtype.kind == "f" and tolerance:
            top = np.nanmax(np.abs(x), initial=0)
            np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * top, err_msg=name)
        else:
            np.testing.assert_array_equal(x, y, err_msg=name)


class FakeCuda:
    """The functions of libcudart that are used, on the host's memory."""

    def __init__(self, fails: int = 0) -> None:
        self.freed: list[int] = []
        self.held: dict[int, Any] = {}
        self.copies: list[tuple[int, int]] = []
        self.fails = fails
        self.cudaGetErrorString = lambda code: {2: b"out of memory"}.get(code, b"unspecified launch failure")

    def cudaHostAlloc(self, pointer: Any, size: Any, flags: int) -> int:  # noqa: N802
        if self.fails:
            return self.fails
        block = ctypes.create_string_buffer(b"\x07" * size.value, size.value)
        pointer._obj.value = ctypes.addressof(block)
        self.held[ctypes.addressof(block)] = block
        return 0

    def cudaFreeHost(self, pointer: Any) -> int:  # noqa: N802
        self.freed.append(pointer.value)
        return 0

    def cudaMemGetInfo(self, free: Any, total: Any) -> int:  # noqa: N802
        free._obj.value, total._obj.value = 123, 456
        return self.fails

    def cudaStreamCreateWithFlags(self, stream: Any, flags: int) -> int:  # noqa: N802
        stream._obj.value = 1
        return 0

    def cudaDeviceGetStreamPriorityRange(self, least: Any, most: Any) -> int:  # noqa: N802
        least._obj.value, most._obj.value = 0, -5
        return 0

    def cudaStreamCreateWithPriority(self, stream: Any, flags: int, priority: Any) -> int:  # noqa: N802
        assert priority.value == -5
        return self.cudaStreamCreateWithFlags(stream, flags)

    def cudaMemcpyAsync(self, target: Any, source: Any, size: Any, kind: Any, stream: Any) -> int:  # noqa: N802
        self.copies.append((size.value, kind.value))
        if not self.fails:
            ctypes.memmove(target, source, size.value)
        return self.fails

    def cudaStreamSynchronize(self, stream: Any) -> int:  # noqa: N802
        return 0
