"""Memory of an accelerator: outputs on the device, pinned host memory, and the amount of free memory.

onnxruntime allocates on the device and runs. If CUDA's runtime library can be loaded, it does the copies: without the
interpreter's lock and into pinned memory, so that they overlap with the next run. Otherwise onnxruntime copies, which
is slower but correct. The calls are tested with a simulated library; they have not run on a card yet.
"""

from __future__ import annotations

import ctypes
import math
import sys
import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from ...errors import AttlasError

__all__ = ["RING", "Copies", "Cudart", "OutOfMemoryError", "Ring", "Slot", "fitting_batch", "out_of_memory"]

# Batches on the device at once: one runs, one is copied to the host, and one receives its pixels.
RING = 3

# The share of free memory that a run uses; the rest is for workspaces that cuDNN and cuBLAS take at any time.
SHARE = 0.9

Shapes = Mapping[str, tuple[tuple[int, ...], str]]


class OutOfMemoryError(AttlasError):
    """The device does not have enough memory for a batch."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error of onnxruntime or CUDA is about memory, by its text: they have no exception type for it."""
    text = str(error).lower()
    signs = (
        "out of memory",
        "failed to allocate memory",
        "cuda failure 2:",
        "bad_alloc",
        "alloc_failed",
        "is smaller than requested bytes",
    )
    return any(sign in text for sign in signs)


def fitting_batch(batch: int, *, free: int, used: int, output: int, ring: int = RING) -> int:
    """The largest batch that fits into the device's memory, estimated from one trial run.

    Args:
        batch: images of the trial run, and upper limit of the result.
        free: bytes that were free after the trial.
        used: bytes that the trial used: activations and one set of outputs.
        output: bytes of one image's outputs.
        ring: number of sets of outputs in a real run.

    Returns:
        `batch`, or a power of two below it; at least 1.
    """
    activations = max(used - batch * output, 0) / batch
    most = int(SHARE * (free + used) / max(activations + ring * output, 1))
    if most >= batch:
        return batch
    return 1 << (max(most, 1).bit_length() - 1)


class Copies(Protocol):
    """Copies bytes to a device and back."""

    def host(self, shape: tuple[int, ...], dtype: str) -> npt.NDArray[Any]:
        """An array of zeros in host memory that the device can access fast."""

    def upload(self, value: Any, array: npt.NDArray[Any]) -> None:
        """Copy a whole array into an OrtValue of the same shape; returns when the copy is complete."""

    def download(self, array: npt.NDArray[Any], value: Any) -> None:
        """Fill an array from the front of an OrtValue; returns when the copy is complete."""

    def free(self) -> int | None:
        """Free bytes on the device, or None if unknown."""


class OrtCopies:
    """Copies with onnxruntime, between any of its devices and pageable memory."""

    def host(self, shape: tuple[int, ...], dtype: str) -> npt.NDArray[Any]:
        """Zeros in ordinary memory."""
        return np.zeros(shape, dtype)

    def upload(self, value: Any, array: npt.NDArray[Any]) -> None:
        """See `Copies`."""
        value.update_inplace(array)

    def download(self, array: npt.NDArray[Any], value: Any) -> None:
        """See `Copies`."""
        np.copyto(array, value.numpy()[: len(array)])

    def free(self) -> int | None:
        """Unknown: None."""
        return None


class Cudart:
    """Copies with CUDA's runtime library through ctypes, which releases the interpreter's lock.

    Uses device 0 of CUDA_VISIBLE_DEVICES, like onnxruntime.
    """

    # cudaMemcpyKind, and a flag of cudaStreamCreateWithFlags.
    TO_DEVICE, TO_HOST, NON_BLOCKING = 1, 2, 1

    def __init__(self, library: Any) -> None:
        """Wrap a loaded library."""
        self._library = library
        library.cudaGetErrorString.restype = ctypes.c_char_p
        self._own = threading.local()

    @classmethod
    def load(cls) -> Cudart | None:
        """The library that onnxruntime loaded, or any other that is found; None without a library or a working card."""
        names = {
            "linux": [f"libcudart.so.{major}" for major in (13, 12)],
            "win32": [f"cudart64_{major}.dll" for major in (13, 12)],
        }
        for name in names.get(sys.platform, []):
            try:
                found = cls(ctypes.CDLL(name))
                if found.free() is not None:
                    return found
            except (OSError, AttributeError, AttlasError):
                continue
        return None

    def host(self, shape: tuple[int, ...], dtype: str) -> npt.NDArray[Any]:
        """Zeros in pinned memory, which is freed with the last array on it; in ordinary memory if none is left."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        pointer = ctypes.c_void_p()
        if not size or self._library.cudaHostAlloc(ctypes.byref(pointer), ctypes.c_size_t(size), 0) or not pointer:
            return np.zeros(shape, dtype)
        block: Any = (ctypes.c_byte * size).from_address(pointer.value or 0)
        # At interpreter exit the driver frees everything itself, and may already be unloaded.
        weakref.finalize(block, self._library.cudaFreeHost, pointer).atexit = False
        array: npt.NDArray[Any] = np.frombuffer(block, dtype).reshape(shape)
        array.fill(0)
        return array

    def upload(self, value: Any, array: npt.NDArray[Any]) -> None:
        """See `Copies`."""
        self._copy(value.data_ptr(), array.ctypes.data, array.nbytes, self.TO_DEVICE)

    def download(self, array: npt.NDArray[Any], value: Any) -> None:
        """See `Copies`."""
        self._copy(array.ctypes.data, value.data_ptr(), array.nbytes, self.TO_HOST)

    def free(self) -> int | None:
        """Free bytes on the device."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._check(self._library.cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total)))
        return free.value

    def _copy(self, target: int, source: int, size: int, kind: int) -> None:
        """Copy in this thread's own stream, in parallel to other work, and wait for the copy."""
        stream = self._stream()
        self._check(
            self._library.cudaMemcpyAsync(
                ctypes.c_void_p(target), ctypes.c_void_p(source), ctypes.c_size_t(size), ctypes.c_int(kind), stream
            )
        )
        self._check(self._library.cudaStreamSynchronize(stream))

    def _stream(self) -> Any:
        if not hasattr(self._own, "stream"):
            stream = ctypes.c_void_p()
            self._check(self._library.cudaStreamCreateWithFlags(ctypes.byref(stream), self.NON_BLOCKING))
            self._own.stream = stream
        return self._own.stream

    def _check(self, code: int) -> None:
        if code:
            text = (self._library.cudaGetErrorString(code) or b"").decode(errors="replace")
            kind = OutOfMemoryError if out_of_memory(Exception(text)) else AttlasError
            raise kind(f"the CUDA device fails ({text or f'error {code}'})")


class Slot:
    """Device memory for one batch: inputs, all outputs, and their binding to the session."""

    def __init__(self, session: Any, batch: int, inputs: Shapes, shapes: Shapes, device: str) -> None:
        """Allocate for `batch` images; `inputs` and `shapes` give shapes without the image axis, and dtypes."""
        self.inputs = {n: _value((batch, *own), dtype, device) for n, (own, dtype) in inputs.items()}
        self.outputs = {n: _value((batch, *own), dtype, device) for n, (own, dtype) in shapes.items()}
        self.binding = session.io_binding()
        for n, value in self.inputs.items():
            self.binding.bind_ortvalue_input(n, value)
        for n, value in self.outputs.items():
            self.binding.bind_ortvalue_output(n, value)


class Ring:
    """Up to `RING` slots for batches of one size, shared by all threads and made on demand."""

    def __init__(self, make: Any, batch: int, size: int = RING) -> None:
        """Start empty; `make()` makes a `Slot` for `batch` images."""
        self.batch = batch
        self._make = make
        self._idle: SimpleQueue[Slot] = SimpleQueue()
        self._left, self._made = size, 0
        self._lock = threading.Lock()

    @contextmanager
    def slot(self) -> Iterator[Slot]:
        """A slot for this thread only; waits while all are in use."""
        slot = self._take()
        try:
            yield slot
        finally:
            self._idle.put(slot)

    def _take(self) -> Slot:
        with self._lock:
            if self._idle.empty() and self._left:
                try:
                    slot: Slot = self._make()
                    self._left -= 1
                    self._made += 1
                    return slot
                except Exception as error:
                    # No memory for another slot: fewer slots are slower, but enough.
                    if not self._made or not out_of_memory(error):
                        raise
                    self._left = 0
        return self._idle.get()


def _value(shape: tuple[int, ...], dtype: str, device: str) -> Any:
    return ort.OrtValue.ortvalue_from_shape_and_type(list(shape), np.dtype(dtype).type, device, 0)
