"""Memory of an accelerator: copies to and from it, pinned host memory, and the amount of free memory.

If CUDA's runtime library can be loaded, it does the copies: without the interpreter's lock and into pinned memory, so
that they overlap with the next run. Otherwise onnxruntime copies, which is slower but correct. The calls are tested
with a simulated library.
"""

from __future__ import annotations

import ctypes
import math
import sys
import threading
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from ...errors import AttlasError

__all__ = ["Copies", "Cudart", "Memory", "OnCard", "OrtCopies", "OutOfMemoryError", "out_of_memory"]


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory of a device that holds an array, in the form in which libraries for cards pass arrays to each other.

    `owner` is whatever the memory is freed with.
    """

    pointer: int
    shape: tuple[int, ...]
    dtype: str
    owner: Any = field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int) -> Memory:
        """The part at an index of the first axis."""
        if not 0 <= index < len(self):
            raise IndexError(f"{index} of {len(self)}")
        size = self.nbytes // len(self)
        return Memory(self.pointer + index * size, self.shape[1:], self.dtype, self.owner)

    def data_ptr(self) -> int:
        """`pointer`, as onnxruntime's values give it."""
        return self.pointer

    @property
    def nbytes(self) -> int:
        """Its size."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Version 3 of the CUDA array interface; without a stream, since onnxruntime waits for its own."""
        return {"shape": self.shape, "typestr": np.dtype(self.dtype).str, "data": (self.pointer, False), "version": 3}


class OutOfMemoryError(AttlasError):
    """The device does not have enough memory for a batch."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error of onnxruntime or CUDA is about memory, by its text: they have no exception type for it."""
    text = str(error).lower()
    signs = (
        "out of memory",
        "out_of_memory",
        "failed to allocate memory",
        "cuda failure 2:",
        "bad_alloc",
        "alloc_failed",
        "is smaller than requested bytes",
    )
    return any(sign in text for sign in signs)


class OnCard(Protocol):
    """Computes the statistics of a batch that lies in a card's memory. The analysis room implements it.

    Attributes:
        dtype: of the attention that it takes.
        outputs: the arrays that it fills by name: shape without the image axis, and dtype. The reducer's `templates`,
            `_finite`, and with prefix tokens `prefix_attention` (image, layer, head, prefix, key), in `dtype`.
        pool: whether it needs the pool's own map.
        margin: values after the last layer's that it may read, and does not use.
    """

    dtype: Literal["float16", "float32"]
    outputs: dict[str, tuple[tuple[int, ...], str]]
    pool: bool
    margin: int

    def bind(
        self, batch: int, attention: Memory, stride: int, outputs: Mapping[str, Memory], pool: Memory | None = None
    ) -> Callable[[], None]:
        """A function that reduces what lies there, again and again, and returns when the card has finished.

        Args:
            batch: images.
            attention: every layer's (image, head, query, key), flat, in `dtype`.
            stride: values from the beginning of a layer to that of the next.
            outputs: where the arrays of `outputs` belong, image first.
            pool: the pool's own map (image, head, pool_query, key), float32.
        """


class Copies(Protocol):
    """Copies bytes to a device and back."""

    def host(self, shape: tuple[int, ...], dtype: str) -> npt.NDArray[Any]:
        """An array of zeros in host memory that the device can access fast."""

    def upload(self, value: Any, array: npt.NDArray[Any] | Memory) -> None:
        """Copy a whole array into an OrtValue of the same shape; returns when the copy is complete.

        CUDA's library also copies from and to memory of the device.
        """

    def download(self, array: npt.NDArray[Any], value: Any) -> None:
        """Fill an array from the front of an OrtValue; returns when the copy is complete."""

    def free(self) -> int | None:
        """Free bytes on the device, or None if unknown."""


class OrtCopies:
    """Copies with onnxruntime, between any of its devices and pageable memory."""

    def host(self, shape: tuple[int, ...], dtype: str) -> npt.NDArray[Any]:
        """Zeros in ordinary memory."""
        return np.zeros(shape, dtype)

    def upload(self, value: Any, array: npt.NDArray[Any] | Memory) -> None:
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
    TO_DEVICE, TO_HOST, ON_DEVICE, NON_BLOCKING = 1, 2, 3, 1

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

    def upload(self, value: Any, array: npt.NDArray[Any] | Memory) -> None:
        """See `Copies`."""
        if isinstance(array, Memory):
            self._copy(value.data_ptr(), array.pointer, array.nbytes, self.ON_DEVICE)
        else:
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

    def urgent_stream(self) -> int:
        """A new stream whose kernels go before those of all others, as a number; it is never freed."""
        stream, least, most = ctypes.c_void_p(), ctypes.c_int(), ctypes.c_int()
        self._check(self._library.cudaDeviceGetStreamPriorityRange(ctypes.byref(least), ctypes.byref(most)))
        self._check(self._library.cudaStreamCreateWithPriority(ctypes.byref(stream), self.NON_BLOCKING, most))
        return stream.value or 0

    def _check(self, code: int) -> None:
        if code:
            text = (self._library.cudaGetErrorString(code) or b"").decode(errors="replace")
            kind = OutOfMemoryError if out_of_memory(Exception(text)) else AttlasError
            raise kind(f"the CUDA device fails ({text or f'error {code}'})")
