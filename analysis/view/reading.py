"""One image's rows of a store: the chunk that holds them is decoded once and kept for the next request."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ...engine.store.storage import ROOT
from ...engine.store.store import Store
from ...errors import AttlasError
from .. import formulas
from ..formulas.arrays import Array

__all__ = ["AbsentError", "MissingError", "Reader"]

CACHE = 384 << 20  # bytes of decoded chunks; a picture of a large model needs 12 to 24 of them


class MissingError(AttlasError):
    """There is no such thing to ask for."""


class AbsentError(MissingError):
    """There could be, but the store does not hold it; the message says why, in one line for the page."""


class Reader:
    """A store and its decoded chunks; for several threads at once."""

    def __init__(self, store: Store, size: int = CACHE) -> None:
        self.store = store
        self._size = size
        self._lock = threading.Lock()
        self._chunks: OrderedDict[tuple[str, int, int], npt.NDArray[Any]] = OrderedDict()
        self._done: set[int] = set()
        self._root = store.storage.read(ROOT)

    def fresh(self) -> Reader:
        """Itself, or a new one where the store's root has changed: an analysis has added arrays, or replaced some."""
        if self.store.storage.read(ROOT) == self._root:
            return self
        return Reader(Store(self.store.path), self._size)

    def done(self, image: int) -> bool:
        """Whether the run has done this image. A mark never goes away while a run grows the store."""
        unit = image // self.store.plan.unit
        if unit not in self._done and self.store.is_done(unit):
            self._done.add(unit)
        return unit in self._done

    def check(self, image: int) -> None:
        """Refuse an image that the store does not have, has not done, or could not read.

        Raises:
            MissingError: with the reason.
        """
        if not 0 <= image < self.store.plan.images:
            raise MissingError(f"there is no image {image}; the store has {self.store.plan.images}")
        if not self.done(image):
            raise AbsentError("this picture is not done yet: the run goes on, or was stopped")
        if not self.row("valid", image):
            raise AbsentError(
                f"this picture could not be read: {self.row('error', image) or 'the reason is not known'}"
            )

    def row(self, name: str, image: int, place: int | None = None) -> Any:
        """One image's row of an array; with `place`, of one layer alone."""
        array = self.store.array(name)
        layered = place is not None and array.chunks[1] == 1
        if array.chunks[2 if layered else 1 :] != array.shape[2 if layered else 1 :]:
            return self.store.read(name, image if place is None else (image, place))
        first = image // array.chunks[0]
        key = (name, first, place if layered and place is not None else 0)
        with self._lock:
            found = self._chunks.get(key)
            if found is not None:
                self._chunks.move_to_end(key)
        if found is None:
            found = self._keep(key, self._decoded(name, key, array.chunks[: 2 if layered else 1]))
        row = found[image - first * array.chunks[0]]
        return row[0] if layered else row if place is None else row[place]

    def _decoded(self, name: str, key: tuple[str, int, int], chunk: tuple[int, ...]) -> npt.NDArray[Any]:
        _, first, place = key
        array = self.store.array(name)
        index = (first, place, *[0] * (array.ndim - 2))[: array.ndim]
        if array.dtype.kind in "biuf":
            out = np.empty(array.chunks, array.dtype)
            if self.store.read_chunk(name, index, out):
                return out
        rows = slice(first * chunk[0], min((first + 1) * chunk[0], array.shape[0]))
        return self.store.read(name, (rows, slice(place, place + 1)) if len(chunk) == 2 else rows)

    def _keep(self, key: tuple[str, int, int], values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        with self._lock:
            self._chunks[key] = values
            while len(self._chunks) > 1 and sum(v.nbytes for v in self._chunks.values()) > self._size:
                self._chunks.popitem(last=False)
        return values

    def attention(self, image: int, place: int) -> npt.NDArray[np.float32]:
        """What is kept of one layer's attention: (head, query, key) float32, whole, or the prefix tokens' rows alone.

        Where only the mean over heads was kept, there is one head.

        Raises:
            AbsentError: nothing of it was kept.
        """
        store = self.store
        if place in store.kept_layers:
            if "attention" in store:
                return _finite(self.row("attention", image, place))
            if "attention_code" in store:
                return _finite(formulas.decode_codes(self.row("attention_code", image, place)))
            if "attention_mean" in store:
                return _finite(self.row("attention_mean", image, place)[None])
        if "prefix_attention" not in store:
            raise AbsentError(
                f"attention of layer {store.spec.layers[place]} was not kept: `attlas run` chooses, --keep"
            )
        rows: npt.NDArray[np.float32] = self.row("prefix_attention", image, place).astype(np.float32)
        return _finite(rows)

    def rollout(self, image: int) -> npt.NDArray[Any]:
        """Rollout as stored, else from the attention of all layers: (y, x)."""
        store, spec = self.store, self.store.spec
        if "rollout" in store:
            return np.asarray(self.row("rollout", image))
        whole = {"attention", "attention_code", "attention_mean"} & set(store.names)
        if spec.readout == "pool" or not whole or store.kept_layers != list(range(spec.depth)):
            raise AbsentError(
                "rollout was not computed, and follows all layers: `attlas run` makes it where numba is there"
            )
        layers: Sequence[Array] = [self.attention(image, place) for place in range(spec.depth)]
        rows = formulas.readout_rows(spec.prefix, spec.grid, spec.readout)
        found: npt.NDArray[Any] = formulas.rollout(layers, spec.grid, rows)
        return found


def _finite(rows: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    values = rows.astype(np.float32, copy=False)
    if not np.isfinite(values).all():
        raise AbsentError("its values are not finite: the picture could not be read, or this layer was not kept")
    return values
