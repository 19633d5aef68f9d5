"""Memory of an accelerator: outputs that stay there until they are fetched, pinned host memory, how much is free.

onnxruntime allocates on the device and runs; copies go through CUDA's own runtime library where it can be loaded,
outside the interpreter's lock and into pinned memory, so that they overlap the next run. Without it they go through
onnxruntime, which is slower and right. The calls are tested with a library played by the host; on a card they have not
run yet.
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

# Batches on the device at once: one that runs, one that is fetched, one whose pixels arrive.
RING = 3

# Of the free memory a run takes no more than this: cuDNN and cuBLAS take workspaces when they please.
SHARE = 0.9

Shapes = Mapping[str, tuple[tuple[int, ...], str]]


class OutOfMemoryError(AttlasError):
    """The device has not enough memory for a batch."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error of onnxruntime's or CUDA's speaks of memory; they have no type for it."""
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
    """The largest batch that a device holds, judged by one run of it.

    Args:
        batch: images of the run that was tried, and the most that is wanted.
        free: bytes that the run left free.
        used: bytes that it took: activations, and one set of outputs.
        output: bytes of one image's outputs.
        ring: sets of outputs that a whole run holds.

    Returns:
        `batch`, or a power of two below it; at least 1.
    """
    activations = max(used - batch * output, 0) / batch
    most = int(SHARE * (free + used) / max(activations + ring * output, 1))
    if most >= batch:
        return batch
    return 1 << (max(most, 1).bit_length() - 1)


class Copies(Protocol):
    """How bytes get to a device and back."""

    def host(self, shape: tuple[int, ...], dtype: str) -> npt.NDArray[Any]:
        """An array of zeros that the device reaches fast."""

    def upload(self, value: Any, array: npt.NDArray[Any]) -> None:
        """Copy a whole array into an OrtValue of its shape; done when it returns."""

    def download(self, array: npt.NDArray[Any], value: Any) -> None:
        """Fill an array from the front of an OrtValue; done when it returns."""

    def free(self) -> int | None:
        """Free bytes on the device, or None where that cannot be asked."""


class OrtCopies:
    """Copies by onnxruntime alone, between any device of its and pageable memory."""

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
        """Nobody can be asked."""
        return None


class Cudart:
    """The few calls of CUDA's runtime library that copies need, through ctypes, which lets go of the interpreter.

    Device 0 of those that CUDA_VISIBLE_DEVICES shows is meant, as onnxruntime means it.
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
        """The library that onnxruntime loaded, or any that is found; None where there is none or no card answers."""
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
        """Zeros in pinned memory, which is freed with the last array on it; in ordinary memory where none is left."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        pointer = ctypes.c_void_p()
        if not size or self._library.cudaHostAlloc(ctypes.byref(pointer), ctypes.c_size_t(size), 0) or not pointer:
            return np.zeros(shape, dtype)
        block: Any = (ctypes.c_byte * size).from_address(pointer.value or 0)
        # At the interpreter's end the driver frees everything, and may be gone already.
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
        """Copy in this thread's own stream, beside whatever runs, and wait for it."""
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
    """One batch on the device: its inputs, every output, and the binding that joins them to the session."""

    def __init__(self, session: Any, batch: int, inputs: Shapes, shapes: Shapes, device: str) -> None:
        """Allocate for `batch` images: the shapes, without the image axis, and dtypes of inputs and outputs."""
        self.inputs = {n: _value((batch, *own), dtype, device) for n, (own, dtype) in inputs.items()}
        self.outputs = {n: _value((batch, *own), dtype, device) for n, (own, dtype) in shapes.items()}
        self.binding = session.io_binding()
        for n, value in self.inputs.items():
            self.binding.bind_ortvalue_input(n, value)
        for n, value in self.outputs.items():
            self.binding.bind_ortvalue_output(n, value)


class Ring:
    """Up to `RING` slots for batches of one size, shared by all threads; made when they are first wanted."""

    def __init__(self, make: Any, batch: int, size: int = RING) -> None:
        """Begin empty: `make()` gives a `Slot` for `batch` images."""
        self.batch = batch
        self._make = make
        self._idle: SimpleQueue[Slot] = SimpleQueue()
        self._left, self._made = size, 0
        self._lock = threading.Lock()

    @contextmanager
    def slot(self) -> Iterator[Slot]:
        """A slot for this thread alone; waits for one where all are in use."""
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
                    # Memory for fewer slots than wished is slower, but enough.
                    if not self._made or not out_of_memory(error):
                        raise
                    self._left = 0
        return self._idle.get()


def _value(shape: tuple[int, ...], dtype: str, device: str) -> Any:
    return ort.OrtValue.ortvalue_from_shape_and_type(list(shape), np.dtype(dtype).type, device, 0)
