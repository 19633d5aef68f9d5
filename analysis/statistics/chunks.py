"""Stored attention, a batch of one layer at a time, decoded in the caller's thread into an array that is used again.

zarr's own way leads over an event loop and further threads for every chunk, where an analysis spends more time than
in the decoding: 0.8 to 1.3 against 2.7 to 3.2 GB/s on two threads (benchmarks/analyze.py). The values are the same.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ...engine.store.store import Store

__all__ = ["Chunks"]


class Chunks:
    """One array of (image, layer, ...) whose chunks are one layer of a batch; not for several threads at once."""

    def __init__(self, store: Store, name: str) -> None:
        self._store, self._name = store, name
        array = store.array(name)
        self._shape = array.chunks
        self._buffer = np.empty(array.chunks[:1] + array.chunks[2:], array.dtype) if array.chunks[1] == 1 else None

    def read(self, images: range, place: int) -> npt.NDArray[np.generic]:
        """Attention of a batch at that place on the layer axis, (image, ...); valid until the next read.

        Raises:
            AttlasError: the chunk is damaged.
        """
        if self._buffer is not None and images.start % self._shape[0] == 0 and len(images) <= self._shape[0]:
            index = (images.start // self._shape[0], place, *[0] * (len(self._shape) - 2))
            if self._store.read_chunk(self._name, index, self._buffer):
                return self._buffer[: len(images)]
        return self._store.read(self._name, (slice(images.start, images.stop), place))
