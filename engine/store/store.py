"""The attention store: reading, writing and its guarantees.

A store is a Zarr v3 group in a folder or a bucket. Every array has named dimensions; the group's attributes hold the
graph's spec and the plan. The group `run` holds the done-marks. A unit is done only if its mark exists; the mark is
written last, after the unit's chunks are safe against a power failure.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import AttlasError, one_line
from ...exporter.spec import FORMAT, GraphSpec
from ..plan import Plan, digest
from . import arrays as layouts
from .locks import recording, unwritten
from .reader import MARKS, Reader, mark_key
from .reading import KIND, DamagedError, read_attrs
from .schema import FLOAT16_ATTRS, LARGE, LAYERED, ArraySpec, Template
from .storage import ROOT, storage_at

__all__ = ["FLOAT16_ATTRS", "LARGE", "LAYERED", "ArraySpec", "DamagedError", "Store", "Template", "read_attrs"]


class Store(Reader):
    """A store opened for reading, or by a run for writing.

    Attributes:
        path: its local path, or a URL.
        storage: reads and writes its files by key.
        spec: spec of the graph that made it.
        plan: plan of the run that made it.
    """

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        spec: GraphSpec,
        plan: Plan,
        arrays: Iterable[ArraySpec],
        *,
        values: Mapping[str, Any],
        attrs: Mapping[str, Any],
    ) -> Store:
        """Create a store: every array with its metadata and `values`, and no unit done.

        A store is always complete or does not exist. If another process creates a store with the same plan at the same
        time, that store is opened.

        Raises:
            AttlasError: something else is at `path`, or it cannot be written.
        """
        storage = storage_at(path)
        root = {"attlas_format": FORMAT, "kind": KIND, **attrs, "spec": spec.to_dict(), "plan": plan.to_dict()}
        done = ArraySpec("run/done", ("unit",), (plan.units,), (1,), "uint8", 0)
        try:
            files = layouts.laid_out(root, [*arrays, done], values)
            metadata = {key: data.decode() for key, data in files.items() if key.endswith(ROOT) and key != ROOT}
            made = storage.lay_out(files, digest([root["plan"], metadata]).encode())
        except OSError as error:
            raise AttlasError(f"{storage.path}: cannot be written ({one_line(error)})") from None
        store = cls(path, writable=True)
        if not made and digest([store.plan.to_dict()]) != digest([root["plan"]]):
            raise AttlasError(
                f"{storage.path}: another process laid out another run here just now; choose another output"
            )
        return store

    @staticmethod
    def remove(path: str | os.PathLike[str]) -> None:
        """Delete the store at `path`, if there is one, or the rest of an interrupted creation or deletion.

        Raises:
            AttlasError: it is not an attlas store, is being written, or cannot be deleted.
        """
        storage = storage_at(path)
        try:
            if storage.occupied():
                read_attrs(storage)
            elif not storage.claimed():
                return
            with unwritten(storage.path):
                storage.remove()
        except OSError as error:
            raise AttlasError(f"{storage.path}: cannot be deleted ({one_line(error)})") from None

    def write(
        self, name: str, start: int, block: npt.NDArray[Any], layer: slice | None = None, *, later: bool = False
    ) -> None:
        """Write `block`, whose first axis is image, from image `start` on; only one layer if `layer` is given.

        With `later`, it is written in the background; `mark_done` waits for it, or raises its error.

        A block of exactly one chunk, as in every run, is encoded and written in the caller's thread. The bytes are
        those that zarr writes. zarr itself uses an event loop and two more threads for each chunk, in which a run's
        workers spent 44 % of their time waiting.
        """
        array = self.array(name)
        first = array.chunks[0]
        index = (start // first, layer.start if layer else 0, *[0] * (array.ndim - 2))[: array.ndim]
        known = layouts.encoded(array)
        whole = known and start % first == 0 and (len(block) == first or first > len(block) == array.shape[0] - start)
        if whole and block.shape[1:] == array.chunks[1:]:
            write = self.storage.send if later else self.storage.write
            write(self.chunk_key(name, index), *layouts.encode(array, block))
        else:
            where: Any = slice(start, start + len(block))
            array[where if layer is None else (where, layer)] = block

    def write_fixed(self, names: Iterable[str], values: Mapping[str, Any]) -> None:
        """Write arrays again that were written when the store was created, as far as there are values.

        Raises:
            AttlasError: the store cannot be written.
        """
        try:
            for name in (name for name in names if name in values):
                self.array(name)[...] = values[name]
                self.storage.keep(self.keys(name))
        except (OSError, ValueError) as error:
            raise AttlasError(f"{self.path}: cannot be written ({one_line(error)})") from None

    def mark_done(self, k: int) -> None:
        """Mark unit k done, safely against power failures: its chunks reach the disk before the mark."""
        self.storage.keep(self.unit_keys(k))
        array = self.array(MARKS)
        if layouts.encoded(array):
            data = b"".join(layouts.encode(array, np.ones(1, np.uint8)))
        else:
            array[k] = 1
            data = self.storage.read(mark_key(k))
        self.storage.mark(mark_key(k), data)

    def reopen(self, k: int) -> None:
        """Remove unit k's mark, so that the next run does it again.

        Raises:
            AttlasError: it cannot be written.
        """
        try:
            self.storage.delete(mark_key(k))
        except OSError as error:
            raise AttlasError(f"{self.path}: cannot be written ({one_line(error)})") from None

    def add(self, arrays: Sequence[ArraySpec], values: Mapping[str, Any] = {}) -> None:
        """Add or replace arrays of an existing store, all at once (used by the analysis).

        If it is interrupted, the old arrays are unchanged. An existing array without new values is not changed. The
        names are listed in the attribute `analyzed`: these arrays belong to the analysis and not to the run's units.

        Raises:
            AttlasError: one has the name of an array of the run.
            OSError: it cannot be written.
        """
        self.storage.check_there()
        with recording(self.path):
            self._open()
            analyzed = self.attrs.get("analyzed", ())
            for array in arrays:
                if array.name in self and array.name not in analyzed:
                    raise AttlasError(f"{self.path}: {array.name} was written by the run and is not replaced")
            layouts.join(self.storage, arrays, values, {"analyzed": sorted({*analyzed, *(a.name for a in arrays)})})
        self._open()

    def record_run(self, entry: Mapping[str, Any]) -> None:
        """Append a run's entry to the record.

        Raises:
            OSError: it cannot be written.
        """
        with recording(self.path):
            record = self.record
            record["runs"] = [*record.get("runs", ()), dict(entry)]
            data = {"attributes": record, "zarr_format": 3, "node_type": "group"}
            self.storage.write(f"run/{ROOT}", json.dumps(data, indent=2).encode())

    def sweep(self, *, analysis: bool = False) -> int:
        """Remove half-written files of killed runs, or of killed analyses; returns their number.

        Each only under its own lock, since the other may be writing.
        """
        own = {"run", *self.names}.difference(self.attrs.get("analyzed", ()))
        return self.storage.sweep(lambda name: (name in own) != analysis)
